//! Host names of rules and of requests.

use std::borrow::{Borrow, Cow};
use std::fmt;

/// The host of a rule: one name, all names of one label below a domain, or every name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPattern(Box<str>);

/// The reasons why a text is no host of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    #[error("is an IP address, and not a name")]
    Address,
    #[error("has a port")]
    Port,
    #[error("has a `*` that is not the whole first label")]
    Wildcard,
    #[error("is not a DNS name (RFC 1123)")]
    NoName,
}

impl HostPattern {
    /// Returns the pattern of a rule without a host: every name that no other pattern matches.
    pub fn any() -> Self {
        Self("".into())
    }

    /// Parses the `host` of a rule: a DNS name, `*.` and a DNS name, or nothing.
    ///
    /// # Errors
    /// Fails for addresses, ports, and names that RFC 1123 does not allow.
    pub fn parse(text: &str) -> Result<Self, HostError> {
        if text.is_empty() || text == "*" {
            return Ok(Self::any());
        }
        let lower = text.to_ascii_lowercase();
        let name = lower.strip_suffix('.').unwrap_or(&lower);
        if name.parse::<std::net::IpAddr>().is_ok() {
            return Err(HostError::Address);
        }
        if name.contains(':') {
            return Err(HostError::Port);
        }
        let (key, name) = match name.strip_prefix("*.") {
            // Begins with a dot, like the rest of a name after its first label.
            Some(domain) => (&name[1..], domain),
            None => (name, name),
        };
        if name.contains('*') {
            return Err(HostError::Wildcard);
        }
        if name.len() > 253 || !name.split('.').all(is_label) {
            return Err(HostError::NoName);
        }
        Ok(Self(key.into()))
    }

    /// Returns whether the pattern matches every name.
    pub fn is_any(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns whether the pattern begins with `*.`.
    pub fn is_wildcard(&self) -> bool {
        self.0.starts_with('.')
    }

    /// Returns the name in lower case. A wildcard has its domain with the dot (`.example.com`),
    /// [`HostPattern::any`] has the empty text.
    pub(super) fn key(&self) -> &str {
        &self.0
    }

    /// Returns the keys of the patterns that match a name, the most specific first.
    pub(super) fn keys_for(name: &str) -> impl Iterator<Item = &str> {
        // A name that begins with a dot would be taken for the key of a wildcard.
        let exact = Some(name).filter(|name| !name.is_empty() && !name.starts_with('.'));
        let wildcard = exact.and_then(|name| name.find('.')).map(|dot| &name[dot..]);
        [exact, wildcard, Some("")].into_iter().flatten()
    }
}

impl Borrow<str> for HostPattern {
    fn borrow(&self) -> &str {
        self.key()
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            "" => f.write_str("*"),
            domain if domain.starts_with('.') => write!(f, "*{domain}"),
            name => f.write_str(name),
        }
    }
}

fn is_label(label: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
    (1..=63).contains(&label.len())
        && label.chars().all(allowed)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// Returns the host of a `Host` header, an `:authority` or a server name, for
/// [`RouteTable::find`](super::RouteTable::find): in lower case, without the port and without the
/// dot at the end.
///
/// Returns `None` for a text that is neither a name nor an address: the answer is 400 (RFC 9112
/// 3.2).
pub fn request_host(text: &str) -> Option<Cow<'_, str>> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            address.parse::<std::net::Ipv6Addr>().ok()?;
            (&text[..address.len() + 2], port)
        }
        None => text.find(':').map_or((text, ""), |colon| text.split_at(colon)),
    };
    let digits = port.strip_prefix(':').unwrap_or(port);
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) || (digits.len() == port.len() && !port.is_empty()) {
        return None;
    }
    let host = host.strip_suffix('.').unwrap_or(host);
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if !host.starts_with('[') && (host.len() > 253 || !host.bytes().all(allowed)) {
        return None;
    }
    if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Some(host.to_ascii_lowercase().into())
    } else {
        Some(host.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_rules() {
        for (text, expected) in [
            ("", Ok("*")),
            ("shop.example", Ok("shop.example")),
            ("Shop.Example.", Ok("shop.example")),
            ("*.shop.example", Ok("*.shop.example")),
            ("10.0.0.1", Err(HostError::Address)),
            ("fd00::1", Err(HostError::Address)),
            ("shop.example:80", Err(HostError::Port)),
            ("*shop.example", Err(HostError::Wildcard)),
            ("a.*.example", Err(HostError::Wildcard)),
            ("*.*.example", Err(HostError::Wildcard)),
            ("shop..example", Err(HostError::NoName)),
            ("-shop.example", Err(HostError::NoName)),
            ("shop/example", Err(HostError::NoName)),
        ] {
            let parsed = HostPattern::parse(text).map(|pattern| pattern.to_string());
            assert_eq!(parsed.as_deref(), expected.as_ref().copied(), "{text}");
        }
    }

    #[test]
    fn hosts_of_requests() {
        for (text, expected) in [
            ("shop.example", Some("shop.example")),
            ("SHOP.example:8080", Some("shop.example")),
            ("shop.example.:443", Some("shop.example")),
            ("shop.example:", Some("shop.example")),
            ("10.0.0.1:31188", Some("10.0.0.1")),
            ("[FD00::1]:80", Some("[fd00::1]")),
            ("[fd00::1]", Some("[fd00::1]")),
            ("", Some("")),
            ("shop.example:80:80", None),
            ("shop.example:http", None),
            ("shop example", None),
            ("shop.example/x", None),
            ("user@shop.example", None),
            ("[fd00::1", None),
            ("[fd00::1]80", None),
            ("[shop]", None),
        ] {
            assert_eq!(request_host(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_wildcard_matches_one_label() {
        let keys = |name| HostPattern::keys_for(name).collect::<Vec<_>>();
        assert_eq!(keys("a.b.example"), ["a.b.example", ".b.example", ""]);
        assert_eq!(keys("localhost"), ["localhost", ""]);
        assert_eq!(keys(".example"), [""]);
        assert_eq!(keys(""), [""]);
    }
}
