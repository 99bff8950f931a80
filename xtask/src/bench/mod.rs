//! `cargo xtask bench`: measures the figures of docs/benchmarks.md. Each group of figures has a
//! file.

mod agent;
mod algorithms;
mod compared;
mod connections;
mod ingress;
mod programs;
mod run;

use anyhow::Result;

#[derive(clap::Subcommand)]
pub enum Bench {
    /// Nanoseconds per packet of each path through the kernel programs, without a network
    Programs(programs::Options),
    /// Nanoseconds of the first packet with each algorithm, and how evenly it spreads connections
    Algorithms(algorithms::Options),
    /// CPU time of a packet through a node: Sluice beside kube-proxy, the kernel's forwarding and
    /// the least that is possible
    Forward(compared::Options),
    /// CPU time of a short TCP connection from a pod: through a Service of Sluice, through one of
    /// kube-proxy, and directly to the address of a pod
    Connect(compared::Options),
    /// Thousands of new connections in a second to one endpoint, with real sockets; fails if one is
    /// refused
    Connections(connections::Options),
    /// CPU time of `lb ingress` for a request beside nginx and HAProxy, and the cost of 10,000
    /// Ingresses
    Ingress(ingress::Options),
    /// Start, memory, CPU time and delay of an agent that watches a real API server with 10,000
    /// Services
    Agent(agent::Options),
}

pub fn run(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Programs(options) => programs::run(options),
        Bench::Algorithms(options) => algorithms::run(options),
        Bench::Forward(options) => compared::run("forward", options),
        Bench::Connect(options) => compared::run("connect", options),
        Bench::Connections(options) => connections::run(options),
        Bench::Ingress(options) => ingress::run(options),
        Bench::Agent(options) => agent::run(options),
    }
}
