//! Settings of a whole host: `server-alias`, `from-to-www-redirect`, `ssl-passthrough`,
//! `auth-tls-*`.

use super::reader::{Reader, list};
use crate::routes::HostPattern;
use crate::routes::policy::{ClientCertificates, ClientVerification, SubjectPattern};

/// The annotations of an Ingress that concern its hosts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostRules {
    pub aliases: Vec<HostPattern>,
    /// `www.` is added to the host, or removed from it, and redirected.
    pub www_redirect: bool,
    pub passthrough: bool,
}

pub(super) fn read(reader: &mut Reader<'_>) -> HostRules {
    const NAME: &str = "server-alias";
    let mut aliases = Vec::new();
    for text in list(reader.text(NAME).unwrap_or_default()) {
        if text.starts_with('~') {
            reader.unsupported(NAME, format_args!("`{text}` is an expression"), "list the names");
            continue;
        }
        match HostPattern::parse(text) {
            Ok(host) if !host.is_any() => aliases.push(host),
            Ok(_) => reader.bad(NAME, format_args!("`{text}` is every host"), "list the names"),
            Err(error) => reader.bad(NAME, format_args!("`{text}` {error}"), "correct it"),
        }
    }
    HostRules {
        aliases,
        www_redirect: reader.flag("from-to-www-redirect").unwrap_or(false),
        passthrough: reader.flag("ssl-passthrough").unwrap_or(false),
    }
}

pub(super) fn client_certificates(reader: &mut Reader<'_>) -> Option<ClientCertificates> {
    let secret = reader.secret("auth-tls-secret");
    let subject = subject(reader);
    let verify = match reader.text("auth-tls-verify-client") {
        None | Some("on") => ClientVerification::Required,
        Some("optional") => ClientVerification::Optional,
        Some("optional_no_ca") => ClientVerification::OptionalNoCa,
        // Nothing is checked.
        Some("off") => return None,
        Some(other) => {
            reader.bad(
                "auth-tls-verify-client",
                format_args!("`{other}` is unknown"),
                "use on, off, optional or optional_no_ca",
            );
            return None;
        }
    };
    let depth = reader.number("auth-tls-verify-depth", 1, 10).and_then(|depth| u8::try_from(depth).ok());
    let pass = reader.flag("auth-tls-pass-certificate-to-upstream").unwrap_or(false);
    let error_page = reader.url("auth-tls-error-page").map(|url| url.text().into());
    Some(ClientCertificates {
        secret: secret?,
        verify,
        depth: depth.unwrap_or(1),
        error_page,
        pass_to_backend: pass,
        subject,
    })
}

/// Reads `auth-tls-match-cn`. As in ingress-nginx, it is an expression for the whole subject, and
/// begins with the name of its first attribute.
fn subject(reader: &mut Reader<'_>) -> Option<SubjectPattern> {
    const NAME: &str = "auth-tls-match-cn";
    let text = reader.text(NAME)?;
    if !text.starts_with("CN=") {
        reader.bad(NAME, format_args!("`{text}` does not begin with CN="), "write CN= before the name");
        return None;
    }
    reader.expression(NAME, text).map(SubjectPattern)
}
