//! What the planner must know of Services, EndpointSlices, Nodes and ServiceCIDRs: compact types of our own, made
//! straight from the API objects, which are then dropped. A cluster with a hundred thousand endpoints has to fit into
//! a few megabytes.
//!
//! A conversion keeps everything that is valid and returns a [`Problem`] for each part that is not. What the API server
//! would have filled in (a protocol, a policy) is filled in here too, because a manifest folder has no API server.

mod address;
mod contradictions;
mod convert;
mod name;
mod node;
mod problem;
mod service;
mod service_cidr;
mod slice;

pub use convert::Converted;
pub use name::ObjectName;
pub use node::Node;
pub use problem::{Place, Problem, ProblemKind, Severity};
pub use service::{Service, ServicePort, SourceRanges, TrafficPolicy};
pub use service_cidr::service_cidrs;
pub use slice::{Endpoint, NodeHint, Slice, SlicePort, Trigger};
