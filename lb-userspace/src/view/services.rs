//! `lb get services`: one row per Service address.

use std::collections::HashMap;

use lb_common::layout::{self, service_flags};
use lb_common::threshold::Thresholds;
use lb_datapath::apply::max_age_of;
use lb_datapath::apply::tables::ServiceAddress;
use lb_model::{Algorithm, IpFamily};
use serde::Serialize;

use super::backends::thresholds_text;
use super::row::Row;
use super::service_port::{
    BackendsById, NamedServicePort, Names, ServiceFilter, Slots, SourceRangesById, protocol_name,
};

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRow {
    #[serde(flatten)]
    pub service: NamedServicePort,
    pub protocol: String,
    /// The kind of address: ClusterIP, NodePort, ExternalIP or LoadBalancer.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// `0.0.0.0` and `[::]` stand for all addresses of this node that serve NodePorts.
    pub address: String,
    /// Endpoints for traffic from pods and from this node.
    pub endpoints: Vec<String>,
    /// Endpoints for traffic from outside the cluster.
    pub outside_endpoints: Vec<String>,
    /// `reject` or `drop`: the verdict for traffic from pods and from this node if there is no
    /// endpoint.
    pub no_endpoint: &'static str,
    /// The same for traffic from outside the cluster.
    pub outside_no_endpoint: &'static str,
    pub algorithm: String,
    /// An endpoint is overloaded from so many connections on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upper_threshold: Option<u32>,
    /// An endpoint that is overloaded gets new connections again below so many. 0: three quarters
    /// of the upper threshold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lower_threshold: Option<u32>,
    /// A client whose endpoint is overloaded gets another one, with an algorithm by a hash.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub fallback: bool,
    /// TCP connections are reset at this age at the latest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connection_age_seconds: Option<u32>,
    /// The timeout of session affinity. 0 means that the Service has no session affinity.
    pub affinity_seconds: u32,
    /// Networks whose clients may use the address. `None` allows all clients, an empty list none.
    pub source_ranges: Option<Vec<String>>,
    pub id: u32,
}

/// The map entries from which the rows are made.
#[derive(Debug)]
pub struct ServiceEntries {
    pub services: Vec<(ServiceAddress, layout::ServiceEntry)>,
    pub names: Names,
    /// Has all ranges that `services` refer to.
    pub slots: Slots,
    pub backends: BackendsById,
    pub source_ranges: SourceRangesById,
    /// By service id.
    pub thresholds: HashMap<u32, Thresholds>,
}

/// Returns the rows, sorted by Service, type and address.
pub fn service_rows(tables: &ServiceEntries, filter: &ServiceFilter) -> Vec<ServiceRow> {
    let mut rows: Vec<(ServiceRow, ServiceAddress)> = tables
        .services
        .iter()
        .map(|(key, value)| (row(key, value, tables), *key))
        .filter(|(row, _)| filter.accepts(&row.service))
        .collect();
    rows.sort_by(|(a, a_key), (b, b_key)| {
        (&a.service, &a.protocol, a.kind, a_key).cmp(&(&b.service, &b.protocol, b.kind, b_key))
    });
    rows.into_iter().map(|(row, _)| row).collect()
}

fn row(key: &ServiceAddress, value: &layout::ServiceEntry, tables: &ServiceEntries) -> ServiceRow {
    let ServiceEntries { names, slots, backends, source_ranges, .. } = tables;
    let family = IpFamily::of(&key.ip);
    let endpoints = |base: u32, count: u32| {
        let mut ids = slots.get(&(base, count)).cloned().unwrap_or_default();
        // A backend with a weight has several slots.
        ids.sort_unstable();
        ids.dedup();
        let mut addresses: Vec<_> =
            ids.iter().filter_map(|&id| Some(backends.get(&(family, id))?.address)).collect();
        addresses.sort_unstable();
        addresses.iter().map(ToString::to_string).collect()
    };
    let sources = || {
        let mut sources: Vec<_> = source_ranges.get(&value.service_id).into_iter().flatten().collect();
        sources.retain(|network| IpFamily::of(&network.addr()) == family);
        sources.sort_unstable();
        sources.iter().map(ToString::to_string).collect()
    };
    let thresholds = tables.thresholds.get(&value.service_id);
    let when_empty = |drop: u32| if value.flags & drop == 0 { "reject" } else { "drop" };
    ServiceRow {
        service: NamedServicePort::of(value.service_id, names),
        protocol: protocol_name(key.protocol),
        kind: kind_name(value.kind),
        address: std::net::SocketAddr::new(key.ip, key.port).to_string(),
        endpoints: endpoints(value.inside_base, value.inside_count),
        outside_endpoints: endpoints(value.outside_base, value.outside_count),
        no_endpoint: when_empty(service_flags::INSIDE_DROP),
        outside_no_endpoint: when_empty(service_flags::OUTSIDE_DROP),
        algorithm: algorithm_name(value),
        upper_threshold: thresholds.map(|thresholds| thresholds.upper),
        lower_threshold: thresholds.map(|thresholds| thresholds.lower),
        fallback: value.flags & service_flags::REPLACE_OVERLOADED != 0
            && Algorithm::numbered(value.scheduler).is_some_and(Algorithm::is_by_hash),
        max_connection_age_seconds: max_age_of(value.flags),
        affinity_seconds: value.affinity_seconds,
        source_ranges: (value.flags & service_flags::SOURCE_RANGES != 0).then(sources),
        id: value.service_id,
    }
}

