//! The changes that a source of objects reports.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use ipnet::IpNet;

use crate::drain::NodeDrain;
use crate::ingress::{Ingress, IngressClass};
use crate::name::ObjectName;
use crate::node::Node;
use crate::pod::PodWeight;
use crate::problem::Problem;
use crate::secret::Secret;
use crate::service::Service;
use crate::slice::EndpointSlice;

/// One change that a source (the API server or a folder of manifests) reports. An object that is
/// `None` has been deleted, or no longer concerns this proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceEvent {
    Service(ObjectName, Option<Arc<Service>>),
    EndpointSlice(ObjectName, Option<Arc<EndpointSlice>>),
    /// The Node that this process runs on.
    Node(Option<Arc<Node>>),
    /// Any Node: whether it drains. The name has an empty namespace.
    NodeDrain(ObjectName, Option<NodeDrain>),
    /// A Pod: whether it has a weight.
    PodWeight(ObjectName, Option<PodWeight>),
    /// The ranges of one ServiceCIDR object (KEP-1880).
    ServiceCidr(ObjectName, Option<Arc<[IpNet]>>),
    Ingress(ObjectName, Option<Arc<Ingress>>),
    IngressClass(ObjectName, Option<Arc<IngressClass>>),
    Secret(ObjectName, Option<Arc<Secret>>),
    /// All current problems of one problem source. The list replaces the previous one; an empty
    /// list means that the problems are resolved.
    Report(ProblemSource, Vec<Problem>),
    /// Every existing object of this resource has been sent once.
    Synced(WatchedResource),
}

/// The place where problems were found: an object, a file or a watch.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProblemSource {
    /// Kind (such as `Service`) and name of an API object.
    Object(&'static str, ObjectName),
    /// A file or folder of manifests.
    File(Arc<Path>),
    Watch(WatchedResource),
}

/// A resource that a source watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum WatchedResource {
    Services,
    EndpointSlices,
    /// The zone of the node decides about topology hints. kube-proxy 1.36 could start before it
    /// had read its zone, and ignored every hint.
    Node,
    ServiceCidrs,
    Ingresses,
    IngressClasses,
    Secrets,
    /// The Nodes with `spec.unschedulable`. Few nodes are cordoned at a time. The kubelet writes
    /// the status of each Node every five minutes: an agent that watched all Nodes would receive
    /// all of that.
    CordonedNodes,
    /// The metadata of the Pods that have not ended. It is watched with `--pod-weights` only,
    /// because a cluster has many Pods.
    Pods,
}

impl WatchedResource {
    /// Every resource once.
    pub const ALL: [WatchedResource; 9] = [
        Self::Services,
        Self::EndpointSlices,
        Self::Node,
        Self::ServiceCidrs,
        Self::Ingresses,
        Self::IngressClasses,
        Self::Secrets,
        Self::CordonedNodes,
        Self::Pods,
    ];
    /// The resources that always decide how Services are served. The agent writes no map before it
    /// has read all of them.
    pub const OF_SERVICES: [WatchedResource; 5] =
        [Self::Services, Self::EndpointSlices, Self::Node, Self::ServiceCidrs, Self::CordonedNodes];
    /// The resources that decide how Ingresses are served.
    pub const OF_INGRESSES: [WatchedResource; 7] = [
        Self::Services,
        Self::EndpointSlices,
        Self::Node,
        Self::Ingresses,
        Self::IngressClasses,
        Self::Secrets,
        Self::CordonedNodes,
    ];

    const fn bit(self) -> u16 {
        1 << self as u8
    }
}

/// A set of resources, such as those that a program watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ResourceSet(u16);

impl ResourceSet {
    /// [`WatchedResource::OF_SERVICES`].
    pub const OF_SERVICES: Self = Self::of(&WatchedResource::OF_SERVICES);
    /// [`WatchedResource::OF_INGRESSES`].
    pub const OF_INGRESSES: Self = Self::of(&WatchedResource::OF_INGRESSES);

    /// Returns the set of these resources.
    pub const fn of(resources: &[WatchedResource]) -> Self {
        let mut bits = 0;
        let mut index = 0;
        while index < resources.len() {
            bits |= resources[index].bit();
            index += 1;
        }
        Self(bits)
    }

    /// Returns the set with [`WatchedResource::Pods`], if `selected`.
    #[must_use]
    pub const fn with_pods(mut self, selected: bool) -> Self {
        if selected {
            self.insert(WatchedResource::Pods);
        }
        self
    }

    /// Returns whether the set contains all resources of `other`.
    pub const fn contains_all(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Adds a resource.
    pub const fn insert(&mut self, resource: WatchedResource) {
        self.0 |= resource.bit();
    }

    /// Returns whether the set contains the resource.
    pub const fn contains(self, resource: WatchedResource) -> bool {
        self.0 & resource.bit() != 0
    }

    /// Returns the resources of the set, in the order of [`WatchedResource::ALL`].
    pub fn iter(self) -> impl Iterator<Item = WatchedResource> {
        WatchedResource::ALL.into_iter().filter(move |resource| self.contains(*resource))
    }
}

impl fmt::Display for WatchedResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Services => "Services",
            Self::EndpointSlices => "EndpointSlices",
            Self::Node => "Node",
            Self::ServiceCidrs => "ServiceCIDRs",
            Self::Ingresses => "Ingresses",
            Self::IngressClasses => "IngressClasses",
            Self::Secrets => "Secrets",
            Self::CordonedNodes => "cordoned Nodes",
            Self::Pods => "Pods",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_each_resource_once() {
        assert_eq!(ResourceSet::of(&WatchedResource::ALL).iter().collect::<Vec<_>>(), WatchedResource::ALL);
        let mut set = ResourceSet::of(&[WatchedResource::Node, WatchedResource::Node]);
        set.insert(WatchedResource::Services);
        assert_eq!(set.iter().collect::<Vec<_>>(), [WatchedResource::Services, WatchedResource::Node]);
        assert!(!set.contains(WatchedResource::EndpointSlices));
        assert_eq!(ResourceSet::default().iter().count(), 0);
    }
}
