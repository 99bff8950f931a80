//! What the proxy does with a request, without a connection. The decisions are those of
//! [`Service`](super::service::Service), made by the same functions.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use hyper::HeaderMap;
use hyper::header::{HOST, HeaderName, HeaderValue, LOCATION};
use hyper::{Method, StatusCode, Uri};
use lb_model::ObjectName;

use super::service::Facts;
use super::variables::Variables;
use super::{cors, policy};
use crate::routes::policy::{Auth, BySource, Limits, Policy, Rate, Sources, Upstream};
use crate::routes::{BackendRef, NormalPath, Passthrough, PathMatcher, RouteTable, request_host};

/// A request to explain.
#[derive(Debug, Clone)]
pub struct Question {
    method: String,
    uri: Uri,
    https: bool,
    port: u16,
    headers: HeaderMap,
    /// `None`: any client.
    client: Option<IpAddr>,
}

/// The reasons why a question is no request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuestionError {
    #[error("`{0}` is no URL of http or https, such as http://shop.example/cart")]
    Url(String),
    #[error("`{0}` is no header field, such as `Host: shop.example`")]
    Header(String),
}

/// What happens to a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Explanation {
    pub host: String,
    /// The normalised path.
    pub path: Option<String>,
    /// The Ingress of the route. For the default backend of the settings its Service.
    pub ingress: Option<String>,
    /// The field of the Ingress, such as `spec.rules[0].http.paths[1]`.
    pub rule: Option<String>,
    /// Type and text of the path of the rule.
    pub path_match: Option<String>,
    /// The Ingress with the annotation `canary` that takes the request.
    pub canary: Option<String>,
    /// The connection goes to an endpoint undecrypted (annotation `ssl-passthrough`). So the proxy
    /// reads no path.
    pub passthrough: bool,
    /// What must hold for the request to be forwarded, and what the proxy changes.
    pub steps: Vec<String>,
    /// The answer of the proxy itself. `None`: the request goes to an endpoint.
    pub answer: Option<OwnAnswer>,
    /// The reason why the backend of the annotation `default-backend` receives the request.
    pub fallback: Option<String>,
    pub backend: Option<BackendRef>,
    /// The endpoints that may receive the request.
    pub endpoints: Vec<SocketAddr>,
    /// The path that the endpoint receives.
    pub backend_path: Option<String>,
}

/// An answer that the proxy gives without an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnAnswer {
    /// `None`: the proxy closes the connection without an answer.
    pub status: Option<u16>,
    /// The reason, or the target of a redirect.
    pub reason: String,
}

impl Question {
    /// `fields` are header fields, `Name: value`. A field `Host` replaces the host of the URL.
    ///
    /// # Errors
    /// Fails if the URL or a field is malformed.
    pub fn new(
        method: &str,
        url: &str,
        fields: &[String],
        client: Option<IpAddr>,
    ) -> Result<Self, QuestionError> {
        let bad_url = || QuestionError::Url(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| bad_url())?;
        let https = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(bad_url()),
        };
        let authority = uri.authority().ok_or_else(bad_url)?.as_str();
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_str(authority).map_err(|_| bad_url())?);
        for field in fields {
            let bad = || QuestionError::Header(field.clone());
            let (name, value) = field.split_once(':').ok_or_else(bad)?;
            let name: HeaderName = name.trim().parse().map_err(|_| bad())?;
            let value = HeaderValue::from_str(value.trim()).map_err(|_| bad())?;
            headers.insert(name, value);
        }
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        Ok(Self { method: method.to_owned(), uri, https, port, headers, client })
    }

    /// Returns the host of the URL.
    pub fn url_host(&self) -> &str {
        self.uri.host().unwrap_or_default()
    }

    /// Returns the server name of the TLS connection. Clients send none for an address (RFC 6066
    /// 3).
    fn server_name(&self) -> Option<Cow<'_, str>> {
        let host = self.https.then(|| self.url_host())?;
        let is_address = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        request_host(host).filter(|_| !is_address)
    }

    /// Returns the port that the client connects to.
    pub fn port(&self) -> u16 {
        self.port
    }
}

