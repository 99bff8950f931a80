//! External authentication: another server decides about each request, as `auth_request` of nginx.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::body::{Body as _, Incoming};
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderName, HeaderValue, SET_COOKIE, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE, WWW_AUTHENTICATE,
};
use hyper::http::uri::PathAndQuery;
use hyper::{HeaderMap, Method, Request, StatusCode, Uri};
use tokio::net::lookup_host;
use tokio::time::timeout;

use super::answer::{Answer, own, redirect};
use super::request_body::RequestBody;
use super::upstream::{Connections, SendErrorKind, Way, WayTls};
use super::variables::Variables;
use crate::routes::policy::{BackendProtocol, ExternalAuth, Timeouts};
use crate::tls::unverified;

/// Names are resolved again after this time.
const RESOLVE_AGAIN: Duration = Duration::from_secs(10);
/// Servers whose connections are kept. A URL with `$host` has one for each host.
const SERVERS: usize = 256;
/// A longer answer closes the connection instead of being read.
const MAX_BODY: usize = 64 << 10;

/// The connections to the servers that decide about requests.
#[derive(Debug, Default)]
pub struct AuthServers(Mutex<HashMap<String, Arc<Server>>>);

#[derive(Debug, Default)]
struct Server {
    connections: Connections,
    resolved: Mutex<Option<(SocketAddr, Instant)>>,
}

/// The fields that an admitted request and its answer get from the answer of the server.
#[derive(Debug, Default)]
pub struct Granted {
    /// Fields of the request to the backend. A field without values is removed.
    pub to_backend: Vec<(HeaderName, Vec<HeaderValue>)>,
    cookies: Vec<HeaderValue>,
    always_set_cookie: bool,
}

impl Granted {
    /// For a request that needs no decision of the server. It must not have the fields of one.
    pub fn without_decision(auth: &ExternalAuth) -> Self {
        Self { to_backend: granted_fields(auth).map(|name| (name, Vec::new())).collect(), ..Self::default() }
    }

    /// Sets the fields that the backend receives.
    pub fn set_fields(&self, headers: &mut HeaderMap) {
        for (name, values) in &self.to_backend {
            // The client must not be able to send the field itself.
            headers.remove(name);
            for value in values {
                headers.append(name, value.clone());
            }
        }
    }

    /// Adds the cookies of the server: to the answers to which nginx adds fields, or to all.
    pub fn add_cookies(&self, answer: &mut Answer) {
        let usual = matches!(answer.status().as_u16(), 200 | 201 | 204 | 206 | 301..=304 | 307 | 308);
        if usual || self.always_set_cookie {
            for cookie in &self.cookies {
                answer.headers_mut().append(SET_COOKIE, cookie.clone());
            }
        }
    }
}

/// Returns the fields that the server decides about.
fn granted_fields(auth: &ExternalAuth) -> impl Iterator<Item = HeaderName> {
    // These decide where a message ends, which connection it uses, and which host it is for.
    let forbidden = [CONNECTION, CONTENT_LENGTH, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE];
    let names = auth.response_headers.iter().filter_map(|name| name.parse::<HeaderName>().ok());
    names.filter(move |name| !forbidden.contains(name))
}

/// The answer of the server, without its body.
struct Decision {
    status: StatusCode,
    headers: HeaderMap,
}

impl AuthServers {
    /// Sends the fields of a request to the server. Returns the answer to a request that is
    /// refused, and the reason for the log.
    pub async fn authorize(
        &self,
        auth: &ExternalAuth,
        timeouts: &Timeouts,
        variables: &Variables<'_>,
        headers: HeaderMap,
    ) -> Result<Granted, (Answer, Box<str>)> {
        let Decision { status, headers } = match self.decide(auth, timeouts, variables, headers).await {
            Ok(decision) => decision,
            Err(reason) => {
                let reason = format!("auth-url: {reason}").into();
                return Err((own(StatusCode::INTERNAL_SERVER_ERROR), reason));
            }
        };
        let mut granted = Granted {
            to_backend: Vec::new(),
            cookies: headers.get_all(SET_COOKIE).iter().cloned().collect(),
            always_set_cookie: auth.always_set_cookie,
        };
        let refused = |mut answer: Answer| {
            granted.add_cookies(&mut answer);
            (answer, format!("auth-url: the server answered with {status}").into())
        };
        match status {
            _ if status.is_success() => {}
            StatusCode::UNAUTHORIZED => {
                if let Some(signin) = &auth.signin {
                    let signin = variables.expand(signin);
                    let location = signin_url(&signin, &auth.signin_parameter, variables);
                    return Err(refused(redirect(StatusCode::FOUND, &location)));
                }
                let mut answer = own(StatusCode::UNAUTHORIZED);
                for challenge in headers.get_all(WWW_AUTHENTICATE) {
                    answer.headers_mut().append(WWW_AUTHENTICATE, challenge.clone());
                }
                return Err(refused(answer));
            }
            StatusCode::FORBIDDEN => return Err(refused(own(StatusCode::FORBIDDEN))),
            _ => return Err(refused(own(StatusCode::INTERNAL_SERVER_ERROR))),
        }
        let fields = granted_fields(auth).map(|name| {
            let values = headers.get_all(&name).iter().cloned().collect();
            (name, values)
        });
        granted.to_backend = fields.collect();
        Ok(granted)
    }

