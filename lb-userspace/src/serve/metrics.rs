//! `/metrics`: what is counted, and how it is written (OpenMetrics text).
//!
//! Metrics that dashboards for kube-proxy use keep their names and meaning (pkg/proxy/metrics/metrics.go); those of our own
//! begin with `sluice_`. Labels have few values: nothing here grows with the number of Services.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use lb_common::reason::{Outcome, Reason};
use lb_datapath::apply::{MapUsage, PerFamily};
use lb_model::{IpFamily, Problem, Severity, SourceEvent, Trigger};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets, linear_buckets};

/// Packets by reason, since the maps were made. Read from the kernel for each answer.
pub type Packets = Box<dyn Fn() -> io::Result<Vec<(Reason, u64)>> + Send + Sync>;

/// Everything that is counted. The main loop writes it, `/metrics` reads it.
pub struct Metrics {
    packets: Packets,
    /// From the change in the cluster to the change of the maps.
    network_programming: PerFamily<Histogram>,
    sync_duration: Histogram,
    values: Mutex<Values>,
}

#[derive(Debug, Clone, Default)]
struct Values {
    service_changes: u64,
    endpoint_changes: u64,
    last_sync: Option<SystemTime>,
    services: usize,
    endpoints: u64,
    open_flows: usize,
    half_open_flows: usize,
    maps: Vec<MapUsage>,
    /// Those that are there now.
    errors: u64,
    notes: u64,
    raised: BTreeMap<Raised, u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Raised {
    kind: &'static str,
    reason: &'static str,
    severity: &'static str,
}

impl Metrics {
    pub fn new(packets: Packets) -> Self {
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
            packets,
            network_programming: PerFamily { v4: network_programming(), v6: network_programming() },
            sync_duration: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            values: Mutex::default(),
        }
    }

    fn values(&self) -> MutexGuard<'_, Values> {
        // Numbers are never half written.
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes that a source has sent.
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

    /// The maps were brought up to date.
    pub fn synced(&self, took: Duration, at: SystemTime) {
        self.sync_duration.observe(took.as_secs_f64());
        self.values().last_sync = Some(at);
    }

    /// What this trigger led to is in the maps at `now`. Clocks may differ: what lies in the future took no time.
    pub fn programmed(&self, trigger: Trigger, now: SystemTime) {
        let latency = now.duration_since(trigger.at).unwrap_or_default();
        self.network_programming[trigger.family].observe(latency.as_secs_f64());
    }

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

    pub fn resolved(&self, problem: &Problem) {
        let mut values = self.values();
        let current = values.current(problem.severity);
        *current = current.saturating_sub(1);
    }

    /// Services that are proxied, endpoints of all their ports, and how full the maps of both are.
    pub fn set_served(&self, services: usize, endpoints: u64, maps: Vec<MapUsage>) {
        let mut values = self.values();
        values.services = services;
        values.endpoints = endpoints;
        values.maps = maps;
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
    }
}

const FAMILIES: [(IpFamily, &str); 2] = [(IpFamily::V4, "IPv4"), (IpFamily::V6, "IPv6")];

impl Collector for Metrics {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let values = self.values().clone();
        let mut writer = Writer(encoder);
        // kube-proxy has a proxier per family and this label to tell them apart; here one round serves both.
        writer.histograms(
            "kubeproxy_network_programming_duration_seconds",
            "In Cluster Network Programming Latency in seconds",
            FAMILIES.map(|(family, name)| (name, &self.network_programming[family])),
        )?;
        writer.histograms(
            "kubeproxy_sync_proxy_rules_duration_seconds",
            "Time that one round of bringing the maps up to date took",
            FAMILIES.map(|(_, name)| (name, &self.sync_duration)),
        )?;
        if let Some(at) = values.last_sync {
            let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
            writer.gauges(
                "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
                "When the maps were last brought up to date",
                FAMILIES.map(|(_, name)| ([("ip_family", name)], seconds)),
            )?;
        }
        writer.counter(
            "kubeproxy_sync_proxy_rules_endpoint_changes",
            "EndpointSlice changes received",
            values.endpoint_changes,
        )?;
        writer.counter(
            "kubeproxy_sync_proxy_rules_service_changes",
            "Service changes received",
            values.service_changes,
        )?;
        writer.info("sluice_build", "The version that runs", &[("version", env!("CARGO_PKG_VERSION"))])?;
        writer.gauge("sluice_services", "Services that are proxied", values.services)?;
        writer.gauge(
            "sluice_endpoints",
            "Endpoints in the maps, counted once for each Service port",
            values.endpoints,
        )?;
        writer.gauges(
            "sluice_flows",
            "Entries of the flow tables, two for each connection, at the last sweep",
            [("open", values.open_flows), ("half_open", values.half_open_flows)]
                .map(|(state, flows)| ([("state", state)], flows)),
        )?;
        writer.gauges(
            "sluice_map_entries",
            "Entries in use of the maps that the agent fills",
            values.maps.iter().map(|usage| ([("map", usage.map)], usage.entries)),
        )?;
        writer.gauges(
            "sluice_map_capacity",
            "Entries that these maps have room for",
            values.maps.iter().map(|usage| ([("map", usage.map)], usage.capacity)),
        )?;
        writer.gauges(
            "sluice_problems",
            "What is wrong with the input now",
            [("error", values.errors), ("note", values.notes)]
                .map(|(severity, count)| ([("severity", severity)], count)),
        )?;
        writer.counters(
            "sluice_problems_raised",
            "Problems of the input when they were first seen, by kind of object",
            values.raised.iter().map(|(raised, count)| {
                let Raised { kind, reason, severity } = *raised;
                ([("kind", kind), ("reason", reason), ("severity", severity)], *count)
            }),
        )?;
        match (self.packets)() {
            Ok(packets) => writer.counters(
                "sluice_packets",
                "Packets, and calls at sockets, by what became of them",
                packets.into_iter().map(|(reason, count)| {
                    ([("outcome", outcome(reason.outcome())), ("reason", reason.label())], count)
                }),
            ),
            // The others are worth having.
            Err(error) => {
                tracing::warn!("cannot read the packet counters: {error}");
                Ok(())
            }
        }
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("values", &self.values).finish_non_exhaustive()
    }
}

/// Writes families of samples in the order given.
struct Writer<'a>(DescriptorEncoder<'a>);

impl Writer<'_> {
    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        ConstCounter::new(value).encode(self.0.encode_descriptor(name, help, None, MetricType::Counter)?)
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl EncodeGaugeValue) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
    }

    fn counters<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in samples {
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn gauges<L: EncodeLabelSet, N: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, N)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in samples {
            family.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    fn histograms<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: [(&str, &Histogram); N],
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (label, histogram) in samples {
            histogram.encode(family.encode_family(&[("ip_family", label)])?)?;
        }
        Ok(())
    }

    fn info(&mut self, name: &str, help: &str, labels: &[(&str, &str); 1]) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Info)?.encode_info(labels)
    }
}
