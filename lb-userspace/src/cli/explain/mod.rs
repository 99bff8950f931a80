//! `lb explain`: what happens to a packet, or to an HTTP request.

mod error;
mod http;
mod packet;

use clap::{Args, Subcommand};

pub use error::{ExplainError, ExplainUsageError};
use http::HttpArgs;
use packet::PacketArgs;

#[derive(Debug, Args)]
#[command(
    after_help = EXAMPLES,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    disable_help_subcommand = true
)]
pub struct ExplainArgs {
    #[command(subcommand)]
    request: Option<ExplainRequest>,

    #[command(flatten)]
    packet: PacketArgs,
}

#[derive(Debug, Subcommand)]
enum ExplainRequest {
    /// Explain what happens to an HTTP request: its Ingress, rule, Service and endpoints
    Http(Box<HttpArgs>),
}

impl ExplainArgs {
    /// Checks that the arguments describe a packet or a request.
    pub fn check(&self) -> Result<(), ExplainUsageError> {
        match &self.request {
            Some(ExplainRequest::Http(request)) => request.question().map(drop)?,
            None => self.packet.packet().map(drop)?,
        }
        Ok(())
    }

    /// Returns the text for standard output and the warnings for standard error.
    pub async fn run(&self) -> Result<(String, Vec<String>), ExplainError> {
        match &self.request {
            Some(ExplainRequest::Http(request)) => request.run().await,
            None => self.packet.run().await,
        }
    }
}

const EXAMPLES: &str = "\
The command builds the packet and runs it through the kernel programs, on the maps of the agent. Run it
in the network namespace of the agent. It sends nothing and changes no flow, affinity or counter.

Verdicts:
  forward  The packet is sent to an endpoint, with its addresses translated
  pass     The packet stays unchanged and goes to the kernel
  reject   The sender gets an error: a TCP reset, an ICMP error, or the error of its connect call
  drop     The packet is discarded without a reply

Examples:
  lb explain tcp 192.0.2.7 10.10.0.11:30080            A client outside the cluster uses a NodePort
  lb explain tcp 10.244.1.11:5000 10.96.0.10:80        A pod connects to a ClusterIP from port 5000
  lb explain udp fd00:2::7 [fd00:96::10]:53 --in eth0  The packet arrives at eth0
  lb explain icmp 192.0.2.7 10.96.0.10                 A ping of a Service address
  lb explain tcp 10.10.0.11 10.96.0.10:80 -o json      JSON output, for programs
  lb explain tcp 192.0.2.7 10.96.0.10:80 --manifests ./manifests --node worker-1
                                                       Before an agent is installed
  lb explain http http://shop.example/cart             The Ingress and Service of an HTTP request";
