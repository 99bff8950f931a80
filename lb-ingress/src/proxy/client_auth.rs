//! Decides about requests by the certificate of their client.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{HeaderMap, StatusCode};

use super::answer::{Answer, own, redirect};
use super::variables::escape;
use crate::routes::policy::{ClientCertificates, ClientVerification, SubjectPattern};
use crate::tls::{CertificateNames, ClientCertificate};

const VERIFY: HeaderName = HeaderName::from_static("ssl-client-verify");
const CERTIFICATE: HeaderName = HeaderName::from_static("ssl-client-cert");
const SUBJECT: HeaderName = HeaderName::from_static("ssl-client-subject-dn");
const ISSUER: HeaderName = HeaderName::from_static("ssl-client-issuer-dn");

/// The certificate that a client has shown at the handshake.
#[derive(Debug)]
pub struct Shown {
    /// The settings that were in effect at the handshake.
    pub rules: ClientCertificates,
    certificate: ClientCertificate,
    /// Empty without a certificate.
    names: CertificateNames,
}

impl Shown {
    pub fn new(rules: ClientCertificates, certificate: ClientCertificate) -> Self {
        let names = certificate.shown().map(CertificateNames::of).unwrap_or_default();
        Self { rules, certificate, names }
    }
}

/// Returns the answer to a request that is refused, and the reason for the log.
pub fn refuse(rules: &ClientCertificates, shown: Option<&Shown>) -> Option<(Answer, &'static str)> {
    let Some(shown) = shown.filter(|shown| shown.rules == *rules) else {
        let reason = "the connection was made without a request for a client certificate";
        return Some((own(StatusCode::MISDIRECTED_REQUEST), reason));
    };
    let reason = match (&shown.certificate, rules.verify) {
        (ClientCertificate::Valid(_), _)
        | (_, ClientVerification::OptionalNoCa)
        | (ClientCertificate::Missing, ClientVerification::Optional) => {
            // A client without a certificate has an empty subject, as in nginx.
            let matches = |pattern: &SubjectPattern| pattern.0.is_match(shown.names.subject.as_bytes());
            let reason = "the subject of the client certificate does not match auth-tls-match-cn";
            return (!rules.subject.as_ref().is_none_or(matches))
                .then(|| (own(StatusCode::FORBIDDEN), reason));
        }
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
    for name in [CERTIFICATE, VERIFY, SUBJECT, ISSUER] {
        headers.remove(name);
    }
    let result = match &shown.certificate {
        ClientCertificate::Missing => "NONE",
        ClientCertificate::Valid(_) => "SUCCESS",
        ClientCertificate::Invalid(_, reason) => &format!("FAILED:{reason}"),
    };
    let names = [(SUBJECT, &shown.names.subject), (ISSUER, &shown.names.issuer)];
    let names = names.into_iter().filter(|(_, text)| !text.is_empty());
    for (name, value) in names.map(|(name, text)| (name, text.as_str())).chain([(VERIFY, result)]) {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
    if let Some(certificate) = shown.certificate.shown().filter(|_| shown.rules.pass_to_backend)
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
