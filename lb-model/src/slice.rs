//! EndpointSlices and their endpoints.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use crate::balancing::{PlaceHash, Weight};
use crate::family::IpFamily;
use crate::name::ObjectName;
use crate::pod::PodRef;
use crate::problem::ManifestLocation;
use crate::protocol::Protocol;

/// The fields of an EndpointSlice that a proxy needs.
///
/// The conversion evaluates everything that depends on the name of this node, because a process
/// runs on the same node all its life. Zones are stored unevaluated: the zone label of a Node may
/// change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSlice {
    /// The Service that label `kubernetes.io/service-name` names. It need not exist.
    pub service: ObjectName,
    /// Set if the slice was read from a manifest folder.
    pub location: Option<Arc<ManifestLocation>>,
    pub ports: Box<[EndpointPort]>,
    /// Every endpoint has all `ports`.
    pub endpoints: Box<[Endpoint]>,
    /// The distinct values of `hints.forZones` in this slice. [`Endpoint::zone_hints`] is an index
    /// into this list.
    pub zone_sets: Box<[Box<[Box<str>]>]>,
    /// The annotation `lb.sluice.dev/weight`: the weight of every endpoint of this slice.
    pub weight: Option<Weight>,
    /// The change that caused the current state of the slice. `None` if the slice does not have
    /// the annotation.
    pub trigger: Option<Trigger>,
}

/// The time at which a pod or Service changed, so that the EndpointSlice controller wrote the
/// slice (annotation `endpoints.kubernetes.io/last-change-trigger-time`).
///
/// The time from this trigger to the update of the maps is the network programming latency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Trigger {
    /// The family of the slice.
    pub family: IpFamily,
    /// By the clock of the controller.
    pub at: SystemTime,
}

/// A port of the endpoints of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointPort {
    /// Equals the name of a Service port. Empty for a port without a name.
    pub name: Box<str>,
    pub protocol: Protocol,
    pub port: u16,
}

/// An endpoint of a slice. The conditions are those of discovery/v1, with the defaults applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// `addresses[0]`.
    pub address: IpAddr,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    /// The endpoint runs on this node.
    pub local: bool,
    /// `nodeName`.
    pub node: Option<PlaceHash>,
    /// The Pod that `targetRef` names.
    pub pod: Option<PodRef>,
    /// `zone`.
    pub zone: Option<PlaceHash>,
    pub node_hint: NodeHint,
    /// Index into [`EndpointSlice::zone_sets`]. `None` if the endpoint has no zone hints.
    pub zone_hints: Option<u16>,
}

/// `hints.forNodes` of an endpoint, compared with the name of this node (KEP-4444,
/// PreferSameNode).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodeHint {
    None,
    OtherNodes,
    ThisNode,
}

impl EndpointSlice {
    /// Returns whether the zone hints of an endpoint of this slice contain `zone`. Returns `None`
    /// if the endpoint has no zone hints.
    pub fn for_zone(&self, endpoint: &Endpoint, zone: Option<&str>) -> Option<bool> {
        let zones = self.zone_sets.get(usize::from(endpoint.zone_hints?))?;
        Some(zone.is_some_and(|zone| zones.iter().any(|hinted| **hinted == *zone)))
    }
}
