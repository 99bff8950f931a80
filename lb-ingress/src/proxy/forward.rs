//! Sends a request to an endpoint, or to another one if the first fails.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use hyper::body::Body as _;
use hyper::header::{
    ACCEPT, CONNECTION, CONTENT_LENGTH, HOST, HeaderName, HeaderValue, SET_COOKIE, TRANSFER_ENCODING, UPGRADE,
};
use hyper::http::request::Parts;
use hyper::http::uri::PathAndQuery;
use hyper::upgrade::OnUpgrade;
use hyper::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};

use super::answer::{Answer, Content, own};
use super::drain::Drain;
use super::gateway::Gateway;
use super::headers;
use super::request_body::RequestBody;
use super::response_body::Finish;
use super::upstream::{Connections, Lease, SendError, SendErrorKind, Way, WayTls};
use super::variables::{Variables, cookie};
use super::{policy, random, upgrade};
use crate::endpoints::{Choice, EndpointSet, InFlight};
use crate::routes::policy::{
    BackendProtocol, Balance, CookieAffinity, Policy, SameSite, Timeouts, Upstream, UpstreamVersion,
};
use crate::routes::{BackendRef, Found, NormalPath, Route, RouteTable};

const NO_BACKEND_TLS: &str = "the Secret of proxy-ssl-secret is missing or has no valid certificates";

/// A request that has found its route.
pub struct Forward<'a> {
    pub gateway: &'a Arc<Gateway>,
    pub table: &'a RouteTable,
    pub found: Found<'a>,
    pub path: &'a NormalPath<'a>,
    pub variables: Variables<'a>,
    /// The protocol in the field `Upgrade`, and the connection of the client after the upgrade.
    pub upgrade: Option<(HeaderValue, OnUpgrade)>,
    pub drain: &'a Drain,
}

/// A response of an endpoint.
struct Received {
    response: Response<hyper::body::Incoming>,
    lease: Option<Lease>,
    in_flight: InFlight<Connections>,
}

