//! Annotations of ingress-nginx that no family reads.

use lb_model::{ProblemKind, Problems};

/// Annotations whose absence changes no answer.
const WITHOUT_EFFECT: [&str; 17] = [
    "client-body-buffer-size",
    "connection-proxy-header",
    "enable-access-log",
    "enable-opentelemetry",
    "enable-opentracing",
    "enable-rewrite-log",
    "http2-push-preload",
    "opentelemetry-operation-name",
    "opentelemetry-trust-incoming-span",
    "opentracing-trust-incoming-span",
    "proxy-busy-buffers-size",
    "proxy-buffers-number",
    "proxy-max-temp-file-size",
    "ssl-ciphers",
    "ssl-prefer-server-ciphers",
    "disable-proxy-intercept-errors",
    "preserve-trailing-slash",
];

/// Annotations that change answers and are not supported.
const MISSING: [&str; 28] = [
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
    "proxy-cookie-domain",
    "proxy-cookie-path",
    "proxy-redirect-from",
    "proxy-redirect-to",
    "relative-redirects",
    "satisfy",
    "secure-verify-ca-secret",
    "session-cookie-partitioned",
];

/// Reports an annotation with the full `name`, whose name without prefix is `short`.
pub(super) fn report(name: &str, short: &str, problems: &mut Problems) {
    let field = format!("metadata.annotations[{name}]");
    if WITHOUT_EFFECT.contains(&short) {
        problems.note(
            ProblemKind::Unsupported,
            field,
            "has no effect",
            "remove it, or keep it for other controllers",
        );
    } else if MISSING.contains(&short) {
        problems.error(
            ProblemKind::Unsupported,
            field,
            "is not supported",
            "remove it; the Ingress is served without it",
        );
    } else {
        problems.error(
            ProblemKind::Unsupported,
            field,
            "is not a known annotation",
            "correct its name, or remove it; the Ingress is served without it",
        );
    }
}
