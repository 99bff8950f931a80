//! The endpoints of Services, and the choice among them.
//!
//! - `slices`: which endpoints of the EndpointSlices serve a backend;
//! - `store`: the endpoints of each backend, swapped one backend at a time;
//! - `set`: the choice of an endpoint for a request;
//! - `endpoint`: the counters of one endpoint, and its ejection.

mod endpoint;
mod set;
mod slices;
mod store;

pub use endpoint::{Endpoint, InFlight};
pub use set::{Choice, EndpointSet};
pub use slices::Slices;
pub use store::Endpoints;
