//! One Ingress as its routes for each host.

use std::collections::BTreeMap;
use std::sync::Arc;

use lb_model::{Ingress, IngressBackend, IngressPath, ObjectName, PathType, Problem, ProblemKind, Problems};

use super::few::Few;
use super::objects::{NoBackend, Objects};
use crate::annotations::{self, Annotations, CanaryRule};
use crate::routes::policy::{Auth, BasicAuth, BasicAuthForm, ClientCertificates, UpstreamTls};
use crate::routes::{
    Backend, BackendRef, HostPattern, NormalPath, Origin, Passthrough, PathMatcher, Policy, Route,
};
use crate::users::UsersFault;

/// An Ingress that is served, without regard to other Ingresses.
#[derive(Debug, Default)]
pub(super) struct Compiled {
    /// Of two Ingresses with the same host and path, the lesser one counts: the older one, then
    /// by name.
    pub rank: (i64, Option<ObjectName>),
    /// Each part is boxed: a node of the tree has room for eleven values, and most Ingresses have
    /// one host.
    pub hosts: BTreeMap<HostPattern, Box<HostPart>>,
    /// `spec.defaultBackend` of an Ingress without rules.
    pub default: Option<Arc<Route>>,
    pub services: Few<ObjectName>,
    pub secrets: Few<ObjectName>,
    /// Secrets of annotations: users, authorities, certificates towards backends.
    pub named_secrets: Few<ObjectName>,
    pub problems: Vec<Problem>,
}

/// The contribution of an Ingress to a host.
#[derive(Debug, Clone, Default)]
pub(super) struct HostPart {
    pub role: Role,
    pub routes: Vec<Arc<Route>>,
    /// The routes are those of a canary.
    pub canary: Option<CanaryRule>,
    pub default: Option<Arc<Route>>,
    /// Index in `spec.tls`, and the Secret.
    pub tls: Option<(usize, ObjectName)>,
    pub default_certificate: bool,
    pub passthrough: Option<Passthrough>,
    pub client_certificates: Option<ClientCertificates>,
}

/// The reason why an Ingress has a part in a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Role {
    /// It only names the host in `spec.tls`.
    #[default]
    Certificate,
    /// It has a rule for the host.
    Rule,
    /// Annotation `server-alias`: it counts if no Ingress has a rule.
    Alias,
    /// Annotation `from-to-www-redirect`: it counts if there is nothing else. Redirected to this
    /// host.
    Redirect(Box<str>),
}

pub(super) struct Compiler<'a> {
    pub objects: &'a Objects,
    /// The policy of Ingresses without annotations, shared by all of them.
    pub default_policy: &'a Arc<Policy>,
}

impl Compiler<'_> {
    pub fn compile(&self, name: &ObjectName, ingress: &Ingress, problems: Problems) -> Compiled {
        let mut work = Work { name, objects: self.objects, problems, compiled: Compiled::default() };
        let annotations = annotations::read(&ingress.annotations, name.namespace(), &mut work.problems);
        work.compiled.rank = (ingress.created.unwrap_or(i64::MAX), Some(name.clone()));
        let policy = work.policy(&annotations);
        if let Some(Auth::Basic(basic)) = &policy.auth {
            work.check_users(basic, &ingress.annotations);
        }
        if let Some(clients) = &annotations.client_certificates {
            work.check_authorities(clients, &ingress.annotations);
        }
        if policy.upstream.protocol.is_tls() {
            work.check_backend_tls(&policy.upstream.tls, &ingress.annotations);
        }
        let of_clients = annotations.client_certificates.iter().map(|clients| &clients.secret);
        work.compiled.named_secrets = policy.secrets().chain(of_clients).cloned().collect();
        let policy =
            if policy == **self.default_policy { self.default_policy.clone() } else { Arc::new(policy) };
        // An invalid canary must neither get requests nor take the route's place.
        if !annotations.invalid_canary {
            work.rules(ingress, &annotations, &policy);
            work.tls(ingress);
            work.host_rules(&annotations);
        }
        let mut compiled = work.compiled;
        compiled.problems = work.problems.into_vec();
        compiled
    }
}

/// The Ingress that is being compiled.
struct Work<'a> {
    name: &'a ObjectName,
    objects: &'a Objects,
    problems: Problems,
    compiled: Compiled,
}

