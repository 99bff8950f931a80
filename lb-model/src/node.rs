//! The Node object of this node.

use std::net::IpAddr;

use ipnet::IpNet;

/// The Node object of the node that this process runs on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Box<str>>,
    /// `spec.podCIDRs`: the addresses of the pods of this node.
    pub pod_cidrs: Box<[IpNet]>,
    /// `InternalIP` addresses, then `ExternalIP` addresses, each in the order of the API. The
    /// first address of a family is the primary one.
    pub addresses: Box<[IpAddr]>,
    /// External load balancers may send new connections to this node: the Node is not being
    /// deleted and does not have the taint of the cluster autoscaler (KEP-3836).
    pub eligible: bool,
}
