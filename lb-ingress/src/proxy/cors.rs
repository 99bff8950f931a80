//! Cross-origin resource sharing (the Fetch standard, 3.2).

use hyper::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_METHOD, HeaderValue, ORIGIN, VARY,
};
use hyper::{HeaderMap, Method};

use crate::routes::policy::{Cors, Origins};

/// Returns whether the request is a preflight, which the proxy answers itself.
pub fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    method == Method::OPTIONS
        && headers.contains_key(ORIGIN)
        && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// Sets the fields of a response. `origin` is the field `Origin` of the request.
pub fn add(cors: &Cors, origin: Option<&HeaderValue>, preflight: bool, response: &mut HeaderMap) {
    response.remove(ACCESS_CONTROL_ALLOW_ORIGIN);
    response.remove(ACCESS_CONTROL_ALLOW_CREDENTIALS);
    let any = matches!(cors.origins, Origins::Any) && !cors.credentials;
    if !any {
        response.append(VARY, HeaderValue::from_static("Origin"));
    }
    let Some(origin) = origin else { return };
    if !origin.to_str().is_ok_and(|origin| cors.origins.allow(origin)) {
        return;
    }
    // A browser refuses `*` together with credentials.
    let allowed = if any { HeaderValue::from_static("*") } else { origin.clone() };
    response.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
    if cors.credentials {
        response.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    let mut set = |name, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.insert(name, value);
        }
    };
    if let Some(expose) = &cors.expose {
        set(ACCESS_CONTROL_EXPOSE_HEADERS, expose);
    }
    if preflight {
        set(ACCESS_CONTROL_ALLOW_METHODS, &cors.methods);
        set(ACCESS_CONTROL_ALLOW_HEADERS, &cors.headers);
        set(ACCESS_CONTROL_MAX_AGE, &cors.max_age.as_secs().to_string());
    }
}
