//! The metrics of Services, maps and packets, in OpenMetrics.
//!
//! Metrics that dashboards of kube-proxy use have the same names and meaning
//! (pkg/proxy/metrics/metrics.go). The names of other metrics begin with `sluice_`. No label has
//! values that grow with the number of Services. Those of `sluice_no_source_port` are bounded by
//! the size of the map `NO_SOURCE_PORT`, and those of `sluice_connections` by
//! [`MOST_SERVICE_LOADS`].

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use lb_common::reason::{Outcome, Reason};
use lb_datapath::apply::MapUsage;
use lb_datapath::{DriftKind, EndpointShortage, ServiceLoad};
use lb_model::{IpFamily, PerFamily, Problem, Severity, SourceEvent, Trigger};
use lb_plan::desired::ServicePortId;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets, linear_buckets};

use super::writer::MetricWriter;

/// The counts of the programs since the maps were created.
#[derive(Debug, Clone, Default)]
pub struct KernelCounts {
    pub packets: Vec<(Reason, u64)>,
    pub port_shortages: Vec<EndpointShortage>,
    /// The Service ports with the most open connections.
    pub service_loads: Vec<ServiceLoad>,
}

/// The greatest number of Service ports with a metric of their own.
pub const MOST_SERVICE_LOADS: usize = 100;

/// Reads the kernel. It is called for each request.
pub type ReadCounts = Box<dyn Fn() -> io::Result<KernelCounts> + Send + Sync>;

/// The values of all metrics. The main loop updates them, `/metrics` reads them.
pub struct Metrics {
    read_counts: ReadCounts,
    /// Time from a change in the cluster to the change of the maps.
    network_programming: PerFamily<Histogram>,
    sync_duration: Histogram,
    values: Mutex<Values>,
}

#[derive(Debug, Clone, Default)]
struct Values {
    service_changes: u64,
    endpoint_changes: u64,
    coalesced: u64,
    last_sync: Option<SystemTime>,
    services: usize,
    endpoints: u64,
    open_flows: usize,
    half_open_flows: usize,
    networks_by_kernel: usize,
    maps: Vec<MapUsage>,
    map_memory: MapMemory,
    /// How often maps were replaced by larger ones.
    growths: u64,
    /// Problems of API objects that exist now.
    errors: u64,
    notes: u64,
    raised: BTreeMap<Raised, u64>,
    repairs: BTreeMap<DriftKind, u64>,
    watches: Vec<(&'static str, Duration)>,
    /// Endpoints that have drained.
    drained: u64,
    /// Connections that were reset after the time limit of a drain.
    cut: u64,
    /// Connections in the flow table, and sockets, that were reset because of their age.
    aged_flows: u64,
    aged_sockets: u64,
    /// Endpoints that are left out.
    left_out: usize,
    overloaded: usize,
}

/// The memory of all maps in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct MapMemory {
    /// When they are full.
    pub bytes: usize,
    /// Maps may grow up to this.
    pub most: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Raised {
    kind: &'static str,
    reason: &'static str,
    severity: &'static str,
}

impl Metrics {
    pub fn new(read_counts: ReadCounts) -> Self {
        let network_programming = || {
            let minutes = [120.0, 150.0, 180.0, 210.0, 240.0, 270.0, 300.0];
            let buckets = [0.25, 0.5].into_iter();
            Histogram::new(
                buckets
                    .chain(linear_buckets(1.0, 1.0, 59))
                    .chain(linear_buckets(60.0, 5.0, 12))
                    .chain(minutes),
            )
        };
        Self {
            read_counts,
            network_programming: PerFamily { v4: network_programming(), v6: network_programming() },
            sync_duration: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            values: Mutex::default(),
        }
    }

