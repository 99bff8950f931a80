//! Texts with variables of nginx, such as `https://$host$request_uri`.

use std::borrow::Cow;
use std::fmt;

/// A text with variables. It is parsed once, and expanded for each request.
#[derive(Clone, PartialEq, Eq)]
pub struct Template {
    text: Box<str>,
    parts: Box<[Part]>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    Variable(Variable),
}

/// A variable of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Variable {
    /// `$host`, `$best_http_host`: the host of the request without its port, in lower case.
    Host,
    /// `$http_host`: the host as the client sent it.
    HttpHost,
    /// `$scheme`, `$pass_access_scheme`: `http` or `https`.
    Scheme,
    /// `$request_uri`: path and query as the client sent them.
    RequestUri,
    /// `$escaped_request_uri`: the same, encoded as the value of a parameter.
    EscapedRequestUri,
    /// `$uri`: the normalised path.
    Uri,
    /// `$args`, `$query_string`.
    Args,
    /// `$is_args`: `?` if there is a query, else nothing.
    IsArgs,
    /// `$remote_addr`, `$binary_remote_addr`, `$the_real_ip`: the address of the client.
    RemoteAddress,
    /// `$request_method`.
    Method,
    /// `$server_port`, `$pass_server_port`: the port that the client connected to.
    Port,
    /// `$request_id`, `$req_id`.
    RequestId,
    /// `$arg_NAME`: a parameter of the query.
    Arg(Box<str>),
    /// `$cookie_NAME`.
    Cookie(Box<str>),
    /// `$http_NAME`: a header of the request, with `-` for `_`.
    Header(Box<str>),
}

/// The name of a variable that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`${0}` is not a supported variable")]
pub struct UnknownVariable(pub Box<str>);

impl Template {
    /// Parses a text. `$name` and `${name}` are variables, a `$` before anything else stands for
    /// itself.
    ///
    /// # Errors
    /// Fails if a variable is unknown.
    pub fn parse(text: &str) -> Result<Self, UnknownVariable> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            plain.push_str(before);
            let braced = after.strip_prefix('{').and_then(|inner| inner.split_once('}'));
            let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len());
            let (name, next) = braced.unwrap_or(after.split_at(end));
            rest = next;
            if name.is_empty() {
                plain.push('$');
                continue;
            }
            let variable = Variable::named(name).ok_or_else(|| UnknownVariable(name.into()))?;
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain).into()));
            }
            parts.push(Part::Variable(variable));
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(Part::Text(plain.into()));
        }
        Ok(Self { text: text.into(), parts: parts.into() })
    }

    /// Replaces the variables by their values.
    pub fn expand<'a>(&self, value: impl Fn(&Variable) -> Cow<'a, str>) -> String {
        let mut expanded = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => expanded.push_str(text),
                Part::Variable(variable) => expanded.push_str(&value(variable)),
            }
        }
        expanded
    }

    /// Returns the text as it was written.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.text)
    }
}

impl Variable {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "host" | "best_http_host" => Self::Host,
            "http_host" => Self::HttpHost,
            "scheme" | "pass_access_scheme" => Self::Scheme,
            "request_uri" => Self::RequestUri,
            "escaped_request_uri" => Self::EscapedRequestUri,
            "uri" => Self::Uri,
            "args" | "query_string" => Self::Args,
            "is_args" => Self::IsArgs,
            "remote_addr" | "binary_remote_addr" | "the_real_ip" => Self::RemoteAddress,
            "request_method" => Self::Method,
            "server_port" | "pass_server_port" => Self::Port,
            "request_id" | "req_id" => Self::RequestId,
            _ => {
                let (kind, name) = name.split_once('_').filter(|(_, name)| !name.is_empty())?;
                match kind {
                    "arg" => Self::Arg(name.into()),
                    "cookie" => Self::Cookie(name.into()),
                    "http" => Self::Header(name.to_ascii_lowercase().replace('_', "-").into()),
                    _ => return None,
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand(text: &str) -> Result<String, UnknownVariable> {
        Ok(Template::parse(text)?.expand(|variable| match variable {
            Variable::Host => "shop.example".into(),
            Variable::RequestUri => "/a?b=c".into(),
            other => format!("<{other:?}>").into(),
        }))
    }

    #[test]
    fn variables_are_replaced() {
        for (text, expected) in [
            ("https://$host$request_uri", "https://shop.example/a?b=c"),
            ("${host}x", "shop.examplex"),
            ("costs 5$ or $$", "costs 5$ or $$"),
            ("$http_x_user-$arg_id", "<Header(\"x-user\")>-<Arg(\"id\")>"),
            ("", ""),
        ] {
            assert_eq!(expand(text).as_deref(), Ok(expected), "{text}");
        }
        assert_eq!(expand("$hosts"), Err(UnknownVariable("hosts".into())));
        assert_eq!(expand("$http_"), Err(UnknownVariable("http_".into())));
    }
}
