//! The changes by a move from ingress-nginx, for each Ingress.
//!
//! The Ingresses are translated as the proxy does it. A rule of Ingresses is not written down a
//! second time.

mod finding;
mod quirks;
mod report;

pub use finding::{Finding, FindingKind};
pub use report::{IngressReport, Report, check, rules};