fn kind_name(kind: u8) -> &'static str {
    match kind {
        layout::kind::CLUSTER_IP => "ClusterIP",
        layout::kind::NODE_PORT => "NodePort",
        layout::kind::EXTERNAL_IP => "ExternalIP",
        layout::kind::LOAD_BALANCER => "LoadBalancer",
        _ => "unknown",
    }
}

/// Returns the name of the algorithm, and what it hashes if that is not its default.
fn algorithm_name(value: &layout::ServiceEntry) -> String {
    let Some(algorithm) = Algorithm::numbered(value.scheduler) else {
        return format!("unknown ({})", value.scheduler);
    };
    match value.algorithm {
        layout::algorithm::HASH_SOURCE_PORT => format!("{algorithm} (source-port)"),
        layout::algorithm::HASH_DESTINATION if algorithm.hashes_the_client() => {
            format!("{algorithm} (destination)")
        }
        _ => algorithm.to_string(),
    }
}

impl ServiceRow {
    /// Returns the number of endpoints. Returns both numbers if a traffic policy makes them differ.
    fn endpoint_count(&self) -> String {
        let (inside, outside) = (self.endpoints.len(), self.outside_endpoints.len());
        if self.endpoints == self.outside_endpoints {
            inside.to_string()
        } else {
            format!("{inside} ({outside} from outside)")
        }
    }
}

