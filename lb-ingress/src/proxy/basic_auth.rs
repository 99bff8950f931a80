//! HTTP Basic authentication (RFC 7617).

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hyper::header::{AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE};
use hyper::{HeaderMap, StatusCode};

use super::answer::{Answer, own};
use crate::routes::policy::BasicAuth;
use crate::users::{UserStore, Verdict};

/// Returns `None` for a request with the password of a user, else its answer and the reason for
/// the log.
pub async fn refuse(
    users: &UserStore,
    auth: &BasicAuth,
    headers: &HeaderMap,
) -> Option<(Answer, &'static str)> {
    let verdict = match credentials(headers) {
        Some((user, password)) => users.check(auth, &user, &password).await,
        None if users.has_users(auth) => Verdict::Refused,
        None => Verdict::NoUsers,
    };
    match verdict {
        Verdict::Admitted => None,
        Verdict::Refused => {
            let mut answer = own(StatusCode::UNAUTHORIZED);
            let challenge = HeaderValue::from_str(&format!("Basic realm=\"{}\"", auth.realm));
            let challenge = challenge.unwrap_or(HeaderValue::from_static("Basic realm=\"\""));
            answer.headers_mut().insert(WWW_AUTHENTICATE, challenge);
            Some((answer, "no valid user and password"))
        }
        Verdict::NoUsers => Some((
            own(StatusCode::SERVICE_UNAVAILABLE),
            "the Secret of auth-secret is missing or has no users",
        )),
        Verdict::Busy => {
            Some((own(StatusCode::SERVICE_UNAVAILABLE), "too many passwords wait for their verification"))
        }
    }
}

/// Returns the user and the password of a request.
fn credentials(headers: &HeaderMap) -> Option<(String, Vec<u8>)> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next()?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    // With two values the proxy and the backend may read different ones.
    if values.next().is_some() || !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = BASE64_STANDARD.decode(token.trim()).ok()?;
    let colon = text.iter().position(|byte| *byte == b':')?;
    let user = std::str::from_utf8(&text[..colon]).ok()?.to_owned();
    Some((user, text[colon + 1..].to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_of_requests() {
        let of = |values: &[&str]| {
            let values = values.iter().map(|value| (AUTHORIZATION, HeaderValue::from_str(value).unwrap()));
            credentials(&values.collect())
        };
        let expected = Some(("ann".to_owned(), b"a:b".to_vec()));
        assert_eq!(of(&["Basic YW5uOmE6Yg=="]), expected);
        assert_eq!(of(&["bAsIc  YW5uOmE6Yg=="]), expected);
        for values in [
            &[][..],
            &["Basic"],
            &["Basic !"],
            &["Basic YW5u"],
            &["Bearer YW5uOmE6Yg=="],
            &["Basic YW5uOmE6Yg==", "Basic YW5uOmE6Yg=="],
        ] {
            assert_eq!(of(values), None, "{values:?}");
        }
    }
}
