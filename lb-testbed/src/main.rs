//! `lb-testbed`: the servers and clients of the testbed, one process each. Clients print JSON, see
//! [`lb_testbed::report`].

mod tool;

use std::net::SocketAddr;

use anyhow::Result;
use clap::{Parser, Subcommand};
use lb_testbed::{AttachMode, Topology, Underlay, open_files};

#[derive(Parser)]
#[command(about = "Servers and clients of the Sluice testbed")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve HTTP, UDP, SCTP and transfers; print "ready" when all servers listen
    Serve(tool::serve::Options),
    /// Send HTTP requests, one connection each
    Get {
        #[arg(long, default_value_t = 1)]
        count: u32,
        #[arg(required = true)]
        targets: Vec<SocketAddr>,
    },
    /// Send datagrams from one socket and wait for the answer to each
    Datagrams(tool::datagrams::Options),
    /// Open TCP connections and UDP flows at a steady rate, each from another source port
    Connections(tool::connections::Options),
    /// Send many packets that open connections, and nothing after them
    Flood(tool::flood::Options),
    /// Keep connections or a socket open, and send a request for each command on standard input
    Hold(tool::hold::Options),
    /// Bind addresses and report which of them could be bound
    Bind(tool::bind::Options),
    /// Open SCTP associations over a raw socket and send a request over each
    Associate(tool::sctp::Options),
    /// Send requests at a steady rate until standard input ends
    Load(tool::load::Options),
    /// Send ICMP echo requests and wait for the reply to each
    Ping(tool::ping::Options),
    /// List the programs that this kernel loads, and the features that it lacks
    #[cfg(feature = "programs")]
    Programs,
    /// Build a cluster without agents, print its name, and remove it on Ctrl-C
    Up,
    /// Open TCP connections, one after the other, and exchange a few bytes on each
    Exchange {
        #[arg(long)]
        count: u32,
        target: SocketAddr,
    },
    /// Send and receive many bytes over one TCP connection
    Transfer {
        #[arg(long)]
        bytes: u64,
        target: SocketAddr,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    open_files::raise_limit();
    match Arguments::parse().command {
        Command::Serve(options) => tool::serve::run(options).await,
        Command::Get { count, targets } => print(&tool::get::run(&targets, count).await),
        Command::Datagrams(options) => print(&tool::datagrams::run(&options)?),
        Command::Connections(options) => print(&tool::connections::run(&options)?),
        Command::Flood(options) => tool::flood::run(&options),
        Command::Hold(options) => tool::hold::run(&options).await,
        Command::Bind(options) => print(&tool::bind::run(&options)),
        Command::Associate(options) => print(&tool::sctp::run(&options)),
        Command::Load(options) => print(&tool::load::run(&options).await?),
        Command::Ping(options) => print(&tool::ping::run(&options)?),
        #[cfg(feature = "programs")]
        Command::Programs => print(&lb_testbed::programs::ProgramListing::new()?),
        Command::Up => up().await,
        Command::Exchange { count, target } => print(&tool::exchange::client(target, count)?),
        Command::Transfer { bytes, target } => print(&tool::transfer::client(target, bytes)),
    }
}

async fn up() -> Result<()> {
    let cluster = Topology::build(Underlay::Routed, AttachMode::Tc, &std::env::current_exe()?)?;
    println!("{}", cluster.id());
    // The signal handler of `lb_testbed::run` removes the cluster and ends the process.
    std::future::pending().await
}

fn print(report: &impl serde::Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(report)?);
    Ok(())
}
