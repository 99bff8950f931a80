use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{Ipv4Net, Ipv6Net};

use crate::{IpFamily, ManifestLocation, Protocol};

/// A Service, as far as a proxy needs it. One without cluster addresses (ExternalName, headless, served by another
/// proxy) is kept as the empty value: it makes no entries, but its slices have an owner.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Service {
    /// `metadata.creationTimestamp` in seconds since 1970; none in a manifest folder. The older Service wins a conflict.
    pub created: Option<i64>,
    /// Where it was read, if from a manifest folder.
    pub location: Option<Arc<ManifestLocation>>,
    /// At most one of each family. A family without one is not served at all.
    pub cluster_ips: Box<[IpAddr]>,
    pub ports: Box<[ServicePort]>,
    pub external_ips: Box<[IpAddr]>,
    /// `status.loadBalancer.ingress` with an address that the load balancer hands on unchanged.
    pub load_balancer_ips: Box<[IpAddr]>,
    pub source_ranges: SourceRanges,
    /// ClientIP affinity: its time-out.
    pub affinity_seconds: Option<u32>,
    pub internal_policy: TrafficPolicy,
    pub external_policy: TrafficPolicy,
    pub health_check_node_port: Option<u16>,
    /// Another proxy serves it (label `service.kubernetes.io/service-proxy-name`, KEP-2447): only its ClusterIPs are of interest.
    pub other_proxy: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty for the only port of a Service.
    pub name: Box<str>,
    pub protocol: Protocol,
    pub port: u16,
    pub node_port: Option<u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TrafficPolicy {
    #[default]
    Cluster,
    Local,
}

/// Who may use the load balancer addresses of each family; `None`: everyone, an empty list: nobody.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SourceRanges {
    pub v4: Option<Box<[Ipv4Net]>>,
    pub v6: Option<Box<[Ipv6Net]>>,
}

impl Service {
    pub fn cluster_ip(&self, family: IpFamily) -> Option<IpAddr> {
        self.cluster_ips.iter().copied().find(|ip| IpFamily::of(ip) == family)
    }
}
