//! The code of the `lb` binary, as a library that its tests can use too.
//!
//! * [`agent`] connects the other crates: [`lb_objects`] → [`lb_plan`] → [`lb_datapath`].
//! * [`ingress`] runs the HTTP proxy of [`lb_ingress`].
//! * [`node`] reads devices, addresses and network namespaces from the kernel.
//! * [`serve`] answers HTTP probes and serves metrics.
//! * [`cli`] has the commands, [`config`] the settings.
//! * [`log_control`] changes the log level of a running agent.
//! * [`preflight`] checks privileges and file systems before a command starts.

pub mod agent;
pub mod cli;
pub mod config;
pub mod ingress;
pub mod log_control;
pub mod node;
pub mod preflight;
pub mod probe;
pub mod serve;
#[cfg(test)]
mod testing;
pub mod view;
