//! The sources of Kubernetes objects: the API server ([`kubernetes`]) or a folder of manifests
//! ([`manifests`]). Each sends [`SourceEvent`](lb_model::SourceEvent)s into a channel. [`convert`]
//! converts API objects into the types of `lb-model`.

pub mod convert;
pub mod kubernetes;
pub mod manifests;
