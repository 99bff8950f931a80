//! `lb get flows`: one row per connection that is translated packet by packet.
//!
//! Connections that are translated at the socket have no flow: their packets have the address of
//! the endpoint.

use std::net::SocketAddr;

use lb_common::layout::{self, FlowTimeouts, flow_phase};
use lb_datapath::FlowEntry;
use serde::Serialize;

use super::row::Row;
use super::service_port::{NamedServicePort, Names, ServiceFilter, protocol_name};

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowRow {
    #[serde(flatten)]
    pub service: NamedServicePort,
    pub protocol: String,
    pub state: &'static str,
    pub client: SocketAddr,
    /// The Service address that the client uses.
    pub address: SocketAddr,
    pub endpoint: SocketAddr,
    /// The source address that the endpoint sees, if it is not that of the client.
    pub source: Option<SocketAddr>,
    /// Where request packets go after translation. `stack`: to the kernel of this node, which
    /// delivers or routes them. `out`: the program sends them out of this node.
    pub deliver: &'static str,
    /// Seconds since the last packet of either direction. Timestamps can be a few seconds old.
    pub idle_seconds: u64,
    /// Seconds until the connection ends if no packet arrives.
    pub expires_seconds: u64,
    pub backend_id: u32,
}

/// Returns the rows, sorted by Service and client. `now_ns` is the time of `CLOCK_MONOTONIC`.
pub fn flow_rows(
    entries: &[FlowEntry],
    timeouts: &FlowTimeouts,
    names: &Names,
    now_ns: u64,
    filter: &ServiceFilter,
) -> Vec<FlowRow> {
    let row = |entry: &FlowEntry| FlowRow {
        service: NamedServicePort::of(entry.service_id, names),
        protocol: protocol_name(entry.protocol),
        state: state(entry),
        client: entry.client,
        address: entry.service,
        endpoint: entry.backend,
        source: (entry.source != entry.client).then_some(entry.source),
        deliver: deliver_name(entry.deliver),
        idle_seconds: idle_seconds(now_ns, entry.last_seen_ns),
        expires_seconds: entry.expires_in(now_ns, timeouts),
        backend_id: entry.backend_id,
    };
    let mut rows: Vec<FlowRow> = entries.iter().map(row).filter(|row| filter.accepts(&row.service)).collect();
    rows.sort_by(|a, b| {
        (&a.service, &a.protocol, a.client, a.address).cmp(&(&b.service, &b.protocol, b.client, b.address))
    });
    rows
}

pub(super) fn idle_seconds(now_ns: u64, last_seen_ns: u64) -> u64 {
    now_ns.saturating_sub(last_seen_ns) / 1_000_000_000
}

/// Returns the state of a connection. The names are those of netfilter.
fn state(entry: &FlowEntry) -> &'static str {
    let closed = [entry.state.request.closed != 0, entry.state.reply.closed != 0];
    match (entry.protocol, entry.state.phase) {
        (layout::UDP, flow_phase::OPENING) => "unreplied",
        (layout::UDP, flow_phase::ANSWERED) => "replied",
        (layout::UDP, _) => "stream",
        (layout::SCTP, flow_phase::RESET) => "aborted",
        (layout::SCTP, flow_phase::ESTABLISHED) if closed == [true; 2] => "shutdown",
        (_, flow_phase::OPENING) => "opening",
        (_, flow_phase::ANSWERED) => "answered",
        (_, flow_phase::RESET) => "reset",
        _ if closed == [true; 2] => "time-wait",
        _ if closed != [false; 2] => "half-closed",
        _ => "established",
    }
}

fn deliver_name(deliver: u8) -> &'static str {
    match deliver {
        layout::deliver::PASS => "stack",
        layout::deliver::ROUTE => "out",
        _ => "unknown",
    }
}

/// Formats an age like kubectl, with at most two units.
pub(super) fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m{}s", seconds / 60, seconds % 60),
        7_200..172_800 => format!("{}h{}m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

impl Row for FlowRow {
    fn columns(wide: bool) -> Vec<&'static str> {
        let mut columns = vec!["SERVICE", "PROTOCOL", "STATE", "CLIENT", "ADDRESS", "ENDPOINT", "IDLE"];
        if wide {
            columns.extend(["EXPIRES", "SOURCE", "DELIVER", "BACKEND-ID"]);
        }
        columns
    }

    fn cells(&self, wide: bool) -> Vec<String> {
        let mut cells = vec![
            self.service.label(),
            self.protocol.clone(),
            self.state.into(),
            self.client.to_string(),
            self.address.to_string(),
            self.endpoint.to_string(),
            age(self.idle_seconds),
        ];
        if wide {
            let source = self.source.map(|source| source.to_string()).unwrap_or_default();
            cells.extend([
                age(self.expires_seconds),
                source,
                self.deliver.into(),
                self.backend_id.to_string(),
            ]);
        }
        cells
    }
}

