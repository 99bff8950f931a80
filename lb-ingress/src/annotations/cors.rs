//! Cross-origin resource sharing: `enable-cors`, `cors-*`.

use std::time::Duration;

use super::reader::{Reader, is_token, list};
use crate::routes::policy::{Cors, OriginPattern, Origins};

/// The defaults of ingress-nginx.
const METHODS: &str = "GET, PUT, POST, DELETE, PATCH, OPTIONS";
const HEADERS: &str = "DNT,Keep-Alive,User-Agent,X-Requested-With,If-Modified-Since,Cache-Control,\
                       Content-Type,Range,Authorization";
const MAX_AGE: Duration = Duration::from_secs(1_728_000);

pub(super) fn read(reader: &mut Reader<'_>) -> Option<Cors> {
    let enabled = reader.flag("enable-cors").unwrap_or(false);
    let cors = Cors {
        origins: origins(reader),
        methods: tokens(reader, "cors-allow-methods").unwrap_or_else(|| METHODS.into()),
        headers: tokens(reader, "cors-allow-headers").unwrap_or_else(|| HEADERS.into()),
        expose: tokens(reader, "cors-expose-headers"),
        credentials: reader.flag("cors-allow-credentials").unwrap_or(true),
        max_age: reader.duration("cors-max-age").unwrap_or(MAX_AGE),
    };
    enabled.then_some(cors)
}

fn tokens(reader: &mut Reader<'_>, name: &'static str) -> Option<Box<str>> {
    let text = reader.text(name)?;
    for token in list(text).filter(|token| !is_token(token)) {
        reader.bad(name, format_args!("`{token}` is not a token"), "separate names by commas");
    }
    Some(text.into())
}

fn origins(reader: &mut Reader<'_>) -> Origins {
    const NAME: &str = "cors-allow-origin";
    let Some(text) = reader.text(NAME) else { return Origins::Any };
    if list(text).any(|origin| origin == "*") {
        return Origins::Any;
    }
    let mut patterns = Vec::new();
    for origin in list(text) {
        match pattern(origin) {
            Some(pattern) => patterns.push(pattern),
            None => reader.bad(
                NAME,
                format_args!("`{origin}` is not an origin"),
                "use the form https://shop.example or https://*.shop.example",
            ),
        }
    }
    Origins::Listed(patterns.into())
}

fn pattern(origin: &str) -> Option<OriginPattern> {
    let origin = origin.to_ascii_lowercase();
    let (scheme, host) = origin.split_once("://").filter(|(scheme, _)| is_token(scheme))?;
    let (wildcard, host) = host.strip_prefix("*.").map_or((false, host), |domain| (true, domain));
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
    if host.is_empty() || !host.bytes().all(allowed) {
        return None;
    }
    Some(OriginPattern { scheme: format!("{scheme}://").into(), wildcard, host: host.into() })
}
