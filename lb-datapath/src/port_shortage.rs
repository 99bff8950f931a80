//! The map `NO_SOURCE_PORT`: endpoints for whose connections no source port was free.

use std::io;
use std::net::SocketAddr;

use lb_common::layout::{EndpointKey, PortShortage, ServiceName};
use lb_model::IpFamily;
use lb_plan::desired::ServicePortId;

use crate::apply::entry::parse_service_name;
use crate::apply::map_name::MapName;
use crate::family_table::BackendArrays;
use crate::handles::MapHandles;
use crate::table::Table;

/// An endpoint for whose connections no source port was free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointShortage {
    pub service: ServicePortId,
    /// The port number in the Service spec.
    pub port: u16,
    pub endpoint: SocketAddr,
    pub backend_id: u32,
    /// The number of packets that were dropped. Each would have opened a connection.
    pub packets: u64,
    /// `CLOCK_MONOTONIC` at the last one, see [`crate::monotonic_ns`].
    pub last_ns: u64,
}

/// Returns the entries of endpoints that still exist. The list is empty if the maps belong to an
/// agent without this map.
pub fn read(maps: &MapHandles) -> io::Result<Vec<EndpointShortage>> {
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
    let mut shortages = Vec::new();
    for (key, PortShortage { packets, last_ns }) in entries {
        let Some(backend) = backends.get(family(&key), key.backend_id)? else { continue };
        let name = names.get(&backend.service_id)?;
        let Some((service, port)) = name.as_ref().and_then(parse_service_name) else { continue };
        let (endpoint, backend_id) = (backend.address, key.backend_id);
        shortages.push(EndpointShortage { service, port, endpoint, backend_id, packets, last_ns });
    }
    shortages.sort_by(|a, b| (&a.service, a.endpoint).cmp(&(&b.service, b.endpoint)));
    Ok(shortages)
}

/// Removes the entries of removed endpoints, before other endpoints get their ids.
pub fn remove_gone(maps: &MapHandles) -> io::Result<()> {
    let table = table(maps)?;
    let entries = table.entries()?;
    if entries.is_empty() {
        return Ok(());
    }
    let backends = BackendArrays::open(maps)?;
    for (key, _) in entries {
        if backends.get(family(&key), key.backend_id)?.is_none() {
            table.remove(&key)?;
        }
    }
    Ok(())
}

fn family(key: &EndpointKey) -> IpFamily {
    if key.is_v6 == 0 { IpFamily::V4 } else { IpFamily::V6 }
}

fn table(maps: &MapHandles) -> io::Result<Table<EndpointKey, PortShortage>> {
    maps.table(MapName::NO_SOURCE_PORT)
}
