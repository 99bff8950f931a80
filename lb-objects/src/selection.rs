//! Selects the objects that a source sends.

use std::sync::Arc;

use lb_model::ResourceSet;

/// The objects that a source sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectSelection {
    /// The watched resources. A source ignores objects of all other kinds, reports no problem of
    /// theirs, and needs no permission to read them. Endpoints of a manifest folder are sent as
    /// EndpointSlices.
    pub resources: ResourceSet,
    /// The name of the Node of this process. A source sends no other Node, and decides by this
    /// name which endpoints are local.
    pub this_node: Arc<str>,
}

impl ObjectSelection {
    /// Selects the objects that `lb-plan` needs: those of every resource.
    pub fn all(this_node: impl Into<Arc<str>>) -> Self {
        Self { resources: ResourceSet::ALL, this_node: this_node.into() }
    }
}
