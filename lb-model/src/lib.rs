//! The words for Kubernetes objects that every other crate uses: what a proxy needs of Services, EndpointSlices, Nodes
//! and ServiceCIDRs, and the [`SourceEvent`]s by which their changes arrive.
//!
//! The types are compact: a cluster with a hundred thousand endpoints has to fit into a few megabytes. `lb-objects`
//! makes them of API objects, `lb-plan` takes them.
//!
//! **Invariant:** no I/O, no clock. The manifest of this crate shows it.

mod event;
mod family;
mod name;
mod node;
mod problem;
mod protocol;
mod service;
mod slice;

pub use event::{ProblemSource, SourceEvent, WatchedResource};
pub use family::IpFamily;
pub use name::ObjectName;
pub use node::Node;
pub use problem::{ManifestLocation, Problem, ProblemKind, Severity};
pub use protocol::Protocol;
pub use service::{Service, ServicePort, SourceRanges, TrafficPolicy};
pub use slice::{Endpoint, EndpointPort, EndpointSlice, NodeHint, Trigger};
