//! `lb get backends`: one row per endpoint of a Service port.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use lb_common::layout::backend_flags;
use lb_common::load::Connections;
use lb_common::threshold::Thresholds;
use lb_datapath::{EndpointShortage, LeftOutEndpoint};
use lb_model::IpFamily;
use serde::Serialize;

use super::row::Row;
use super::service_port::{BackendsById, NamedServicePort, Names, ServiceFilter, protocol_name};

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendRow {
    #[serde(flatten)]
    pub service: NamedServicePort,
    pub protocol: String,
    pub address: SocketAddr,
    /// `ready`; `draining`: the endpoint keeps its connections and gets no new ones; `left-out`: it
    /// refuses or does not answer, and gets no new ones for a while; `overloaded`: it has too many
    /// connections to get new ones.
    pub state: &'static str,
    /// Whether the endpoint runs on this node.
    pub local: bool,
    pub weight: u32,
    /// The endpoint is overloaded from so many connections on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upper_threshold: Option<u32>,
    /// An endpoint that is overloaded gets new connections again below so many. 0: three quarters
    /// of the upper threshold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lower_threshold: Option<u32>,
    /// Open connections, at packets and sockets: TCP and SCTP until one side closes.
    pub active_connections: u32,
    /// The other connections: UDP, and those that one side has closed.
    pub inactive_connections: u32,
    pub id: u32,
    /// The number of packets that opened no connection because no source port was free.
    pub no_source_port: u64,
    /// The seconds until an endpoint that is left out is tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_out_seconds: Option<u64>,
}

/// The state of endpoints that their entries do not have.
#[derive(Debug, Clone, Default)]
pub struct EndpointFacts {
    pub shortages: Vec<EndpointShortage>,
    pub left_out: Vec<LeftOutEndpoint>,
    /// The open connections, by IP family and backend id.
    pub loads: HashMap<(IpFamily, u32), Connections>,
    /// The thresholds of Service ports, by service id.
    pub thresholds: HashMap<u32, Thresholds>,
    /// The endpoints that have too many connections to get new ones.
    pub overloaded: HashSet<(IpFamily, u32)>,
    /// The time of [`lb_datapath::monotonic_ns`].
    pub now_ns: u64,
}

/// Returns the rows, sorted by Service and address.
pub fn backend_rows(
    backends: &BackendsById,
    names: &Names,
    facts: &EndpointFacts,
    filter: &ServiceFilter,
) -> Vec<BackendRow> {
    let left_out: HashMap<(IpFamily, u32), u64> = facts
        .left_out
        .iter()
        .map(|left_out| {
            let seconds = left_out.until_ns.saturating_sub(facts.now_ns).div_ceil(1_000_000_000);
            ((IpFamily::of(&left_out.endpoint.ip()), left_out.backend_id), seconds)
        })
        .collect();
    let shortages: HashMap<(IpFamily, u32), u64> = facts
        .shortages
        .iter()
        .map(|shortage| ((IpFamily::of(&shortage.endpoint.ip()), shortage.backend_id), shortage.packets))
        .collect();
    let mut rows: Vec<BackendRow> = backends
        .iter()
        .filter(|(_, entry)| entry.flags & backend_flags::PRESENT != 0)
        .map(|(key, entry)| (key, entry, facts.loads.get(key).copied().unwrap_or_default()))
        .map(|(&(family, id), entry, connections)| BackendRow {
            service: NamedServicePort::of(entry.service_id, names),
            protocol: names
                .get(&entry.service_id)
                .map(|name| protocol_name(name.protocol))
                .unwrap_or_default(),
            address: entry.address,
            state: match left_out.get(&(family, id)) {
                _ if entry.drains() => "draining",
                Some(_) => "left-out",
                None if facts.overloaded.contains(&(family, id)) => "overloaded",
                None => "ready",
            },
            local: entry.flags & backend_flags::LOCAL != 0,
            weight: entry.weight,
            upper_threshold: facts.thresholds.get(&entry.service_id).map(|thresholds| thresholds.upper),
            lower_threshold: facts.thresholds.get(&entry.service_id).map(|thresholds| thresholds.lower),
            active_connections: connections.active,
            inactive_connections: connections.inactive,
            id,
            no_source_port: shortages.get(&(family, id)).copied().unwrap_or(0),
            left_out_seconds: left_out.get(&(family, id)).copied(),
        })
        .filter(|row| filter.accepts(&row.service))
        .collect();
    rows.sort_by(|a, b| {
        (&a.service, &a.protocol, a.address, a.id).cmp(&(&b.service, &b.protocol, b.address, b.id))
    });
    rows
}

/// Returns the thresholds as `upper`, or `upper/lower`.
pub fn thresholds_text(upper: u32, lower: u32) -> String {
    if lower == 0 { upper.to_string() } else { format!("{upper}/{lower}") }
}

impl Row for BackendRow {
    fn columns(wide: bool) -> Vec<&'static str> {
        let mut columns =
            vec!["SERVICE", "PROTOCOL", "ENDPOINT", "STATE", "NODE", "WEIGHT", "ACTIVE", "INACTIVE"];
        if wide {
            columns.extend(["THRESHOLDS", "LEFT-OUT", "NO-SOURCE-PORT", "ID"]);
        }
        columns
    }

    fn cells(&self, wide: bool) -> Vec<String> {
        let mut cells = vec![
            self.service.label(),
            self.protocol.clone(),
            self.address.to_string(),
            self.state.into(),
            if self.local { "this" } else { "other" }.into(),
            self.weight.to_string(),
            self.active_connections.to_string(),
            self.inactive_connections.to_string(),
        ];
        if wide {
            let left_out =
                self.left_out_seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds}s"));
            let thresholds = self.upper_threshold.zip(self.lower_threshold);
            let thresholds =
                thresholds.map_or_else(|| "-".to_owned(), |(upper, lower)| thresholds_text(upper, lower));
            cells.extend([thresholds, left_out, self.no_source_port.to_string(), self.id.to_string()]);
        }
        cells
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::super::output::{OutputFormat, render};
    use super::*;
    use crate::testing::assert_golden;

    fn rows() -> Vec<BackendRow> {
        let mut backends = fixture::backends();
        // The endpoint was removed, but its id is not free yet: not listed.
        backends.insert((IpFamily::V4, 9), fixture::backend("10.244.9.9:80", 0, 1));
        // IPv4 and IPv6 have ids of their own.
        let facts = fixture::endpoint_facts(HashMap::from([
            ((IpFamily::V4, 1), Connections { active: 7, inactive: 2 }),
            ((IpFamily::V4, 4), Connections { active: 0, inactive: 3 }),
        ]));
        backend_rows(&backends, &fixture::names(), &facts, &ServiceFilter::default())
    }

    #[test]
    fn table() {
        assert_golden("backends.txt", &render(&rows(), OutputFormat::Table).unwrap());
    }

    #[test]
    fn wide_table() {
        assert_golden("backends-wide.txt", &render(&rows(), OutputFormat::Wide).unwrap());
    }

    #[test]
    fn json() {
        assert_golden("backends.json", &render(&rows()[..1], OutputFormat::Json).unwrap());
    }
}
