//! Annotations of an Ingress as typed values, one file for each family.
//!
//! The names are those of ingress-nginx, with the prefix `nginx.ingress.kubernetes.io/` or
//! `lb.sluice.dev/`.
//!
//! **Invariant:** a family with an invalid annotation is not applied at all, and a
//! [`Problem`](lb_model::Problem) names the annotation. If the family restricts access or
//! protects requests, all requests are refused.
//! **Invariant:** no annotation is executed: there are no templates, no scripts, no files.

mod affinity;
mod auth;
mod body;
mod canary;
mod cors;
mod errors;
mod headers;
mod host;
mod limits;
mod other;
mod reader;
mod redirect;
mod rewrite;
mod sources;
mod timeouts;
mod upstream;

use lb_model::Problems;

pub use canary::CanaryRule;
pub use errors::ErrorRule;
pub use host::HostRules;

use self::reader::{Invalid, Reader};
use crate::routes::Policy;
use crate::routes::policy::ClientCertificates;

/// The annotations of an Ingress.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Annotations {
    /// Without [`Policy::errors`], which needs a Service.
    pub policy: Policy,
    pub use_regex: bool,
    /// The rewrite is invalid: all requests are refused, as the backend would get wrong paths.
    pub invalid_rewrite: bool,
    /// The canary is invalid: it must get no requests.
    pub invalid_canary: bool,
    pub canary: Option<CanaryRule>,
    pub errors: ErrorRule,
    pub host: HostRules,
    pub client_certificates: Option<ClientCertificates>,
}

/// Reads the annotations of an Ingress in `namespace`, and adds their problems.
pub fn read(annotations: &[(Box<str>, Box<str>)], namespace: &str, problems: &mut Problems) -> Annotations {
    let mut reader = Reader::new(annotations, namespace, problems);
    let mut result = Annotations::default();
    let policy = &mut result.policy;
    policy.redirect = reader.family(redirect::read).unwrap_or_default();
    match reader.protecting(rewrite::read) {
        Ok((rewrite, use_regex)) => (policy.rewrite, result.use_regex) = (rewrite, use_regex),
        Err(_) => result.invalid_rewrite = true,
    }
    policy.timeouts = reader.family(timeouts::read).unwrap_or_default();
    policy.body = reader.family(body::read).unwrap_or_default();
    policy.cors = reader.family(cors::read).unwrap_or_default();
    policy.affinity = reader.family(affinity::read).unwrap_or_default();
    policy.upstream = or_refuse(reader.protecting(upstream::read_protocol), &mut policy.refused);
    if let Ok((balance, retry)) = reader.family(upstream::read) {
        (policy.upstream.balance, policy.upstream.retry) = (balance, retry);
    }
    match reader.protecting(headers::read) {
        Ok((headers, answer)) => (policy.headers, policy.answer) = (headers, answer),
        // A snippet may refuse requests.
        Err(_) => policy.refused = true,
    }
    policy.sources = or_refuse(reader.protecting(sources::read), &mut policy.refused);
    policy.auth = or_refuse(reader.protecting(auth::read), &mut policy.refused);
    policy.limits = or_refuse(reader.protecting(limits::read), &mut policy.refused);
    result.client_certificates = or_refuse(reader.protecting(host::client_certificates), &mut policy.refused);
    let canary = reader.family(canary::read);
    result.invalid_canary = canary.is_err();
    result.canary = canary.unwrap_or_default();
    result.errors = reader.family(errors::read).unwrap_or_default();
    result.host = reader.family(host::read).unwrap_or_default();
    reader.report_unread(other::report);
    result
}

/// Returns a family that restricts access or protects requests. If it is invalid, all requests are
/// refused.
fn or_refuse<T: Default>(family: Result<T, Invalid>, refused: &mut bool) -> T {
    *refused |= family.is_err();
    family.unwrap_or_default()
}
