//! `lb get`: reads the pinned maps and prints them.

use clap::{Args, Subcommand};

use super::PinArgs;
use super::view::{Filter, Output};

#[derive(Debug, Subcommand)]
pub enum Get {
    /// Service addresses and how many endpoints each has
    #[command(visible_aliases = ["service", "svc"])]
    Services(GetArgs),
    /// Endpoints of Service ports, with their state
    #[command(visible_aliases = ["backend", "endpoints", "ep"])]
    Backends(GetArgs),
    /// Connections that are translated packet by packet, with state and idle time
    ///
    /// Connections from processes on this node are translated once, at their socket, and have no flow.
    #[command(visible_alias = "flow")]
    Flows(GetArgs),
}

#[derive(Debug, Args)]
pub struct GetArgs {
    /// Only this Service
    #[arg(value_name = "SERVICE")]
    service: Option<String>,

    /// Only Services of this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,

    /// Format
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value = "table")]
    output: Output,

    #[command(flatten)]
    pins: PinArgs,
}

impl GetArgs {
    fn filter(&self) -> Filter {
        // `namespace/name` as in the tables.
        match self.service.as_deref().and_then(|service| service.split_once('/')) {
            Some((namespace, service)) => {
                Filter { namespace: Some(namespace.to_owned()), service: Some(service.to_owned()) }
            }
            None => Filter { namespace: self.namespace.clone(), service: self.service.clone() },
        }
    }
}
