//! The policy of a route: the typed result of all annotations of an Ingress.
//!
//! One struct for each family of annotations. The defaults are those of ingress-nginx, so that an
//! Ingress without annotations behaves as before a migration.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use lb_model::ObjectName;
use regex::bytes::Regex;

use super::backend::BackendRef;
use super::template::Template;

/// The policy of all routes of one Ingress.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    pub redirect: Redirects,
    pub rewrite: Rewrite,
    pub timeouts: Timeouts,
    pub body: Body,
    pub cors: Option<Cors>,
    pub sources: Sources,
    pub auth: Option<Auth>,
    pub affinity: Option<CookieAffinity>,
    pub limits: Limits,
    /// The speed of responses. `None`: they are as fast as their clients.
    pub rate: Option<Rate>,
    pub upstream: Upstream,
    pub errors: Errors,
    pub headers: Headers,
    /// Few Ingresses have them, and a cluster has many.
    pub responses: Option<Box<Responses>>,
    /// The answer to every request, without a backend (`return` in a configuration snippet).
    pub answer: Option<Answer>,
    /// An annotation that restricts access is invalid. All requests are answered with 503, as by
    /// ingress-nginx: the restriction must not vanish.
    pub refused: bool,
}

/// Redirects, in the order in which they apply (annotations `permanent-redirect`,
/// `temporal-redirect`, `ssl-redirect`, `force-ssl-redirect`, `app-root`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Redirects {
    /// All requests are redirected.
    pub all: Option<Redirect>,
    pub to_tls: TlsRedirect,
    /// A request for `/` is redirected to this path, with status 302.
    pub app_root: Option<Box<str>>,
}

/// A redirect of all requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// 300 to 399.
    pub status: u16,
    /// The value of `Location`.
    pub location: Template,
}

/// Whether requests without TLS are redirected to `https`, with status 308.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TlsRedirect {
    /// If the host is in `spec.tls` ([`HostSettings`](super::HostSettings)).
    #[default]
    WithCertificate,
    /// Always (annotation `force-ssl-redirect`).
    Always,
    Never,
}

/// Path and host that the backend receives (annotations `rewrite-target`, `x-forwarded-prefix`,
/// `upstream-vhost`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// Begins with a slash. Contains `$1` to `$9` for groups of the path.
    pub target: Option<Box<str>>,
    /// The header `X-Forwarded-Prefix`. It may contain groups too.
    pub forwarded_prefix: Option<Box<str>>,
    /// The host that the backend receives.
    pub host: Option<Template>,
}

/// Time limits towards the backend (annotations `proxy-*-timeout`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    pub connect: Duration,
    /// Between two writes to the backend, not for the whole request.
    pub send: Duration,
    /// Between two reads from the backend, not for the whole response.
    pub read: Duration,
}

/// Bodies (annotations `proxy-body-size`, `proxy-buffering`, `proxy-request-buffering`,
/// `proxy-buffer-size`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Body {
    /// Longest body of a request in bytes; a longer one is answered with 413. `None` means no
    /// limit.
    pub max_request: Option<u64>,
    /// The header of a response may have this many bytes. A longer one is answered with 502.
    pub max_response_header: u32,
    /// The backend gets a request when its body is complete, so that it can be sent again.
    pub buffer_request: bool,
    /// The response is read as fast as the backend sends it, up to a limit of memory.
    pub buffer_response: bool,
}

/// Cross-origin resource sharing (annotations `enable-cors`, `cors-*`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cors {
    pub origins: Origins,
    /// The value of `Access-Control-Allow-Methods`.
    pub methods: Box<str>,
    /// The value of `Access-Control-Allow-Headers`.
    pub headers: Box<str>,
    /// The value of `Access-Control-Expose-Headers`.
    pub expose: Option<Box<str>>,
    pub credentials: bool,
    pub max_age: Duration,
}

/// The origins that may use a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origins {
    Any,
    Listed(Box<[OriginPattern]>),
}

/// An origin: `scheme://host[:port]`, whose host may begin with `*.`, which stands for one or more
/// labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginPattern {
    /// With `://`, in lower case.
    pub scheme: Box<str>,
    /// The host begins with `*.`.
    pub wildcard: bool,
    /// Host and port in lower case, without `*.`.
    pub host: Box<str>,
}

/// Client addresses (annotations `allowlist-source-range`, `whitelist-source-range`,
/// `denylist-source-range`, `satisfy`). Others are answered with 403.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources {
    /// `None` admits every address.
    pub allowed: Option<Box<[IpNet]>>,
    pub denied: Box<[IpNet]>,
    /// If the policy has an authentication, either suffices: an address in `allowed`, or the
    /// authentication.
    pub suffice: bool,
}

