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
    pub services: ServiceSelection,
}

/// The Services that a source sends, with their EndpointSlices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceSelection {
    /// Those whose addresses this proxy serves: neither headless Services nor those of other
    /// proxies (KEP-2447).
    OfThisProxy,
    /// All of them, without the fields that only their addresses need. Their addresses are not
    /// checked: Ingresses are served by the endpoints.
    PortsOfAll,
}

impl ObjectSelection {
    /// Selects the objects that `lb-plan` needs.
    pub fn of_services(this_node: impl Into<Arc<str>>) -> Self {
        Self {
            resources: ResourceSet::OF_SERVICES,
            this_node: this_node.into(),
            services: ServiceSelection::OfThisProxy,
        }
    }

    /// Selects the weights of Pods too, if `selected`.
    #[must_use]
    pub fn with_pod_weights(self, selected: bool) -> Self {
        Self { resources: self.resources.with_pods(selected), ..self }
    }

    /// Selects the objects that `lb-ingress` needs.
    pub fn of_ingresses(this_node: impl Into<Arc<str>>) -> Self {
        Self {
            resources: ResourceSet::OF_INGRESSES,
            this_node: this_node.into(),
            services: ServiceSelection::PortsOfAll,
        }
    }
}
