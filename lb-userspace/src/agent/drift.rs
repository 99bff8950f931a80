//! Compares the kernel's state with what this agent has attached, pinned and written, and repairs
//! what another program has changed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use lb_datapath::apply::tables::TableError;
use lb_datapath::{Drift, DriftKind};
use tracing::warn;

use crate::serve::Metrics;

/// Time between two comparisons of the attachments, the pins and the maps of this host.
const PERIOD: Duration = Duration::from_secs(10);
/// At most so many differences of one comparison are logged.
const LOGGED: usize = 5;

/// When the kernel's state was compared, and what was logged.
#[derive(Debug)]
pub struct DriftReport {
    compared: Instant,
    host: Rounds,
    services: Rounds,
}

impl DriftReport {
    pub fn new(now: Instant) -> Self {
        Self { compared: now, host: Rounds::default(), services: Rounds::default() }
    }

    /// Returns whether it is time for a comparison, which begins now.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let due = now.saturating_duration_since(self.compared) >= PERIOD;
        if due {
            self.compared = now;
        }
        due
    }

    /// Logs and counts what a comparison of the host found, and logs which parts of it failed.
    pub fn host(&mut self, found: Vec<Drift>, failures: &[String], metrics: &Metrics) {
        self.host.report(found, metrics);
        self.host.end();
        self.host.failed((!failures.is_empty()).then(|| failures.join("; ")));
    }

    /// Logs and counts what a part of an audit of the service maps found. With the last part the
    /// audit is `done`.
    pub fn services(&mut self, part: Result<(Vec<String>, bool), TableError>, metrics: &Metrics) {
        let (found, done) = match part {
            Ok(part) => part,
            Err(error) => return self.services.failed(Some(error.to_string())),
        };
        let drift = found.into_iter().map(|found| Drift::new(DriftKind::MapEntry, found));
        self.services.report(drift.collect(), metrics);
        if done {
            self.services.end();
        }
        self.services.failed(None);
    }
}

/// What the last two rounds of a comparison found. What both found is logged once.
#[derive(Debug, Default)]
struct Rounds {
    last: BTreeSet<Drift>,
    current: BTreeSet<Drift>,
    /// The reason why the last comparison failed.
    failure: Option<String>,
}

impl Rounds {
    fn report(&mut self, found: Vec<Drift>, metrics: &Metrics) {
        for drift in &found {
            metrics.repaired(drift.kind);
        }
        let found: BTreeSet<Drift> = found.into_iter().collect();
        let new: Vec<&Drift> = found.difference(&self.last).collect();
        for drift in new.iter().take(LOGGED) {
            warn!(
                kind = drift.kind.label(),
                "another program changed the data path; repairing: {}", drift.found
            );
        }
        if new.len() > LOGGED {
            warn!("another program changed the data path in {} more places; repairing", new.len() - LOGGED);
        }
        self.current.extend(found);
    }

    fn end(&mut self) {
        self.last = std::mem::take(&mut self.current);
    }

    /// Logs why a comparison failed, once for each reason. `None` records a comparison that
    /// succeeded.
    fn failed(&mut self, reason: Option<String>) {
        if let Some(reason) = reason.as_ref().filter(|_| reason != self.failure) {
            warn!("cannot compare the kernel's state with the desired one, trying again: {reason}");
        }
        self.failure = reason;
    }
}
