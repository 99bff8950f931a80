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
pub mod backend;
pub mod certificate;
pub mod check;
pub mod command;
pub mod container;
#[cfg(feature = "control-plane")]
pub mod control_plane;
pub mod controllers;
pub mod daemon;
pub mod doctored;
pub mod documents;
mod family;
pub mod host;
pub mod http;
pub mod ingress;
pub mod ingress_bed;
pub mod kernel;
pub mod listed;
mod manifest_dir;
pub mod manifests;
pub mod measure;
pub mod open_files;
pub mod packet;
pub mod pass_programs;
pub mod patience;
pub mod pattern;
pub mod place;
pub mod plot;
#[cfg(feature = "programs")]
pub mod programs;
pub mod report;
pub mod run;
pub mod spread;
pub mod topology;

pub use agent::{Agent, AgentOptions};
pub use backend::Backend;
pub use certificate::Certificate;
#[cfg(feature = "control-plane")]
pub use control_plane::ControlPlane;
pub use family::Family;
pub use host::Host;
pub use ingress::IngressProxy;
pub use ingress_bed::IngressBed;
pub use manifest_dir::ManifestDir;
pub use place::Place;
pub use run::RunId;
pub use topology::{AttachMode, Topology, Underlay};
