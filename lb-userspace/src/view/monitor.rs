//! `lb monitor`: one line for each event of the programs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use lb_datapath::events::{EventEntry, EventKind, EventPath, Unseen};
use lb_model::IpFamily;
use serde::Serialize;

use super::service_port::{NamedServicePort, ServiceFilter, protocol_name};

/// An event with the names of its Service and its client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MonitorRow {
    /// UTC, as in RFC 3339.
    pub time: String,
    pub kind: &'static str,
    /// Why a connection has ended, or a packet was refused or dropped.
    pub reason: Option<&'static str>,
    /// `None` if the address belongs to no Service.
    pub service: Option<NamedServicePort>,
    pub protocol: String,
    /// An address with port, or the address of the pod or node whose process calls.
    pub client: Option<String>,
    /// The address that the client uses.
    pub address: SocketAddr,
    pub endpoint: Option<SocketAddr>,
    /// The source address that the endpoint sees, if it is not that of the client.
    pub source: Option<SocketAddr>,
    /// `socket`, `tc` or `xdp`. `None` if no packet and no call has caused the event.
    pub path: Option<&'static str>,
    /// The cookie of the socket: the same when it is opened and closed.
    pub socket: Option<u64>,
    /// The cookie of the socket's network namespace.
    pub netns: Option<u64>,
}

/// The names of an event.
#[derive(Debug, Clone, Default)]
pub struct EventNames {
    pub service: Option<NamedServicePort>,
    /// The address of a socket's network namespace.
    pub client: Option<IpAddr>,
}

impl MonitorRow {
    /// `unix_ns` is the time of the event since 1970.
    pub fn new(event: &EventEntry, names: EventNames, unix_ns: u64) -> Self {
        let socket_client = names.client.map(|ip| ip.to_string());
        Self {
            time: rfc3339(unix_ns),
            kind: event.kind.label(),
            reason: event.reason,
            service: names.service,
            protocol: protocol_name(event.protocol),
            client: event.client.map(|client| client.to_string()).or(socket_client),
            address: event.service,
            endpoint: event.backend,
            source: event.source.filter(|source| Some(*source) != event.client),
            path: match event.path {
                EventPath::Record => None,
                EventPath::Socket => Some("socket"),
                EventPath::Tc => Some("tc"),
                EventPath::Xdp => Some("xdp"),
            },
            socket: event.socket_cookie,
            netns: event.netns_cookie,
        }
    }

    /// Returns the line of the table.
    pub fn line(&self) -> String {
        let time = self.time.get(11..23).unwrap_or(&self.time);
        let text = |value: Option<&str>| value.unwrap_or("-").to_owned();
        line([
            time.to_owned(),
            self.kind.to_owned(),
            text(self.reason),
            self.service.as_ref().map_or_else(|| "-".to_owned(), NamedServicePort::label),
            self.protocol.clone(),
            text(self.client.as_deref()),
            self.address.to_string(),
            self.endpoint.map_or_else(|| "-".to_owned(), |endpoint| endpoint.to_string()),
            text(self.path),
        ])
    }
}

/// Returns the headings of the table.
pub fn monitor_heading() -> String {
    line(
        ["TIME", "KIND", "REASON", "SERVICE", "PROTOCOL", "CLIENT", "ADDRESS", "ENDPOINT", "PATH"]
            .map(Into::into),
    )
}

/// Returns a line with columns of fixed width: the widths of later lines are not known yet. Longer
/// cells move the rest of their line.
fn line(cells: [String; 9]) -> String {
    const WIDTHS: [usize; 9] = [12, 7, 20, 28, 8, 21, 21, 21, 0];
    let mut line = String::new();
    for (cell, width) in cells.iter().zip(WIDTHS) {
        let _ = write!(line, "{cell:<width$}   ");
    }
    line.truncate(line.trim_end().len());
    line
}

/// Selects events. Each option that is set must agree.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    pub service: ServiceFilter,
    pub client: Option<IpNet>,
    pub endpoint: Option<EndpointFilter>,
    /// An empty list selects all.
    pub reasons: Vec<String>,
    pub family: Option<IpFamily>,
    pub protocol: Option<u8>,
}

/// An endpoint with or without port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndpointFilter {
    pub ip: IpAddr,
    pub port: Option<u16>,
}