/// What the address of a client decides about its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BySource {
    Refused,
    /// The authentication decides, if there is one.
    Continues,
    /// It needs no authentication.
    Suffices,
}

/// The authentication of requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Auth {
    Basic(BasicAuth),
    External(Box<ExternalAuth>),
}

/// HTTP Basic authentication (annotations `auth-type`, `auth-secret`, `auth-secret-type`,
/// `auth-realm`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BasicAuth {
    pub secret: ObjectName,
    pub form: BasicAuthForm,
    pub realm: Box<str>,
}

/// The form of users and passwords in a Secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BasicAuthForm {
    /// The key `auth` has an htpasswd file.
    File,
    /// Each key is a user, its value the hash of the password.
    Map,
}

/// Another server decides about each request (annotations `auth-url`, `auth-method`,
/// `auth-signin`, `auth-signin-redirect-param`, `auth-response-headers`, `auth-request-redirect`,
/// `auth-always-set-cookie`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalAuth {
    pub url: Template,
    /// Upper case. `None` means `GET`.
    pub method: Option<Box<str>>,
    /// A request that is refused with 401 is redirected to this URL.
    pub signin: Option<Template>,
    /// The parameter of `signin` with the URL of the request.
    pub signin_parameter: Box<str>,
    /// Headers of the server's answer that the backend receives. In lower case.
    pub response_headers: Box<[Box<str>]>,
    /// The value of `X-Auth-Request-Redirect`.
    pub request_redirect: Option<Template>,
    /// Cookies of the server's answer are added to error answers too.
    pub always_set_cookie: bool,
}

/// Session affinity by a cookie (annotations `affinity`, `affinity-mode`,
/// `affinity-canary-behavior`, `session-cookie-*`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CookieAffinity {
    pub name: Box<str>,
    /// `None` means the path of the route.
    pub path: Option<Box<str>>,
    pub domain: Option<Box<str>>,
    /// `Max-Age` and `Expires`. `None` means until the browser ends.
    pub max_age: Option<Duration>,
    pub secure: Option<bool>,
    pub same_site: Option<SameSite>,
    /// `SameSite=None` is left out for browsers that misread it.
    pub conditional_same_site_none: bool,
    /// The cookie changes after a failure of its endpoint.
    pub change_on_failure: bool,
    /// An endpoint keeps its clients even if endpoints are added.
    pub persistent: bool,
    /// A client that a canary got once stays with it.
    pub sticky_canary: bool,
}

/// The attribute `SameSite` of a cookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SameSite {
    None,
    Lax,
    Strict,
}

/// Limits for each client address (annotations `limit-rps`, `limit-rpm`, `limit-connections`,
/// `limit-burst-multiplier`, `limit-allowlist`). Requests beyond them are answered with 503.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    pub requests_per_second: Option<u32>,
    pub requests_per_minute: Option<u32>,
    /// A burst may have this many times the rate.
    pub burst_multiplier: u32,
    pub connections: Option<u32>,
    /// Client addresses without limits.
    pub exempt: Box<[IpNet]>,
}

/// The speed of a response (annotations `limit-rate`, `limit-rate-after`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Bytes a second, at least one.
    pub bytes: u64,
    /// So many bytes at the start are not slowed down.
    pub after: u64,
}

/// The way to the backend (annotations `backend-protocol`, `load-balance`,
/// `upstream-hash-by`, `proxy-next-upstream*`, `proxy-ssl-*`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Upstream {
    pub protocol: BackendProtocol,
    pub balance: Balance,
    pub retry: Retry,
    /// For the protocols with TLS.
    pub tls: UpstreamTls,
    pub http_version: UpstreamVersion,
}

/// The protocol of a backend.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BackendProtocol {
    #[default]
    Http,
    Https,
    /// HTTP/2 without TLS.
    Grpc,
    /// HTTP/2 with TLS.
    Grpcs,
}

/// The version of HTTP towards backends of [`BackendProtocol::Http`] and
/// [`BackendProtocol::Https`] (annotation `proxy-http-version`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum UpstreamVersion {
    Http10,
    #[default]
    Http11,
}

/// The way to choose an endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Balance {
    #[default]
    RoundRobin,
    /// Of two random endpoints, the one with fewer requests (`ewma` in ingress-nginx).
    LeastOfTwo,
    /// Consistent hash of this text.
    Hash(Template),
}