    async fn decide(
        &self,
        auth: &ExternalAuth,
        timeouts: &Timeouts,
        variables: &Variables<'_>,
        headers: HeaderMap,
    ) -> Result<Decision, Box<str>> {
        let url = variables.expand(&auth.url).parse::<Uri>().map_err(|_| "is no URL")?;
        let (host, is_tls) = match (url.host(), url.scheme_str()) {
            (Some(host), Some("http")) => (host, false),
            (Some(host), Some("https")) => (host, true),
            _ => return Err("is no URL of HTTP".into()),
        };
        let port = url.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let name: Box<str> = host.trim_matches(['[', ']']).into();
        let protocol = if is_tls { BackendProtocol::Https } else { BackendProtocol::Http };
        let tls = match is_tls {
            true => Some(WayTls {
                config: unverified(false).ok_or("cannot set up TLS")?,
                name: Some(name.clone()),
            }),
            false => None,
        };
        let way = Way { protocol, tls };
        let method = auth.method.as_deref().map_or(Ok(Method::GET), |method| method.parse());
        let method = method.map_err(|_| "auth-method is no method")?;
        let target = url.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
        let own_host = url.port_u16().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let headers = fields(auth, variables, headers, &own_host);
        let server = self.server(&format!("{host}:{port}"));
        let address = server
            .resolve(&name, port, timeouts.connect)
            .await
            .map_err(|error| format!("cannot resolve {name}: {error}"))?;
        let mut again = true;
        loop {
            let mut request = Request::new(RequestBody::default());
            *request.method_mut() = method.clone();
            *request.uri_mut() = target.clone().into();
            *request.headers_mut() = headers.clone();
            match server.connections.send(address, &way, timeouts, request).await {
                Ok((response, lease)) => {
                    let (parts, body) = response.into_parts();
                    if timeout(timeouts.read, read_to_end(body)).await == Ok(true)
                        && let Some(lease) = lease
                    {
                        server.connections.give_back(lease);
                    }
                    return Ok(Decision { status: parts.status, headers: parts.headers });
                }
                // The server may have closed an idle connection.
                Err(error) if error.kind == SendErrorKind::Broken && again => again = false,
                Err(error) => {
                    server.forget_address();
                    return Err(error.reason);
                }
            }
        }
    }

    fn server(&self, authority: &str) -> Arc<Server> {
        let mut servers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = servers.get(authority) {
            return server.clone();
        }
        if servers.len() >= SERVERS {
            servers.clear();
        }
        servers.entry(authority.to_owned()).or_default().clone()
    }
}

impl Server {
    async fn resolve(&self, name: &str, port: u16, within: Duration) -> io::Result<SocketAddr> {
        let resolved = *self.resolved.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((address, _)) = resolved.filter(|(_, since)| since.elapsed() < RESOLVE_AGAIN) {
            return Ok(address);
        }
        let found = timeout(within, lookup_host((name, port))).await;
        let address = found.map_err(|_| io::ErrorKind::TimedOut)??.next();
        let address = address.ok_or(io::ErrorKind::NotFound)?;
        *self.resolved.lock().unwrap_or_else(PoisonError::into_inner) = Some((address, Instant::now()));
        Ok(address)
    }

    fn forget_address(&self) {
        *self.resolved.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Returns the fields of the request to the server: those of the client, and those that
/// ingress-nginx sets.
fn fields(auth: &ExternalAuth, variables: &Variables<'_>, mut headers: HeaderMap, host: &str) -> HeaderMap {
    for name in [CONTENT_LENGTH, EXPECT, HeaderName::from_static("x-forwarded-proto")] {
        headers.remove(name);
    }
    let request_uri = variables.request_uri();
    let url = format!("{}://{}{request_uri}", variables.scheme, variables.http_host);
    let redirect = match &auth.request_redirect {
        Some(template) => variables.expand(template),
        None => request_uri.to_string(),
    };
    for (name, value) in [
        ("host", host),
        ("x-original-url", &url),
        ("x-original-uri", &request_uri),
        ("x-original-method", variables.method),
        ("x-sent-from", "sluice"),
        ("x-auth-request-redirect", &redirect),
    ] {
        let name = HeaderName::from_static(name);
        match HeaderValue::from_str(value) {
            Ok(value) => drop(headers.insert(name, value)),
            Err(_) => drop(headers.remove(name)),
        }
    }
    headers
}

/// Returns the URL for the sign-in, with the URL of the request as a parameter unless it has one.
fn signin_url(signin: &str, parameter: &str, variables: &Variables<'_>) -> String {
    let query = signin.split_once('?').map(|(_, query)| query);
    let is_set = |query: &str| query.split('&').any(|pair| pair.split('=').next() == Some(parameter));
    let separator = match query {
        Some(query) if is_set(query) => return signin.to_owned(),
        Some(_) => '&',
        None => '?',
    };
    let back = variables.escaped_request_uri();
    format!("{signin}{separator}{parameter}={}://{}{back}", variables.scheme, variables.http_host)
}

/// Returns whether the body has ended, so that the connection can be used again.
async fn read_to_end(body: Incoming) -> bool {
    let mut body = pin!(body);
    let mut read = 0;
    while let Some(frame) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        let Ok(frame) = frame else { return false };
        read += frame.data_ref().map_or(0, bytes::Bytes::len);
        if read > MAX_BODY {
            return false;
        }
    }
    true
}
