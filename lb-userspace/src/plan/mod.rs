//! From model and node facts to the wanted map contents: pure functions, no I/O, no clock, no randomness.
//!
//! [`Planner`] holds the model and answers every batch of [events](crate::source::Event) with what changed:
//!
//! - `planner`: the state, its indices, and which Services a change touches;
//! - `claims`: which Service has an address and port that several want;
//! - `frontends`: the addresses of a Service port, and the policies that go with them;
//! - `endpoints`: which endpoints those policies make eligible (KEP-1669, 1672, 2086, 2433, 4444);
//! - `wanted`: the result.
//!
//! **Invariant:** the answers depend on the objects, never on the order in which they came. A property test holds it.

mod claims;
mod endpoints;
mod frontends;
mod planner;
mod render;
pub mod wanted;

#[cfg(test)]
mod cases;
#[cfg(test)]
mod order;

pub use planner::{Changes, HealthCheck, Planner, Settings};
