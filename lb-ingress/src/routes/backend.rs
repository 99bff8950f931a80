//! The targets of requests: ports of Services.

use std::fmt;

use lb_model::ObjectName;

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendRef {
    pub service: ObjectName,
    /// Name of the port, as Services and EndpointSlices have it. Empty for a port without a name.
    pub port: Box<str>,
}

/// A backend and its share of the requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    pub target: BackendRef,
    /// A share of the sum of all weights.
    pub weight: u32,
}

impl fmt::Display for BackendRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if self.port.is_empty() { "" } else { ":" };
        write!(f, "{}{separator}{}", self.service, self.port)
    }
}
