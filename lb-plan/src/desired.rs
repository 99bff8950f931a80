//! What the planner wants the maps to say, in terms that know nothing of map entries, ids or slots.
//!
//! The planner makes one [`DesiredServicePort`] per Service **port**; the data path turns it into map entries.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use lb_model::{IpFamily, Protocol, SourceRanges};

/// Identity of a service port: `namespace/name:port_name` and its protocol. What a service id stands for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServicePortId {
    pub namespace: String,
    pub name: String,
    /// Empty for the only port of a Service.
    pub port_name: String,
    pub protocol: Protocol,
}

impl fmt::Display for ServicePortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)?;
        if !self.port_name.is_empty() {
            write!(f, ":{}", self.port_name)?;
        }
        write!(f, " {}", self.protocol)
    }
}

/// Everything the maps shall say about one service port, both families.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredServicePort {
    pub id: ServicePortId,
    /// Port number in the Service spec.
    pub port: u16,
    pub algorithm: Algorithm,
    /// ClientIP affinity: its time-out in seconds.
    pub affinity_seconds: Option<u32>,
    /// Sources that may use the [`FrontendKind::LoadBalancer`] frontends; others are dropped.
    pub source_ranges: SourceRanges,
    /// Sorted; no address and port twice. Never empty.
    pub frontends: Vec<Frontend>,
    /// Endpoint lists of each family.
    pub v4: EndpointLists,
    pub v6: EndpointLists,
}

impl DesiredServicePort {
    pub fn endpoints(&self, family: IpFamily) -> &EndpointLists {
        match family {
            IpFamily::V4 => &self.v4,
            IpFamily::V6 => &self.v6,
        }
    }
}

/// How an endpoint is chosen for a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Algorithm {
    #[default]
    Random,
}

/// An address and port that clients use.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Frontend {
    pub address: FrontendAddress,
    pub port: u16,
    pub kind: FrontendKind,
    /// Which endpoints traffic from outside the cluster gets.
    pub outside: ListPolicy,
    /// Which endpoints pods and the node itself get.
    pub inside: ListPolicy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrontendAddress {
    Ip(IpAddr),
    /// Every address of this node that takes NodePorts.
    Node(IpFamily),
}

impl FrontendAddress {
    pub fn family(&self) -> IpFamily {
        match self {
            Self::Ip(address) => IpFamily::of(address),
            Self::Node(family) => *family,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum FrontendKind {
    ClusterIp = lb_common::layout::kind::CLUSTER_IP,
    NodePort = lb_common::layout::kind::NODE_PORT,
    ExternalIp = lb_common::layout::kind::EXTERNAL_IP,
    LoadBalancer = lb_common::layout::kind::LOAD_BALANCER,
}

/// Which list of [`EndpointLists`], and what an empty one means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListPolicy {
    pub list: EndpointList,
    pub when_empty: WhenEmpty,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EndpointList {
    Cluster,
    Local,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WhenEmpty {
    Reject,
    Drop,
}

/// The endpoints of one family. The lists hold indices into `endpoints`, sorted, without duplicates.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EndpointLists {
    /// Every endpoint that keeps its connections, sorted by address: those in the lists, and those that only drain.
    /// Empty when no frontend is of this family.
    pub endpoints: Vec<DesiredEndpoint>,
    /// Eligible under the Cluster policy.
    pub cluster: Vec<u32>,
    /// Eligible under the Local policy.
    pub local: Vec<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DesiredEndpoint {
    pub address: SocketAddr,
    /// Runs on this node.
    pub local: bool,
    /// Takes no new connections (in neither list), keeps those it has.
    pub draining: bool,
}
