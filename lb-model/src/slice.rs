use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use crate::{IpFamily, ManifestLocation, ObjectName, Protocol};

/// An EndpointSlice. What depends on the name of this node is settled in the conversion, because a process runs on one
/// node all its life; what depends on the node's zone is not, because labels change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSlice {
    pub service: ObjectName,
    /// Where it was read, if from a manifest folder.
    pub location: Option<Arc<ManifestLocation>>,
    pub ports: Box<[EndpointPort]>,
    pub endpoints: Box<[Endpoint]>,
    /// The different sets of zones that the endpoints are meant for. See [`Endpoint::zone_hints`].
    pub zone_sets: Box<[Box<[Box<str>]>]>,
    /// What brought the slice into this state; none: its author did not say.
    pub trigger: Option<Trigger>,
}

/// When a pod or Service changed so that the EndpointSlice controller wrote the slice, by the clock of the controller. What lies
/// between that and the change of the maps is the latency that a cluster is judged by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Trigger {
    pub family: IpFamily,
    pub at: SystemTime,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointPort {
    /// Matches the name of a Service port; empty for the only port of a Service.
    pub name: Box<str>,
    pub protocol: Protocol,
    pub port: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    pub address: IpAddr,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    /// Runs on this node.
    pub local: bool,
    pub node_hint: NodeHint,
    /// Index into [`EndpointSlice::zone_sets`]; none: no zone hints.
    pub zone_hints: Option<u16>,
}

/// What `hints.forNodes` says (KEP-4444, PreferSameNode).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodeHint {
    None,
    OtherNodes,
    ThisNode,
}

impl EndpointSlice {
    /// Whether an endpoint of this slice is meant for the zone; `None`: it has no zone hints.
    pub fn for_zone(&self, endpoint: &Endpoint, zone: Option<&str>) -> Option<bool> {
        let zones = self.zone_sets.get(usize::from(endpoint.zone_hints?))?;
        Some(zone.is_some_and(|zone| zones.iter().any(|hinted| **hinted == *zone)))
    }
}
