//! One table of all annotations and their support. Events, `lb preflight` and the tests follow it.

use lb_model::{ProblemKind, Problems};

use super::result::Annotations;
use crate::routes::policy::Timeouts;

/// The support of an annotation.
#[derive(Debug, Clone, Copy)]
pub(super) enum Support {
    /// The proxy answers requests as ingress-nginx does with the annotation.
    Served,
    /// The proxy has no such feature. If the condition holds, some requests are answered in
    /// another way, for this reason.
    Ignored(fn(&Annotations) -> bool, &'static str),
    /// The family that reads the annotation reports its values, each with its own remedy.
    OfFamily,
    /// No family reads it. Its absence changes no answer.
    WithoutEffect,
    /// No family reads it. The Ingress is served without it.
    Missing,
}

use Support::{Ignored, Missing, OfFamily, Served, WithoutEffect};

/// All annotations of ingress-nginx, without their prefix.
pub(super) const TABLE: &[(Support, &[&str])] = &[
    (
        Served,
        &[
            "affinity",
            "allowlist-source-range",
            "app-root",
            "auth-always-set-cookie",
            "auth-method",
            "auth-realm",
            "auth-request-redirect",
            "auth-response-headers",
            "auth-secret",
            "auth-secret-type",
            "auth-signin",
            "auth-signin-redirect-param",
            "auth-tls-error-page",
            "auth-tls-match-cn",
            "auth-tls-pass-certificate-to-upstream",
            "auth-tls-secret",
            "auth-tls-verify-client",
            "auth-tls-verify-depth",
            "auth-type",
            "auth-url",
            "backend-protocol",
            "canary",
            "canary-by-cookie",
            "canary-by-header",
            "canary-by-header-pattern",
            "canary-by-header-value",
            "canary-weight",
            "canary-weight-total",
            "configuration-snippet",
            "cors-allow-credentials",
            "cors-allow-headers",
            "cors-allow-methods",
            "cors-allow-origin",
            "cors-expose-headers",
            "cors-max-age",
            "custom-http-errors",
            "default-backend",
            "denylist-source-range",
            "enable-cors",
            "force-ssl-redirect",
            "from-to-www-redirect",
            "limit-allowlist",
            "limit-burst-multiplier",
            "limit-connections",
            "limit-rate",
            "limit-rate-after",
            "limit-rpm",
            "limit-rps",
            "limit-whitelist",
            "load-balance",
            "permanent-redirect",
            "permanent-redirect-code",
            "proxy-body-size",
            "proxy-buffer-size",
            "proxy-connect-timeout",
            "proxy-cookie-domain",
            "proxy-cookie-path",
            "proxy-http-version",
            "proxy-next-upstream-timeout",
            "proxy-next-upstream-tries",
            "proxy-read-timeout",
            "proxy-redirect-from",
            "proxy-redirect-to",
            "proxy-ssl-name",
            "proxy-ssl-secret",
            "proxy-ssl-server-name",
            "proxy-ssl-verify",
            "proxy-ssl-verify-depth",
            "rewrite-target",
            "satisfy",
            "server-alias",
            "session-cookie-change-on-failure",
            "session-cookie-domain",
            "session-cookie-expires",
            "session-cookie-max-age",
            "session-cookie-name",
            "session-cookie-path",
            "session-cookie-samesite",
            "session-cookie-secure",
            "ssl-passthrough",
            "ssl-redirect",
            "temporal-redirect",
            "temporal-redirect-code",
            "upstream-hash-by",
            "upstream-vhost",
            "use-regex",
            "whitelist-source-range",
            "x-forwarded-prefix",
        ],
    ),
    (
        Ignored(|it| it.policy.body.buffer_response, "a response is sent on while it is received"),
        &["proxy-buffering"],
    ),
    (
        Ignored(|it| it.policy.body.buffer_request, "a request is sent on while it is received"),
        &["proxy-request-buffering"],
    ),
    (
        Ignored(
            |it| it.policy.timeouts.send != Timeouts::default().send,
            "proxy-read-timeout limits requests too",
        ),
        &["proxy-send-timeout"],
    ),
    (
        Ignored(
            |it| it.policy.upstream.retry.on_invalid_header,
            "a response with an invalid header counts as an error",
        ),
        &["proxy-next-upstream"],
    ),
    (
        Ignored(
            |it| it.policy.affinity.as_ref().is_some_and(|it| !it.persistent),
            "a client keeps its endpoint until that is removed, as with persistent",
        ),
        &["affinity-mode"],
    ),
    (
        Ignored(
            |it| it.policy.affinity.as_ref().is_some_and(|it| it.sticky_canary),
            "a canary is chosen for each request, as with legacy",
        ),
        &["affinity-canary-behavior"],
    ),
    (
        Ignored(
            |it| it.policy.affinity.as_ref().is_some_and(|it| it.conditional_same_site_none),
            "all browsers receive the same cookie",
        ),
        &["session-cookie-conditional-samesite-none"],
    ),
    (
        OfFamily,
        &[
            "auth-snippet",
            "modsecurity-snippet",
            "proxy-ssl-ciphers",
            "proxy-ssl-protocols",
            "server-snippet",
            "service-upstream",
            "stream-snippet",
            "upstream-hash-by-subset",
            "upstream-hash-by-subset-size",
        ],
    ),
    (
        WithoutEffect,
        &[
            "client-body-buffer-size",
            "connection-proxy-header",
            "disable-proxy-intercept-errors",
            "enable-access-log",
            "enable-opentelemetry",
            "enable-opentracing",
            "enable-rewrite-log",
            "http2-push-preload",
            "opentelemetry-operation-name",
            "opentelemetry-trust-incoming-span",
            "opentracing-trust-incoming-span",
            "preserve-trailing-slash",
            "proxy-buffers-number",
            "proxy-busy-buffers-size",
            "proxy-max-temp-file-size",
            "ssl-ciphers",
            "ssl-prefer-server-ciphers",
        ],
    ),
    (
        Missing,
        &[
            "auth-cache-duration",
            "auth-cache-key",
            "auth-keepalive",
            "auth-keepalive-requests",
            "auth-keepalive-share-vars",
            "auth-keepalive-timeout",
            "auth-proxy-set-headers",
            "custom-headers",
            "denylist-source-range-status",
            "enable-global-auth",
            "enable-modsecurity",
            "enable-owasp-core-rules",
            "global-rate-limit",
            "global-rate-limit-ignored-cidrs",
            "global-rate-limit-key",
            "global-rate-limit-window",
            "mirror-host",
            "mirror-request-body",
            "mirror-target",
            "modsecurity-transaction-id",
            "relative-redirects",
            "secure-verify-ca-secret",
            "session-cookie-partitioned",
        ],
    ),
];

/// Reports an annotation that is not served, with the full `name`, whose name without prefix is
/// `short`.
pub(super) fn report(name: &str, short: &str, read: &Annotations, problems: &mut Problems) {
    let field = format!("metadata.annotations[{name}]");
    let support = TABLE.iter().find(|(_, names)| names.contains(&short)).map(|(support, _)| *support);
    match support {
        Some(Served | OfFamily) => {}
        Some(Ignored(condition, reason)) if condition(read) => problems.error(
            ProblemKind::Ignored,
            field,
            format_args!("has no effect: {reason}"),
            "remove it, or keep it for other controllers; the Ingress is served without it",
        ),
        Some(Ignored(..)) => {}
        Some(WithoutEffect) => problems.note(
            ProblemKind::Unsupported,
            field,
            "has no effect",
            "remove it, or keep it for other controllers",
        ),
        Some(Missing) => problems.error(
            ProblemKind::Unsupported,
            field,
            "is not supported",
            "remove it; the Ingress is served without it",
        ),
        None => problems.error(
            ProblemKind::Unsupported,
            field,
            "is not a known annotation",
            "correct its name, or remove it; the Ingress is served without it",
        ),
    }
}