impl EventFilter {
    /// Returns whether the event is selected.
    pub fn accepts(&self, event: &EventEntry, names: &EventNames) -> bool {
        let is_any_service = self.service.namespace.is_none() && self.service.service.is_none();
        let client = event.client.map(|client| client.ip()).or(names.client);
        let is_endpoint = |filter: &EndpointFilter| {
            event.backend.is_some_and(|backend| {
                backend.ip() == filter.ip && filter.port.is_none_or(|port| port == backend.port())
            })
        };
        (is_any_service || names.service.as_ref().is_some_and(|service| self.service.accepts(service)))
            && self.client.is_none_or(|network| client.is_some_and(|client| network.contains(&client)))
            && self.endpoint.as_ref().is_none_or(is_endpoint)
            && (self.reasons.is_empty()
                || event.reason.is_some_and(|it| self.reasons.iter().any(|r| r == it)))
            && self.family.is_none_or(|family| family == IpFamily::of(&event.service.ip()))
            && self.protocol.is_none_or(|protocol| protocol == event.protocol)
    }
}

/// Counts the events that were printed.
#[derive(Debug, Clone, Default)]
pub struct Tally(BTreeMap<EventKind, u64>);

impl Tally {
    pub fn add(&mut self, kind: EventKind) {
        *self.0.entry(kind).or_default() += 1;
    }

    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// Returns the last line of `lb monitor`.
    pub fn summary(&self, time: Duration, unseen: Unseen) -> String {
        let mut text = format!("{} events in {:.1} s", self.total(), time.as_secs_f32());
        for (index, kind) in EventKind::ALL.iter().filter(|kind| self.0.contains_key(kind)).enumerate() {
            let separator = if index == 0 { ": " } else { ", " };
            let _ = write!(text, "{separator}{} {}", self.0[kind], kind.label());
        }
        if !unseen.is_zero() {
            text = format!("{text}; {}", unseen_text(unseen));
        }
        text
    }
}

/// Returns the number of events that nobody has seen, with the reason.
pub fn unseen_text(unseen: Unseen) -> String {
    let Unseen { limited, lost } = unseen;
    match (limited, lost) {
        (limited, 0) => format!("{limited} events not reported: more than a CPU may report in a second"),
        (0, lost) => format!("{lost} events lost: they came faster than they were printed"),
        _ => format!("{limited} events not reported: more than a CPU may report in a second; {lost} lost"),
    }
}

/// Formats a time since 1970 in UTC.
fn rfc3339(unix_ns: u64) -> String {
    let (milliseconds, seconds) = (unix_ns / 1_000_000 % 1_000, unix_ns / 1_000_000_000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // The calendar repeats every 400 years of 146,097 days. Years begin in March, so that a leap
    // day is the last one of a year (Hinnant, "chrono-compatible low-level date algorithms").
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, year) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = year + year_of_era + era * 400;
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milliseconds:03}Z")
}

#[cfg(test)]
mod tests {
    use lb_common::layout;

    use super::super::fixture;
    use super::*;
    use crate::testing::assert_golden;

    /// 2026-02-28T23:59:58.5Z.
    const UNIX_NS: u64 = 1_772_323_198_500_000_000;

    fn opened() -> EventEntry {
        EventEntry {
            time_ns: 1,
            kind: EventKind::Opened,
            path: EventPath::Tc,
            reason: None,
            protocol: layout::TCP,
            client: Some("198.51.100.7:40000".parse().unwrap()),
            service: "192.0.2.1:30088".parse().unwrap(),
            source: Some("192.0.2.1:11001".parse().unwrap()),
            backend: Some("10.244.2.2:8080".parse().unwrap()),
            service_id: 1,
            backend_id: 2,
            netns_cookie: None,
            socket_cookie: None,
        }
    }

    fn named(service_id: u32) -> EventNames {
        EventNames { service: Some(NamedServicePort::of(service_id, &fixture::names())), client: None }
    }

