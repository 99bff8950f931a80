//! The map `HEALTH`: endpoints whose last connections have failed, and which are left out.

use std::io;
use std::net::SocketAddr;

use lb_common::health::WINDOW_NS;
use lb_common::layout::{EndpointHealth, EndpointKey, ServiceName, backend_flags};
use lb_model::IpFamily;
use lb_plan::desired::ServicePortId;

use crate::apply::entry::parse_service_name;
use crate::apply::map_name::MapName;
use crate::family_table::BackendArrays;
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
    let entries = match table(maps) {
        Ok(table) => table.entries()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    if entries.is_empty() {
        return Ok(Vec::new());
    }
    let backends = BackendArrays::open(maps)?;
    let names: Table<u32, ServiceName> = maps.table(MapName::SERVICE_NAMES)?;
    let mut left_out = Vec::new();
    for (key, EndpointHealth { level, until_ns, .. }) in entries {
        let Some(backend) = backends.get(family(&key), key.backend_id)? else { continue };
        if level == 0 || backend.flags & backend_flags::PASSIVE_HEALTH == 0 {
            continue;
        }
        let name = names.get(&backend.service_id)?;
        let Some((service, port)) = name.as_ref().and_then(parse_service_name) else { continue };
        let (endpoint, backend_id) = (backend.address, key.backend_id);
        left_out.push(LeftOutEndpoint { service, port, endpoint, backend_id, level, until_ns });
    }
    left_out.sort_by(|a, b| (&a.service, a.endpoint).cmp(&(&b.service, b.endpoint)));
    Ok(left_out)
}

/// Removes the entries of endpoints that were removed or are not left out any more, and failures
/// that are too old to count. `now_ns` is the time of [`crate::monotonic_ns`].
pub fn tidy(maps: &MapHandles, now_ns: u64) -> io::Result<()> {
    let table = table(maps)?;
    let entries = table.entries()?;
    if entries.is_empty() {
        return Ok(());
    }
    let backends = BackendArrays::open(maps)?;
    for (key, EndpointHealth { level, failed_ns, .. }) in entries {
        let is_judged = backends
            .get(family(&key), key.backend_id)?
            .is_some_and(|backend| backend.flags & backend_flags::PASSIVE_HEALTH != 0);
        let is_old = level == 0 && now_ns.saturating_sub(failed_ns) > WINDOW_NS;
        if !is_judged || is_old {
            table.remove(&key)?;
        }
    }
    Ok(())
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

/// Removes all entries, for tests.
pub fn forget(maps: &MapHandles) -> io::Result<()> {
    let table = table(maps)?;
    for (key, _) in table.entries()? {
        table.remove(&key)?;
    }
    Ok(())
}

fn family(key: &EndpointKey) -> IpFamily {
    if key.is_v6 == 0 { IpFamily::V4 } else { IpFamily::V6 }
}

fn table(maps: &MapHandles) -> io::Result<Table<EndpointKey, EndpointHealth>> {
    maps.table(MapName::HEALTH)
}
