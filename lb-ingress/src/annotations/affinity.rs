//! Session affinity: `affinity`, `affinity-mode`, `affinity-canary-behavior`, `session-cookie-*`.

use super::reader::{Reader, is_token};
use crate::routes::policy::{CookieAffinity, SameSite};

/// The name in ingress-nginx.
const NAME: &str = "INGRESSCOOKIE";

pub(super) fn read(reader: &mut Reader<'_>) -> Option<CookieAffinity> {
    let kind = reader.text("affinity");
    let name = reader.text("session-cookie-name").unwrap_or(NAME);
    if !is_token(name) {
        reader.bad("session-cookie-name", format_args!("`{name}` is not a name of a cookie"), "correct it");
    }
    let persistent = match reader.text("affinity-mode") {
        None | Some("balanced") => false,
        Some("persistent") => true,
        Some(other) => {
            reader.bad("affinity-mode", format_args!("`{other}` is unknown"), "use balanced or persistent");
            false
        }
    };
    let sticky_canary = match reader.text("affinity-canary-behavior") {
        None | Some("sticky") => true,
        Some("legacy") => false,
        Some(other) => {
            reader.bad(
                "affinity-canary-behavior",
                format_args!("`{other}` is unknown"),
                "use sticky or legacy",
            );
            true
        }
    };
    let max_age = reader.duration("session-cookie-max-age");
    let expires = reader.duration("session-cookie-expires");
    let affinity = CookieAffinity {
        name: name.into(),
        path: attribute(reader, "session-cookie-path"),
        domain: attribute(reader, "session-cookie-domain"),
        max_age: max_age.or(expires).filter(|age| !age.is_zero()),
        secure: reader.flag("session-cookie-secure"),
        same_site: same_site(reader),
        conditional_same_site_none: reader.flag("session-cookie-conditional-samesite-none").unwrap_or(false),
        change_on_failure: reader.flag("session-cookie-change-on-failure").unwrap_or(false),
        persistent,
        sticky_canary,
    };
    match kind? {
        "cookie" => Some(affinity),
        other => {
            reader.bad("affinity", format_args!("`{other}` is unknown"), "use cookie");
            None
        }
    }
}

fn attribute(reader: &mut Reader<'_>, name: &'static str) -> Option<Box<str>> {
    let text = reader.text(name)?;
    if text.contains([';', ',']) || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        reader.bad(name, format_args!("`{text}` cannot stand in a cookie"), "correct it");
    }
    Some(text.into())
}

fn same_site(reader: &mut Reader<'_>) -> Option<SameSite> {
    match reader.text("session-cookie-samesite")? {
        "None" => Some(SameSite::None),
        "Lax" => Some(SameSite::Lax),
        "Strict" => Some(SameSite::Strict),
        other => {
            reader.bad(
                "session-cookie-samesite",
                format_args!("`{other}` is unknown"),
                "use None, Lax or Strict",
            );
            None
        }
    }
}