/// Sends the request and returns the answer.
pub async fn forward(forward: Forward<'_>, finish: &mut Finish, parts: Parts, body: RequestBody) -> Answer {
    let Forward { gateway, table, found, path, variables, upgrade, drain } = forward;
    let policy = &*found.route.policy;
    let endpoints = |backend: &_| gateway.endpoints.of(backend).filter(|set| !set.endpoints().is_empty());
    let Some((backend, set)) = found.with_endpoints(endpoints) else {
        finish.record.reason = Some("no endpoint".into());
        return own(StatusCode::SERVICE_UNAVAILABLE);
    };
    finish.record.service = Some(backend.clone());

    let mut parts = parts;
    let target = found.route.path_for_backend(path);
    if let Some(prefix) = &policy.rewrite.forwarded_prefix {
        headers::set_prefix(&mut parts.headers, &found.route.matcher.rewrite(path, prefix));
    }
    if let Some(host) = &policy.rewrite.host
        && let Ok(host) = HeaderValue::from_str(&variables.expand(host))
    {
        parts.headers.insert(HOST, host);
    }
    policy::backend_headers(policy, &variables, &mut parts.headers);
    if let Some((protocol, _)) = &upgrade {
        parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(UPGRADE, protocol.clone());
    }
    let Some(way) = way(gateway, policy, &variables) else {
        finish.record.reason = Some(NO_BACKEND_TLS.into());
        return own(StatusCode::SERVICE_UNAVAILABLE);
    };
    if body.has_bytes() && body.size_hint().exact().is_none() && !way.protocol.is_http2() {
        // The engine leaves out a body of unknown length for methods that rarely have one.
        parts.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    if !set_target(&mut parts, &way, &target, variables.query, policy) {
        finish.record.reason = Some("the rewritten path is no path".into());
        return own(StatusCode::BAD_REQUEST);
    }

    let pinned =
        policy.affinity.as_ref().map(|affinity| (affinity, pinned(affinity, &set, variables.headers)));
    let choice = Chooser { policy, pinned: pinned.and_then(|(_, pinned)| pinned), variables: &variables };
    let progress = body.progress();
    let received = match send(gateway, &set, &choice, &way, finish, Request::from_parts(parts, body)).await {
        Ok(received) => received,
        Err(error) => {
            let too_large = progress.too_large.load(Ordering::Relaxed);
            let status = match error.kind {
                _ if too_large => StatusCode::PAYLOAD_TOO_LARGE,
                SendErrorKind::ConnectTimeout | SendErrorKind::Timeout => StatusCode::GATEWAY_TIMEOUT,
                SendErrorKind::Connect | SendErrorKind::Tls | SendErrorKind::Broken => {
                    StatusCode::BAD_GATEWAY
                }
            };
            finish.record.reason = Some(error.reason);
            let page = error_page(gateway, table, found.route, (finish, backend), &variables, status).await;
            return page.unwrap_or_else(|| own(status));
        }
    };
    let Received { mut response, lease, in_flight } = received;
    let address = in_flight.endpoint().address;
    finish.record.endpoint = Some(address);
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some((protocol, client)) = upgrade else { return own(StatusCode::BAD_GATEWAY) };
        let endpoint = hyper::upgrade::on(&mut response);
        let protocol = response.headers().get(UPGRADE).cloned().unwrap_or(protocol);
        let mut response = response.map(|_| Content::Upgraded);
        headers::remove_hop_by_hop(response.headers_mut());
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
        response.headers_mut().insert(UPGRADE, protocol);
        upgrade::start(client, endpoint, policy.timeouts.read, Some(in_flight), drain.clone());
        return response;
    }
    let fields = response.headers();
    if fields.contains_key(CONTENT_LENGTH) && fields.contains_key(TRANSFER_ENCODING) {
        // The endpoint, or something before it, can be made to answer twice (RFC 9112 6.3).
        finish.record.reason = Some("the response has Content-Length and Transfer-Encoding".into());
        return own(StatusCode::BAD_GATEWAY);
    }
    if header_size(response.headers()) > policy.body.max_response_header as usize {
        finish.record.reason = Some("the header of the response exceeds its limit".into());
        return own(StatusCode::BAD_GATEWAY);
    }
    let status = response.status();
    let page = error_page(gateway, table, found.route, (finish, backend), &variables, status).await;
    if let Some(page) = page {
        return page;
    }
    finish.in_flight = Some(in_flight);
    let read = policy.timeouts.read;
    let mut response = response.map(|body| Content::Endpoint { body, lease, read });
    headers::remove_hop_by_hop(response.headers_mut());
    if let Some(responses) = &policy.responses {
        policy::replace_in_response(responses, &variables, response.headers_mut());
    }
    if let Some((affinity, pinned)) = pinned
        && (pinned.is_none() || (affinity.change_on_failure && pinned != Some(address)))
    {
        let path = affinity.path.as_deref().unwrap_or(found.route.matcher.text());
        if let Some(cookie) = set_cookie(affinity, address, path, variables.scheme == "https") {
            response.headers_mut().append(SET_COOKIE, cookie);
        }
    }
    response
}

fn header_size(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum()
}

/// Returns `None` if the Secret of the policy cannot be used.
fn way(gateway: &Gateway, policy: &Policy, variables: &Variables<'_>) -> Option<Way> {
    let Upstream { protocol, tls, .. } = &policy.upstream;
    if !protocol.is_tls() {
        return Some(Way { protocol: *protocol, tls: None });
    }
    let Gateway { certificates, authorities, .. } = gateway;
    let config = gateway.backend_tls.config(tls, protocol.is_http2(), certificates, authorities)?;
    let name = tls.server_name(variables.host).map(Into::into);
    Some(Way { protocol: *protocol, tls: Some(WayTls { config, name }) })
}

/// Sets the target and the version of the request to the backend.
fn set_target(parts: &mut Parts, way: &Way, target: &str, query: Option<&str>, policy: &Policy) -> bool {
    let unchanged = parts.uri.path_and_query().filter(|sent| sent.path() == target && sent.query() == query);
    let path = match unchanged {
        Some(sent) => sent.clone(),
        None => {
            let target = match query {
                Some(query) if target.contains('?') => format!("{target}&{query}"),
                Some(query) => format!("{target}?{query}"),
                None => target.to_owned(),
            };
            let Ok(path) = PathAndQuery::try_from(target) else { return false };
            path
        }
    };
    let mut uri = hyper::http::uri::Parts::default();
    uri.path_and_query = Some(path);
    match way.protocol {
        BackendProtocol::Http | BackendProtocol::Https => {
            parts.version = match policy.upstream.http_version {
                UpstreamVersion::Http10 => Version::HTTP_10,
                UpstreamVersion::Http11 => Version::HTTP_11,
            };
        }
        BackendProtocol::Grpc | BackendProtocol::Grpcs => {
            // HTTP/2 has the host in the target (RFC 9113 8.3.1).
            let host = parts.headers.remove(HOST);
            uri.authority = host.and_then(|host| host.as_bytes().try_into().ok());
            let scheme = if way.protocol.is_tls() { "https" } else { "http" };
            uri.scheme = scheme.parse().ok();
            parts.version = Version::HTTP_2;
        }
    }
    match Uri::from_parts(uri) {
        Ok(uri) => parts.uri = uri,
        Err(_) => return false,
    }
    true
}

