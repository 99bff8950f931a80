//! The Service proxies that benchmarks compare.

use std::fmt;
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::kube_proxy::{KubeProxy, KubeProxyMode};
use super::server::ControlPlane;
use crate::agent::{Agent, AgentOptions};
use crate::manifests;
use crate::topology::Topology;

/// What serves Services on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceProxy {
    Sluice,
    KubeProxy(KubeProxyMode),
}

impl fmt::Display for ServiceProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sluice => f.write_str("Sluice"),
            Self::KubeProxy(mode) => write!(f, "kube-proxy {mode}"),
        }
    }
}

/// A proxy that runs on the first node of a topology. Dropping it kills its processes.
#[derive(Debug)]
pub struct RunningProxy {
    // These are dropped in this order.
    _agent: Option<Agent>,
    _kube_proxy: Option<KubeProxy>,
    _control_plane: Option<ControlPlane>,
}

impl ServiceProxy {
    /// Starts the proxy with default settings, and waits until it serves `objects`, which have all
    /// of these addresses. kube-proxy gets an API server of its own.
    pub fn start(self, topology: &Topology, objects: &[Value], addresses: &[IpAddr]) -> Result<RunningProxy> {
        let node = &topology.nodes[0];
        let nodes: Vec<_> = topology.nodes.iter().map(manifests::node).collect();
        match self {
            Self::Sluice => {
                topology.manifests.write("nodes.yaml", &nodes)?;
                topology.manifests.write("services.yaml", objects)?;
                let agent = Agent::start(topology, node, &AgentOptions::default())?;
                Ok(RunningProxy { _agent: Some(agent), _kube_proxy: None, _control_plane: None })
            }
            Self::KubeProxy(mode) => {
                let folder = topology.folder().join("control-plane");
                let control_plane = ControlPlane::start(&topology.client, &folder)?;
                let admin = control_plane.admin()?;
                nodes.iter().chain(objects).try_for_each(|object| admin.apply(object))?;
                let kubeconfig = control_plane.admin_kubeconfig()?;
                let mut kube_proxy = KubeProxy::start(node, mode, &kubeconfig, &topology.folder())?;
                kube_proxy.wait_until_served(addresses).with_context(|| self.to_string())?;
                Ok(RunningProxy {
                    _agent: None,
                    _kube_proxy: Some(kube_proxy),
                    _control_plane: Some(control_plane),
                })
            }
        }
    }
}