/// Explains a request. Random choices (canaries, weights of backends) are made once. `https_port`
/// is the port of redirects to TLS. `endpoints` returns the endpoints of a backend.
pub fn explain(
    table: &RouteTable,
    question: &Question,
    https_port: u16,
    endpoints: impl Fn(&BackendRef) -> Vec<SocketAddr>,
) -> Explanation {
    let ready = |backend: &BackendRef| Some(endpoints(backend)).filter(|ready| !ready.is_empty());
    if let Some(name) = question.server_name()
        && let Some(passthrough) = table.passthrough(&name)
    {
        return passed_through(&name, passthrough, ready(&passthrough.backend));
    }
    let Question { method, uri, headers, .. } = question;
    let sent_host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let mut explanation = Explanation { host: sent_host.to_owned(), ..Explanation::default() };
    let refused = |mut explanation: Explanation, status: StatusCode, reason: &str| {
        explanation.answer = Some(OwnAnswer { status: Some(status.as_u16()), reason: reason.to_owned() });
        explanation
    };
    let Some(host) = request_host(sent_host).map(|host| host.into_owned()) else {
        return refused(explanation, StatusCode::BAD_REQUEST, "the host is neither a name nor an address");
    };
    explanation.host = host.clone();
    let path = match NormalPath::new(uri.path()) {
        Ok(path) => path,
        Err(error) => return refused(explanation, StatusCode::BAD_REQUEST, &error.to_string()),
    };
    explanation.path = Some(path.to_string());
    let Some(found) = table.find(&host, &path, &Facts(headers)) else {
        let reason = match table.host(&host) {
            Some(_) => "no rule of the host matches the path",
            None => "no Ingress has this host, and there is no default backend",
        };
        return refused(explanation, StatusCode::NOT_FOUND, reason);
    };
    let route = found.route;
    let policy = &*route.policy;
    explanation.ingress = Some(route.origin.ingress.to_string());
    explanation.rule = Some(route.origin.field().into_owned());
    explanation.path_match = Some(describe(&route.matcher));
    let of_canary = route.canary.as_deref().filter(|canary| {
        let is_backend =
            |target: &BackendRef| canary.backends.iter().any(|backend| backend.target == *target);
        found.backend.is_some_and(is_backend)
            && !route.backends.iter().any(|own| Some(&own.target) == found.backend)
    });
    explanation.canary = of_canary.map(|canary| canary.ingress.to_string());
    let variables = Variables {
        scheme: if question.https { "https" } else { "http" },
        host: &host,
        http_host: sent_host,
        sent_path: uri.path(),
        port: question.port,
        request_id: "",
        method,
        path: &path,
        query: uri.query(),
        client: question.client.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
        headers,
    };
    if policy.refused {
        let reason = "an annotation that restricts access is invalid";
        return refused(explanation, StatusCode::SERVICE_UNAVAILABLE, reason);
    }
    let settings = found.host.map(|host| &host.settings);
    let redirect = policy::redirects(policy, settings, &variables, https_port);
    if let Some(rules) = settings.and_then(|settings| settings.client_certificates.as_ref()) {
        if !question.https && redirect.is_none() {
            return refused(explanation, StatusCode::FORBIDDEN, "a client certificate needs TLS");
        }
        explanation.steps.push(format!("the client shows a certificate of the Secret {}", rules.secret));
        if let Some(pattern) = &rules.subject {
            explanation.steps.push(format!("the subject of the certificate matches {}", pattern.0));
        }
    }
    if let Some(redirect) = redirect {
        let location = redirect.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let reason = format!("redirect to {}", location.unwrap_or_default());
        return refused(explanation, redirect.status(), &reason);
    }
    let by_source = question.client.map_or(BySource::Continues, |client| policy.by_source(client));
    match by_source {
        BySource::Refused => {
            return refused(explanation, StatusCode::FORBIDDEN, "the source address is not allowed");
        }
        BySource::Suffices => {
            let step = "the address of the client is allowed and needs no authentication (satisfy: any)";
            explanation.steps.push(step.to_owned());
        }
        BySource::Continues if question.client.is_none() && policy.sources != Sources::default() => {
            let either = policy.sources.suffice && policy.auth.is_some();
            let step = if either { ", or an authentication is needed (satisfy: any)" } else { "" };
            explanation.steps.push(format!("the address of the client is allowed{step}"));
        }
        BySource::Continues => {}
    }
    if policy.limits != Limits::default() {
        explanation.steps.push("limits of requests or connections apply".to_owned());
    }
    let preflight = method.parse().is_ok_and(|method: Method| cors::is_preflight(&method, headers));
    if policy.cors.is_some() && preflight {
        return refused(explanation, StatusCode::NO_CONTENT, "the request is a preflight of CORS");
    }
    explanation.steps.extend(steps(policy, by_source != BySource::Suffices));
    if let Some(answer) = &policy.answer {
        let answer = policy::own_answer(answer, &variables);
        return refused(explanation, answer.status(), "the Ingress answers by itself");
    }
    let Some((backend, endpoints)) = found.with_endpoints(ready) else {
        explanation.backend = found.backend.cloned();
        return refused(explanation, StatusCode::SERVICE_UNAVAILABLE, no_endpoint(found.backend));
    };
    let Upstream { protocol, tls, .. } = &policy.upstream;
    if let Some(secret) = tls.secret.as_ref().filter(|_| protocol.is_tls()) {
        let name = tls.server_name(&host).filter(|_| tls.verify);
        explanation.steps.push(match name {
            Some(name) => {
                format!("the Secret {secret} has certificates, and the endpoint has one for {name}")
            }
            None => format!("the Secret {secret} has certificates"),
        });
    }
    if found.backend != Some(backend) {
        explanation.fallback = Some(match found.backend {
            Some(own) => format!("{} port {} has no ready endpoint", own.service, own.port),
            None => no_endpoint(None).to_owned(),
        });
    }
    let statuses = &policy.errors.statuses;
    if !statuses.is_empty()
        && let Some(errors) = table.error_backend(route)
    {
        let statuses: Vec<_> = statuses.iter().map(ToString::to_string).collect();
        let statuses = statuses.join(", ");
        explanation.steps.push(format!("{} answers in place of the status {statuses}", errors.service));
    }
    explanation.backend = Some(backend.clone());
    explanation.endpoints = endpoints;
    explanation.backend_path = Some(route.path_for_backend(&path).into_owned());
    explanation
}

