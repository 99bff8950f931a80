//! Decides about requests by the certificate of their client.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{HeaderMap, StatusCode};

use super::answer::{Answer, own, redirect};
use super::variables::escape;
use crate::routes::policy::{ClientCertificates, ClientVerification};
use crate::tls::ClientCertificate;

const VERIFY: HeaderName = HeaderName::from_static("ssl-client-verify");
const CERTIFICATE: HeaderName = HeaderName::from_static("ssl-client-cert");

/// The certificate that a client has shown at the handshake.
#[derive(Debug)]
pub struct Shown {
    /// The settings that were in effect at the handshake.
    pub rules: ClientCertificates,
    pub certificate: ClientCertificate,
}

/// Returns the answer to a request that is refused, and the reason for the log.
pub fn refuse(rules: &ClientCertificates, shown: Option<&Shown>) -> Option<(Answer, &'static str)> {
    let Some(shown) = shown.filter(|shown| shown.rules == *rules) else {
        let reason = "the connection was made without a request for a client certificate";
        return Some((own(StatusCode::MISDIRECTED_REQUEST), reason));
    };
    let reason = match (&shown.certificate, rules.verify) {
        (ClientCertificate::Valid(_), _) | (_, ClientVerification::OptionalNoCa) => return None,
        (ClientCertificate::Missing, ClientVerification::Optional) => return None,
        (ClientCertificate::Missing, _) => "no client certificate",
        (ClientCertificate::Invalid(..), _) => "the client certificate is invalid",
    };
    let answer = match &rules.error_page {
        Some(page) => redirect(StatusCode::FOUND, page),
        None => own(StatusCode::BAD_REQUEST),
    };
    Some((answer, reason))
}

/// Sets the fields about the certificate that the backend receives. Those that the client sent are
/// removed.
pub fn set_fields(shown: &Shown, headers: &mut HeaderMap) {
    for name in ["ssl-client-cert", "ssl-client-verify", "ssl-client-subject-dn", "ssl-client-issuer-dn"] {
        headers.remove(name);
    }
    let (certificate, result) = match &shown.certificate {
        ClientCertificate::Missing => (None, "NONE".to_owned()),
        ClientCertificate::Valid(certificate) => (Some(certificate), "SUCCESS".to_owned()),
        ClientCertificate::Invalid(certificate, reason) => (Some(certificate), format!("FAILED:{reason}")),
    };
    if let Ok(result) = HeaderValue::from_str(&result) {
        headers.insert(VERIFY, result);
    }
    if let Some(certificate) = certificate.filter(|_| shown.rules.pass_to_backend)
        && let Ok(value) = HeaderValue::from_str(&escape(&pem(certificate)))
    {
        headers.insert(CERTIFICATE, value);
    }
}

fn pem(certificate: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(certificate);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.extend(line.iter().copied().map(char::from));
        pem.push('\n');
    }
    pem + "-----END CERTIFICATE-----\n"
}
