use std::fmt;
use std::path::Path;
use std::sync::Arc;

use ipnet::IpNet;

use crate::{EndpointSlice, Node, ObjectName, Problem, Service};

/// Something changed. An object that is `None` is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceEvent {
    Service(ObjectName, Option<Arc<Service>>),
    EndpointSlice(ObjectName, Option<Arc<EndpointSlice>>),
    /// The node this process runs on.
    Node(Option<Arc<Node>>),
    ServiceCidr(ObjectName, Option<Arc<[IpNet]>>),
    /// Everything that is wrong at this origin now, in place of what was reported of it before.
    Report(ProblemSource, Vec<Problem>),
    /// Everything of this part that exists has been sent once.
    Synced(WatchedResource),
}

/// What a report is about: an object, a file, or a watch.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProblemSource {
    Object(&'static str, ObjectName),
    File(Arc<Path>),
    Watch(&'static str),
}

/// The kinds of object that must have arrived in full before anything is programmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum WatchedResource {
    Services,
    EndpointSlices,
    /// kube-proxy 1.36 could start before it knew its zone, and ignored every hint.
    Node,
    ServiceCidrs,
}

impl WatchedResource {
    pub const ALL: [WatchedResource; 4] = [
        WatchedResource::Services,
        WatchedResource::EndpointSlices,
        WatchedResource::Node,
        WatchedResource::ServiceCidrs,
    ];
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
