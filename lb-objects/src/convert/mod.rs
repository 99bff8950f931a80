//! Converts API objects into the types of `lb-model`. The API objects are dropped afterwards.
//!
//! A conversion keeps every valid part of an object and returns a [`Problem`](lb_model::Problem)
//! for each invalid one. It applies the defaults of the API server (a protocol, a policy) itself,
//! because a manifest folder has no API server.

mod address;
mod balancing;
mod contradictions;
mod converted;
mod duration;
mod ingress;
mod node;
mod pod;
mod secret;
mod service;
mod service_cidr;
mod slice;

pub use converted::Converted;
pub use duration::parse_duration;
pub use ingress::{ingress, ingress_class};
pub use node::{is_cordoned, node, node_drain};
pub use pod::pod_weight;
pub use secret::secret;
pub use service::{service, service_ports};
pub use service_cidr::service_cidrs;
pub use slice::{endpoint_slice, endpoint_slice_of_any_service, endpoints};
