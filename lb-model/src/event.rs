use std::fmt;
use std::path::Path;
use std::sync::Arc;

use ipnet::IpNet;

use crate::name::ObjectName;
use crate::node::Node;
use crate::problem::Problem;
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
    /// The ranges of one ServiceCIDR object (KEP-1880).
    ServiceCidr(ObjectName, Option<Arc<[IpNet]>>),
    /// All current problems of one problem source. The list replaces the previous one; an empty
    /// list means that the problems are resolved.
    Report(ProblemSource, Vec<Problem>),
    /// Every existing object of this resource has been sent once.
    Synced(WatchedResource),
}

/// Where problems were found: in an object, in a file or in a watch.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProblemSource {
    /// Kind (such as `Service`) and name of an API object.
    Object(&'static str, ObjectName),
    /// A file or folder of manifests.
    File(Arc<Path>),
    /// The watch of a resource, as RBAC rules name it (such as `services`).
    Watch(&'static str),
}

/// The resources that must have been read completely before the maps are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum WatchedResource {
    Services,
    EndpointSlices,
    /// The zone of the node decides about topology hints. kube-proxy 1.36 could start before it
    /// had read its zone, and ignored every hint.
    Node,
    ServiceCidrs,
}

impl WatchedResource {
    /// Every resource once.
    pub const ALL: [WatchedResource; 4] =
        [Self::Services, Self::EndpointSlices, Self::Node, Self::ServiceCidrs];
}

impl fmt::Display for WatchedResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Services => "Services",
            Self::EndpointSlices => "EndpointSlices",
            Self::Node => "Node",
            Self::ServiceCidrs => "ServiceCIDRs",
        })
    }
}
