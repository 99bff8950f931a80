//! From API objects to the types of `lb-model`. The API objects are dropped afterwards.
//!
//! A conversion keeps everything that is valid and returns a [`Problem`](lb_model::Problem) for each part that is not.
//! What the API server would have filled in (a protocol, a policy) is filled in here too, because a manifest folder has
//! no API server.

mod address;
mod contradictions;
mod node;
mod problems;
mod service;
mod service_cidr;
mod slice;

pub use node::node;
pub use problems::Converted;
pub use service::service;
pub use service_cidr::service_cidrs;
pub use slice::{endpoint_slice, endpoints};
