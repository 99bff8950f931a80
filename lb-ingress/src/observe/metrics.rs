//! The metrics of requests. Their labels are bounded by the number of Ingresses: no label has a
//! value that a client chooses.

use std::fmt;
use std::time::Duration;

use lb_model::ObjectName;
use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::access_log::AccessRecord;

/// The labels of an Ingress. They are empty for a request without a route. A clone allocates
/// nothing: each request makes one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct OfIngress(Option<ObjectName>);

impl EncodeLabelSet for OfIngress {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        let (namespace, name) = self.0.as_ref().map_or(("", ""), |name| (name.namespace(), name.name()));
        [("namespace", namespace), ("ingress", name)].encode(encoder)
    }
}

/// The class of a status, such as 2 for 200 to 299.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct OfClass(u16);

impl EncodeLabelSet for OfClass {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        [("status", format!("{}xx", self.0))].encode(encoder)
    }
}

/// The metrics of all requests.
#[derive(Debug, Clone)]
pub struct IngressMetrics {
    requests: Family<(OfIngress, OfClass), Counter>,
    durations: Family<OfIngress, Histogram, fn() -> Histogram>,
    retries: Counter,
    aborted: Counter,
    pub connections: Gauge,
    /// 1 while this proxy writes the status of Ingresses.
    pub leader: Gauge,
    pub status_failures: Counter,
    /// Lines of the access log that were dropped, because their reader is too slow.
    pub unlogged: Counter,
}

impl Default for IngressMetrics {
    fn default() -> Self {
        let histogram: fn() -> Histogram =
            || Histogram::new([0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]);
        Self {
            requests: Family::default(),
            durations: Family::new_with_constructor(histogram),
            retries: Counter::default(),
            aborted: Counter::default(),
            connections: Gauge::default(),
            leader: Gauge::default(),
            status_failures: Counter::default(),
            unlogged: Counter::default(),
        }
    }
}

impl IngressMetrics {
    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "sluice_ingress_requests",
            "Requests by Ingress and class of the status; without a route the Ingress is empty",
            self.requests.clone(),
        );
        registry.register(
            "sluice_ingress_request_duration_seconds",
            "Time from the head of a request to the end of its response",
            self.durations.clone(),
        );
        registry.register(
            "sluice_ingress_retries",
            "Tries of a further endpoint after a failure",
            self.retries.clone(),
        );
        registry.register(
            "sluice_ingress_aborted",
            "Responses that ended before their last byte was sent",
            self.aborted.clone(),
        );
        registry.register(
            "sluice_ingress_connections",
            "Open connections of clients",
            self.connections.clone(),
        );
        registry.register(
            "sluice_ingress_leader",
            "Whether this proxy writes the status of Ingresses: 1 or 0",
            self.leader.clone(),
        );
        registry.register(
            "sluice_ingress_status_failures",
            "Failed requests to write the status of an Ingress",
            self.status_failures.clone(),
        );
        registry.register(
            "sluice_ingress_unlogged_requests",
            "Requests without a line in the access log, because its reader is too slow",
            self.unlogged.clone(),
        );
    }

    pub(super) fn finished(&self, record: &AccessRecord, duration: Duration) {
        let ingress = OfIngress(record.route.as_ref().map(|route| route.ingress.clone()));
        self.durations.get_or_create(&ingress).observe(duration.as_secs_f64());
        self.requests.get_or_create(&(ingress, OfClass(record.status / 100))).inc();
        self.retries.inc_by(u64::from(record.tries.saturating_sub(1)));
        if !record.complete {
            self.aborted.inc();
        }
    }

    /// Removes the metrics of an Ingress that no longer exists.
    pub fn forget(&self, ingress: &ObjectName) {
        let ingress = OfIngress(Some(ingress.clone()));
        self.durations.remove(&ingress);
        for class in 1..=5 {
            self.requests.remove(&(ingress.clone(), OfClass(class)));
        }
    }
}