    fn values(&self) -> MutexGuard<'_, Values> {
        // A panic of another thread cannot leave a value half written.
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the events of a source.
    pub fn received(&self, events: &[SourceEvent]) {
        let mut values = self.values();
        for event in events {
            match event {
                SourceEvent::Service(..) => values.service_changes += 1,
                SourceEvent::EndpointSlice(..) => values.endpoint_changes += 1,
                _ => {}
            }
        }
    }

    /// Sets the number of changes that a later one replaced before they were written.
    pub fn set_coalesced(&self, changes: u64) {
        self.values().coalesced = changes;
    }

    /// Records an update of the maps.
    pub fn synced(&self, took: Duration, at: SystemTime) {
        self.sync_duration.observe(took.as_secs_f64());
        self.values().last_sync = Some(at);
    }

    /// Records that the result of a change in the cluster is in the maps at `now`. Clocks differ
    /// between machines: a change in the future counts as zero seconds.
    pub fn programmed(&self, trigger: Trigger, now: SystemTime) {
        let latency = now.duration_since(trigger.at).unwrap_or_default();
        self.network_programming[trigger.family].observe(latency.as_secs_f64());
    }

    /// Counts a new problem.
    pub fn raised(&self, problem: &Problem) {
        let mut values = self.values();
        *values.current(problem.severity) += 1;
        let raised = Raised {
            kind: problem.object_reference().map_or("", |(kind, ..)| kind),
            reason: problem.kind.code(),
            severity: severity(problem.severity),
        };
        *values.raised.entry(raised).or_default() += 1;
    }

    /// Records that a problem does not exist any more.
    pub fn resolved(&self, problem: &Problem) {
        let mut values = self.values();
        let current = values.current(problem.severity);
        *current = current.saturating_sub(1);
    }

    /// Counts a change of another program that is repaired.
    pub fn repaired(&self, kind: DriftKind) {
        *self.values().repairs.entry(kind).or_default() += 1;
    }

    /// Sets the number of Services, the number of endpoints of all their ports, and the usage of
    /// maps.
    pub fn set_served(&self, services: usize, endpoints: u64, maps: Vec<MapUsage>) {
        let mut values = self.values();
        values.services = services;
        values.endpoints = endpoints;
        values.maps = maps;
    }

    /// Sets the memory of the maps.
    pub fn set_map_memory(&self, memory: MapMemory) {
        self.values().map_memory = memory;
    }

    /// Counts a replacement of maps by larger ones.
    pub fn grown(&self) {
        self.values().growths += 1;
    }

    /// Sets the time since the API server last sent something about each watched resource.
    pub fn set_watches(&self, watches: Vec<(&'static str, Duration)>) {
        self.values().watches = watches;
    }

    /// Sets the number of networks to which the kernel forwards translated packets.
    pub fn set_networks_by_kernel(&self, networks: usize) {
        self.values().networks_by_kernel = networks;
    }

    /// Sets the number of endpoints that are left out.
    pub fn set_left_out(&self, endpoints: usize) {
        self.values().left_out = endpoints;
    }

    /// Sets the number of endpoints that have too many connections to get new ones.
    pub fn set_overloaded(&self, endpoints: usize) {
        self.values().overloaded = endpoints;
    }

    /// Counts an endpoint that drains and has no connections any more.
    pub fn drained(&self) {
        self.values().drained += 1;
    }

    /// Counts connections that were reset because their endpoint has drained for its time limit.
    pub fn cut(&self, connections: usize) {
        self.values().cut += connections as u64;
    }

    /// Counts connections in the flow table that were reset because of their age.
    pub fn aged_flows(&self, connections: usize) {
        self.values().aged_flows += connections as u64;
    }

    /// Counts sockets that were closed because of their age.
    pub fn aged_sockets(&self, sockets: usize) {
        self.values().aged_sockets += sockets as u64;
    }

    pub fn set_flows(&self, open: usize, half_open: usize) {
        let mut values = self.values();
        values.open_flows = open;
        values.half_open_flows = half_open;
    }
}

impl Values {
    fn current(&mut self, severity: Severity) -> &mut u64 {
        match severity {
            Severity::Error => &mut self.errors,
            Severity::Note => &mut self.notes,
        }
    }
}

fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Note => "note",
    }
}

fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Translated => "translated",
        Outcome::Passed => "passed",
        Outcome::Rejected => "rejected",
        Outcome::Dropped => "dropped",
        Outcome::Evicted => "evicted",
    }
}

const FAMILIES: [(IpFamily, &str); 2] = [(IpFamily::V4, "IPv4"), (IpFamily::V6, "IPv6")];

impl Collector for Metrics {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let values = self.values().clone();
        let mut writer = MetricWriter(encoder);
        // kube-proxy has a proxier for each family. Here one update writes both families, so both
        // labels have the same value.
        writer.histograms(
            "kubeproxy_network_programming_duration_seconds",
            "Seconds from a change of an EndpointSlice until the maps contain it",
            FAMILIES.map(|(family, name)| (name, &self.network_programming[family])),
        )?;
        writer.histograms(
            "kubeproxy_sync_proxy_rules_duration_seconds",
            "Duration of an update of the maps in seconds",
            FAMILIES.map(|(_, name)| (name, &self.sync_duration)),
        )?;
        if let Some(at) = values.last_sync {
            let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
            writer.gauges(
                "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
                "Time of the last update of the maps",
                FAMILIES.map(|(_, name)| ([("ip_family", name)], seconds)),
            )?;
        }
        writer.counter(
            "kubeproxy_sync_proxy_rules_endpoint_changes",
            "Received changes of EndpointSlices",
            values.endpoint_changes,
        )?;
        writer.counter(
            "kubeproxy_sync_proxy_rules_service_changes",
            "Received changes of Services",
            values.service_changes,
        )?;
        writer.counter(
            "sluice_coalesced_changes",
            "Received changes that a later change of the same object replaced before they were written",
            values.coalesced,
        )?;
        writer.info("sluice_build", "Version of the agent", &[("version", env!("CARGO_PKG_VERSION"))])?;
        writer.gauge("sluice_services", "Services in the maps", values.services)?;
        writer.gauge(
            "sluice_endpoints",
            "Endpoints in the maps, counted for each Service port",
            values.endpoints,
        )?;
        writer.gauges(
            "sluice_flows",
            "Connections in the flow table, both families",
            [("open", values.open_flows), ("half_open", values.half_open_flows)]
                .map(|(state, flows)| ([("state", state)], flows)),
        )?;
        writer.gauge(
            "sluice_networks_forwarded_by_kernel",
            "Networks to which the kernel forwards translated packets, for example by IPsec policies",
            values.networks_by_kernel,
        )?;
        writer.counter(
            "sluice_drained_endpoints",
            "Endpoints that drained until their last connection through this node ended",
            values.drained,
        )?;
        writer.counter(
            "sluice_drain_resets",
            "Translated connections that were ended because their endpoint drained for its time limit",
            values.cut,
        )?;
        writer.counters(
            "sluice_age_resets",
            "Connections that were ended because they reached the maximum age of their Service",
            [("packet", values.aged_flows), ("socket", values.aged_sockets)]
                .map(|(path, count)| ([("path", path)], count)),
        )?;
        writer.gauge(
            "sluice_left_out_endpoints",
            "Endpoints that get no new connections for a while: they refuse or do not answer",
            values.left_out,
        )?;
        writer.gauge(
            "sluice_overloaded_endpoints",
            "Endpoints that get no new connections for a while: they have as many as their thresholds allow",
            values.overloaded,
        )?;
        writer.gauges(
            "sluice_map_entries",
            "Used entries of each map that refuses entries when it is full",
            values.maps.iter().map(|usage| ([("map", usage.map)], usage.entries)),
        )?;
        writer.gauges(
            "sluice_map_capacity",
            "Maximum entries of these maps",
            values.maps.iter().map(|usage| ([("map", usage.map)], usage.capacity)),
        )?;
        writer.gauge(
            "sluice_map_memory_bytes",
            "Memory of all maps when they are full",
            values.map_memory.bytes as u64,
        )?;
        writer.gauge(
            "sluice_map_memory_limit_bytes",
            "Memory of all maps up to which maps of Services grow",
            values.map_memory.most as u64,
        )?;
        writer.counter(
            "sluice_map_growths",
            "How often maps of Services were replaced by larger ones",
            values.growths,
        )?;
        writer.gauges(
            "sluice_problems",
            "Current problems of API objects",
            [("error", values.errors), ("note", values.notes)]
                .map(|(severity, count)| ([("severity", severity)], count)),
        )?;
        writer.counters(
            "sluice_problems_raised",
            "Problems of API objects since the start, by kind of object",
            values.raised.iter().map(|(raised, count)| {
                let Raised { kind, reason, severity } = *raised;
                ([("kind", kind), ("reason", reason), ("severity", severity)], *count)
            }),
        )?;
        writer.gauges(
            "sluice_watch_age_seconds",
            "Seconds since the API server last sent something about a watched resource",
            values.watches.iter().map(|(resource, age)| ([("resource", *resource)], age.as_secs())),
        )?;
        writer.counters(
            "sluice_repairs",
            "Changes of other programs to attachments, pins and map entries that the agent has repaired",
            DriftKind::ALL.map(|kind| {
                ([("kind", kind.label())], values.repairs.get(&kind).copied().unwrap_or_default())
            }),
        )?;
        match (self.read_counts)() {
            Ok(counts) => counts.encode(&mut writer),
            // The other metrics are answered all the same.
            Err(error) => {
                tracing::warn!("cannot read the packet counters: {error}");
                Ok(())
            }
        }
    }
}