/// The conditions for sending a request to another endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// The endpoint cannot be reached, or closed the connection.
    pub on_error: bool,
    pub on_timeout: bool,
    /// The response has no valid header.
    pub on_invalid_header: bool,
    /// The response has one of these statuses.
    pub on_status: Box<[u16]>,
    /// Also requests that are not idempotent and that the endpoint may have received.
    pub non_idempotent: bool,
    /// Number of endpoints at most, the first included.
    pub tries: u32,
    /// No further try after this time. `None` means no limit.
    pub within: Option<Duration>,
}

/// TLS towards the backend (annotations `proxy-ssl-*`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamTls {
    /// The Secret with `tls.crt`, `tls.key` for this client, and `ca.crt` for the backend.
    pub secret: Option<ObjectName>,
    /// The backend must have a certificate of an authority in the Secret, for `name`.
    pub verify: bool,
    /// The greatest number of certificates between the backend's and its authority.
    pub verify_depth: u8,
    /// `None`: the host of the request.
    pub name: Option<Box<str>>,
    /// The name is sent as the server name (SNI).
    pub send_name: bool,
}

impl UpstreamTls {
    /// Returns the name that the backend's certificate must have, and that is sent to it. Returns
    /// `None` if neither is the case. `host` is the one of the request.
    pub fn server_name<'a>(&'a self, host: &'a str) -> Option<&'a str> {
        (self.verify || self.send_name).then(|| self.name.as_deref().unwrap_or(host))
    }
}

/// Answers in place of the backend's (annotations `custom-http-errors`, `default-backend`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Errors {
    /// Responses with these statuses are replaced by the answer of `backend`. Sorted.
    pub statuses: Box<[u16]>,
    /// Receives these errors, and requests whose Service has no endpoint. `None` means the default
    /// backend of the table.
    pub backend: Option<BackendRef>,
}

/// Headers that are set (annotation `configuration-snippet`). Names are in lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers {
    /// Headers of the request that the backend receives. An empty value removes the header.
    pub to_backend: Box<[(Box<str>, Template)]>,
    /// Headers of responses that replace those of the backend.
    pub set_in_response: Box<[(Box<str>, Template)]>,
    /// Headers that are added to responses.
    pub add_to_response: Box<[(Box<str>, Template)]>,
}

/// The host and the paths of the backend in responses, and what clients receive in their place
/// (annotations `proxy-cookie-domain`, `proxy-cookie-path`, `proxy-redirect-*`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Responses {
    /// A domain of cookies. A dot before it stays.
    pub cookie_domain: Option<Replacement>,
    /// The beginning of paths of cookies.
    pub cookie_path: Option<Replacement>,
    /// The beginning of `Location`, and of the URL in `Refresh`.
    pub redirect: Option<Replacement>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replacement {
    pub from: Template,
    pub to: Template,
}

/// An answer without a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// The body, or the value of `Location` for redirects.
    pub text: Template,
}

/// Client certificates of a host (annotations `auth-tls-*`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificates {
    /// The Secret with `ca.crt`.
    pub secret: ObjectName,
    pub verify: ClientVerification,
    pub depth: u8,
    /// A request without a valid certificate is redirected to this URL.
    pub error_page: Option<Box<str>>,
    /// The backend receives the certificate in the header `ssl-client-cert`.
    pub pass_to_backend: bool,
    /// The subject of the certificate has a match of this expression.
    pub subject: Option<SubjectPattern>,
}

/// An expression for subjects of certificates (annotation `auth-tls-match-cn`).
#[derive(Debug, Clone)]
pub struct SubjectPattern(pub Regex);

impl PartialEq for SubjectPattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for SubjectPattern {}

/// The clients that are admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientVerification {
    /// Only clients with a valid certificate.
    Required,
    /// Clients without a certificate too.
    Optional,
    /// Clients with a certificate of another authority too: the backend decides.
    OptionalNoCa,
}

impl BackendProtocol {
    pub fn is_tls(self) -> bool {
        matches!(self, Self::Https | Self::Grpcs)
    }

    pub fn is_http2(self) -> bool {
        matches!(self, Self::Grpc | Self::Grpcs)
    }
}

impl Policy {
    /// Returns whether the fields of a request are read after it was changed for its endpoint: by
    /// variables, and by decisions about the response.
    pub fn reads_fields_later(&self) -> bool {
        let Self {
            redirect: _,
            rewrite,
            timeouts: _,
            body: _,
            cors: _,
            sources: _,
            auth: _,
            affinity,
            limits: _,
            rate: _,
            upstream,
            errors,
            headers,
            responses,
            answer: _,
            refused: _,
        } = self;
        let Headers { to_backend, set_in_response, add_to_response } = headers;
        rewrite.host.is_some()
            || affinity.is_some()
            || matches!(upstream.balance, Balance::Hash(_))
            || !errors.statuses.is_empty()
            || responses.is_some()
            || !(to_backend.is_empty() && set_in_response.is_empty() && add_to_response.is_empty())
    }

