//! The fields of requests and responses that a proxy adds and removes.

use std::net::{IpAddr, SocketAddr};

use hyper::HeaderMap;
use hyper::header::{CONNECTION, COOKIE, HeaderName, HeaderValue, TE, TRAILER};
use ipnet::IpNet;

use super::random;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_SCHEME: HeaderName = HeaderName::from_static("x-forwarded-scheme");
const X_FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");
const X_ORIGINAL_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-original-forwarded-for");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const X_SCHEME: HeaderName = HeaderName::from_static("x-scheme");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Removes the fields that concern one connection only (RFC 9110 7.6.1), those that `Connection`
/// lists included. `TE: trailers` stays: gRPC needs it.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let trailers =
        headers.get(TE).is_some_and(|te| list(te).any(|word| word.eq_ignore_ascii_case("trailers")));
    let listed: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(list)
        .filter_map(|name| name.parse().ok())
        // A client must not remove what the proxy sets.
        .filter(|name: &HeaderName| !name.as_str().starts_with("x-") && name != "host")
        .collect();
    for name in listed {
        headers.remove(name);
    }
    remove_all(headers, |name| {
        // One comparison a field costs less than a search in the map for each of these names.
        matches!(
            name,
            "connection"
                | "keep-alive"
                | "proxy-connection"
                | "proxy-authenticate"
                | "proxy-authorization"
                | "te"
                | "transfer-encoding"
                | "upgrade"
                | "http2-settings"
        )
    });
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    } else {
        headers.remove(TRAILER);
    }
}

fn remove_all(headers: &mut HeaderMap, is_removed: impl Fn(&str) -> bool) {
    let names: Vec<_> = headers.keys().filter(|name| is_removed(name.as_str())).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// Removes the trailers of a request that an endpoint could take for fields of the head (RFC 9110
/// 6.5.1): those about framing, routing and authentication, and those that the proxy sets.
pub fn clean_trailers(trailers: &mut HeaderMap) {
    remove_all(trailers, |name| {
        matches!(
            name,
            "transfer-encoding"
                | "host"
                | "te"
                | "trailer"
                | "connection"
                | "upgrade"
                | "authorization"
                | "proxy-authorization"
                | "cookie"
                | "expect"
                | "forwarded"
                | "x-real-ip"
                | "x-scheme"
                | "x-request-id"
                | "x-original-forwarded-for"
                | "keep-alive"
                | "proxy"
        ) || ["content-", "x-forwarded-", "ssl-client-"].iter().any(|prefix| name.starts_with(prefix))
            || name.contains('_')
    });
}

/// Joins the parts of the cookie: clients of HTTP/2 send it in several fields, and servers of
/// HTTP/1 expect one (RFC 9113 8.2.3).
pub fn join_cookies(headers: &mut HeaderMap) {
    let mut parts = headers.get_all(COOKIE).iter();
    if parts.next().is_some() && parts.next().is_some() {
        let parts: Vec<_> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
        if let Ok(joined) = HeaderValue::from_bytes(&parts.join(&b"; "[..])) {
            headers.insert(COOKIE, joined);
        }
    }
}

fn list(value: &HeaderValue) -> impl Iterator<Item = &str> {
    value.to_str().unwrap_or_default().split(',').map(str::trim).filter(|word| !word.is_empty())
}

/// The client, as far as the proxy believes it.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    /// The client itself.
    pub address: IpAddr,
    /// The peer of the connection is a trusted proxy.
    pub trusted: bool,
}

impl Client {
    /// Returns the client of a request. Behind trusted proxies it is the last address of
    /// `X-Forwarded-For` that is no trusted proxy.
    pub fn of(peer: SocketAddr, headers: &HeaderMap, trusted: &[IpNet]) -> Self {
        let peer = peer.ip().to_canonical();
        let is_trusted = |address: &IpAddr| trusted.iter().any(|range| range.contains(address));
        if !is_trusted(&peer) {
            return Self { address: peer, trusted: false };
        }
        let mut address = peer;
        let hops: Vec<&str> = headers.get_all(X_FORWARDED_FOR).iter().flat_map(list).collect();
        for hop in hops.into_iter().rev() {
            let Ok(hop) = hop.parse::<IpAddr>() else { break };
            address = hop.to_canonical();
            if !is_trusted(&address) {
                break;
            }
        }
        Self { address, trusted: true }
    }

    /// Returns the scheme that the client used.
    pub fn scheme(&self, tls: bool, headers: &HeaderMap) -> &'static str {
        let forwarded = headers.get(X_FORWARDED_PROTO).filter(|_| self.trusted);
        match forwarded.and_then(|value| value.to_str().ok()) {
            Some(scheme) if scheme.eq_ignore_ascii_case("https") => "https",
            Some(scheme) if scheme.eq_ignore_ascii_case("http") => "http",
            _ if tls => "https",
            _ => "http",
        }
    }
}

/// Returns the id of a request: that of the client, or a new one.
pub fn request_id(headers: &HeaderMap) -> HeaderValue {
    let sent = headers.get(X_REQUEST_ID).filter(|id| id.to_str().is_ok() && id.len() <= 128);
    sent.cloned().unwrap_or_else(|| {
        let number = u128::from(random::next()) << 64 | u128::from(random::next());
        let digit = |place: usize| b"0123456789abcdef"[(number >> (124 - 4 * place)) as usize & 15];
        value(&std::array::from_fn::<u8, 32, _>(digit))
    })
}