/// Chooses the endpoints of one request.
struct Chooser<'a> {
    policy: &'a Policy,
    pinned: Option<SocketAddr>,
    variables: &'a Variables<'a>,
}

impl Chooser<'_> {
    fn choose(
        &self,
        set: &EndpointSet<Connections>,
        tried: &[SocketAddr],
        now: u64,
    ) -> Option<InFlight<Connections>> {
        let text;
        let choice = match (&self.policy.upstream.balance, self.pinned) {
            (_, Some(address)) => Choice::Address(address),
            (Balance::RoundRobin, None) => Choice::RoundRobin,
            (Balance::LeastOfTwo, None) => Choice::LeastOfTwo(random::below(1 << 24), random::below(1 << 24)),
            (Balance::Hash(by), None) => {
                text = self.variables.expand(by);
                Choice::Hash(&text)
            }
        };
        set.choose(choice, tried, now).map(|endpoint| InFlight::new(endpoint.clone()))
    }
}

fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE | Method::TRACE
    )
}

/// Returns whether a failure counts towards the ejection of an endpoint, which is the same for all
/// Ingresses. The settings of TLS, and a time limit below the default, belong to one Ingress: the
/// endpoint may be right, and fast enough, for others.
fn concerns_all(failure: SendErrorKind, timeouts: &Timeouts) -> bool {
    match failure {
        SendErrorKind::Tls => false,
        SendErrorKind::Timeout => timeouts.read >= Timeouts::default().read,
        // No application takes part in opening a connection. The shortest limit, a second, is long
        // for that.
        SendErrorKind::Connect | SendErrorKind::ConnectTimeout | SendErrorKind::Broken => true,
    }
}

async fn send(
    gateway: &Gateway,
    set: &EndpointSet<Connections>,
    chooser: &Chooser<'_>,
    way: &Way,
    finish: &mut Finish,
    request: Request<RequestBody>,
) -> Result<Received, SendError> {
    let policy = chooser.policy;
    let retry = &policy.upstream.retry;
    let most_tries = set.endpoints().len().min(retry.tries as usize);
    // A copy for endpoints that fail after they have received it.
    let repeatable = most_tries > 1
        && !request.body().has_bytes()
        && (retry.non_idempotent || is_idempotent(request.method()));
    let copy = repeatable.then(|| {
        let mut copy = Request::new(());
        *copy.method_mut() = request.method().clone();
        *copy.uri_mut() = request.uri().clone();
        *copy.version_mut() = request.version();
        *copy.headers_mut() = request.headers().clone();
        copy
    });
    let start = Instant::now();
    let mut tried: Vec<SocketAddr> = Vec::new();
    let mut request = request;
    loop {
        let now = gateway.now_ms();
        let Some(in_flight) = chooser.choose(set, &tried, now) else {
            let reason = "no further endpoint".into();
            return Err(SendError { kind: SendErrorKind::Connect, reason, unsent: None });
        };
        let endpoint = in_flight.endpoint().clone();
        tried.push(endpoint.address);
        finish.record.tries += 1;
        finish.record.endpoint = Some(endpoint.address);
        let sent = Instant::now();
        let result = endpoint.connections.send(endpoint.address, way, &policy.timeouts, request).await;
        let more = tried.len() < most_tries && retry.within.is_none_or(|within| start.elapsed() < within);
        let repeat = || Some(copy.as_ref()?.clone().map(|()| RequestBody::default()));
        let error = match result {
            Ok((response, lease)) => {
                endpoint.succeeded();
                let is_bad = retry.on_status.contains(&response.status().as_u16());
                if is_bad
                    && more
                    && let Some(again) = repeat()
                {
                    request = again;
                    continue;
                }
                finish.record.endpoint_time = Some(sent.elapsed());
                return Ok(Received { response, lease, in_flight });
            }
            Err(error) => error,
        };
        let connecting = matches!(error.kind, SendErrorKind::Connect | SendErrorKind::ConnectTimeout);
        if concerns_all(error.kind, &policy.timeouts) && (connecting || error.unsent.is_none()) {
            endpoint.failed(now, connecting);
        }
        let allowed = match error.kind {
            SendErrorKind::Connect | SendErrorKind::Tls | SendErrorKind::Broken => retry.on_error,
            SendErrorKind::ConnectTimeout | SendErrorKind::Timeout => retry.on_timeout,
        };
        let SendError { kind, reason, unsent } = error;
        let again = if allowed && more { unsent.or_else(repeat) } else { None };
        match again {
            Some(again) => request = again,
            None => return Err(SendError { kind, reason, unsent: None }),
        }
    }
}

