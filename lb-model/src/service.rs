//! Services and their ports.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{Ipv4Net, Ipv6Net};

use crate::balancing::Balancing;
use crate::problem::ManifestLocation;
use crate::protocol::Protocol;

/// The fields of a Service that a proxy needs.
///
/// A Service without cluster addresses (ExternalName or headless) is kept as the default value: it
/// needs no map entries, but its EndpointSlices have an owner.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Service {
    /// `metadata.creationTimestamp` in seconds since 1970. `None` if a manifest does not set it.
    /// The older of two Services that claim one address gets it.
    pub created: Option<i64>,
    /// Set if the Service was read from a manifest folder.
    pub location: Option<Arc<ManifestLocation>>,
    /// At most one address of each family. A family without a cluster address is not served.
    pub cluster_ips: Box<[IpAddr]>,
    /// No name and no number occurs twice for a protocol.
    pub ports: Box<[ServicePort]>,
    /// Addresses of the families of `cluster_ips`, sorted and without duplicates.
    pub external_ips: Box<[IpAddr]>,
    /// The addresses of `status.loadBalancer.ingress` whose packets arrive with this destination
    /// (`ipMode: VIP`, KEP-1860). Sorted and without duplicates.
    pub load_balancer_ips: Box<[IpAddr]>,
    /// `loadBalancerSourceRanges`. It applies to `load_balancer_ips` only.
    pub source_ranges: SourceRanges,
    /// Timeout of ClientIP session affinity in seconds. `None` means no affinity.
    pub affinity_seconds: Option<u32>,
    pub balancing: Balancing,
    pub internal_policy: TrafficPolicy,
    pub external_policy: TrafficPolicy,
    /// Set for type LoadBalancer with the external policy Local only.
    pub health_check_node_port: Option<u16>,
    /// Another proxy serves this Service (label `service.kubernetes.io/service-proxy-name`,
    /// KEP-2447). Only `cluster_ips` is set then.
    pub other_proxy: bool,
    /// Type ExternalName.
    pub external_name: bool,
}

/// A port of a Service. `targetPort` is not needed: EndpointSlices contain its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty for a port without a name, which is the only port of its Service.
    pub name: Box<str>,
    pub protocol: Protocol,
    pub port: u16,
    pub node_port: Option<u16>,
}

/// `internalTrafficPolicy` (KEP-2086) or `externalTrafficPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TrafficPolicy {
    #[default]
    Cluster,
    Local,
}

/// The source addresses that may use the load balancer addresses, per family. `None` admits every
/// source, an empty list admits none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SourceRanges {
    pub v4: Option<Box<[Ipv4Net]>>,
    pub v6: Option<Box<[Ipv6Net]>>,
}