#[cfg(test)]
mod tests {
    use lb_common::connection::ConnectionState;
    use lb_common::layout::FlowSide;
    use lb_model::IpFamily;

    use super::super::fixture;
    use super::super::output::{OutputFormat, render};
    use super::*;
    use crate::testing::assert_golden;

    const SECOND: u64 = 1_000_000_000;

    fn entry(client: &str, service: &str, source: &str, backend: &str) -> FlowEntry {
        let [client, service, source, backend]: [SocketAddr; 4] =
            [client, service, source, backend].map(|a| a.parse().unwrap());
        let side = FlowSide { end: 1, ack: 1, closed: 0 };
        FlowEntry {
            family: IpFamily::of(&client.ip()),
            protocol: layout::TCP,
            state: ConnectionState { phase: flow_phase::ESTABLISHED, request: side, reply: side },
            client,
            service,
            source,
            backend,
            backend_id: 2,
            service_id: 1,
            deliver: if source == client { layout::deliver::PASS } else { layout::deliver::ROUTE },
            last_seen_ns: 90 * SECOND,
            opened_s: 60,
        }
    }

    fn rows() -> Vec<FlowRow> {
        let v4 = entry("198.51.100.7:40000", "192.0.2.1:30088", "192.0.2.1:11001", "10.244.2.2:8080");
        let mut opening =
            entry("198.51.100.8:40001", "192.0.2.1:30088", "198.51.100.8:40001", "10.244.1.2:8080");
        opening.state.phase = flow_phase::OPENING;
        let mut v6 = entry(
            "[2001:db8::7]:40000",
            "[2001:db8::1]:30088",
            "[2001:db8::1]:11001",
            "[fd00:10:244:2::2]:8080",
        );
        v6.state.reply.closed = 1;
        let mut dns = entry("198.51.100.9:5353", "192.0.2.1:30053", "192.0.2.1:11002", "10.244.2.10:53");
        (dns.protocol, dns.service_id) = (layout::UDP, 2);
        dns.state.phase = flow_phase::ANSWERED;
        let mut sctp = entry("198.51.100.7:40002", "192.0.2.1:30412", "192.0.2.1:11004", "10.244.2.3:38412");
        sctp.protocol = layout::SCTP;
        let entries = [v4, opening, v6, dns, sctp];
        let (names, filter) = (fixture::names(), ServiceFilter::default());
        flow_rows(&entries, &FlowTimeouts::DEFAULT, &names, 100 * SECOND, &filter)
    }

    #[test]
    fn table() {
        assert_golden("flows.txt", &render(&rows(), OutputFormat::Table).unwrap());
    }

    #[test]
    fn wide_table() {
        assert_golden("flows-wide.txt", &render(&rows(), OutputFormat::Wide).unwrap());
    }

    #[test]
    fn json() {
        assert_golden("flows.json", &render(&rows()[1..3], OutputFormat::Json).unwrap());
    }

    #[test]
    fn states() {
        let of = |protocol: u8, phase: u8, closed: [u32; 2]| {
            let mut entry = entry("1.1.1.1:1", "2.2.2.2:2", "1.1.1.1:1", "3.3.3.3:3");
            (entry.protocol, entry.state.phase) = (protocol, phase);
            [entry.state.request.closed, entry.state.reply.closed] = closed;
            state(&entry)
        };
        let phases = [flow_phase::OPENING, flow_phase::ANSWERED, flow_phase::ESTABLISHED, flow_phase::RESET];
        let all = |protocol| phases.map(|phase| of(protocol, phase, [0, 0]));
        assert_eq!(all(layout::TCP), ["opening", "answered", "established", "reset"]);
        assert_eq!(all(layout::UDP)[..3], ["unreplied", "replied", "stream"]);
        assert_eq!(all(layout::SCTP), ["opening", "answered", "established", "aborted"]);
        let closing = [[1, 0], [0, 1], [1, 1]];
        let ended = |protocol| closing.map(|closed| of(protocol, flow_phase::ESTABLISHED, closed));
        assert_eq!(ended(layout::TCP), ["half-closed", "half-closed", "time-wait"]);
        assert_eq!(ended(layout::SCTP), ["half-closed", "half-closed", "shutdown"]);
    }

    #[test]
    fn ages() {
        let written = [0, 119, 120, 7_199, 7_200, 172_800].map(age);
        assert_eq!(written, ["0s", "119s", "2m0s", "119m59s", "2h0m", "2d0h"]);
    }
}
