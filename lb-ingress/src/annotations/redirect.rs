//! Redirects: `ssl-redirect`, `force-ssl-redirect`, `permanent-redirect`, `temporal-redirect`,
//! `app-root`.

use super::reader::Reader;
use crate::routes::policy::{Redirect, Redirects, TlsRedirect};

pub(super) fn read(reader: &mut Reader<'_>) -> Redirects {
    let with_certificate = reader.flag("ssl-redirect");
    let to_tls = match (reader.flag("force-ssl-redirect"), with_certificate) {
        (Some(true), _) => TlsRedirect::Always,
        (_, Some(false)) => TlsRedirect::Never,
        _ => TlsRedirect::WithCertificate,
    };
    Redirects { all: all(reader), to_tls, app_root: app_root(reader) }
}

/// A temporal redirect comes before a permanent one, as in ingress-nginx.
fn all(reader: &mut Reader<'_>) -> Option<Redirect> {
    let temporal_status = reader.number("temporal-redirect-code", 300, 308);
    let permanent_status = reader.number("permanent-redirect-code", 300, 308);
    let temporal = reader.url("temporal-redirect");
    let permanent = reader.url("permanent-redirect");
    let status =
        |status: Option<u32>, default| status.and_then(|it| u16::try_from(it).ok()).unwrap_or(default);
    match (temporal, permanent) {
        (Some(location), _) => Some(Redirect { status: status(temporal_status, 302), location }),
        (None, Some(location)) => Some(Redirect { status: status(permanent_status, 301), location }),
        (None, None) => None,
    }
}

fn app_root(reader: &mut Reader<'_>) -> Option<Box<str>> {
    let path = reader.text("app-root")?;
    if !path.starts_with('/') || path == "/" || path.starts_with("//") || path.contains(char::is_whitespace) {
        reader.bad("app-root", format_args!("`{path}` is not a path below /"), "use a path such as /app");
    }
    Some(path.into())
}
