//! `lb top`: Services by their connections, as a screen, a table or JSON.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};

use lb_common::reason::{Outcome, Reason};
use lb_model::IpFamily;
use serde::Serialize;

use super::backends::{BackendRow, EndpointFacts, backend_rows};
use super::output::OutputError;
use super::service_port::{BackendsById, NamedServicePort, Names, ServiceFilter, protocol_name};
use super::table::TextTable;

/// The content of the maps at one time.
#[derive(Debug, Clone, Default)]
pub struct TopSample {
    pub names: Names,
    pub backends: BackendsById,
    pub endpoints: EndpointFacts,
    /// Packets by reason since the maps exist.
    pub counters: Vec<(Reason, u64)>,
}

/// Events of a Service port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EventCounts {
    pub opened: u64,
    pub refused: u64,
    pub dropped: u64,
}

/// The events between two samples.
#[derive(Debug, Clone, Default)]
pub struct TopEvents {
    pub by_service: HashMap<u32, EventCounts>,
    /// Events that were not counted, because there were too many.
    pub unseen: u64,
}

/// A Service port. The rates are `None` if this process has not read the events of the interval.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TopRow {
    #[serde(flatten)]
    pub service: NamedServicePort,
    pub protocol: String,
    pub new_per_second: Option<f64>,
    /// Open connections, at packets and sockets: TCP and SCTP until one side closes.
    pub active_connections: u64,
    /// The other connections: UDP, and those that one side has closed.
    pub inactive_connections: u64,
    pub endpoints: usize,
    pub refused_per_second: Option<f64>,
    pub dropped_per_second: Option<f64>,
    #[serde(skip)]
    pub service_id: u32,
}

/// A reason for which packets or calls were refused or dropped.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReasonRow {
    pub reason: &'static str,
    pub outcome: &'static str,
    /// `None` before the end of the first interval.
    pub per_second: Option<f64>,
    /// Since the maps exist.
    pub total: u64,
}

/// The content of `lb top`. The rates are `None` before the end of the first interval.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TopReport {
    /// The time between the two samples. 0 before the end of the first interval.
    pub seconds: f64,
    /// Packets that were translated. Connections of sockets need no translation of packets.
    pub packets_per_second: Option<f64>,
    /// Connections that were opened by packets, and calls at sockets that were translated.
    pub new_per_second: Option<f64>,
    /// Events that are missing in the rates of Services, because there were too many.
    pub uncounted_events: u64,
    /// [`Self::new`] leaves them in no order: [`sort`] orders them.
    pub services: Vec<TopRow>,
    pub endpoints: Vec<BackendRow>,
    pub reasons: Vec<ReasonRow>,
}

impl TopReport {
    /// Compares two samples. `events` is `None` if this process has not read the events of the
    /// whole interval. With 0 seconds there are no rates.
    pub fn new(before: &TopSample, now: &TopSample, events: Option<&TopEvents>, seconds: f64) -> Self {
        let earlier: BTreeMap<Reason, u64> = before.counters.iter().copied().collect();
        let rate = |count: u64| (seconds > 0.0).then(|| count as f64 / seconds);
        let increase = |reason: Reason, count: u64| {
            rate(count.saturating_sub(earlier.get(&reason).copied().unwrap_or(0)))
        };
        let sum = |reasons: &[Reason]| {
            let of_these = now.counters.iter().filter(|(reason, _)| reasons.contains(reason));
            of_these.map(|(reason, count)| increase(*reason, *count)).sum::<Option<f64>>()
        };
        let endpoints = backend_rows(&now.backends, &now.names, &now.endpoints, &ServiceFilter::default());
        let mut rows: HashMap<u32, TopRow> = now
            .names
            .iter()
            .map(|(&id, name)| {
                let counts = events.map(|it| it.by_service.get(&id).copied().unwrap_or_default());
                let row = TopRow {
                    service: NamedServicePort::of(id, &now.names),
                    protocol: protocol_name(name.protocol),
                    new_per_second: counts.and_then(|it| rate(it.opened)),
                    active_connections: 0,
                    inactive_connections: 0,
                    endpoints: 0,
                    refused_per_second: counts.and_then(|it| rate(it.refused)),
                    dropped_per_second: counts.and_then(|it| rate(it.dropped)),
                    service_id: id,
                };
                (id, row)
            })
            .collect();
        for row in &endpoints {
            let family = IpFamily::of(&row.address.ip());
            let service_id = now.backends.get(&(family, row.id)).map(|entry| entry.service_id);
            if let Some(service) = service_id.and_then(|id| rows.get_mut(&id)) {
                service.endpoints += 1;
                service.active_connections += u64::from(row.active_connections);
                service.inactive_connections += u64::from(row.inactive_connections);
            }
        }
        let mut reasons: Vec<_> = now
            .counters
            .iter()
            .filter(|(_, total)| *total > 0)
            .filter_map(|&(reason, total)| {
                let (outcome, per_second) = (outcome(reason)?, increase(reason, total));
                Some(ReasonRow { reason: reason.label(), outcome, per_second, total })
            })
            .collect();
        reasons.sort_by(|a, b| {
            let greater = greater_first(a.per_second, b.per_second);
            greater.then(b.total.cmp(&a.total)).then(a.reason.cmp(b.reason))
        });
        Self {
            seconds,
            packets_per_second: sum(&[Reason::Delivered, Reason::Forwarded]),
            new_per_second: sum(&[Reason::FlowOpened, Reason::SocketTranslated]),
            uncounted_events: events.map_or(0, |events| events.unseen),
            services: rows.into_values().collect(),
            endpoints,
            reasons,
        }
    }

