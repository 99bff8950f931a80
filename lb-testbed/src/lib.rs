//! A Kubernetes cluster of two nodes on one machine. Nodes, pods and an outside client are network
//! namespaces. Servers and clients are real processes in them. The Sluice agent is a child process
//! on each node.
//!
//! The end-to-end tests and `cargo xtask demo` use it. Read [`topology`] first: it has a diagram.
//!
//! Everything that one [`Topology`] creates carries the name of its [`RunId`]. One function,
//! [`run::remove_everything_of`], removes it all: on drop, after a panic, on Ctrl-C, and for runs
//! whose process died.

pub mod agent;
pub mod check;
#[cfg(feature = "control-plane")]
pub mod control_plane;
pub mod controllers;
pub mod host;
pub mod http;
pub mod kernel;
pub mod manifests;
pub mod packet;
pub mod patience;
pub mod pattern;
pub mod place;
#[cfg(feature = "programs")]
pub mod programs;
pub mod report;
pub mod run;
pub mod topology;
mod xdp_pass;

use std::fmt;
use std::net::IpAddr;

pub use agent::{Agent, AgentOptions};
#[cfg(feature = "control-plane")]
pub use control_plane::ControlPlane;
pub use host::Host;
pub use manifests::ManifestDir;
pub use place::Place;
pub use run::RunId;
pub use topology::{Datapath, Topology, Underlay};

/// IPv4 or IPv6. Nearly every case runs with both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// Returns the family of an address.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}