/// Explains a connection that the proxy does not decrypt.
fn passed_through(name: &str, to: &Passthrough, endpoints: Option<Vec<SocketAddr>>) -> Explanation {
    let closed = || OwnAnswer { status: None, reason: no_endpoint(Some(&to.backend)).to_owned() };
    Explanation {
        host: name.to_owned(),
        ingress: Some(to.origin.ingress.to_string()),
        rule: Some(to.origin.field().into_owned()),
        passthrough: true,
        answer: endpoints.is_none().then(closed),
        backend: Some(to.backend.clone()),
        endpoints: endpoints.unwrap_or_default(),
        ..Explanation::default()
    }
}

/// Returns the reason why no endpoint receives a request for this backend.
fn no_endpoint(backend: Option<&BackendRef>) -> &'static str {
    match backend {
        Some(_) => "the Service has no ready endpoint",
        None => "the Service or its port does not exist",
    }
}

fn describe(matcher: &PathMatcher) -> String {
    let kind = match matcher {
        PathMatcher::Exact(_) => "Exact",
        PathMatcher::Prefix(_) => "Prefix",
        PathMatcher::Regex(_) => "regular expression",
    };
    format!("{kind} {}", matcher.text())
}

/// Returns what a policy checks or changes after the limits, in the order of a request.
fn steps(policy: &Policy, needs_auth: bool) -> Vec<String> {
    let secret = |name: &ObjectName| format!("the client sends a password of the Secret {name}");
    let mut steps = Vec::new();
    match policy.auth.as_ref().filter(|_| needs_auth) {
        Some(Auth::Basic(auth)) => steps.push(secret(&auth.secret)),
        Some(Auth::External(_)) => steps.push("another server allows the request (auth-url)".to_owned()),
        None => {}
    }
    if policy.cors.is_some() {
        steps.push("answers have the fields of CORS".to_owned());
    }
    if policy.affinity.is_some() {
        steps.push("a cookie keeps the client at its endpoint".to_owned());
    }
    if let Some(limit) = policy.body.max_request {
        steps.push(format!("the body has at most {limit} bytes"));
    }
    if let Some(Rate { bytes, .. }) = policy.rate {
        steps.push(format!("the answer has at most {bytes} bytes a second (limit-rate)"));
    }
    steps
}
