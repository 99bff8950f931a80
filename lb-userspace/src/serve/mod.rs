//! What the agent answers over HTTP:
//!
//! - `probes`: `/healthz` and `/livez`, for load balancers and the kubelet; `health` says what they answer.
//! - `service_health`: the `healthCheckNodePort` of each Service, for the load balancer that sends it traffic.
//! - `diagnostics`: `/metrics`, `/configz`, `/proxyMode`, for people and Prometheus.

mod diagnostics;
mod health;
mod http;
mod metrics;
mod probes;
mod service_health;

use std::net::SocketAddr;

use tokio::net::TcpListener;

pub use diagnostics::serve_diagnostics;
pub use health::{Pending, Progress, Report, State};
pub use metrics::{Metrics, Packets};
pub use probes::serve_probes;
pub use service_health::{HealthPorts, OpenError, ServiceHealth};

/// The ports that the agent cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    Health,
    Metrics,
}

impl Port {
    fn serves(self) -> &'static str {
        match self {
            Self::Health => "/healthz",
            Self::Metrics => "/metrics",
        }
    }

    fn option(self) -> &'static str {
        match self {
            Self::Health => "--health-bind",
            Self::Metrics => "--metrics-bind",
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error(
    "cannot serve {} at {address}: {source}; end what uses the port (kube-proxy has the same default) or choose another address with {}",
    port.serves(), port.option()
)]
pub struct BindError {
    port: Port,
    address: SocketAddr,
    source: std::io::Error,
}

/// Opens the port. Nothing is answered before it is given to its server.
pub async fn bind(port: Port, address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| BindError { port, address, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_in_use_is_named_with_the_remedy() {
        let first = bind(Port::Health, "127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = first.local_addr().unwrap();
        for (port, option) in [(Port::Health, "--health-bind"), (Port::Metrics, "--metrics-bind")] {
            let error = bind(port, address).await.unwrap_err().to_string();
            assert!(error.contains(&address.to_string()) && error.contains(option), "{error}");
        }
    }
}
