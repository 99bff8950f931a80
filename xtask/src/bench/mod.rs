//! `cargo xtask bench`: measures the figures of docs/benchmarks.md. Each group of figures has a
//! file.

mod connections;
mod programs;
mod run;

use anyhow::Result;

#[derive(clap::Subcommand)]
pub enum Bench {
    /// Nanoseconds per packet of each path through the kernel programs, without a network
    Programs(programs::Options),
    /// Thousands of new connections in a second to one endpoint, with real sockets; fails if one is
    /// refused
    Connections(connections::Options),
}

pub fn run(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Programs(options) => programs::run(options),
        Bench::Connections(options) => connections::run(options),
    }
}
