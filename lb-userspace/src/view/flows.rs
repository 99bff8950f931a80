//! `lb get flows`: one row per connection that is translated packet by packet.
//!
//! Connections that were translated at their socket have no flow: their packets carry the endpoint's address.

use std::collections::HashMap;
use std::net::SocketAddr;

use lb_common::layout::{self, tcp_flags};
use lb_datapath::FlowEntry;
use serde::Serialize;

use super::row::Row;
use super::service_port::{Filter, Names, ServicePort, protocol_name};

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowRow {
    #[serde(flatten)]
    pub service: ServicePort,
    pub protocol: String,
    pub state: &'static str,
    pub client: SocketAddr,
    /// The Service address that the client uses.
    pub address: SocketAddr,
    pub endpoint: SocketAddr,
    /// What the endpoint sees as its client, where that is not the client.
    pub source: Option<SocketAddr>,
    /// Where request packets go from here: up this node's `stack`, to an endpoint here or routed on by the kernel for a pod of
    /// this node; or `out` again, sent by the program.
    pub deliver: &'static str,
    /// Since the last packet of either direction; the time stamps are a few seconds coarse.
    pub idle_seconds: u64,
    pub backend_id: u32,
}

/// The rows, sorted by Service and client. `now_ns` is `CLOCK_MONOTONIC`.
pub fn flow_rows(entries: &[FlowEntry], names: &Names, now_ns: u64, filter: &Filter) -> Vec<FlowRow> {
    let (requests, replies): (Vec<&FlowEntry>, Vec<&FlowEntry>) =
        entries.iter().partition(|entry| entry.direction == layout::direction::REQUEST);
    let mut replies: HashMap<(u8, SocketAddr, SocketAddr), &FlowEntry> =
        replies.into_iter().map(|entry| ((entry.protocol, entry.src, entry.dst), entry)).collect();

    let mut rows = Vec::with_capacity(requests.len());
    for request in requests {
        // The key of the other entry is this one's rewritten tuple, reversed.
        let reply = replies.remove(&(request.protocol, request.new_dst, request.new_src));
        let last_seen = request.last_seen_ns.max(reply.map_or(0, |reply| reply.last_seen_ns));
        rows.push(FlowRow {
            service: ServicePort::of(request.service_id, names),
            protocol: protocol_name(request.protocol),
            state: state(request, reply),
            client: request.src,
            address: request.dst,
            endpoint: request.new_dst,
            source: (request.new_src != request.src).then_some(request.new_src),
            deliver: deliver_name(request.deliver),
            idle_seconds: idle_seconds(now_ns, last_seen),
            backend_id: request.backend_id,
        });
    }
    // Replies without their request: between the two inserts of an opening, or a leftover that the next sweep takes.
    for reply in replies.into_values() {
        rows.push(FlowRow {
            service: ServicePort::of(reply.service_id, names),
            protocol: protocol_name(reply.protocol),
            state: "reply-only",
            client: reply.new_dst,
            address: reply.new_src,
            endpoint: reply.src,
            source: (reply.dst != reply.new_dst).then_some(reply.dst),
            deliver: deliver_name(reply.deliver),
            idle_seconds: idle_seconds(now_ns, reply.last_seen_ns),
            backend_id: reply.backend_id,
        });
    }
    rows.retain(|row| filter.accepts(&row.service));
    rows.sort_by(|a, b| {
        (&a.service, &a.protocol, a.client, a.address).cmp(&(&b.service, &b.protocol, b.client, b.address))
    });
    rows
}

pub(super) fn idle_seconds(now_ns: u64, last_seen_ns: u64) -> u64 {
    now_ns.saturating_sub(last_seen_ns) / 1_000_000_000
}

/// The state of a connection, of what both directions have seen.
fn state(request: &FlowEntry, reply: Option<&FlowEntry>) -> &'static str {
    let Some(reply) = reply else { return "request-only" };
    if request.protocol == layout::UDP {
        return "open";
    }
    let seen = |entry: &FlowEntry, flag: u8| entry.tcp_seen & flag != 0;
    if seen(request, tcp_flags::RST) || seen(reply, tcp_flags::RST) {
        return "closed";
    }
    match (seen(request, tcp_flags::FIN), seen(reply, tcp_flags::FIN)) {
        (true, true) => "closed",
        (true, false) | (false, true) => "closing",
        (false, false) if request.half_open => "opening",
        (false, false) => "established",
    }
}

fn deliver_name(deliver: u8) -> &'static str {
    match deliver {
        layout::deliver::PASS => "stack",
        layout::deliver::ROUTE => "out",
        _ => "unknown",
    }
}

