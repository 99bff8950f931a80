//! The map `HEALTH`: endpoints whose last connections have failed, and which are left out.

use std::io;
use std::net::SocketAddr;

use lb_common::health::WINDOW_NS;
use lb_common::layout::{EndpointHealth, EndpointKey, backend_flags};
use lb_plan::desired::ServicePortId;

use crate::apply::map_name::MapName;
use crate::apply::tables::BackendEntry;
use crate::endpoint_table::{self, EndpointValue};
use crate::handles::MapHandles;
use crate::table::Table;

/// An endpoint that is left out, because it refuses clients or does not answer them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOutEndpoint {
    pub service: ServicePortId,
    /// The port number in the Service spec.
    pub port: u16,
    pub endpoint: SocketAddr,
    pub backend_id: u32,
    /// How often in succession it was left out.
    pub level: u32,
    /// `CLOCK_MONOTONIC` from which on it is tried again, see [`crate::monotonic_ns`].
    pub until_ns: u64,
}

/// Returns the endpoints that are left out. The list is empty if the maps belong to an agent
/// without this map.
pub fn read(maps: &MapHandles) -> io::Result<Vec<LeftOutEndpoint>> {
    let is_left_out =
        |backend: &BackendEntry, health: &EndpointHealth| health.level != 0 && is_judged(backend);
    let entries = endpoint_table::read(maps, MapName::HEALTH, is_left_out)?.into_iter();
    let left_out = entries.map(|EndpointValue { service, port, backend_id, backend, value }| {
        let EndpointHealth { level, until_ns, .. } = value;
        LeftOutEndpoint { service, port, endpoint: backend.address, backend_id, level, until_ns }
    });
    Ok(left_out.collect())
}

/// Removes the entries of endpoints that were removed or are not left out any more, and failures
/// that are too old to count. `now_ns` is the time of [`crate::monotonic_ns`].
pub fn tidy(maps: &MapHandles, now_ns: u64) -> io::Result<()> {
    endpoint_table::retain(maps, MapName::HEALTH, |backend, health: &EndpointHealth| {
        let is_old = health.level == 0 && now_ns.saturating_sub(health.failed_ns) > WINDOW_NS;
        is_judged(backend) && !is_old
    })
}

/// Returns whether the Service of an endpoint has passive health.
fn is_judged(backend: &BackendEntry) -> bool {
    backend.flags & backend_flags::PASSIVE_HEALTH != 0
}

/// Makes all entries older, for tests.
pub fn age(maps: &MapHandles, nanoseconds: u64) -> io::Result<()> {
    let table = table(maps)?;
    for (key, health) in table.entries()? {
        let [until_ns, failed_ns] =
            [health.until_ns, health.failed_ns].map(|time| time.saturating_sub(nanoseconds));
        table.put(&key, &EndpointHealth { until_ns, failed_ns, ..health })?;
    }
    Ok(())
}

pub fn table(maps: &MapHandles) -> io::Result<Table<EndpointKey, EndpointHealth>> {
    maps.table(MapName::HEALTH)
}
