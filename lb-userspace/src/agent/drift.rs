//! Compares the kernel's state with what this agent has attached, pinned and written, and repairs
//! what another program has changed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

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
    /// The reason why the last comparison failed.
    failed: Option<String>,
}

impl DriftReport {
    pub fn new(now: Instant) -> Self {
        Self { compared: now, host: Rounds::default(), services: Rounds::default(), failed: None }
    }

    /// Returns whether it is time for a comparison, which begins now.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let due = now.saturating_duration_since(self.compared) >= PERIOD;
        if due {
            self.compared = now;
        }
        due
    }

    /// Logs and counts what a comparison of the host found.
    pub fn host(&mut self, found: Vec<Drift>, metrics: &Metrics) {
        self.host.report(found, metrics);
        self.host.end();
    }

    /// Logs and counts what a part of an audit of the service maps found. `done`: it was the last
    /// part.
    pub fn services(&mut self, found: Vec<String>, done: bool, metrics: &Metrics) {
        let drift = found.into_iter().map(|found| Drift::new(DriftKind::MapEntry, found));
        self.services.report(drift.collect(), metrics);
        if done {
            self.services.end();
        }
    }

    /// Logs why a part of a comparison failed, once for each reason.
    pub fn failed(&mut self, failures: &[String]) {
        let reason = failures.join("; ");
        if !reason.is_empty() && self.failed.as_ref() != Some(&reason) {
            warn!("cannot compare the kernel's state with the desired one, trying again: {reason}");
        }
        self.failed = (!reason.is_empty()).then_some(reason);
    }
}

/// What the last two rounds of a comparison found. What both found is logged once.
#[derive(Debug, Default)]
struct Rounds {
    last: BTreeSet<Drift>,
    current: BTreeSet<Drift>,
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
}
