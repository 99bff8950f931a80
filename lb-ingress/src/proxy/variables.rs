//! The values of the variables of a request.

use std::borrow::Cow;
use std::net::IpAddr;

use hyper::HeaderMap;
use hyper::header::COOKIE;

use crate::routes::{Template, Variable};

/// The values of a request.
#[derive(Debug, Clone, Copy)]
pub struct Variables<'a> {
    pub scheme: &'static str,
    /// In lower case, without a port.
    pub host: &'a str,
    /// As the client sent it.
    pub http_host: &'a str,
    pub method: &'a str,
    /// The normalised path.
    pub path: &'a str,
    /// As the client sent it.
    pub sent_path: &'a str,
    pub query: Option<&'a str>,
    pub client: IpAddr,
    /// The port that the client connected to.
    pub port: u16,
    pub request_id: &'a str,
    pub headers: &'a HeaderMap,
}

impl<'a> Variables<'a> {
    /// Returns the values with other fields.
    pub fn with_headers<'b>(&self, headers: &'b HeaderMap) -> Variables<'b>
    where
        'a: 'b,
    {
        Variables { headers, ..*self }
    }

    /// Returns the text with the values of its variables.
    pub fn expand(&self, template: &Template) -> String {
        template.expand(|variable| self.value(variable))
    }

    /// Returns path and query as the client sent them.
    pub fn request_uri(&self) -> Cow<'a, str> {
        match self.query {
            Some(query) => format!("{}?{query}", self.sent_path).into(),
            None => self.sent_path.into(),
        }
    }

    /// Returns path and query with all reserved characters encoded.
    pub fn escaped_request_uri(&self) -> String {
        escape(&self.request_uri())
    }

    fn value(&self, variable: &Variable) -> Cow<'a, str> {
        match variable {
            Variable::Host => self.host.into(),
            Variable::HttpHost => self.http_host.into(),
            Variable::Scheme => self.scheme.into(),
            Variable::RequestUri => self.request_uri(),
            Variable::EscapedRequestUri => self.escaped_request_uri().into(),
            Variable::Uri => self.path.into(),
            Variable::Args => self.query.unwrap_or_default().into(),
            Variable::IsArgs => self.query.map_or("", |_| "?").into(),
            Variable::RemoteAddress => self.client.to_string().into(),
            Variable::Method => self.method.into(),
            Variable::Port => self.port.to_string().into(),
            Variable::RequestId => self.request_id.into(),
            Variable::Arg(name) => {
                let mut pairs = self.query.unwrap_or_default().split('&');
                pairs
                    .find_map(|pair| pair.strip_prefix(&**name)?.strip_prefix('='))
                    .unwrap_or_default()
                    .into()
            }
            Variable::Cookie(name) => cookie(self.headers, name).unwrap_or_default().into(),
            Variable::Header(name) => {
                let value = self.headers.get(&**name);
                value.and_then(|value| value.to_str().ok()).unwrap_or_default().into()
            }
        }
    }
}

/// Returns the value of a cookie.
pub fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok()).find_map(|value| {
        value.split(';').find_map(|pair| pair.trim_start().strip_prefix(name)?.strip_prefix('='))
    })
}

/// Encodes all bytes that are not unreserved (RFC 3986 2.3).
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len() + 16);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_replaced() {
        let mut headers = HeaderMap::new();
        headers.insert("x-user", "ann".parse().unwrap());
        headers.insert("cookie", "a=1; session=s 2".parse().unwrap());
        let variables = Variables {
            scheme: "https",
            host: "shop.example",
            http_host: "Shop.example:443",
            method: "GET",
            path: "/a",
            sent_path: "/./a",
            query: Some("x=1&user=bob"),
            client: "10.0.0.1".parse().unwrap(),
            port: 443,
            request_id: "id",
            headers: &headers,
        };
        for (text, expected) in [
            ("$scheme://$host$request_uri", "https://shop.example/./a?x=1&user=bob"),
            ("$http_host $uri$is_args$args", "Shop.example:443 /a?x=1&user=bob"),
            ("$http_x_user/$cookie_session/$arg_user/$remote_addr", "ann/s 2/bob/10.0.0.1"),
            ("$http_missing.$arg_missing.$cookie_missing", ".."),
            ("r=$escaped_request_uri", "r=%2F.%2Fa%3Fx%3D1%26user%3Dbob"),
            ("$request_method $server_port $request_id", "GET 443 id"),
        ] {
            assert_eq!(variables.expand(&Template::parse(text).unwrap()), expected, "{text}");
        }
    }
}
