use std::net::IpAddr;

use ipnet::IpNet;

/// What the API says of the node this process runs on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    pub zone: Option<Box<str>>,
    pub pod_cidrs: Box<[IpNet]>,
    /// `InternalIP` addresses, then `ExternalIP` ones, in the order of the API: the first of a family is the primary one.
    pub addresses: Box<[IpAddr]>,
    /// Load balancers shall send new connections here: the Node is neither deleted nor about to be.
    pub eligible: bool,
}
