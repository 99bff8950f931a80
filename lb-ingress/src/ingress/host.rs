//! The parts of all Ingresses for one host become its routes.

use std::collections::HashMap;
use std::sync::Arc;

use lb_model::{ObjectName, Problem, ProblemKind, Problems};

use super::compile::{HostPart, Role};
use crate::annotations::CanaryRule;
use crate::routes::{Canary, HostPattern, HostRoutes, HostSettings, Route};

/// Builds a host from the parts of its Ingresses, the one with the lowest rank first. Returns
/// `None` if nothing remains, and the conflicts between Ingresses.
pub(super) fn build(
    host: &HostPattern,
    parts: &[(&ObjectName, &HostPart)],
) -> (Option<HostRoutes>, Vec<Problem>) {
    let roles: [fn(&Role) -> bool; 3] =
        [|role| *role == Role::Rule, |role| *role == Role::Alias, |role| matches!(role, Role::Redirect(_))];
    let decides = roles.into_iter().find(|decides| parts.iter().any(|(_, part)| decides(&part.role)));
    let counts = |role: &Role| *role == Role::Certificate || decides.is_some_and(|decides| decides(role));
    let parts: Vec<_> = parts.iter().filter(|(_, part)| counts(&part.role)).copied().collect();
    if parts.is_empty() {
        return (None, Vec::new());
    }
    let mut builder = Builder::new(host);
    for (name, part) in parts.iter().filter(|(_, part)| part.canary.is_none()) {
        builder.add(name, part);
    }
    for (name, part) in &parts {
        if let Some(rule) = &part.canary {
            builder.add_canary(name, part, rule);
        }
    }
    let Builder { settings, routes, default, problems, .. } = builder;
    (Some(HostRoutes::new(settings, routes, default)), problems)
}

struct Builder<'a> {
    host: &'a HostPattern,
    settings: HostSettings,
    routes: Vec<Arc<Route>>,
    /// The index in `routes` of each path.
    by_path: HashMap<String, usize>,
    default: Option<Arc<Route>>,
    problems: Vec<Problem>,
}

impl<'a> Builder<'a> {
    fn new(host: &'a HostPattern) -> Self {
        Self {
            host,
            settings: HostSettings::default(),
            routes: Vec::new(),
            by_path: HashMap::new(),
            default: None,
            problems: Vec::new(),
        }
    }

    fn add(&mut self, name: &ObjectName, part: &HostPart) {
        let mut problems = Problems::of("Ingress", name);
        for route in &part.routes {
            match self.by_path.get(&route.matcher.to_string()) {
                Some(first) => {
                    let owner = &self.routes[*first].origin.ingress;
                    problems.error(
                        ProblemKind::RouteTaken,
                        route.origin.field(),
                        format_args!("{} {} belongs to Ingress {owner}", self.host, route.matcher),
                        "change host or path; the older Ingress is served",
                    );
                }
                None => {
                    self.by_path.insert(route.matcher.to_string(), self.routes.len());
                    self.routes.push(route.clone());
                }
            }
        }
        match (&self.default, &part.default) {
            (None, Some(default)) => self.default = Some(default.clone()),
            (Some(first), Some(_)) if first.origin.ingress != *name => {
                problems.error(
                    ProblemKind::RouteTaken,
                    "spec.defaultBackend",
                    format_args!("the one of {} belongs to Ingress {}", self.host, first.origin.ingress),
                    "remove it; the older Ingress is served",
                );
            }
            _ => {}
        }
        let settings = &mut self.settings;
        match (&settings.tls, &part.tls) {
            (None, Some((_, secret))) => settings.tls = Some(secret.clone()),
            (Some(first), Some((index, secret))) if first != secret => problems.error(
                ProblemKind::RouteTaken,
                format_args!("spec.tls[{index}].secretName"),
                format_args!("{} has the certificate of the Secret {first} of another Ingress", self.host),
                "name the same Secret; the older Ingress is served",
            ),
            _ => {}
        }
        settings.default_certificate |= part.default_certificate;
        if settings.passthrough.is_none() {
            settings.passthrough.clone_from(&part.passthrough);
        }
        if settings.client_certificates.is_none() {
            settings.client_certificates.clone_from(&part.client_certificates);
        }
        if let Role::Redirect(to) = &part.role {
            settings.redirect_to.get_or_insert_with(|| to.clone());
        }
        self.problems.extend(problems.into_vec());
    }

    fn add_canary(&mut self, name: &ObjectName, part: &HostPart, rule: &CanaryRule) {
        let mut problems = Problems::of("Ingress", name);
        for route in &part.routes {
            let main = self.by_path.get(&route.matcher.to_string()).map(|index| &mut self.routes[*index]);
            let Some(main) = main else {
                problems.error(
                    ProblemKind::NoObject,
                    route.origin.field(),
                    format_args!("no other Ingress has {} {}", self.host, route.matcher),
                    "create the Ingress that the canary belongs to; the canary gets no requests",
                );
                continue;
            };
            if let Some(first) = &main.canary {
                problems.error(
                    ProblemKind::RouteTaken,
                    route.origin.field(),
                    format_args!("Ingress {} is the canary of this path", first.ingress),
                    "delete one of the two; the older one is served",
                );
                continue;
            }
            Arc::make_mut(main).canary = Some(Box::new(Canary {
                ingress: name.clone(),
                backends: route.backends.clone(),
                header: rule.header.clone(),
                cookie: rule.cookie.clone(),
                weight: rule.weight,
                weight_total: rule.weight_total,
            }));
        }
        self.problems.extend(problems.into_vec());
    }
}
