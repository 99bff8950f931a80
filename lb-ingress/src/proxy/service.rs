//! Answers the requests of a connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use hyper::body::{Body as _, Incoming};
use hyper::header::{AUTHORIZATION, CONNECTION, HOST, HeaderValue, ORIGIN};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Request, Response, StatusCode, Version};

use super::answer::{Answer, own, plain};
use super::client_auth::Shown;
use super::drain::Drain;
use super::external_auth::Granted;
use super::forward::{self, Forward};
use super::framing::MAX_FIELDS;
use super::gateway::Gateway;
use super::guard::{Link, REFUSED_METHOD};
use super::headers::{self, Client, ConnectionFields};
use super::logged::Logged;
use super::pace::Pace;
use super::request_body::RequestBody;
use super::response_body::{Finish, ResponseBody};
use super::variables::{Variables, cookie};
use super::{basic_auth, client_auth, cors, policy, random, upgrade};
use crate::observe::AccessRecord;
use crate::routes::policy::{Auth, BySource, Policy};
use crate::routes::{NormalPath, RequestFacts, RouteTable, request_host};

/// The facts of the TLS connection of a client.
#[derive(Debug)]
pub struct Tls {
    /// The server name of the handshake in lower case.
    pub name: Option<String>,
    /// The certificate of the client, if its host has client certificates.
    pub client: Option<Shown>,
}

/// The requests of one connection.
#[derive(Debug)]
pub struct Service {
    pub gateway: Arc<Gateway>,
    pub peer: SocketAddr,
    /// The port that the client connected to.
    pub port: u16,
    pub fields: ConnectionFields,
    pub tls: Option<Tls>,
    /// `None` for HTTP/2.
    pub link: Option<Arc<Link>>,
    pub drain: Drain,
}

pub(super) struct Facts<'h>(pub(super) &'h HeaderMap);

impl RequestFacts for Facts<'_> {
    fn header(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.to_str().ok()
    }

    fn cookie(&self, name: &str) -> Option<&str> {
        cookie(self.0, name)
    }

    fn random(&self, bound: u32) -> u32 {
        random::below(bound)
    }
}

