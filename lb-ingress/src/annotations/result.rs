//! The annotations of an Ingress as typed values.

use super::canary::CanaryRule;
use super::errors::ErrorRule;
use super::host::HostRules;
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