/// Returns the answer of the backend for errors if the policy replaces this status. The request has
/// the fields that ingress-nginx sends. `sent` is the request of the client.
async fn error_page(
    gateway: &Gateway,
    table: &RouteTable,
    route: &Route,
    (finish, service): (&mut Finish, &BackendRef),
    sent: &Variables<'_>,
    status: StatusCode,
) -> Option<Answer> {
    let policy = &*route.policy;
    policy.errors.statuses.binary_search(&status.as_u16()).ok()?;
    let set = gateway.endpoints.of(table.error_backend(route)?)?;
    let in_flight = InFlight::new(set.choose(Choice::RoundRobin, &[], gateway.now_ms())?.clone());
    let mut request = Request::new(RequestBody::default());
    *request.uri_mut() = Uri::from_static("/");
    let headers = request.headers_mut();
    let mut set_field = |name: &'static str, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    let text =
        |name| sent.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).unwrap_or_default();
    set_field("host", text(HOST));
    set_field("x-code", status.as_str());
    set_field("x-format", text(ACCEPT));
    set_field("x-original-uri", &sent.request_uri());
    if let Some(route) = &finish.record.route {
        set_field("x-namespace", route.ingress.namespace());
        set_field("x-ingress-name", route.ingress.name());
    }
    set_field("x-service-name", service.service.name());
    set_field("x-service-port", &service.port);
    set_field("x-request-id", sent.request_id);
    let endpoint = in_flight.endpoint().clone();
    let way = Way { protocol: BackendProtocol::Http, tls: None };
    // Boxed: hyper moves the future of a request, and few requests get an error page.
    let sending = endpoint.connections.send(endpoint.address, &way, &policy.timeouts, request);
    let (response, lease) = Box::pin(sending).await.ok()?;
    finish.in_flight = Some(in_flight);
    let read = policy.timeouts.read;
    let mut response = response.map(|body| Content::Endpoint { body, lease, read });
    headers::remove_hop_by_hop(response.headers_mut());
    Some(response)
}

/// The value of the cookie for an endpoint. It hides the address.
fn token(address: SocketAddr) -> String {
    let mut hasher = DefaultHasher::new();
    ("sluice-affinity", address).hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// Returns the endpoint that the cookie of a request names.
fn pinned(
    affinity: &CookieAffinity,
    set: &EndpointSet<Connections>,
    headers: &HeaderMap,
) -> Option<SocketAddr> {
    let value = cookie(headers, &affinity.name)?;
    let mut addresses = set.endpoints().iter().map(|endpoint| endpoint.address);
    addresses.find(|address| token(*address) == value)
}

fn set_cookie(affinity: &CookieAffinity, address: SocketAddr, path: &str, tls: bool) -> Option<HeaderValue> {
    let mut text = format!("{}={}; Path={path}; HttpOnly", affinity.name, token(address));
    if let Some(age) = affinity.max_age {
        text.push_str(&format!("; Max-Age={}", age.as_secs()));
    }
    if let Some(domain) = &affinity.domain {
        text.push_str(&format!("; Domain={domain}"));
    }
    if affinity.secure.unwrap_or(tls) {
        text.push_str("; Secure");
    }
    text.push_str(match affinity.same_site {
        Some(SameSite::None) => "; SameSite=None",
        Some(SameSite::Lax) => "; SameSite=Lax",
        Some(SameSite::Strict) => "; SameSite=Strict",
        None => "",
    });
    HeaderValue::from_str(&text).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_failure_that_an_ingress_causes_ejects_no_endpoint() {
        let counts = |failure, seconds| {
            let read = Duration::from_secs(seconds);
            concerns_all(failure, &Timeouts { read, ..Timeouts::default() })
        };
        assert!(!counts(SendErrorKind::Timeout, 59));
        assert!(counts(SendErrorKind::Timeout, 60) && counts(SendErrorKind::Timeout, 600));
        assert!(!counts(SendErrorKind::Tls, 60));
        for failure in [SendErrorKind::Connect, SendErrorKind::ConnectTimeout, SendErrorKind::Broken] {
            assert!(counts(failure, 1), "{failure:?}");
        }
    }
}
