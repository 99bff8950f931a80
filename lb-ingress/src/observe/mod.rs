//! The reports of the proxy: the access log and the metrics.

mod access_log;
mod metrics;

use std::time::Duration;

pub use access_log::{AccessLog, AccessRecord, RequestTexts};
pub use metrics::IngressMetrics;

/// Receives the record of each request.
#[derive(Debug, Default)]
pub struct Observer {
    pub log: Option<AccessLog>,
    pub metrics: IngressMetrics,
}

impl Observer {
    /// A request has ended. `texts` are only needed if there is a log.
    pub fn finished(&self, record: &AccessRecord, texts: Option<&RequestTexts<'_>>, duration: Duration) {
        self.metrics.finished(record, duration);
        if let Some((log, texts)) = self.log.as_ref().zip(texts)
            && !log.write(record, texts, duration)
        {
            self.metrics.unlogged.inc();
        }
    }
}