fn value(text: &[u8]) -> HeaderValue {
    HeaderValue::from_bytes(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// The facts of a connection in the form of fields. They are the same for all of its requests.
#[derive(Debug)]
pub struct ConnectionFields {
    peer: HeaderValue,
    port: HeaderValue,
    https_port: HeaderValue,
}

impl ConnectionFields {
    /// `https_port` is that of the settings.
    pub fn new(peer: IpAddr, port: u16, https_port: u16) -> Self {
        let peer = value(peer.to_canonical().to_string().as_bytes());
        Self { peer, port: port.into(), https_port: https_port.into() }
    }
}

/// Sets the fields about the client. Replaces those that an untrusted peer sent.
pub fn set_forwarded(
    headers: &mut HeaderMap,
    client: Client,
    connection: &ConnectionFields,
    (scheme, host): (&'static str, &HeaderValue),
    request_id: &HeaderValue,
) {
    // Room for all of them at once.
    headers.reserve(10);
    let ConnectionFields { peer, port, https_port } = connection;
    let mut forwarded_for = peer.clone();
    if headers.contains_key(X_FORWARDED_FOR) {
        let hops: Vec<&str> = headers.get_all(X_FORWARDED_FOR).iter().flat_map(list).collect();
        let sent = hops.join(", ");
        if client.trusted && !sent.is_empty() {
            let peer = peer.to_str().unwrap_or_default();
            forwarded_for = value(format!("{sent}, {peer}").as_bytes());
        } else if !sent.is_empty() {
            headers.insert(X_ORIGINAL_FORWARDED_FOR, value(sent.as_bytes()));
        }
    }
    headers.insert(X_FORWARDED_FOR, forwarded_for);
    // Servers of WSGI and CGI cannot distinguish `-` from `_`: a field with `_` could replace one
    // that is set below. Programs that read fields from environment variables take `Proxy` for
    // their own proxy (CVE-2016-5385).
    remove_all(headers, |name| {
        (!client.trusted && matches!(name, "forwarded" | "x-forwarded-prefix"))
            || name == "proxy"
            || name.as_bytes().contains(&b'_')
    });
    let mut set = |name: HeaderName, new: HeaderValue| {
        if !client.trusted || !headers.contains_key(&name) {
            headers.insert(name, new);
        }
    };
    set(X_FORWARDED_HOST, host.clone());
    set(X_FORWARDED_PORT, if scheme == "https" { https_port.clone() } else { port.clone() });
    set(X_FORWARDED_PROTO, HeaderValue::from_static(scheme));
    headers.insert(X_FORWARDED_SCHEME, HeaderValue::from_static(scheme));
    headers.insert(X_SCHEME, HeaderValue::from_static(scheme));
    let real = if client.trusted { value(client.address.to_string().as_bytes()) } else { peer.clone() };
    headers.insert(X_REAL_IP, real);
    headers.insert(X_REQUEST_ID, request_id.clone());
}

/// Sets the prefix that a rewrite removed.
pub fn set_prefix(headers: &mut HeaderMap, prefix: &str) {
    if let Ok(prefix) = HeaderValue::from_str(prefix) {
        headers.insert(X_FORWARDED_PREFIX, prefix);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap()))
            .collect()
    }

    #[test]
    fn fields_of_one_connection_are_removed() {
        let mut headers = map(&[
            ("connection", "close, secret, X-Real-IP"),
            ("secret", "a"),
            ("keep-alive", "5"),
            ("te", "gzip, trailers"),
            ("upgrade", "h2c"),
            ("x-real-ip", "1"),
            ("accept", "b"),
        ]);
        remove_hop_by_hop(&mut headers);
        assert_eq!(headers, map(&[("te", "trailers"), ("x-real-ip", "1"), ("accept", "b")]));
    }

    #[test]
    fn forwarded_fields_are_replaced_unless_the_peer_is_trusted() {
        let sent = [
            ("x-forwarded-for", "198.51.100.1, 203.0.113.9"),
            ("x-forwarded-proto", "https"),
            ("x_forwarded_for", "6.6.6.6"),
            ("proxy", "evil"),
        ];
        for (trusted, client, scheme, forwarded) in [
            (vec![], "10.0.0.9", "http", "10.0.0.9"),
            (vec!["10.0.0.0/8"], "203.0.113.9", "https", "198.51.100.1, 203.0.113.9, 10.0.0.9"),
            (
                vec!["10.0.0.0/8", "203.0.113.0/24"],
                "198.51.100.1",
                "https",
                "198.51.100.1, 203.0.113.9, 10.0.0.9",
            ),
        ] {
            let trusted: Vec<IpNet> = trusted.iter().map(|text| text.parse().unwrap()).collect();
            let mut headers = map(&sent);
            let peer: SocketAddr = "[::ffff:10.0.0.9]:5000".parse().unwrap();
            let found = Client::of(peer, &headers, &trusted);
            assert_eq!(found.address.to_string(), client);
            assert_eq!(found.scheme(false, &headers), scheme);
            let host = HeaderValue::from_static("shop.example");
            let connection = ConnectionFields::new(peer.ip(), 80, 443);
            set_forwarded(&mut headers, found, &connection, (scheme, &host), &HeaderValue::from_static("id"));
            assert_eq!(headers["x-forwarded-for"], forwarded);
            assert_eq!(headers["x-forwarded-proto"], scheme);
            assert_eq!(headers["x-real-ip"], client);
            assert_eq!(headers["x-request-id"], "id");
            assert!(!headers.contains_key("x_forwarded_for") && !headers.contains_key("proxy"));
        }
    }
}