    /// Returns the Secrets that the policy needs.
    pub fn secrets(&self) -> impl Iterator<Item = &ObjectName> {
        let users = match &self.auth {
            Some(Auth::Basic(basic)) => Some(&basic.secret),
            Some(Auth::External(_)) | None => None,
        };
        users.into_iter().chain(&self.upstream.tls.secret)
    }
}

impl Default for UpstreamTls {
    fn default() -> Self {
        Self { secret: None, verify: false, verify_depth: 1, name: None, send_name: false }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        let minute = Duration::from_secs(60);
        Self { connect: Duration::from_secs(5), send: minute, read: minute }
    }
}

impl Default for Body {
    fn default() -> Self {
        Self {
            max_request: Some(1 << 20),
            max_response_header: 32 << 10,
            buffer_request: false,
            buffer_response: false,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests_per_second: None,
            requests_per_minute: None,
            burst_multiplier: 5,
            connections: None,
            exempt: Box::default(),
        }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            on_error: true,
            on_timeout: true,
            on_invalid_header: false,
            on_status: Box::default(),
            non_idempotent: false,
            tries: 2,
            within: None,
        }
    }
}

impl Origins {
    /// Returns whether the value of `Origin` is allowed.
    pub fn allow(&self, origin: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Listed(patterns) => {
                let origin = origin.to_ascii_lowercase();
                patterns.iter().any(|pattern| pattern.matches(&origin))
            }
        }
    }
}

impl OriginPattern {
    fn matches(&self, origin: &str) -> bool {
        let Some(host) = origin.strip_prefix(&*self.scheme) else { return false };
        if !self.wildcard {
            return host == &*self.host;
        }
        let labels = host.strip_suffix(&*self.host).and_then(|labels| labels.strip_suffix('.'));
        labels.is_some_and(|labels| {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
            !labels.is_empty() && labels.bytes().all(allowed)
        })
    }
}

impl Policy {
    /// Decides by the address of a client.
    pub fn by_source(&self, client: IpAddr) -> BySource {
        let Sources { allowed, denied, suffice } = &self.sources;
        let client = client.to_canonical();
        let within = |ranges: &[IpNet]| ranges.iter().any(|range| range.contains(&client));
        let is_admitted = !within(denied) && allowed.as_deref().is_none_or(within);
        match (is_admitted, *suffice && self.auth.is_some()) {
            (false, false) => BySource::Refused,
            // As in nginx: an address that is only not denied does not suffice.
            (true, true) if allowed.is_some() => BySource::Suffices,
            _ => BySource::Continues,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins() {
        let pattern =
            |wildcard, host: &str| OriginPattern { scheme: "https://".into(), wildcard, host: host.into() };
        let listed = Origins::Listed([pattern(false, "a.example:8443"), pattern(true, "b.example")].into());
        for (origin, expected) in [
            ("https://a.example:8443", true),
            ("https://A.example:8443", true),
            ("https://a.example", false),
            ("http://a.example:8443", false),
            ("https://x.b.example", true),
            ("https://x.y.b.example", true),
            ("https://b.example", false),
            ("https://evilb.example", false),
            ("https://evil.example/.b.example", false),
            ("null", false),
        ] {
            assert_eq!(listed.allow(origin), expected, "{origin}");
            assert!(Origins::Any.allow(origin));
        }
    }

    #[test]
    fn sources() {
        let ranges =
            |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Box<[IpNet]>>();
        let (allowed, denied) = (Some(ranges(&["10.0.0.0/8", "fd00::/8"])), ranges(&["10.1.0.0/16"]));
        let policy = Policy { sources: Sources { allowed, denied, suffice: false }, ..Policy::default() };
        for (client, expected) in [
            ("10.0.0.1", true),
            ("::ffff:10.0.0.1", true),
            ("10.1.0.1", false),
            ("192.0.2.1", false),
            ("fd00::1", true),
        ] {
            let expected = if expected { BySource::Continues } else { BySource::Refused };
            assert_eq!(policy.by_source(client.parse().unwrap()), expected, "{client}");
            assert_eq!(Policy::default().by_source(client.parse().unwrap()), BySource::Continues);
        }
    }
}