impl Service {
    pub async fn handle(self: Arc<Self>, request: Request<Incoming>) -> Response<ResponseBody> {
        if let Some(link) = &self.link {
            link.set_busy(true);
        }
        let start = Instant::now();
        let is_upgrade = upgrade::is_requested(request.version(), request.headers());
        let is_http2 = request.version() == Version::HTTP_2;
        // If the client closes the connection, this is dropped with status 499, as in nginx.
        let mut finish = Finish {
            gateway: self.gateway.clone(),
            record: self.record(),
            logged: self.gateway.observer.log.is_some().then(|| Logged::of(&request)),
            start,
            link: self.link.clone(),
            permit: None,
            pace: None,
            in_flight: None,
        };
        let table = self.gateway.table.load_full();
        let mut answer = self.answer(&table, &mut finish, request, is_upgrade).await;
        let switched = answer.status() == StatusCode::SWITCHING_PROTOCOLS;
        if let Some(link) = self.link.as_ref().filter(|_| is_upgrade) {
            link.answer_upgrade(switched);
        }
        finish.record.status = answer.status().as_u16();
        if !is_http2 && !switched && (self.gateway.is_closing() || self.drain.has_begun()) {
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        *answer.version_mut() = Version::HTTP_11;
        answer.map(|content| ResponseBody::new(content, finish))
    }

    fn record(&self) -> AccessRecord {
        AccessRecord {
            client: self.peer.ip().to_canonical(),
            tls: self.tls.is_some(),
            status: 499,
            bytes: 0,
            route: None,
            service: None,
            endpoint: None,
            tries: 0,
            endpoint_time: None,
            reason: None,
            complete: false,
        }
    }

    async fn answer(
        &self,
        table: &RouteTable,
        finish: &mut Finish,
        request: Request<Incoming>,
        is_upgrade: bool,
    ) -> Answer {
        let refuse = |finish: &mut Finish, status: StatusCode, reason: &str| {
            finish.record.reason = Some(reason.into());
            own(status)
        };
        if let Some(status) = request.method().as_str().strip_prefix(REFUSED_METHOD) {
            let status = status.parse().unwrap_or(StatusCode::BAD_REQUEST);
            let mut answer = refuse(finish, status, "the head of the request is malformed, large or slow");
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            return answer;
        }
        if request.headers().len() > MAX_FIELDS {
            return refuse(finish, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "too many fields");
        }
        let (mut parts, body) = request.into_parts();
        if parts.headers.get_all(HOST).iter().nth(1).is_some() {
            return refuse(finish, StatusCode::BAD_REQUEST, "the request has several fields Host");
        }
        headers::join_cookies(&mut parts.headers);
        let host_value = host_of(&parts.uri, &parts.headers);
        let sent_host = host_value.to_str().unwrap_or_default();
        let Some(host) = request_host(sent_host) else {
            return refuse(finish, StatusCode::BAD_REQUEST, "the host is neither a name nor an address");
        };
        if parts.headers.get(HOST) != Some(&host_value) {
            parts.headers.insert(HOST, host_value.clone());
        }
        if self.is_misdirected(table, &parts, &host) {
            let reason = "the connection has the certificate of another host";
            return refuse(finish, StatusCode::MISDIRECTED_REQUEST, reason);
        }
        let (method, uri) = (parts.method.clone(), parts.uri.clone());
        let path = match NormalPath::new(uri.path()) {
            Ok(path) => path,
            Err(error) => return refuse(finish, StatusCode::BAD_REQUEST, &error.to_string()),
        };
        let Some(found) = table.find(&host, &path, &Facts(&parts.headers)) else {
            return refuse(finish, StatusCode::NOT_FOUND, "no route");
        };
        let policy = &*found.route.policy;
        finish.record.route = Some(found.route.origin.clone());
        let client = Client::of(self.peer, &parts.headers, &self.gateway.settings.trusted_proxies);
        finish.record.client = client.address;
        let scheme = client.scheme(self.tls.is_some(), &parts.headers);
        let request_id = headers::request_id(&parts.headers);
        if let Some(logged) = &mut finish.logged {
            logged.request_id = Some(request_id.clone());
        }
        // The fields are changed for the endpoint. A copy costs more than all lookups in the table.
        let original_headers =
            if policy.reads_fields_later() { parts.headers.clone() } else { HeaderMap::new() };
        let variables = Variables {
            scheme,
            host: &host,
            http_host: sent_host,
            sent_path: uri.path(),
            port: self.port,
            request_id: request_id.to_str().unwrap_or_default(),
            method: method.as_str(),
            path: &path,
            query: uri.query(),
            client: client.address,
            headers: &original_headers,
        };
        let sent = variables.with_headers(&parts.headers);
        if policy.refused {
            let reason = "an annotation that restricts access is invalid";
            return refuse(finish, StatusCode::SERVICE_UNAVAILABLE, reason);
        }
        let settings = found.host.map(|host| &host.settings);
        let shown = self.tls.as_ref().and_then(|tls| tls.client.as_ref());
        let redirect = policy::redirects(policy, settings, &sent, self.gateway.settings.https_port);
        if let Some(rules) = settings.and_then(|settings| settings.client_certificates.as_ref()) {
            if self.tls.is_none() {
                let reason = "a client certificate needs TLS";
                return redirect.unwrap_or_else(|| refuse(finish, StatusCode::FORBIDDEN, reason));
            }
            if self.gateway.authorities.of(&rules.secret).is_none() {
                let reason = "the Secret of auth-tls-secret is missing or has no valid ca.crt";
                return refuse(finish, StatusCode::SERVICE_UNAVAILABLE, reason);
            }
            if let Some((answer, reason)) = client_auth::refuse(rules, shown) {
                finish.record.reason = Some(reason.into());
                return answer;
            }
        }
        if let Some(redirect) = redirect {
            return redirect;
        }
        let by_source = policy.by_source(client.address);
        if by_source == BySource::Refused {
            return refuse(finish, StatusCode::FORBIDDEN, "the source address is not allowed");
        }
        let ingress = &found.route.origin.ingress;
        let now = self.gateway.now_ms();
        finish.permit = self.gateway.limiter.admit(ingress, &policy.limits, client.address, now);
        if finish.permit.is_none() {
            return refuse(finish, StatusCode::SERVICE_UNAVAILABLE, "a limit of the route");
        }
        finish.pace = policy.rate.map(Pace::new);
        let origin = policy.cors.as_ref().and(parts.headers.get(ORIGIN)).cloned();
        let preflight = cors::is_preflight(&parts.method, &parts.headers);
        if let Some(cors) = policy.cors.as_ref().filter(|_| preflight) {
            let mut answer = plain(StatusCode::NO_CONTENT, "");
            cors::add(cors, origin.as_ref(), true, answer.headers_mut());
            return answer;
        }
        let identity = (&host_value, &request_id);
        let (granted, refused) = match self.authorize(policy, (client, by_source), &sent, identity).await {
            Ok(granted) => (Some(granted), None),
            Err(refused) => (None, Some(refused)),
        };
        let mut answer = if let Some((answer, reason)) = refused {
            finish.record.reason = Some(reason);
            answer
        } else if let Some(own_answer) = &policy.answer {
            policy::own_answer(own_answer, &sent)
        } else if policy.body.max_request.is_some_and(|limit| body.size_hint().lower() > limit) {
            refuse(finish, StatusCode::PAYLOAD_TOO_LARGE, "the body exceeds the limit of the route")
        } else {
            let body = RequestBody::new(body, policy.body.max_request);
            let on_upgrade = parts.extensions.remove();
            let protocol = parts.headers.get(hyper::header::UPGRADE).cloned();
            headers::remove_hop_by_hop(&mut parts.headers);
            if matches!(policy.auth, Some(Auth::Basic(_))) {
                // The password concerns the proxy only, as in ingress-nginx.
                parts.headers.remove(AUTHORIZATION);
            }
            let host = (scheme, &host_value);
            headers::set_forwarded(&mut parts.headers, client, &self.fields, host, &request_id);
            if let Some(shown) = shown {
                client_auth::set_fields(shown, &mut parts.headers);
            }
            if let Some(granted) = &granted {
                granted.set_fields(&mut parts.headers);
            }
            let forward = Forward {
                gateway: &self.gateway,
                table,
                found,
                path: &path,
                variables,
                upgrade: is_upgrade.then_some(protocol).flatten().zip(on_upgrade),
                drain: &self.drain,
            };
            forward::forward(forward, finish, parts, body).await
        };
        if let Some(granted) = &granted {
            granted.add_cookies(&mut answer);
        }
        policy::response_headers(policy, &variables, answer.headers_mut());
        if let Some(cors) = &policy.cors {
            cors::add(cors, origin.as_ref(), false, answer.headers_mut());
        }
        answer
    }

    /// Decides whether a request may be forwarded. Returns the answer to one that may not, and the
    /// reason for the log.
    async fn authorize(
        &self,
        policy: &Policy,
        (client, by_source): (Client, BySource),
        variables: &Variables<'_>,
        (host, request_id): (&HeaderValue, &HeaderValue),
    ) -> Result<Granted, (Answer, Box<str>)> {
        match &policy.auth {
            None => Ok(Granted::default()),
            Some(Auth::Basic(_)) if by_source == BySource::Suffices => Ok(Granted::default()),
            Some(Auth::External(auth)) if by_source == BySource::Suffices => {
                Ok(Granted::without_decision(auth))
            }
            Some(Auth::Basic(auth)) => {
                let refused = basic_auth::refuse(&self.gateway.users, auth, variables.headers);
                match Box::pin(refused).await {
                    Some((answer, reason)) => Err((answer, reason.into())),
                    None => Ok(Granted::default()),
                }
            }
            Some(Auth::External(auth)) => {
                let mut headers = variables.headers.clone();
                headers::remove_hop_by_hop(&mut headers);
                let host = (variables.scheme, host);
                headers::set_forwarded(&mut headers, client, &self.fields, host, request_id);
                let servers = &self.gateway.auth_servers;
                // Boxed: hyper moves the future of a request, and few requests use `auth-url`.
                Box::pin(servers.authorize(auth, &policy.timeouts, variables, headers)).await
            }
        }
    }

    /// Returns whether a client has used an HTTP/2 connection for a host that another certificate
    /// belongs to (RFC 9110 15.5.20): a wildcard certificate must not lead around its settings.
    fn is_misdirected(&self, table: &RouteTable, parts: &Parts, host: &str) -> bool {
        let Some(name) = self.tls.as_ref().and_then(|tls| tls.name.as_deref()) else { return false };
        let clients = |name| table.host(name).and_then(|host| host.settings.client_certificates.as_ref());
        let other_certificate =
            parts.version == Version::HTTP_2 && table.certificate(name) != table.certificate(host);
        name != host && (other_certificate || clients(name) != clients(host))
    }
}

/// Returns the host of a request, with the port. The target precedes the field (RFC 9112 3.2.2).
fn host_of(uri: &hyper::Uri, headers: &HeaderMap) -> HeaderValue {
    let host = match uri.authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
        None => headers.get(HOST).filter(|host| host.to_str().is_ok()).cloned(),
    };
    host.unwrap_or(HeaderValue::from_static(""))
}
