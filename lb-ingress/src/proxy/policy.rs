//! The parts of a policy that need no endpoint.

use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, LOCATION, REFRESH, SET_COOKIE};
use hyper::{HeaderMap, StatusCode};

use super::answer::{Answer, plain, redirect};
use super::variables::Variables;
use crate::routes::policy::{Answer as OwnAnswer, Policy, Replacement, Responses, TlsRedirect};
use crate::routes::{HostSettings, Template};

/// Returns the redirect of a request, if there is one: to the other name of the host, to TLS, of
/// the whole route, of its root.
pub fn redirects(
    policy: &Policy,
    settings: Option<&HostSettings>,
    variables: &Variables<'_>,
    https_port: u16,
) -> Option<Answer> {
    let with_port = |host: &str| match https_port {
        443 => host.to_owned(),
        port => format!("{host}:{port}"),
    };
    if let Some(host) = settings.and_then(|settings| settings.redirect_to.as_deref()) {
        let host = if variables.scheme == "https" { with_port(host) } else { host.to_owned() };
        let location = format!("{}://{host}{}", variables.scheme, variables.request_uri());
        return Some(redirect(StatusCode::PERMANENT_REDIRECT, &location));
    }
    let to_tls = match policy.redirect.to_tls {
        TlsRedirect::Never => false,
        TlsRedirect::Always => true,
        TlsRedirect::WithCertificate => settings.is_some_and(|it| it.tls.is_some() || it.default_certificate),
    };
    if to_tls && variables.scheme == "http" {
        let location = format!("https://{}{}", with_port(variables.host), variables.request_uri());
        return Some(redirect(StatusCode::PERMANENT_REDIRECT, &location));
    }
    if let Some(all) = &policy.redirect.all {
        let status = StatusCode::from_u16(all.status).unwrap_or(StatusCode::FOUND);
        return Some(redirect(status, &variables.expand(&all.location)));
    }
    let app_root = policy.redirect.app_root.as_deref().filter(|_| variables.path == "/")?;
    Some(redirect(StatusCode::FOUND, app_root))
}

/// Returns the answer of a route without a backend.
pub fn own_answer(answer: &OwnAnswer, variables: &Variables<'_>) -> Answer {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let text = variables.expand(&answer.text);
    if status.is_redirection() {
        return redirect(status, &text);
    }
    let mut response = plain(status, text);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Sets and adds the fields of the policy.
pub fn response_headers(policy: &Policy, variables: &Variables<'_>, headers: &mut HeaderMap) {
    let field = |(name, template): &(Box<str>, Template)| {
        Some((name.parse::<HeaderName>().ok()?, HeaderValue::from_str(&variables.expand(template)).ok()?))
    };
    for (name, value) in policy.headers.set_in_response.iter().filter_map(field) {
        headers.insert(name, value);
    }
    for (name, value) in policy.headers.add_to_response.iter().filter_map(field) {
        headers.append(name, value);
    }
}

/// Replaces the host and the paths of the backend in the fields of a response.
pub fn replace_in_response(responses: &Responses, variables: &Variables<'_>, headers: &mut HeaderMap) {
    let expand = |replacement: &Option<Replacement>| {
        replacement.as_ref().map(|it| (variables.expand(&it.from), variables.expand(&it.to)))
    };
    let (domain, path) = (expand(&responses.cookie_domain), expand(&responses.cookie_path));
    if domain.is_some() || path.is_some() {
        let cookies: Vec<_> = headers.get_all(SET_COOKIE).iter().cloned().collect();
        headers.remove(SET_COOKIE);
        for cookie in cookies {
            let replaced = with_cookie(cookie.as_bytes(), domain.as_ref(), path.as_ref());
            headers.append(SET_COOKIE, HeaderValue::from_bytes(&replaced).unwrap_or(cookie));
        }
    }
    let Some((from, to)) = expand(&responses.redirect) else { return };
    for name in [LOCATION, REFRESH] {
        let Some(value) = headers.get(&name).map(HeaderValue::as_bytes) else { continue };
        let url = match name == REFRESH {
            true => value.windows(4).position(|text| text.eq_ignore_ascii_case(b"url=")).map(|at| at + 4),
            false => Some(0),
        };
        let Some((before, url)) = url.map(|at| value.split_at(at)) else { continue };
        if let Some(rest) = url.strip_prefix(from.as_bytes())
            && let Ok(replaced) = HeaderValue::from_bytes(&[before, to.as_bytes(), rest].concat())
        {
            headers.insert(name, replaced);
        }
    }
}

/// Returns a cookie with another domain and path.
fn with_cookie(cookie: &[u8], domain: Option<&(String, String)>, path: Option<&(String, String)>) -> Vec<u8> {
    let replaced = |attribute: &[u8]| {
        let at = attribute.iter().position(|byte| *byte == b'=')?;
        let (name, value) = (attribute[..at].trim_ascii(), attribute[at + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"domain") {
            let (from, to) = domain?;
            let (dot, value) = value.split_at(usize::from(value.starts_with(b".")));
            let from = from.strip_prefix('.').unwrap_or(from);
            return value
                .eq_ignore_ascii_case(from.as_bytes())
                .then(|| [b" Domain=", dot, to.as_bytes()].concat());
        }
        let (from, to) = path.filter(|_| name.eq_ignore_ascii_case(b"path"))?;
        Some([b" Path=", to.as_bytes(), value.strip_prefix(from.as_bytes())?].concat())
    };
    let mut parts = cookie.split(|byte| *byte == b';');
    let mut result = parts.next().unwrap_or_default().to_vec();
    for attribute in parts {
        result.push(b';');
        match replaced(attribute) {
            Some(attribute) => result.extend(attribute),
            None => result.extend(attribute),
        }
    }
    result
}

/// Sets the fields that the backend receives. An empty value removes the field.
pub fn backend_headers(policy: &Policy, variables: &Variables<'_>, headers: &mut HeaderMap) {
    for (name, text) in &policy.headers.to_backend {
        let Ok(name) = name.parse::<HeaderName>() else { continue };
        match HeaderValue::from_str(&variables.expand(text)) {
            Ok(value) if value.is_empty() => drop(headers.remove(&name)),
            Ok(value) => drop(headers.insert(name, value)),
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_and_paths_of_cookies() {
        let pair = |from: &str, to: &str| (from.to_owned(), to.to_owned());
        let domain = pair(".inner.example", "a.example");
        let path = pair("/app/", "/");
        for (cookie, expected) in [
            ("a=b", "a=b"),
            ("a=Path=/app/", "a=Path=/app/"),
            ("a=b; Path=/app/x; HttpOnly", "a=b; Path=/x; HttpOnly"),
            ("a=b;path = /app/;Secure", "a=b; Path=/;Secure"),
            ("a=b; Path=/app", "a=b; Path=/app"),
            ("a=b; DOMAIN=Inner.Example", "a=b; Domain=a.example"),
            ("a=b; Domain=.inner.example; Path=/", "a=b; Domain=.a.example; Path=/"),
            ("a=b; Domain=x.inner.example", "a=b; Domain=x.inner.example"),
            ("a=b; Max-Age; =; ;", "a=b; Max-Age; =; ;"),
            ("", ""),
        ] {
            let replaced = with_cookie(cookie.as_bytes(), Some(&domain), Some(&path));
            assert_eq!(String::from_utf8(replaced).unwrap(), expected, "{cookie}");
            let same = with_cookie(cookie.as_bytes(), None, None);
            assert_eq!(same, cookie.as_bytes());
        }
    }
}
