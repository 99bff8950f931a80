//! Formats the plan for people: in debug logs, and in the expected results of tests.

use std::fmt;

use lb_model::{Algorithm, HashInput, IpFamily, Thresholds, Weight};

use super::desired::{
    DesiredEndpoint, DesiredServicePort, EndpointList, EndpointLists, Frontend, FrontendAddress,
    FrontendKind, ListPolicy, WhenEmpty,
};

/// ```text
/// default/web:http TCP, affinity 10800 s
///   ClusterIP 10.96.0.10:80 → cluster, else reject
///   NodePort *:30080 (IPv4) → local, else drop; inside: cluster, else reject
///   IPv4 cluster: 10.0.0.1:8080 (here), 10.0.1.1:8080
///   IPv4 local: 10.0.0.1:8080 (here)
///   IPv4 draining: 10.0.0.2:8080
/// ```
impl fmt::Display for DesiredServicePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.id)?;
        if self.algorithm != Algorithm::default() {
            write!(f, ", {}", self.algorithm)?;
        }
        if self.failover {
            f.write_str(", failover")?;
        }
        if self.passive_health != self.failover {
            write!(f, ", passive health {}", if self.passive_health { "on" } else { "off" })?;
        }
        if let Some(Thresholds { upper, lower }) = self.thresholds {
            write!(f, ", overloaded at {upper}")?;
            if lower != 0 {
                write!(f, " until below {lower}")?;
            }
        }
        if self.fallback {
            f.write_str(", fallback")?;
        }
        if self.hash != HashInput::default() {
            write!(f, " by {}", self.hash.name())?;
        }
        if let Some(age) = self.max_connection_age {
            write!(f, ", connections for {} s", age.as_secs())?;
        }
        if let Some(seconds) = self.affinity_seconds {
            write!(f, ", affinity {seconds} s")?;
        }
        for frontend in &self.frontends {
            write!(f, "\n  {frontend}")?;
        }
        if let Some(ranges) = &self.source_ranges.v4 {
            write!(f, "\n  IPv4 sources: {}", CommaSeparated(ranges))?;
        }
        if let Some(ranges) = &self.source_ranges.v6 {
            write!(f, "\n  IPv6 sources: {}", CommaSeparated(ranges))?;
        }
        write_lists(f, "IPv4", &self.v4)?;
        write_lists(f, "IPv6", &self.v6)
    }
}

fn write_lists(f: &mut fmt::Formatter<'_>, family: &str, lists: &EndpointLists) -> fmt::Result {
    let pick = |indices: &[u32]| -> Vec<&DesiredEndpoint> {
        indices.iter().filter_map(|index| lists.endpoints.get(*index as usize)).collect()
    };
    let draining: Vec<&DesiredEndpoint> =
        lists.endpoints.iter().filter(|endpoint| endpoint.draining).collect();
    for (name, endpoints) in
        [("cluster", pick(&lists.cluster)), ("local", pick(&lists.local)), ("draining", draining)]
    {
        if !endpoints.is_empty() {
            write!(f, "\n  {family} {name}: {}", CommaSeparated(&endpoints))?;
        }
    }
    Ok(())
}

/// A comma-separated list, or `none` if it is empty.
struct CommaSeparated<'a, T>(&'a [T]);

impl<T: fmt::Display> fmt::Display for CommaSeparated<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((first, rest)) = self.0.split_first() else { return f.write_str("none") };
        write!(f, "{first}")?;
        rest.iter().try_for_each(|item| write!(f, ", {item}"))
    }
}

impl fmt::Display for DesiredEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address)?;
        if self.weight != Weight::DEFAULT {
            write!(f, " x{}", self.weight.get())?;
        }
        f.write_str(if self.local { " (here)" } else { "" })?;
        match self.drain_limit {
            Some(limit) => write!(f, " for {} s", limit.as_secs()),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            FrontendKind::ClusterIp => "ClusterIP",
            FrontendKind::NodePort => "NodePort",
            FrontendKind::ExternalIp => "ExternalIP",
            FrontendKind::LoadBalancer => "LoadBalancer",
        };
        match self.address {
            FrontendAddress::Ip(ip) => write!(f, "{kind} {}", std::net::SocketAddr::new(ip, self.port))?,
            FrontendAddress::Node(IpFamily::V4) => write!(f, "{kind} *:{} (IPv4)", self.port)?,
            FrontendAddress::Node(IpFamily::V6) => write!(f, "{kind} *:{} (IPv6)", self.port)?,
        }
        write!(f, " → {}", self.outside)?;
        if self.inside != self.outside {
            write!(f, "; inside: {}", self.inside)?;
        }
        Ok(())
    }
}

impl fmt::Display for ListPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = match self.list {
            EndpointList::Cluster => "cluster",
            EndpointList::Local => "local",
        };
        let when_empty = match self.when_empty {
            WhenEmpty::Reject => "reject",
            WhenEmpty::Drop => "drop",
        };
        write!(f, "{list}, else {when_empty}")
    }
}