    /// Returns the tables that `lb top --once` prints.
    pub fn table(&self) -> String {
        let mut services = TextTable::new(TopRow::COLUMNS.to_vec());
        self.services.iter().for_each(|row| services.push(row.cells()));
        let mut reasons = TextTable::new(ReasonRow::COLUMNS.to_vec());
        self.reasons.iter().for_each(|row| reasons.push(row.cells()));
        if self.reasons.is_empty() { services.to_string() } else { format!("{services}\n{reasons}") }
    }

    /// Returns the report as JSON.
    pub fn json(&self) -> Result<String, OutputError> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}

/// Returns the outcome of a reason that `lb top` shows.
fn outcome(reason: Reason) -> Option<&'static str> {
    match reason.outcome() {
        Outcome::Rejected => Some("refused"),
        Outcome::Dropped => Some("dropped"),
        Outcome::Evicted => Some("evicted"),
        Outcome::Translated | Outcome::Passed => None,
    }
}

impl ReasonRow {
    pub const COLUMNS: [&str; 4] = ["REASON", "OUTCOME", "PER-SECOND", "TOTAL"];

    pub fn cells(&self) -> Vec<String> {
        let (reason, outcome) = (self.reason.to_owned(), self.outcome.to_owned());
        vec![reason, outcome, per_second(self.per_second), self.total.to_string()]
    }
}

/// Formats a rate: with a decimal if it is small.
pub(super) fn per_second(rate: Option<f64>) -> String {
    match rate {
        None => "-".to_owned(),
        Some(0.0) => "0".to_owned(),
        Some(rate) if rate < 100.0 => format!("{rate:.1}"),
        Some(rate) => format!("{rate:.0}"),
    }
}

impl TopRow {
    pub const COLUMNS: [&str; 8] =
        ["SERVICE", "PROTOCOL", "NEW/S", "ACTIVE", "INACTIVE", "ENDPOINTS", "REFUSED/S", "DROPPED/S"];

    pub fn cells(&self) -> Vec<String> {
        vec![
            self.service.label(),
            self.protocol.clone(),
            per_second(self.new_per_second),
            self.active_connections.to_string(),
            self.inactive_connections.to_string(),
            self.endpoints.to_string(),
            per_second(self.refused_per_second),
            per_second(self.dropped_per_second),
        ]
    }
}

/// The column by which Services are sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum SortBy {
    /// New connections per second
    #[default]
    New,
    /// Open connections
    Active,
    /// Other connections
    Inactive,
    /// Refused packets and calls per second
    Refused,
    /// Dropped packets per second
    Dropped,
    /// Namespace and name
    Name,
}

impl SortBy {
    const ALL: [Self; 6] =
        [Self::New, Self::Active, Self::Inactive, Self::Refused, Self::Dropped, Self::Name];

    pub fn next(self) -> Self {
        let position = Self::ALL.iter().position(|by| *by == self).unwrap_or(0);
        Self::ALL[(position + 1) % Self::ALL.len()]
    }

    pub fn label(self) -> &'static str {
        match self {
            Self::New => "new/s",
            Self::Active => "active",
            Self::Inactive => "inactive",
            Self::Refused => "refused/s",
            Self::Dropped => "dropped/s",
            Self::Name => "name",
        }
    }
}

/// Compares two rates: the greater one is first. An unknown rate is as 0.
fn greater_first(a: Option<f64>, b: Option<f64>) -> Ordering {
    b.unwrap_or(0.0).total_cmp(&a.unwrap_or(0.0))
}

