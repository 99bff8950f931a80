//! The frontends of a Service port: the addresses that it requests, and the endpoint list that each
//! kind of traffic to them uses.

use std::collections::BTreeSet;
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
/// address and port occurs twice. Takes O(n log n) steps for n addresses.
pub(super) fn requested_addresses(
    service: &Service,
    port: &ServicePort,
    allowed_external_ips: &[IpNet],
) -> Vec<RequestedAddress> {
    let mut requested = Vec::with_capacity(4);
    let mut request = |address, number, kind| {
        requested.push(RequestedAddress { address, port: number, kind });
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
    retain_first(&mut requested, |request| (request.address, request.port));
    requested
}

/// Removes every item whose key an earlier item has.
fn retain_first<T, K: Ord>(items: &mut Vec<T>, key: impl Fn(&T) -> K) {
    let mut seen = BTreeSet::new();
    items.retain(|item| seen.insert(key(item)));
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::cmp::Ordering;

    use lb_model::Protocol;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// A key that counts its comparisons.
    struct Counted<'a>(u32, &'a Cell<usize>);

    impl Ord for Counted<'_> {
        fn cmp(&self, other: &Self) -> Ordering {
            self.1.set(self.1.get() + 1);
            self.0.cmp(&other.0)
        }
    }

    impl PartialOrd for Counted<'_> {
        fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
            Some(self.cmp(other))
        }
    }

    impl PartialEq for Counted<'_> {
        fn eq(&self, other: &Self) -> bool {
            self.cmp(other) == Ordering::Equal
        }
    }

    impl Eq for Counted<'_> {}

    /// The comparisons of n insertions into a B-tree: at most 11 in each node of a path. A node
    /// below the root has at least 6 children, so the tree has at most 2 + log6(n) levels.
    fn comparisons_max(count: usize) -> usize {
        let levels = 2 + count.max(1).ilog(6) as usize;
        count * 11 * levels
    }

    fn addresses(numbers: &[u32]) -> Box<[IpAddr]> {
        numbers.iter().map(|number| IpAddr::V4((0x0a00_0000 + number).into())).collect()
    }

    /// Miri interprets the tests some hundred times slower.
    const ITEMS_MAX: usize = if cfg!(miri) { 100 } else { 1000 };

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: if cfg!(miri) { 4 } else { 256 },
            ..ProptestConfig::default()
        })]

        #[test]
        fn the_first_items_are_found_in_n_log_n_comparisons(
            keys in vec(0..100_000_u32, 0..ITEMS_MAX),
            distinct in 1..100_000_u32,
        ) {
            let keys: Vec<u32> = keys.into_iter().map(|key| key % distinct).collect();
            let comparisons = Cell::new(0);
            let mut retained: Vec<_> = keys.iter().copied().enumerate().collect();
            retain_first(&mut retained, |(_, key)| Counted(*key, &comparisons));
            prop_assert!(comparisons.get() <= comparisons_max(keys.len()), "{}", comparisons.get());
            let first = |(index, key): &(usize, u32)| !keys[..*index].contains(key);
            let expected: Vec<_> = keys.iter().copied().enumerate().filter(first).collect();
            prop_assert_eq!(retained, expected);
        }

        #[test]
        fn each_address_is_requested_once_with_its_first_kind(
            cluster in vec(0..40_u32, 0..2),
            load_balancer in vec(0..40_u32, 0..40),
            external in vec(0..40_u32, 0..40),
            node_port in proptest::option::of(30_000..30_010_u16),
        ) {
            let port = ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port };
            let service = Service {
                cluster_ips: addresses(&cluster),
                load_balancer_ips: addresses(&load_balancer),
                external_ips: addresses(&external),
                ..Service::default()
            };
            let all = ["0.0.0.0/0".parse().unwrap()];
            let requested = requested_addresses(&service, &port, &all);
            let keys: BTreeSet<_> =
                requested.iter().map(|request| (request.address, request.port)).collect();
            prop_assert_eq!(keys.len(), requested.len());
            for request in &requested {
                let FrontendAddress::Ip(ip) = request.address else {
                    prop_assert_eq!(Some(request.port), node_port);
                    continue;
                };
                let kind = if service.cluster_ips.contains(&ip) {
                    FrontendKind::ClusterIp
                } else if service.load_balancer_ips.contains(&ip) {
                    FrontendKind::LoadBalancer
                } else {
                    FrontendKind::ExternalIp
                };
                prop_assert_eq!(request.kind, kind);
            }
            let ips: BTreeSet<_> = cluster.iter().chain(&load_balancer).chain(&external).collect();
            let node_ports = usize::from(node_port.is_some() && !cluster.is_empty());
            prop_assert_eq!(requested.len(), ips.len() + node_ports);
        }
    }
}
