//! The parts of a policy that need no endpoint.

use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{HeaderMap, StatusCode};

use super::answer::{Answer, plain, redirect};
use super::variables::Variables;
use crate::routes::policy::{Answer as OwnAnswer, Policy, TlsRedirect};
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
