//! From model and node facts to the wanted map contents: pure functions, no I/O, no clock, no randomness.
//!
//! [`Planner`] holds the model and answers every batch of [events](lb_model::SourceEvent) with what changed:
//!
//! - `planner`: the state, its indices, and which Services a change touches;
//! - `claims`: which Service has an address and port that several want;
//! - `frontends`: the addresses of a Service port, and the policies that go with them;
//! - `endpoints`: which endpoints those policies make eligible (KEP-1669, 1672, 2086, 2433, 4444);
//! - `desired`: the result.
//!
//! ```no_run
//! # use lb_model::SourceEvent;
//! # use lb_objects::manifests;
//! # use lb_plan::{Changes, Planner, PlannerSettings};
//! # async fn agent(apply: impl Fn(Changes)) {
//! let (sender, mut events) = tokio::sync::mpsc::channel(1024);
//! tokio::spawn(manifests::watch("/etc/sluice".into(), "node-1".into(), sender));
//! let mut planner = Planner::new(PlannerSettings::default());
//! let mut batch: Vec<SourceEvent> = Vec::new();
//! while events.recv_many(&mut batch, 1024).await > 0 {
//!     apply(planner.update(batch.drain(..)));
//! }
//! # }
//! ```
//!
//! **Invariant:** the answers depend on the objects, never on the order in which they came. A property test holds it.

mod claims;
pub mod desired;
mod endpoints;
mod frontends;
mod planner;
mod problems;
mod render;

#[cfg(test)]
mod order;

pub use planner::{Changes, HealthCheck, Planner, PlannerSettings};
