//! Selects the eligible endpoints of a Service port. The rules are those of `CategorizeEndpoints`
//! in kube-proxy (pkg/proxy/topology.go).

use std::cmp::Reverse;
use std::net::SocketAddr;
use std::time::Duration;

use lb_model::{
    Balancing, DrainingNodes, Endpoint, EndpointSlice, IpFamily, NodeDrain, NodeHint, PodWeights, Protocol,
    ServicePort, Weight,
};

use super::desired::{DesiredEndpoint, EndpointLists};

/// The endpoint lists that the policies of a Service use. The other lists stay empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct UsedLists {
    pub cluster: bool,
    pub local: bool,
}

/// The selected endpoints of one Service port and family.
#[derive(Debug, Default)]
pub(super) struct SelectedEndpoints {
    pub lists: EndpointLists,
    /// The cluster has a usable endpoint, even if the lists do not contain it.
    pub reachable: bool,
}

/// An endpoint that has the port and family in question.
struct CandidateEndpoint<'a> {
    address: SocketAddr,
    endpoint: &'a Endpoint,
    for_zone: Option<bool>,
    weight: Weight,
    /// The drain of the endpoint's node.
    drain: Option<NodeDrain>,
}

impl CandidateEndpoint<'_> {
    /// Returns whether the endpoint may get new connections. One with weight 0 may not.
    fn is_ready(&self) -> bool {
        self.endpoint.ready && self.weight.get() > 0
    }

    /// Returns whether the endpoint serves while it terminates. Such endpoints are used if no
    /// endpoint is ready (KEP-1669).
    fn is_fallback(&self) -> bool {
        self.endpoint.serving && self.endpoint.terminating && self.weight.get() > 0
    }

    /// Returns the time after which the connections of the endpoint are reset, if it terminates,
    /// has weight 0 or is on a node that drains. An endpoint that drains for another reason (hints,
    /// a failed probe) can get connections again, and keeps those that it has.
    fn drain_limit(&self, balancing: &Balancing) -> Option<Duration> {
        let leaves = self.endpoint.terminating || self.weight.get() == 0 || self.drain.is_some();
        let of_service = balancing.drain_timeout.filter(|_| leaves);
        let of_node = self.drain.and_then(|drain| drain.limit);
        of_service.into_iter().chain(of_node).min()
    }

    /// Returns whether existing connections stay with the endpoint.
    ///
    /// An endpoint that fails its readiness probe keeps its TCP and SCTP connections: the protocol
    /// detects a dead peer. A UDP client cannot detect it, so its flows move to another endpoint.
    /// The conntrack reconciler of kube-proxy also keeps the UDP entries of serving endpoints only.
    fn keeps_connections(&self, protocol: Protocol) -> bool {
        self.endpoint.ready || self.endpoint.serving || protocol != Protocol::Udp
    }
}

/// The state of nodes and Pods that decides which endpoints are eligible.
#[derive(Debug, Clone, Copy)]
pub struct ClusterState<'a> {
    /// The zone of this node.
    pub zone: Option<&'a str>,
    pub draining: &'a DrainingNodes,
    pub pods: &'a PodWeights,
}

/// Selects the endpoints of one Service port and family.
pub(super) fn select<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
    (port, balancing): (&ServicePort, &Balancing),
    family: IpFamily,
    used: UsedLists,
    state: ClusterState<'_>,
) -> SelectedEndpoints {
    let candidates = merge_slices(slices, (port, balancing), family, state);
    let reachable = candidates.iter().any(|candidate| candidate.is_ready() || candidate.is_fallback());
    let in_cluster = if used.cluster { cluster_list(&candidates) } else { vec![false; candidates.len()] };
    let in_local = if used.local { local_list(&candidates) } else { vec![false; candidates.len()] };

    let mut lists = EndpointLists::default();
    for (index, candidate) in candidates.iter().enumerate() {
        let eligible = in_cluster[index] || in_local[index];
        // If only the Local policy is used, the endpoints of other nodes are not needed. They can
        // be thousands.
        let is_needed = used.cluster || candidate.endpoint.local;
        let drains = !eligible && is_needed && candidate.keeps_connections(port.protocol);
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
            weight: candidate.weight,
            drain_limit: if drains { candidate.drain_limit(balancing) } else { None },
        });
    }
    SelectedEndpoints { lists, reachable }
}

/// Returns the endpoints of a TCP port that may get new connections from this node, sorted: those
/// that the policy Cluster selects. The endpoints of a Service with both families are those of
/// IPv4 if there are any, so that each pod is one endpoint. `port` is the name of the port,
/// `slices` are those of one Service.
pub fn eligible_addresses<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
    (port, balancing): (&str, &Balancing),
    state: ClusterState<'_>,
) -> Vec<SocketAddr> {
    let port = ServicePort { name: port.into(), protocol: Protocol::Tcp, port: 0, node_port: None };
    let used = UsedLists { cluster: true, local: false };
    let of_family = |family| -> Vec<_> {
        let lists = select(slices.clone(), (&port, balancing), family, used, state).lists;
        let eligible = lists.cluster.iter().filter_map(|index| lists.endpoints.get(*index as usize));
        eligible.map(|endpoint| endpoint.address).collect()
    };
    IpFamily::BOTH.into_iter().map(of_family).find(|addresses| !addresses.is_empty()).unwrap_or_default()
}

