//! The rules of Kubernetes Services: computes the desired content of the maps from objects. Pure
//! functions without I/O, clock or randomness.
//!
//! [`Planner`] holds the objects. [`Planner::update`] takes a batch of
//! [events](lb_model::SourceEvent) and returns the changes:
//!
//! - `planner`: the state, its indices, and the Services that a change affects;
//! - `claims`: the owner of an address and port that several Services request;
//! - `frontends`: the addresses of a Service port, and the policies that apply to them;
//! - `endpoints`: the endpoints that these policies select (KEP-1669, 1672, 2086, 2433, 4444);
//! - `slots`: the endpoints in the slots, by algorithm and weights;
//! - `desired`: the result.
//!
//! ```no_run
//! # use lb_model::SourceEvent;
//! # use lb_objects::{ObjectSelection, manifests};
//! # use lb_plan::{Changes, Planner, PlannerSettings};
//! # async fn agent(apply: impl Fn(Changes)) {
//! let (sender, mut events) = tokio::sync::mpsc::channel(1024);
//! let selection = ObjectSelection::of_services("node-1");
//! tokio::spawn(manifests::watch("/etc/sluice".into(), selection, sender));
//! let mut planner = Planner::new(PlannerSettings::default());
//! let mut batch: Vec<SourceEvent> = Vec::new();
//! while events.recv_many(&mut batch, 1024).await > 0 {
//!     apply(planner.update(batch.drain(..)));
//! }
//! # }
//! ```
//!
//! **Invariant:** the result depends on the objects, not on the order in which they arrive. A
//! property test proves it.

mod claims;
pub mod desired;
mod endpoints;
mod frontends;
mod planner;
mod problems;
mod render;
mod slots;

#[cfg(test)]
mod order;

pub use endpoints::{ClusterState, eligible_addresses};
pub use planner::{Changes, HealthCheck, Planner, PlannerSettings};
