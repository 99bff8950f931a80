//! `lb ingress`: serves Ingresses over HTTP.

mod args;
mod run;

pub use args::IngressArgs;
pub use run::{IngressError, run};