    fn rows() -> Vec<MonitorRow> {
        let opened = opened();
        let closed = EventEntry {
            kind: EventKind::Closed,
            path: EventPath::Record,
            reason: Some("idle"),
            ..opened.clone()
        };
        let dropped = EventEntry {
            kind: EventKind::Dropped,
            path: EventPath::Xdp,
            reason: Some("unassigned_address"),
            protocol: layout::UDP,
            client: Some("[2001:db8::7]:5353".parse().unwrap()),
            service: "[fd00:96::fafa]:53".parse().unwrap(),
            source: None,
            backend: None,
            ..opened.clone()
        };
        let refused = EventEntry {
            kind: EventKind::Refused,
            path: EventPath::Socket,
            reason: Some("socket_no_endpoint"),
            client: None,
            service: "10.96.0.9:8080".parse().unwrap(),
            source: None,
            backend: None,
            netns_cookie: Some(4_097),
            socket_cookie: Some(77),
            ..opened.clone()
        };
        let pod = EventNames { client: Some("10.244.1.9".parse().unwrap()), ..named(3) };
        vec![
            MonitorRow::new(&opened, named(1), UNIX_NS),
            MonitorRow::new(&refused, pod, UNIX_NS + 1_000_000),
            MonitorRow::new(&dropped, EventNames::default(), UNIX_NS + 1_500_000_000),
            MonitorRow::new(&closed, named(1), UNIX_NS + 90_000_000_000),
        ]
    }

    #[test]
    fn table() {
        let mut text = monitor_heading() + "\n";
        for row in rows() {
            text += &(row.line() + "\n");
        }
        assert_golden("monitor.txt", &text);
    }

    #[test]
    fn json() {
        let lines: Vec<_> = rows().iter().map(|row| serde_json::to_string(row).unwrap() + "\n").collect();
        assert_golden("monitor.json", &lines.concat());
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        let day = 86_400_000_000_000;
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(UNIX_NS), "2026-02-28T23:59:58.500Z");
        // 2000 and 2024 are leap years.
        assert_eq!(rfc3339(11_016 * day), "2000-02-29T00:00:00.000Z");
        assert_eq!(rfc3339(19_783 * day), "2024-03-01T00:00:00.000Z");
        assert_eq!(rfc3339(20_453 * day), "2025-12-31T00:00:00.000Z");
    }

    #[test]
    fn filters_select_by_every_option() {
        let accepts = |filter: EventFilter| filter.accepts(&opened(), &named(1));
        let service = |namespace: &str, service: &str| EventFilter {
            service: ServiceFilter { namespace: Some(namespace.into()), service: Some(service.into()) },
            ..EventFilter::default()
        };
        let client = |network: &str| EventFilter { client: network.parse().ok(), ..EventFilter::default() };
        let endpoint = |ip: &str, port| EventFilter {
            endpoint: Some(EndpointFilter { ip: ip.parse().unwrap(), port }),
            ..EventFilter::default()
        };
        let family = |family| EventFilter { family: Some(family), ..EventFilter::default() };
        let protocol = |protocol| EventFilter { protocol: Some(protocol), ..EventFilter::default() };
        assert!(accepts(EventFilter::default()));
        assert!(accepts(service("default", "web")) && !accepts(service("default", "cart")));
        assert!(accepts(client("198.51.100.0/24")) && !accepts(client("192.0.2.0/24")));
        assert!(accepts(endpoint("10.244.2.2", None)) && accepts(endpoint("10.244.2.2", Some(8080))));
        assert!(!accepts(endpoint("10.244.2.3", None)) && !accepts(endpoint("10.244.2.2", Some(80))));
        assert!(accepts(family(IpFamily::V4)) && !accepts(family(IpFamily::V6)));
        assert!(accepts(protocol(layout::TCP)) && !accepts(protocol(layout::UDP)));
        // An opened connection has no reason.
        assert!(!accepts(EventFilter { reasons: vec!["idle".into()], ..EventFilter::default() }));
        // No Service has the address of this event.
        assert!(!service("default", "web").accepts(&opened(), &EventNames::default()));
    }

    #[test]
    fn summaries_count_by_kind() {
        let mut tally = Tally::default();
        for kind in [EventKind::Dropped, EventKind::Opened, EventKind::Dropped] {
            tally.add(kind);
        }
        let time = Duration::from_millis(1_500);
        assert_eq!(tally.summary(time, Unseen::default()), "3 events in 1.5 s: 1 opened, 2 dropped");
        assert_eq!(
            Tally::default().summary(time, Unseen { limited: 7, lost: 2 }),
            "0 events in 1.5 s; 7 events not reported: more than a CPU may report in a second; 2 lost"
        );
    }
}
