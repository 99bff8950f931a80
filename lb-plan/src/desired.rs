//! The desired content of the maps, independent of the layout of map entries, ids and slots.
//!
//! The planner creates one [`DesiredServicePort`] for each **port** of a Service. The data path
//! converts it into map entries.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lb_model::{Algorithm, HashInput, IpFamily, Protocol, SourceRanges, Thresholds, Weight};

use super::slots::{EligibleEndpoint, arrange};

/// Identifies a Service port: `namespace/name:port_name` and protocol. The data path assigns it a
/// service id.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServicePortId {
    pub namespace: String,
    pub name: String,
    /// Empty for a port without a name.
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

/// The desired state of one Service port, for both families.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredServicePort {
    pub id: ServicePortId,
    /// The port number in the Service spec.
    pub port: u16,
    pub algorithm: Algorithm,
    /// Matters if the algorithm hashes the client; the default otherwise.
    pub hash: HashInput,
    /// A TCP client that repeats its SYN gets another endpoint.
    pub failover: bool,
    /// An endpoint that refuses clients or does not answer them is left out for a while.
    pub passive_health: bool,
    /// When an endpoint has too many connections to get new ones. `None`: never.
    pub thresholds: Option<Thresholds>,
    /// With an algorithm by a hash and thresholds, a client whose endpoint is overloaded gets
    /// another one instead of a refusal.
    pub fallback: bool,
    /// The age at which open connections are reset; only of TCP ports. `None`: they stay.
    pub max_connection_age: Option<Duration>,
    /// Timeout of ClientIP session affinity in seconds. `None` means no affinity.
    pub affinity_seconds: Option<u32>,
    /// Source addresses that may use the [`FrontendKind::LoadBalancer`] frontends. Packets from
    /// other sources are dropped.
    pub source_ranges: SourceRanges,
    /// Sorted and not empty. No address and port occurs twice.
    pub frontends: Vec<Frontend>,
    /// The endpoint lists of the IPv4 frontends.
    pub v4: EndpointLists,
    /// The endpoint lists of the IPv6 frontends.
    pub v6: EndpointLists,
}

impl DesiredServicePort {
    /// Returns the endpoint lists of a family.
    pub fn endpoints(&self, family: IpFamily) -> &EndpointLists {
        match family {
            IpFamily::V4 => &self.v4,
            IpFamily::V6 => &self.v6,
        }
    }
}

/// An address and port that clients use.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Frontend {
    pub address: FrontendAddress,
    /// The Service port, or the nodePort.
    pub port: u16,
    pub kind: FrontendKind,
    /// The endpoints for traffic from outside the cluster.
    pub outside: ListPolicy,
    /// The endpoints for traffic from pods and from the node itself.
    pub inside: ListPolicy,
}

/// The address of a frontend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrontendAddress {
    Ip(IpAddr),
    /// All addresses of this node that serve nodePorts.
    Node(IpFamily),
}

impl FrontendAddress {
    /// Returns the address family.
    pub fn family(&self) -> IpFamily {
        match self {
            Self::Ip(address) => IpFamily::of(address),
            Self::Node(family) => *family,
        }
    }
}

/// The field of the Service that contains the address. The values are those of the map entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum FrontendKind {
    ClusterIp = lb_common::layout::kind::CLUSTER_IP,
    NodePort = lb_common::layout::kind::NODE_PORT,
    ExternalIp = lb_common::layout::kind::EXTERNAL_IP,
    LoadBalancer = lb_common::layout::kind::LOAD_BALANCER,
}

/// A list of [`EndpointLists`], and the behavior if it is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListPolicy {
    pub list: EndpointList,
    pub when_empty: WhenEmpty,
}

/// A list of [`EndpointLists`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EndpointList {
    Cluster,
    Local,
}

/// The treatment of a new connection if the list is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WhenEmpty {
    /// The client receives an error (an ICMP message or a TCP reset).
    Reject,
    /// The packet is dropped without an error, so that the client retries.
    Drop,
}

/// The endpoints of one family. `cluster` and `local` contain indices into `endpoints`, sorted and
/// without duplicates.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EndpointLists {
    /// Every endpoint that keeps its connections: those in the lists, and those that only drain.
    /// Sorted by address. Empty if no frontend has this family.
    pub endpoints: Vec<DesiredEndpoint>,
    /// The eligible endpoints under the Cluster policy.
    pub cluster: Vec<u32>,
    /// The eligible endpoints under the Local policy.
    pub local: Vec<u32>,
}

/// An endpoint of a Service port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DesiredEndpoint {
    /// Address and target port.
    pub address: SocketAddr,
    /// The endpoint runs on this node.
    pub local: bool,
    /// The endpoint keeps its connections and gets no new ones: neither list contains it.
    pub draining: bool,
    /// 0 only if the endpoint drains.
    pub weight: Weight,
    /// The time after which the connections of an endpoint that drains are reset. `None`: they
    /// stay.
    pub drain_limit: Option<Duration>,
}

impl EndpointLists {
    /// Returns the content of the slots for a list of indices into `endpoints`: indices again, in
    /// the order and as often as the algorithm requires. `can_overload`: the endpoints have
    /// thresholds.
    pub fn slots(&self, list: &[u32], algorithm: Algorithm, can_overload: bool) -> Vec<u32> {
        let candidates: Vec<_> = list
            .iter()
            .filter_map(|&index| {
                let DesiredEndpoint { address, weight, .. } = *self.endpoints.get(index as usize)?;
                Some(EligibleEndpoint { index, address, weight: weight.get() })
            })
            .collect();
        arrange(algorithm, can_overload, &candidates)
    }
}
