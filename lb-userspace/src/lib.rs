//! The Sluice agent, as a library: the `lb` binary, the tests and the benchmarks are built from it.
//!
//! The folders follow the way of the data:
//! [`source`] → [`model`] → [`plan`] → [`apply`] → [`datapath`] (BPF maps and programs).
//! [`node`] reads what the kernel knows of this host; [`cli`] and [`serve`] are what people and probes see.

pub mod agent;
pub mod apply;
pub mod cli;
pub mod config;
pub mod datapath;
pub mod model;
pub mod node;
pub mod plan;
pub mod preflight;
pub mod serve;
pub mod source;
#[cfg(test)]
mod testing;