/// Sorts Services: the greatest number first, or the first name. Equal ones are sorted by name.
pub fn sort(rows: &mut [TopRow], by: SortBy, reversed: bool) {
    rows.sort_by(|a, b| {
        let order = match by {
            SortBy::New => greater_first(a.new_per_second, b.new_per_second),
            SortBy::Active => b.active_connections.cmp(&a.active_connections),
            SortBy::Inactive => b.inactive_connections.cmp(&a.inactive_connections),
            SortBy::Refused => greater_first(a.refused_per_second, b.refused_per_second),
            SortBy::Dropped => greater_first(a.dropped_per_second, b.dropped_per_second),
            SortBy::Name => Ordering::Equal,
        };
        let order = order.then_with(|| (&a.service, &a.protocol).cmp(&(&b.service, &b.protocol)));
        if reversed { order.reverse() } else { order }
    });
}

#[cfg(test)]
pub(super) mod tests {
    use lb_common::load::Connections;

    use super::super::fixture;
    use super::*;
    use crate::testing::assert_golden;

    pub fn report() -> TopReport {
        let counters = |refused, dropped, evicted, delivered| {
            vec![
                (Reason::SocketRefused, refused),
                (Reason::SourceRange, dropped),
                (Reason::EvictedClosed, evicted),
                (Reason::Delivered, delivered),
                (Reason::FlowOpened, delivered / 10),
                (Reason::NoRoute, 0),
            ]
        };
        let before = TopSample { counters: counters(10, 1, 7, 1_000), ..TopSample::default() };
        let now = TopSample {
            names: fixture::names(),
            backends: fixture::backends(),
            endpoints: fixture::endpoint_facts(HashMap::from([
                ((IpFamily::V4, 1), Connections { active: 7, inactive: 2 }),
                ((IpFamily::V6, 1), Connections { active: 1, inactive: 0 }),
                ((IpFamily::V4, 4), Connections { active: 0, inactive: 30 }),
            ])),
            counters: counters(25, 301, 7, 3_000),
        };
        let counts = |opened, refused, dropped| EventCounts { opened, refused, dropped };
        let by_service =
            HashMap::from([(1, counts(20, 0, 300)), (2, counts(300, 0, 0)), (3, counts(0, 15, 0))]);
        let events = TopEvents { by_service, unseen: 0 };
        let mut report = TopReport::new(&before, &now, Some(&events), 2.0);
        sort(&mut report.services, SortBy::New, false);
        report
    }

    #[test]
    fn table() {
        assert_golden("top.txt", &report().table());
    }

    #[test]
    fn json() {
        assert_golden("top.json", &report().json().unwrap());
    }

    #[test]
    fn services_are_sorted_by_every_column() {
        let mut rows = report().services;
        let mut names = |by, reversed| {
            sort(&mut rows, by, reversed);
            rows.iter().map(|row| row.service.name.clone()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(names(SortBy::New, false), "kube-dns web cart");
        assert_eq!(names(SortBy::Active, false), "web kube-dns cart");
        assert_eq!(names(SortBy::Inactive, false), "kube-dns web cart");
        assert_eq!(names(SortBy::Refused, false), "cart web kube-dns");
        assert_eq!(names(SortBy::Dropped, true), "cart kube-dns web");
        assert_eq!(names(SortBy::Name, false), "web kube-dns cart");
    }

    #[test]
    fn every_column_is_reached() {
        let mut by = SortBy::default();
        for _ in SortBy::ALL {
            by = by.next();
        }
        assert_eq!(by, SortBy::default());
        assert!(SortBy::ALL.iter().all(|by| !by.label().is_empty()));
    }

    #[test]
    fn rates_are_unknown_while_another_process_reads() {
        let now = TopSample { names: fixture::names(), ..TopSample::default() };
        let report = TopReport::new(&TopSample::default(), &now, None, 1.0);
        assert!(report.services.iter().all(|row| row.new_per_second.is_none()));
        assert!(report.table().contains(" - "));
    }

    #[test]
    fn rates_are_unknown_before_the_end_of_the_first_interval() {
        let counters = vec![(Reason::SourceRange, 300), (Reason::Delivered, 3_000)];
        let now = TopSample { names: fixture::names(), counters, ..TopSample::default() };
        let report = TopReport::new(&now, &now, Some(&TopEvents::default()), 0.0);
        assert!(report.services.iter().all(|row| row.new_per_second.is_none()));
        assert_eq!([report.packets_per_second, report.reasons[0].per_second], [None; 2]);
        assert_eq!(report.reasons[0].cells()[2..], ["-", "300"]);
    }
}
