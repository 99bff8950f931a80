//! `lb get affinity`: one row per client of a Service with session affinity, with its endpoint.

use std::net::SocketAddr;

use lb_datapath::{AffinityClient, AffinityEntry};
use serde::Serialize;

use super::flows::{age, idle_seconds};
use super::row::Row;
use super::service_port::{BackendsById, NamedServicePort, Names, ServiceFilter, protocol_name};

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AffinityRow {
    #[serde(flatten)]
    pub service: NamedServicePort,
    pub protocol: String,
    /// An address, or `namespace COOKIE` for all processes of a network namespace.
    pub client: String,
    /// `None` if the endpoint was removed. The next connection of the client gets another one.
    pub endpoint: Option<SocketAddr>,
    /// Seconds since the last new connection. The entry expires at the affinity timeout of the
    /// Service.
    pub age_seconds: u64,
    pub backend_id: u32,
}

/// Returns the rows, sorted by Service and client. `now_ns` is the time of `CLOCK_MONOTONIC`.
pub fn affinity_rows(
    entries: &[AffinityEntry],
    names: &Names,
    backends: &BackendsById,
    now_ns: u64,
    filter: &ServiceFilter,
) -> Vec<AffinityRow> {
    let mut rows: Vec<AffinityRow> = entries
        .iter()
        .map(|entry| {
            let backend = backends.get(&(entry.family, entry.backend_id));
            AffinityRow {
                service: NamedServicePort::of(entry.service_id, names),
                protocol: names
                    .get(&entry.service_id)
                    .map(|name| protocol_name(name.protocol))
                    .unwrap_or_default(),
                client: match entry.client {
                    AffinityClient::Address(address) => address.to_string(),
                    AffinityClient::Namespace(cookie) => format!("namespace {cookie}"),
                },
                endpoint: backend
                    .filter(|backend| backend.service_id == entry.service_id)
                    .map(|backend| backend.address),
                age_seconds: idle_seconds(now_ns, entry.last_used_ns),
                backend_id: entry.backend_id,
            }
        })
        .filter(|row| filter.accepts(&row.service))
        .collect();
    rows.sort_by(|a, b| {
        (&a.service, &a.protocol, &a.client, a.endpoint).cmp(&(
            &b.service,
            &b.protocol,
            &b.client,
            b.endpoint,
        ))
    });
    rows
}

impl Row for AffinityRow {
    fn columns(wide: bool) -> Vec<&'static str> {
        let mut columns = vec!["SERVICE", "CLIENT", "ENDPOINT", "AGE"];
        if wide {
            columns.extend(["PROTOCOL", "BACKEND-ID"]);
        }
        columns
    }

    fn cells(&self, wide: bool) -> Vec<String> {
        let mut cells = vec![
            self.service.label(),
            self.client.clone(),
            self.endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default(),
            age(self.age_seconds),
        ];
        if wide {
            cells.extend([self.protocol.clone(), self.backend_id.to_string()]);
        }
        cells
    }
}

#[cfg(test)]
mod tests {
    use lb_model::IpFamily;

    use super::super::fixture;
    use super::super::output::{OutputFormat, render};
    use super::*;
    use crate::testing::assert_golden;

    fn rows() -> Vec<AffinityRow> {
        let entry = |client, family, service_id, backend_id, seconds: u64| AffinityEntry {
            client,
            family,
            service_id,
            backend_id,
            last_used_ns: seconds * 1_000_000_000,
        };
        let address = |text: &str| AffinityClient::Address(text.parse().unwrap());
        let entries = [
            entry(address("198.51.100.9"), IpFamily::V4, 2, 4, 9_000),
            entry(address("198.51.100.7"), IpFamily::V4, 1, 2, 9_999),
            entry(address("2001:db8::7"), IpFamily::V6, 1, 1, 0),
            entry(AffinityClient::Namespace(4097), IpFamily::V4, 1, 1, 9_880),
            // The endpoint was removed, and its id now belongs to another Service.
            entry(address("198.51.100.8"), IpFamily::V4, 1, 4, 9_000),
        ];
        let (names, backends) = (fixture::names(), fixture::backends());
        affinity_rows(&entries, &names, &backends, 10_000 * 1_000_000_000, &ServiceFilter::default())
    }

    #[test]
    fn table() {
        assert_golden("affinity.txt", &render(&rows(), OutputFormat::Table).unwrap());
    }

    #[test]
    fn wide_table() {
        assert_golden("affinity-wide.txt", &render(&rows(), OutputFormat::Wide).unwrap());
    }

    #[test]
    fn json() {
        assert_golden("affinity.json", &render(&rows()[..3], OutputFormat::Json).unwrap());
    }
}
