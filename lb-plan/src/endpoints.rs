//! Which endpoints are eligible: `CategorizeEndpoints` of kube-proxy (pkg/proxy/topology.go), on our types.

use std::cmp::Reverse;
use std::net::SocketAddr;

use lb_model::{Endpoint, EndpointSlice, IpFamily, NodeHint, Protocol, ServicePort};

use super::desired::{DesiredEndpoint, EndpointLists};

/// Which lists the policies of a Service use; the others stay empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Uses {
    pub cluster: bool,
    pub local: bool,
}

/// The endpoints of one Service port and family.
#[derive(Debug, Default)]
pub(super) struct Choice {
    pub lists: EndpointLists,
    /// There is a usable endpoint somewhere in the cluster, if not in the lists.
    pub reachable: bool,
}

/// An endpoint of the port that is asked for.
struct Candidate<'a> {
    address: SocketAddr,
    endpoint: &'a Endpoint,
    for_zone: Option<bool>,
}

impl Candidate<'_> {
    /// Serves although it goes: the last resort (KEP-1669).
    fn is_fallback(&self) -> bool {
        self.endpoint.serving && self.endpoint.terminating
    }

    /// Whether connections that it has shall stay with it. One that fails its readiness probe keeps those of protocols
    /// that would notice; a UDP client would send into the void without ever being told, so its flows move on
    /// (kube-proxy's conntrack reconciler keeps UDP entries of serving endpoints only).
    fn keeps_connections(&self, protocol: Protocol) -> bool {
        self.endpoint.ready || self.endpoint.serving || protocol != Protocol::Udp
    }
}

pub(super) fn choose<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
    port: &ServicePort,
    family: IpFamily,
    uses: Uses,
    zone: Option<&str>,
) -> Choice {
    let candidates = merge(slices, port, family, zone);
    let reachable = candidates.iter().any(|it| it.endpoint.ready || it.is_fallback());
    let in_cluster = if uses.cluster { cluster_list(&candidates) } else { vec![false; candidates.len()] };
    let in_local = if uses.local { local_list(&candidates) } else { vec![false; candidates.len()] };

    let mut lists = EndpointLists::default();
    for (index, candidate) in candidates.iter().enumerate() {
        let eligible = in_cluster[index] || in_local[index];
        // Under a Local policy alone the endpoints of other nodes, thousands perhaps, are no business of this node.
        let concerns_node = uses.cluster || candidate.endpoint.local;
        let drains = !eligible && concerns_node && candidate.keeps_connections(port.protocol);
        if !(eligible || drains) {
            continue;
        }
        let position = u32::try_from(lists.endpoints.len()).unwrap_or(u32::MAX);
        if in_cluster[index] {
            lists.cluster.push(position);
        }
        if in_local[index] {
            lists.local.push(position);
        }
        lists.endpoints.push(DesiredEndpoint {
            address: candidate.address,
            local: candidate.endpoint.local,
            draining: drains,
        });
    }
    Choice { lists, reachable }
}

/// The endpoints of all slices, sorted by address. One that stands in two slices (it moves from one to the other, say)
/// counts once: the entry that does not terminate wins, then the one that says more.
fn merge<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
    port: &ServicePort,
    family: IpFamily,
    zone: Option<&str>,
) -> Vec<Candidate<'a>> {
    let mut candidates = Vec::new();
    for slice in slices {
        let numbers = slice.ports.iter().filter(|it| it.name == port.name && it.protocol == port.protocol);
        for slice_port in numbers {
            let of_family = slice.endpoints.iter().filter(|it| IpFamily::of(&it.address) == family);
            candidates.extend(of_family.map(|endpoint| Candidate {
                address: SocketAddr::new(endpoint.address, slice_port.port),
                endpoint,
                for_zone: slice.for_zone(endpoint, zone),
            }));
        }
    }
    candidates.sort_by_key(|it| {
        let Endpoint { ready, serving, terminating, local, node_hint, .. } = *it.endpoint;
        (it.address, terminating, Reverse((ready, serving, local, node_hint, it.for_zone)))
    });
    candidates.dedup_by_key(|it| it.address);
    candidates
}

/// Which hints apply. All ready endpoints must have them and one must be meant for here: otherwise a controller has not
/// finished, or has nothing for here, and every endpoint is better than none (KEP-2433, KEP-4444).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Topology {
    SameNode,
    SameZone,
    Anywhere,
}

fn topology(candidates: &[Candidate<'_>]) -> Topology {
    let ready = || candidates.iter().filter(|it| it.endpoint.ready);
    if ready().all(|it| it.endpoint.node_hint != NodeHint::None)
        && ready().any(|it| it.endpoint.node_hint == NodeHint::ThisNode)
    {
        Topology::SameNode
    } else if ready().all(|it| it.for_zone.is_some()) && ready().any(|it| it.for_zone == Some(true)) {
        Topology::SameZone
    } else {
        Topology::Anywhere
    }
}

fn cluster_list(candidates: &[Candidate<'_>]) -> Vec<bool> {
    let topology = topology(candidates);
    let hinted = |it: &Candidate<'_>| match topology {
        Topology::SameNode => it.endpoint.node_hint == NodeHint::ThisNode,
        Topology::SameZone => it.for_zone == Some(true),
        Topology::Anywhere => true,
    };
    ready_else_fallback(candidates, hinted, |_| true)
}

/// Hints do not apply: whoever asks for local endpoints means these and no others.
fn local_list(candidates: &[Candidate<'_>]) -> Vec<bool> {
    ready_else_fallback(candidates, |it| it.endpoint.local, |it| it.endpoint.local)
}

/// The ready ones that `prefer` selects; if there are none, those of `fallback` that serve while they terminate.
fn ready_else_fallback(
    candidates: &[Candidate<'_>],
    prefer: impl Fn(&Candidate<'_>) -> bool,
    fallback: impl Fn(&Candidate<'_>) -> bool,
) -> Vec<bool> {
    let ready: Vec<bool> = candidates.iter().map(|it| it.endpoint.ready && prefer(it)).collect();
    if ready.contains(&true) {
        return ready;
    }
    candidates.iter().map(|it| it.is_fallback() && fallback(it)).collect()
}
