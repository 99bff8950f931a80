//! The HTTP servers of the agent.
//!
//! - `probes`: `/healthz` and `/livez`, for load balancers and the kubelet. `health` computes the
//!   answers.
//! - `service_health`: the `healthCheckNodePort` of each Service, for its load balancer.
//! - `diagnostics`: `/metrics`, `/configz` and `/proxyMode`, for Prometheus and operators.
//!   `metrics` and `process` have the metrics.
//! - `ingress`: the probes and metrics of `lb ingress`.
//! - `http`: the server that they share.

mod diagnostics;
mod health;
mod http;
mod ingress;
mod metrics;
mod probes;
mod process;
mod service_health;
mod writer;

use std::net::SocketAddr;

use tokio::net::TcpListener;

pub use diagnostics::serve_diagnostics;
pub use health::{AgentState, HealthReport, Pending, Progress};
pub use ingress::{ingress_registry, serve_ingress_probes};
pub use metrics::{KernelCounts, MOST_SERVICE_LOADS, MapMemory, Metrics, ReadCounts};
pub use probes::serve_probes;
pub use service_health::{HealthPorts, OpenError, ServiceHealth};

/// The ports that the agent must open to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentPort {
    Health,
    Metrics,
}

impl AgentPort {
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
    "cannot serve {} at {address}: {source}; end the process that uses the port \
     (kube-proxy has the same default) or choose another address with {}",
    port.serves(), port.option()
)]
pub struct BindError {
    port: AgentPort,
    address: SocketAddr,
    source: std::io::Error,
}

/// Opens the port. Connections wait until a server accepts them.
pub async fn bind(port: AgentPort, address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| BindError { port, address, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_in_use_is_named_with_the_remedy() {
        let first = bind(AgentPort::Health, "127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = first.local_addr().unwrap();
        for (port, option) in [(AgentPort::Health, "--health-bind"), (AgentPort::Metrics, "--metrics-bind")] {
            let error = bind(port, address).await.unwrap_err().to_string();
            assert!(error.contains(&address.to_string()) && error.contains(option), "{error}");
        }
    }
}
