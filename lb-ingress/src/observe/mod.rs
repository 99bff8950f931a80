//! The reports of the proxy: the access log and the metrics.

mod access_log;
mod metrics;

use std::time::Duration;

pub use access_log::{AccessLog, AccessRecord};
pub use metrics::IngressMetrics;

/// Receives the record of each request.
#[derive(Debug, Default)]
pub struct Observer {
    pub log: Option<AccessLog>,
    pub metrics: IngressMetrics,
}

impl Observer {
    /// A request has ended.
    pub fn finished(&self, record: &AccessRecord, duration: Duration) {
        self.metrics.finished(record, duration);
        if self.log.as_ref().is_some_and(|log| !log.write(record, duration)) {
            self.metrics.unlogged.inc();
        }
    }
}
