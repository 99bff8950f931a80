//! The frontends of a Service port: the addresses that it requests, and the endpoint list that each
//! kind of traffic to them uses.

use std::net::IpAddr;

use ipnet::IpNet;
use lb_model::{IpFamily, Service, ServicePort, TrafficPolicy};

use super::desired::{EndpointList, Frontend, FrontendAddress, FrontendKind, ListPolicy, WhenEmpty};

/// An address and port that a Service port requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RequestedAddress {
    pub address: FrontendAddress,
    pub port: u16,
    pub kind: FrontendKind,
}

/// Returns every address that a Service port requests, whether or not another one owns it. No
/// address and port occurs twice.
pub(super) fn requested_addresses(
    service: &Service,
    port: &ServicePort,
    allowed_external_ips: &[IpNet],
) -> Vec<RequestedAddress> {
    let mut requested: Vec<RequestedAddress> = Vec::with_capacity(4);
    let mut request = |address, number, kind| {
        let new = RequestedAddress { address, port: number, kind };
        if !requested.iter().any(|request| (request.address, request.port) == (address, number)) {
            requested.push(new);
        }
    };
    for ip in &service.cluster_ips {
        request(FrontendAddress::Ip(*ip), port.port, FrontendKind::ClusterIp);
    }
    if let Some(node_port) = port.node_port {
        for ip in &service.cluster_ips {
            request(FrontendAddress::Node(IpFamily::of(ip)), node_port, FrontendKind::NodePort);
        }
    }
    // The first kind of an address counts. Load balancer addresses come before external IPs: an
    // address that is both keeps the source ranges, as in the firewall chain of kube-proxy.
    for ip in &service.load_balancer_ips {
        request(FrontendAddress::Ip(*ip), port.port, FrontendKind::LoadBalancer);
    }
    for ip in service.external_ips.iter().filter(|ip| is_allowed(ip, allowed_external_ips)) {
        request(FrontendAddress::Ip(*ip), port.port, FrontendKind::ExternalIp);
    }
    requested
}

/// Returns whether a Service may claim this external IP. Everybody who may write a Service can
/// request any external IP (CVE-2020-8554), so the operator restricts them.
pub(super) fn is_allowed(ip: &IpAddr, allowed: &[IpNet]) -> bool {
    allowed.iter().any(|net| net.contains(ip))
}

/// Returns whether clients outside the cluster can use this port through addresses of the family.
/// Addresses that another Service owns count too: the endpoint lists must not depend on ownership.
pub(super) fn is_external(requested: &[RequestedAddress], family: IpFamily) -> bool {
    let mut of_family = requested.iter().filter(|request| request.address.family() == family);
    of_family.any(|request| request.kind != FrontendKind::ClusterIp)
}

/// Adds the traffic policies of the Service to an address. `reachable` is true if the cluster has a
/// usable endpoint on any node.
pub(super) fn with_policies(request: &RequestedAddress, service: &Service, reachable: bool) -> Frontend {
    let cluster = ListPolicy { list: EndpointList::Cluster, when_empty: WhenEmpty::Reject };
    // If another node has an endpoint, clients should retry there: drop. Otherwise report an error.
    let when_empty = if reachable { WhenEmpty::Drop } else { WhenEmpty::Reject };
    let local = ListPolicy { list: EndpointList::Local, when_empty };
    let (outside, inside) = match (request.kind, service.internal_policy, service.external_policy) {
        (FrontendKind::ClusterIp, TrafficPolicy::Cluster, _) => (cluster, cluster),
        (FrontendKind::ClusterIp, TrafficPolicy::Local, _) => (local, local),
        (_, _, TrafficPolicy::Cluster) => (cluster, cluster),
        // Pods and the node itself are inside the cluster whatever address they use, so they use
        // all endpoints (the "short circuit" of kube-proxy).
        (_, _, TrafficPolicy::Local) => (local, cluster),
    };
    Frontend { address: request.address, port: request.port, kind: request.kind, outside, inside }
}
