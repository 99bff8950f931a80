//! `lb ingress`: serves Ingresses over HTTP.

mod args;
mod handover;
mod run;
mod status;

pub use args::IngressArgs;
pub use run::{IngressError, run};
