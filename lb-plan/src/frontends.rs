//! The addresses of a Service port, and which list of endpoints each kind of traffic to them gets.

use std::net::IpAddr;

use ipnet::IpNet;
use lb_model::{IpFamily, Service, ServicePort, TrafficPolicy};

use super::desired::{EndpointList, Frontend, FrontendAddress, FrontendKind, ListPolicy, WhenEmpty};

/// An address that a Service port asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asked {
    pub address: FrontendAddress,
    pub port: u16,
    pub kind: FrontendKind,
}

/// Everything that a port asks for, of which others may have some already. No address and port twice.
pub(super) fn asked(service: &Service, port: &ServicePort, allowed_external_ips: &[IpNet]) -> Vec<Asked> {
    let mut asked: Vec<Asked> = Vec::with_capacity(4);
    let mut ask = |address, number, kind| {
        if !asked.iter().any(|other| other.address == address && other.port == number) {
            asked.push(Asked { address, port: number, kind });
        }
    };
    for ip in &service.cluster_ips {
        ask(FrontendAddress::Ip(*ip), port.port, FrontendKind::ClusterIp);
    }
    if let Some(node_port) = port.node_port {
        for ip in &service.cluster_ips {
            ask(FrontendAddress::Node(IpFamily::of(ip)), node_port, FrontendKind::NodePort);
        }
    }
    // Before the external IPs: an address that is both keeps the source ranges of the load balancer, as kube-proxy's
    // firewall chain does whatever chain translates.
    for ip in &service.load_balancer_ips {
        ask(FrontendAddress::Ip(*ip), port.port, FrontendKind::LoadBalancer);
    }
    for ip in service.external_ips.iter().filter(|ip| is_allowed(ip, allowed_external_ips)) {
        ask(FrontendAddress::Ip(*ip), port.port, FrontendKind::ExternalIp);
    }
    asked
}

/// Anyone who may write a Service may name any address as external IP (CVE-2020-8554): the operator says which count.
pub(super) fn is_allowed(ip: &IpAddr, allowed: &[IpNet]) -> bool {
    allowed.iter().any(|net| net.contains(ip))
}

/// Whether traffic from outside the cluster can come to this port, by addresses of the family. What a Service asks for
/// counts, also when another one has it: the endpoint lists must not depend on that.
pub(super) fn is_external(asked: &[Asked], family: IpFamily) -> bool {
    asked.iter().any(|asked| asked.kind != FrontendKind::ClusterIp && asked.address.family() == family)
}

/// The frontend with its policies. `reachable`: there is an endpoint somewhere in the cluster.
pub(super) fn with_policies(asked: &Asked, service: &Service, reachable: bool) -> Frontend {
    let cluster = ListPolicy { list: EndpointList::Cluster, when_empty: WhenEmpty::Reject };
    // An endpoint on another node: clients shall try there, so silence, not an error. None anywhere: an error.
    let when_empty = if reachable { WhenEmpty::Drop } else { WhenEmpty::Reject };
    let local = ListPolicy { list: EndpointList::Local, when_empty };
    let (outside, inside) = match (asked.kind, service.internal_policy, service.external_policy) {
        (FrontendKind::ClusterIp, TrafficPolicy::Cluster, _) => (cluster, cluster),
        (FrontendKind::ClusterIp, TrafficPolicy::Local, _) => (local, local),
        (_, _, TrafficPolicy::Cluster) => (cluster, cluster),
        // The short circuit: pods and the node itself are in the cluster already, whatever address they use.
        (_, _, TrafficPolicy::Local) => (local, cluster),
    };
    Frontend { address: asked.address, port: asked.port, kind: asked.kind, outside, inside }
}