impl Work<'_> {
    fn policy(&mut self, annotations: &Annotations) -> Policy {
        let mut policy = annotations.policy.clone();
        policy.refused |= annotations.invalid_rewrite;
        policy.errors.statuses.clone_from(&annotations.errors.statuses);
        policy.errors.backend = annotations.errors.service.as_ref().and_then(|service| {
            let service = ObjectName::new(self.name.namespace(), service);
            let found = self.objects.backend(service, None, &mut self.compiled.services);
            let field = "metadata.annotations[nginx.ingress.kubernetes.io/default-backend]";
            found.map_err(|reason| self.no_backend(field, &reason)).ok()
        });
        policy
    }

    fn rules(&mut self, ingress: &Ingress, annotations: &Annotations, policy: &Arc<Policy>) {
        let default = ingress.default_backend.as_ref().map(|backend| {
            self.route(None, PathMatcher::prefix("/"), policy, "spec.defaultBackend", Some(backend))
        });
        if ingress.rules.is_empty() {
            self.compiled.default = default;
            return;
        }
        for (number, rule) in ingress.rules.iter().enumerate() {
            let host = match HostPattern::parse(&rule.host) {
                Ok(host) => host,
                Err(error) => {
                    self.problems.error(
                        ProblemKind::UnknownValue,
                        format_args!("spec.rules[{number}].host"),
                        format_args!("`{}` {error}", rule.host),
                        "use a DNS name, or `*.` and a DNS name; the rule is not served",
                    );
                    continue;
                }
            };
            let mut routes = Vec::new();
            for (index, path) in rule.paths.iter().enumerate() {
                let field = format!("spec.rules[{number}].http.paths[{index}]");
                let Some(matcher) = self.matcher(&field, path, annotations) else { continue };
                let place = u16::try_from(number).ok().zip(u16::try_from(index).ok());
                let field = format!("{field}.backend");
                routes.push(self.route(place, matcher, policy, &field, path.backend.as_ref()));
            }
            let part = self.compiled.hosts.entry(host).or_default();
            part.role = Role::Rule;
            part.routes.extend(routes);
            part.default = default.clone();
            part.canary = annotations.canary.clone();
            part.client_certificates = annotations.client_certificates.clone();
            if annotations.host.passthrough {
                part.passthrough = part.routes.iter().find_map(|route| {
                    let backend = route.backends.first()?.target.clone();
                    Some(Passthrough { origin: route.origin.clone(), backend })
                });
            }
        }
    }

    fn matcher(&mut self, field: &str, path: &IngressPath, annotations: &Annotations) -> Option<PathMatcher> {
        let specific = path.path_type == PathType::ImplementationSpecific;
        let text = if path.path.is_empty() { "/" } else { &*path.path };
        let rewrites = annotations.policy.rewrite.target.is_some() || annotations.invalid_rewrite;
        let is_regex = annotations.use_regex || (rewrites && (specific || text.contains(REGEX_CHARACTERS)));
        if path.path_type != PathType::Exact && is_regex && text != "/" {
            return match PathMatcher::regex(text) {
                Ok(matcher) => Some(matcher),
                Err(error) => {
                    self.problems.error(
                        ProblemKind::UnknownValue,
                        format_args!("{field}.path"),
                        format_args!("`{text}` does not compile: {error}"),
                        "correct the expression; the path is not served",
                    );
                    None
                }
            };
        }
        match NormalPath::new(text) {
            Ok(text) if path.path_type == PathType::Exact => Some(PathMatcher::exact(&text)),
            Ok(text) => Some(PathMatcher::prefix(&text)),
            Err(error) => {
                self.problems.error(
                    ProblemKind::UnknownValue,
                    format_args!("{field}.path"),
                    format_args!("`{text}`: {error}"),
                    "begin with a slash; the path is not served",
                );
                None
            }
        }
    }

    fn route(
        &mut self,
        place: Option<(u16, u16)>,
        matcher: PathMatcher,
        policy: &Arc<Policy>,
        field: &str,
        backend: Option<&IngressBackend>,
    ) -> Arc<Route> {
        // A backend that is `None` was reported when the object was read.
        let backends = backend.and_then(|backend| self.backend(field, backend));
        Arc::new(Route {
            origin: Origin { ingress: self.name.clone(), path: place },
            matcher,
            policy: policy.clone(),
            backends: backends.into_iter().map(|target| Backend { target, weight: 1 }).collect(),
            canary: None,
        })
    }

    fn backend(&mut self, field: &str, backend: &IngressBackend) -> Option<BackendRef> {
        let (service, port) = match backend {
            IngressBackend::Service { name, port } => (name, port),
            IngressBackend::Resource { kind, name } => {
                self.problems.error(
                    ProblemKind::Unsupported,
                    format_args!("{field}.resource"),
                    format_args!("the {kind} {name} is no Service"),
                    "name a Service; requests are answered with 503",
                );
                return None;
            }
        };
        let service = ObjectName::new(self.name.namespace(), service);
        let found = self.objects.backend(service, Some(port), &mut self.compiled.services);
        found.map_err(|reason| self.no_backend(&format!("{field}.service"), &reason)).ok()
    }

    fn no_backend(&mut self, field: &str, reason: &NoBackend) {
        let (kind, remedy) = match reason {
            NoBackend::NoService(_) => (ProblemKind::NoService, "create it"),
            NoBackend::ExternalName(_) => (ProblemKind::Unsupported, "use a Service with endpoints"),
            NoBackend::NoPort { .. } => (ProblemKind::NoService, "name one of its ports"),
        };
        let remedy = format!("{remedy}; requests are answered with 503");
        self.problems.error(kind, field, reason, remedy);
    }

    fn tls(&mut self, ingress: &Ingress) {
        for (index, entry) in ingress.tls.iter().enumerate() {
            let mut hosts = Vec::new();
            for (number, text) in entry.hosts.iter().enumerate() {
                match HostPattern::parse(text) {
                    Ok(host) => hosts.push(host),
                    Err(error) => self.problems.error(
                        ProblemKind::UnknownValue,
                        format_args!("spec.tls[{index}].hosts[{number}]"),
                        format_args!("`{text}` {error}"),
                        "use a DNS name, or `*.` and a DNS name; the entry is ignored",
                    ),
                }
            }
            if entry.hosts.is_empty() {
                hosts.extend(self.compiled.hosts.keys().cloned());
            }
            let secret = entry.secret.as_ref().map(|secret| ObjectName::new(self.name.namespace(), secret));
            if let Some(secret) = &secret {
                self.check_certificate(index, secret);
                self.compiled.secrets.insert(secret.clone());
            }
            for host in hosts {
                let part = self.compiled.hosts.entry(host).or_default();
                match &secret {
                    Some(secret) if part.tls.is_none() => part.tls = Some((index, secret.clone())),
                    Some(_) => {}
                    None => part.default_certificate = true,
                }
            }
        }
    }

    fn check_users(&mut self, basic: &BasicAuth, annotations: &[(Box<str>, Box<str>)]) {
        let name = &basic.secret;
        let fault = self.objects.secrets.get(name).and_then(|keys| match basic.form {
            BasicAuthForm::File => keys.file,
            BasicAuthForm::Map => keys.map,
        });
        let (kind, reason, remedy) = match fault {
            None if self.objects.is_absent(name) => (
                ProblemKind::NoObject,
                format!("the Secret {name} does not exist"),
                "create it; until then, all requests of the Ingress are answered with 503",
            ),
            None => return,
            Some(fault @ (UsersFault::NoFile | UsersFault::Empty)) => (
                ProblemKind::Missing,
                format!("the Secret {name} {fault}"),
                "add users; until then, all requests of the Ingress are answered with 503",
            ),
            Some(fault @ (UsersFault::Line(_) | UsersFault::Key(_))) => (
                ProblemKind::UnknownValue,
                format!("the Secret {name} {fault}"),
                "use bcrypt, apr1, SHA-1, or SHA-256 and SHA-512 of crypt; until then, the user is refused",
            ),
        };
        self.problems.error(kind, annotations::field(annotations, "auth-secret"), reason, remedy);
    }

    fn check_authorities(&mut self, clients: &ClientCertificates, annotations: &[(Box<str>, Box<str>)]) {
        let name = &clients.secret;
        let (kind, reason) = match self.objects.secrets.get(name) {
            Some(keys) if keys.authorities => return,
            Some(_) => {
                (ProblemKind::Missing, format!("the Secret {name} has no valid ca.crt, or an invalid ca.crl"))
            }
            None if self.objects.is_absent(name) => {
                (ProblemKind::NoObject, format!("the Secret {name} does not exist"))
            }
            None => return,
        };
        let remedy = match kind {
            ProblemKind::NoObject => "create it with ca.crt; until then, requests are answered with 503",
            _ => "set ca.crt to PEM certificates; until then, requests are answered with 503",
        };
        self.problems.error(kind, annotations::field(annotations, "auth-tls-secret"), reason, remedy);
    }

    fn check_backend_tls(&mut self, tls: &UpstreamTls, annotations: &[(Box<str>, Box<str>)]) {
        let Some(name) = &tls.secret else { return };
        let (kind, reason) = match self.objects.secrets.get(name) {
            Some(keys) if keys.authorities || (keys.certificate && keys.key && !tls.verify) => return,
            Some(_) if tls.verify => {
                (ProblemKind::Missing, format!("the Secret {name} has no valid ca.crt, or an invalid ca.crl"))
            }
            Some(_) => (
                ProblemKind::Missing,
                format!("the Secret {name} has neither tls.crt and tls.key nor ca.crt"),
            ),
            None if self.objects.is_absent(name) => {
                (ProblemKind::NoObject, format!("the Secret {name} does not exist"))
            }
            None => return,
        };
        let remedy = match kind {
            ProblemKind::NoObject => "create it; until then, requests are answered with 503",
            _ => "set its keys to PEM; until then, requests are answered with 503",
        };
        self.problems.error(kind, annotations::field(annotations, "proxy-ssl-secret"), reason, remedy);
    }

    fn check_certificate(&mut self, index: usize, name: &ObjectName) {
        let field = format!("spec.tls[{index}].secretName");
        let (kind, reason) = match self.objects.secrets.get(name) {
            None => (ProblemKind::NoObject, format!("the Secret {name} does not exist")),
            Some(keys) if !keys.certificate => {
                (ProblemKind::Missing, format!("the Secret {name} has no key tls.crt"))
            }
            Some(keys) if !keys.key => {
                (ProblemKind::Missing, format!("the Secret {name} has no key tls.key"))
            }
            Some(_) => return,
        };
        let remedy = "create it with type kubernetes.io/tls; the default certificate is served";
        self.problems.error(kind, field, reason, remedy);
    }

    fn host_rules(&mut self, annotations: &Annotations) {
        let of_rules = self.compiled.hosts.iter().filter(|(_, part)| part.role == Role::Rule);
        let of_rules: Vec<_> = of_rules.map(|(host, part)| (host.clone(), (**part).clone())).collect();
        if let Some((_, first)) = of_rules.first() {
            for alias in &annotations.host.aliases {
                self.add_host(alias.clone(), HostPart { role: Role::Alias, ..first.clone() });
            }
        }
        for (host, part) in of_rules.iter().filter(|_| annotations.host.www_redirect) {
            let name = host.to_string();
            if host.is_any() || host.is_wildcard() {
                continue;
            }
            let other = name.strip_prefix("www.").map_or_else(|| format!("www.{name}"), str::to_owned);
            let Ok(other) = HostPattern::parse(&other) else { continue };
            let redirect = HostPart {
                role: Role::Redirect(name.into()),
                tls: part.tls.clone(),
                default_certificate: part.default_certificate,
                ..HostPart::default()
            };
            self.add_host(other, redirect);
        }
    }

    /// Adds a host that no rule has. A certificate that the Ingress names for it stays.
    fn add_host(&mut self, host: HostPattern, part: HostPart) {
        let present = self.compiled.hosts.entry(host).or_default();
        if present.role == Role::Certificate {
            let tls = present.tls.take().or_else(|| part.tls.clone());
            **present = HostPart { tls, ..part };
        }
    }
}

/// Characters that have a meaning in expressions and are rare in paths.
const REGEX_CHARACTERS: [char; 9] = ['(', '|', '[', '{', '^', '$', '*', '+', '\\'];