/// Returns the endpoints of all slices, sorted by address and without duplicates.
///
/// An endpoint can occur in two slices, for example while it moves from one to the other. The entry
/// that does not terminate takes precedence, then the one that is ready, serving, local or hinted.
fn merge_slices<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
    (port, balancing): (&ServicePort, &Balancing),
    family: IpFamily,
    state: ClusterState<'_>,
) -> Vec<CandidateEndpoint<'a>> {
    let mut candidates = Vec::new();
    for slice in slices {
        let matching = slice
            .ports
            .iter()
            .filter(|slice_port| slice_port.name == port.name && slice_port.protocol == port.protocol);
        for slice_port in matching {
            let of_family =
                slice.endpoints.iter().filter(|endpoint| IpFamily::of(&endpoint.address) == family);
            candidates.extend(of_family.map(|endpoint| CandidateEndpoint {
                address: SocketAddr::new(endpoint.address, slice_port.port),
                endpoint,
                for_zone: slice.for_zone(endpoint, state.zone),
                weight: balancing.weight_of(
                    endpoint.pod.and_then(|pod| state.pods.of(pod)).or(slice.weight),
                    endpoint.node,
                    endpoint.zone,
                ),
                drain: state.draining.of(endpoint),
            }));
        }
    }
    candidates.sort_by_key(|candidate| {
        let Endpoint { ready, serving, terminating, local, node_hint, .. } = *candidate.endpoint;
        (
            candidate.address,
            terminating,
            Reverse((ready, serving, local, node_hint, candidate.for_zone, candidate.weight)),
        )
    });
    candidates.dedup_by_key(|candidate| candidate.address);
    candidates
}

/// The topology hints that apply to ready endpoints.
///
/// Hints apply if all ready endpoints have them and at least one is for this node or zone.
/// Otherwise the controller has not finished, or has no endpoint for this node: all endpoints are
/// used (KEP-2433, KEP-4444).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TopologyMode {
    SameNode,
    SameZone,
    Anywhere,
}

fn topology_mode(
    candidates: &[CandidateEndpoint<'_>],
    is_ready: impl Fn(&CandidateEndpoint<'_>) -> bool,
) -> TopologyMode {
    let ready = || candidates.iter().filter(|candidate| is_ready(candidate));
    if ready().all(|candidate| candidate.endpoint.node_hint != NodeHint::None)
        && ready().any(|candidate| candidate.endpoint.node_hint == NodeHint::ThisNode)
    {
        TopologyMode::SameNode
    } else if ready().all(|candidate| candidate.for_zone.is_some())
        && ready().any(|candidate| candidate.for_zone == Some(true))
    {
        TopologyMode::SameZone
    } else {
        TopologyMode::Anywhere
    }
}

/// The endpoints on nodes that drain count as not ready, unless no others are ready. A node that
/// drains still serves, as an endpoint that terminates may: both are better than a refusal.
fn cluster_list(candidates: &[CandidateEndpoint<'_>]) -> Vec<bool> {
    let stays = |candidate: &CandidateEndpoint<'_>| candidate.is_ready() && candidate.drain.is_none();
    let some_stay = candidates.iter().any(stays);
    let is_ready =
        |candidate: &CandidateEndpoint<'_>| if some_stay { stays(candidate) } else { candidate.is_ready() };
    let mode = topology_mode(candidates, is_ready);
    let hinted = |candidate: &CandidateEndpoint<'_>| match mode {
        TopologyMode::SameNode => candidate.endpoint.node_hint == NodeHint::ThisNode,
        TopologyMode::SameZone => candidate.for_zone == Some(true),
        TopologyMode::Anywhere => true,
    };
    ready_or_terminating(candidates, |candidate| is_ready(candidate) && hinted(candidate), |_| true)
}

/// Hints do not apply to the Local policy: it admits all local endpoints and no others. A drain of
/// this node does not apply either: it concerns all endpoints of the list. The health check of the
/// Service leads external load balancers to other nodes then.
fn local_list(candidates: &[CandidateEndpoint<'_>]) -> Vec<bool> {
    ready_or_terminating(
        candidates,
        |candidate| candidate.is_ready() && candidate.endpoint.local,
        |candidate| candidate.endpoint.local,
    )
}

/// Selects the endpoints that `is_preferred` accepts. If there are none, selects the
/// endpoints that `is_possible` accepts and that serve while they terminate.
fn ready_or_terminating(
    candidates: &[CandidateEndpoint<'_>],
    is_preferred: impl Fn(&CandidateEndpoint<'_>) -> bool,
    is_possible: impl Fn(&CandidateEndpoint<'_>) -> bool,
) -> Vec<bool> {
    let preferred: Vec<bool> = candidates.iter().map(is_preferred).collect();
    if preferred.contains(&true) {
        return preferred;
    }
    candidates.iter().map(|candidate| candidate.is_fallback() && is_possible(candidate)).collect()
}
