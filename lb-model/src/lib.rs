//! The vocabulary for Kubernetes objects that all crates share: the fields of Services,
//! EndpointSlices, Nodes, Pods, ServiceCIDRs, Ingresses, IngressClasses and Secrets that a proxy
//! needs, and [`SourceEvent`], which reports their changes.
//!
//! The types are compact: a hundred thousand endpoints have to fit into a few megabytes.
//! `lb-objects` converts API objects into these types, `lb-plan` consumes them.
//!
//! **Invariant:** no I/O and no clock. The dependencies in the manifest of this crate prove it.

mod balancing;
mod drain;
mod event;
mod family;
mod ingress;
mod name;
mod node;
mod pod;
mod problem;
mod problems;
mod protocol;
mod secret;
mod service;
mod slice;

pub use balancing::{Algorithm, Balancing, HashInput, PlaceHash, Thresholds, Weight};
pub use drain::{DRAIN_ANNOTATION, DrainingNodes, NodeDrain};
pub use event::{ProblemSource, ResourceSet, SourceEvent, WatchedResource};
pub use family::{IpFamily, PerFamily};
pub use ingress::{
    Ingress, IngressBackend, IngressClass, IngressPath, IngressRule, IngressTls, PathType, PortRef,
    PublishedAddress,
};
pub use name::ObjectName;
pub use node::Node;
pub use pod::{PodRef, PodWeight, PodWeights, WEIGHT_ANNOTATION};
pub use problem::{ManifestLocation, Problem, ProblemKind, Severity};
pub use problems::Problems;
pub use protocol::Protocol;
pub use secret::Secret;
pub use service::{Service, ServicePort, SourceRanges, TrafficPolicy};
pub use slice::{Endpoint, EndpointPort, EndpointSlice, NodeHint, Trigger};
