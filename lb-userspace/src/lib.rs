//! The Sluice agent, as a library: the `lb` binary and its tests are built from it.
//!
//! [`agent`] ties the other crates together: [`lb_objects`] → [`lb_plan`] → [`lb_datapath`]. [`node`] reads what the
//! kernel reports of this host; [`cli`] and [`serve`] are for people and for probes.

pub mod agent;
pub mod cli;
pub mod config;
pub mod node;
pub mod preflight;
pub mod serve;
#[cfg(test)]
mod testing;
