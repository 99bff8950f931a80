//! Where the objects come from: the API server or a folder of manifests. Both send [events](lb_model::SourceEvent) into one
//! channel. [`convert`] makes the types of `lb-model` of the objects.

pub mod convert;
pub mod kubernetes;
pub mod manifests;