/// As kubectl writes ages: the two largest units at most.
pub(super) fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m{}s", seconds / 60, seconds % 60),
        7_200..172_800 => format!("{}h{}m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

impl Row for FlowRow {
    const PLURAL: &'static str = "flows";

    fn columns(wide: bool) -> Vec<&'static str> {
        let mut columns = vec!["SERVICE", "PROTOCOL", "STATE", "CLIENT", "ADDRESS", "ENDPOINT", "IDLE"];
        if wide {
            columns.extend(["SOURCE", "DELIVER", "BACKEND-ID"]);
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
            cells.extend([source, self.deliver.into(), self.backend_id.to_string()]);
        }
        cells
    }
}

#[cfg(test)]
mod tests {
    use lb_model::IpFamily;

    use super::super::fixture;
    use super::super::output::{Output, render};
    use super::*;
    use crate::testing::assert_golden;

    const SECOND: u64 = 1_000_000_000;

    /// Both entries of a connection, as the programs write them.
    fn pair(client: &str, address: &str, source: &str, endpoint: &str) -> [FlowEntry; 2] {
        let [client, address, source, endpoint]: [SocketAddr; 4] =
            [client, address, source, endpoint].map(|a| a.parse().unwrap());
        let request = FlowEntry {
            family: IpFamily::of(&client.ip()),
            protocol: layout::TCP,
            src: client,
            dst: address,
            new_src: source,
            new_dst: endpoint,
            backend_id: 2,
            service_id: 1,
            direction: layout::direction::REQUEST,
            deliver: if source == client { layout::deliver::PASS } else { layout::deliver::ROUTE },
            tcp_seen: tcp_flags::SYN | tcp_flags::ACK,
            last_seen_ns: 90 * SECOND,
            half_open: false,
        };
        let reply = FlowEntry {
            src: endpoint,
            dst: source,
            new_src: address,
            new_dst: client,
            direction: layout::direction::REPLY,
            last_seen_ns: 88 * SECOND,
            ..request.clone()
        };
        [request, reply]
    }

    fn rows() -> Vec<FlowRow> {
        let v4 = pair("198.51.100.7:40000", "192.0.2.1:30088", "192.0.2.1:61001", "10.244.2.2:8080");
        let mut opening =
            pair("198.51.100.8:40001", "192.0.2.1:30088", "198.51.100.8:40001", "10.244.1.2:8080");
        opening.iter_mut().for_each(|entry| entry.half_open = true);
        let mut v6 = pair(
            "[2001:db8::7]:40000",
            "[2001:db8::1]:30088",
            "[2001:db8::1]:61001",
            "[fd00:10:244:2::2]:8080",
        );
        v6[1].tcp_seen |= tcp_flags::FIN;
        let mut dns = pair("198.51.100.9:5353", "192.0.2.1:30053", "192.0.2.1:61002", "10.244.2.10:53");
        dns.iter_mut().for_each(|entry| (entry.protocol, entry.service_id) = (layout::UDP, 2));
        let mut sctp = pair("198.51.100.7:40002", "192.0.2.1:30412", "192.0.2.1:61004", "10.244.2.3:38412");
        sctp.iter_mut().for_each(|entry| entry.protocol = layout::SCTP);
        let orphan =
            pair("198.51.100.99:1", "192.0.2.1:30053", "192.0.2.1:61003", "10.244.2.10:53")[1].clone();
        let entries: Vec<FlowEntry> =
            [v4, opening, v6, dns, sctp].into_iter().flatten().chain([orphan]).collect();
        flow_rows(&entries, &fixture::names(), 100 * SECOND, &Filter::default())
    }

    #[test]
    fn table() {
        assert_golden("flows.txt", &render(&rows(), Output::Table).unwrap());
    }

    #[test]
    fn wide_table() {
        assert_golden("flows-wide.txt", &render(&rows(), Output::Wide).unwrap());
    }

    #[test]
    fn json() {
        assert_golden("flows.json", &render(&rows()[1..3], Output::Json).unwrap());
    }

    #[test]
    fn states_of_tcp() {
        let [request, reply] = pair("1.1.1.1:1", "2.2.2.2:2", "1.1.1.1:1", "3.3.3.3:3");
        let with =
            |entry: &FlowEntry, flag: u8| FlowEntry { tcp_seen: entry.tcp_seen | flag, ..entry.clone() };
        let fin = tcp_flags::FIN;
        assert_eq!(state(&request, Some(&reply)), "established");
        assert_eq!(state(&FlowEntry { half_open: true, ..request.clone() }, Some(&reply)), "opening");
        assert_eq!(state(&with(&request, fin), Some(&reply)), "closing");
        assert_eq!(state(&request, Some(&with(&reply, fin))), "closing");
        assert_eq!(state(&with(&request, fin), Some(&with(&reply, fin))), "closed");
        assert_eq!(state(&request, Some(&with(&reply, tcp_flags::RST))), "closed");
        assert_eq!(state(&request, None), "request-only");
    }

    #[test]
    fn ages() {
        let written = [0, 119, 120, 7_199, 7_200, 172_800].map(age);
        assert_eq!(written, ["0s", "119s", "2m0s", "119m59s", "2h0m", "2d0h"]);
    }
}