impl Row for ServiceRow {
    fn columns(wide: bool) -> Vec<&'static str> {
        let mut columns = vec!["SERVICE", "TYPE", "ADDRESS", "PROTOCOL", "ENDPOINTS"];
        if wide {
            columns.extend([
                "ALGORITHM",
                "THRESHOLDS",
                "MAX-AGE",
                "AFFINITY",
                "SOURCE-RANGES",
                "NO-ENDPOINT",
                "ID",
                "ENDPOINT-ADDRESSES",
            ]);
        }
        columns
    }

    fn cells(&self, wide: bool) -> Vec<String> {
        let mut cells = vec![
            self.service.label(),
            self.kind.into(),
            self.address.clone(),
            self.protocol.clone(),
            self.endpoint_count(),
        ];
        if wide {
            let mut thresholds = match self.upper_threshold.zip(self.lower_threshold) {
                None => String::new(),
                Some((upper, lower)) => thresholds_text(upper, lower),
            };
            if self.fallback {
                thresholds += " (fallback)";
            }
            let age =
                self.max_connection_age_seconds.map_or_else(String::new, |seconds| format!("{seconds}s"));
            let affinity = match self.affinity_seconds {
                0 => String::new(),
                seconds => format!("{seconds}s"),
            };
            let no_endpoint = match (self.no_endpoint, self.outside_no_endpoint) {
                (inside, outside) if inside == outside => inside.into(),
                (inside, outside) => format!("{inside} ({outside} from outside)"),
            };
            let addresses = match self.endpoint_count().contains("outside") {
                false => self.endpoints.join(","),
                true => format!(
                    "{} (from outside: {})",
                    self.endpoints.join(","),
                    self.outside_endpoints.join(",")
                ),
            };
            let sources = match self.source_ranges.as_deref() {
                None => String::new(),
                Some([]) => "nobody".into(),
                Some(networks) => networks.join(","),
            };
            let id = self.id.to_string();
            let algorithm = self.algorithm.clone();
            cells.extend([algorithm, thresholds, age, affinity, sources, no_endpoint, id, addresses]);
        }
        cells
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::super::output::{OutputFormat, render};
    use super::*;
    use crate::testing::assert_golden;

    fn address(ip: &str, port: u16, protocol: u8) -> ServiceAddress {
        ServiceAddress { ip: ip.parse().unwrap(), port, protocol }
    }

    fn service(
        service_id: u32,
        kind: u8,
        inside: (u32, u32),
        outside: (u32, u32),
        flags: u32,
    ) -> layout::ServiceEntry {
        layout::ServiceEntry {
            service_id,
            flags,
            outside_base: outside.0,
            outside_count: outside.1,
            inside_base: inside.0,
            inside_count: inside.1,
            affinity_seconds: if service_id == 3 { 10_800 } else { 0 },
            algorithm: layout::algorithm::RANDOM,
            kind,
            scheduler: layout::scheduler::RANDOM,
            pad: 0,
        }
    }

    fn rows(filter: &ServiceFilter) -> Vec<ServiceRow> {
        use layout::kind::{CLUSTER_IP, LOAD_BALANCER, NODE_PORT};
        use service_flags::{OUTSIDE_DROP, POLICY_LOCAL, SOURCE_RANGES};
        let local = OUTSIDE_DROP | POLICY_LOCAL;
        let guarded = SOURCE_RANGES;
        let services = vec![
            (address("0.0.0.0", 30088, layout::TCP), service(1, NODE_PORT, (1, 2), (3, 1), local)),
            (address("10.96.0.10", 80, layout::TCP), service(1, CLUSTER_IP, (1, 2), (1, 2), 0)),
            (
                address("fd00:10:96::10", 80, layout::TCP),
                service(1, CLUSTER_IP, (4, 1), (4, 1), 600 << service_flags::MAX_AGE_SHIFT),
            ),
            (address("::", 30088, layout::TCP), service(1, NODE_PORT, (4, 1), (4, 1), 0)),
            (address("10.96.0.2", 53, layout::UDP), service(2, CLUSTER_IP, (5, 3), (5, 3), 0)),
            (address("192.0.2.7", 8080, layout::TCP), service(3, LOAD_BALANCER, (0, 0), (0, 0), guarded)),
            (address("2001:db8::7", 8080, layout::TCP), service(3, LOAD_BALANCER, (0, 0), (0, 0), guarded)),
        ];
        let slots = Slots::from([
            ((1, 2), vec![2, 1]), // all endpoints of web
            ((3, 1), vec![1]),    // those on this node
            ((4, 1), vec![1]),
            ((5, 3), vec![4, 4, 4]), // kube-dns: one backend of weight 3
        ]);
        let sources = ["203.0.113.0/24", "198.51.100.7/32"].map(|text| text.parse().unwrap());
        let source_ranges = SourceRangesById::from([(3, sources.into())]);
        let (names, backends) = (fixture::names(), fixture::backends());
        let thresholds = HashMap::from([(2, Thresholds { upper: 40, lower: 10 })]);
        service_rows(&ServiceEntries { services, names, slots, backends, source_ranges, thresholds }, filter)
    }

    #[test]
    fn table() {
        assert_golden(
            "services.txt",
            &render(&rows(&ServiceFilter::default()), OutputFormat::Table).unwrap(),
        );
    }

    #[test]
    fn wide_table() {
        assert_golden(
            "services-wide.txt",
            &render(&rows(&ServiceFilter::default()), OutputFormat::Wide).unwrap(),
        );
    }

    #[test]
    fn json() {
        let filter = ServiceFilter { namespace: None, service: Some("web".into()) };
        assert_golden("services.json", &render(&rows(&filter), OutputFormat::Json).unwrap());
    }

    #[test]
    fn yaml_and_json_are_equal() {
        let rows = rows(&ServiceFilter::default());
        let yaml: serde_json::Value =
            serde_saphyr::from_str(&render(&rows, OutputFormat::Yaml).unwrap()).unwrap();
        let json: serde_json::Value =
            serde_json::from_str(&render(&rows, OutputFormat::Json).unwrap()).unwrap();
        assert_eq!(yaml, json);
    }

    #[test]
    fn filtered_by_namespace() {
        let filter = ServiceFilter { namespace: Some("shop".into()), service: None };
        let rows = rows(&filter);
        assert_eq!(rows.iter().map(|row| row.service.label()).collect::<Vec<_>>(), ["shop/cart:8080"; 2]);
    }
}