impl KernelCounts {
    fn encode(self, writer: &mut MetricWriter) -> fmt::Result {
        writer.gauges(
            "sluice_connections",
            "Open connections of the Service ports that have the most, as ipvsadm counts them",
            self.service_loads.iter().flat_map(|load| {
                let port = port_label(&load.service, load.port);
                let labels = move |state, endpoints| {
                    let ServicePortId { namespace, name, .. } = &load.service;
                    let service = [("namespace", namespace.as_str()), ("service", name)];
                    let [namespace, service] = service.map(|(key, value)| (key, value.to_owned()));
                    let own = |key: &'static str, value: &str| (key, value.to_owned());
                    [
                        namespace,
                        service,
                        ("port", port.clone()),
                        own("endpoints", endpoints),
                        own("state", state),
                    ]
                };
                let (all, draining) = (load.connections, load.draining);
                [
                    (labels("active", "ready"), all.active - draining.active),
                    (labels("inactive", "ready"), all.inactive - draining.inactive),
                    (labels("active", "draining"), draining.active),
                    (labels("inactive", "draining"), draining.inactive),
                ]
            }),
        )?;
        writer.counters(
            "sluice_packets",
            "Packets and socket calls by outcome and reason",
            self.packets.into_iter().map(|(reason, count)| {
                ([("outcome", outcome(reason.outcome())), ("reason", reason.label())], count)
            }),
        )?;
        writer.counters(
            "sluice_no_source_port",
            "Packets that opened no connection to an endpoint because no source port was free",
            self.port_shortages.into_iter().map(|shortage| {
                let port = port_label(&shortage.service, shortage.port);
                let ServicePortId { namespace, name, .. } = shortage.service;
                let endpoint = shortage.endpoint.to_string();
                let labels =
                    [("namespace", namespace), ("service", name), ("port", port), ("endpoint", endpoint)];
                (labels, shortage.packets)
            }),
        )
    }
}

/// Returns the name of a Service port, or its number if it has none.
fn port_label(service: &ServicePortId, port: u16) -> String {
    if service.port_name.is_empty() { port.to_string() } else { service.port_name.clone() }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("values", &self.values).finish_non_exhaustive()
    }
}
