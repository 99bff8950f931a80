//! The sources of Kubernetes objects: the API server ([`kubernetes`]) or a folder of manifests
//! ([`manifests`]). Each sends [`SourceEvent`](lb_model::SourceEvent)s about the selected objects
//! ([`ObjectSelection`]) into a channel. [`convert`] converts API objects into the types of
//! `lb-model`.

pub mod convert;
pub mod kubernetes;
pub mod manifests;
mod selection;

pub use selection::{ObjectSelection, ServiceSelection};
