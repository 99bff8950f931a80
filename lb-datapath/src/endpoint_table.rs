//! Maps that the programs write by endpoint: `NO_SOURCE_PORT`, `HEALTH` and `OVERLOADED`.

use std::io;

use lb_common::layout::{EndpointKey, ServiceName};
use lb_common::plain::Plain;
use lb_model::IpFamily;
use lb_plan::desired::ServicePortId;

use crate::apply::entry::parse_service_name;
use crate::apply::map_name::MapName;
use crate::apply::tables::BackendEntry;
use crate::family_table::BackendArrays;
use crate::handles::MapHandles;
use crate::table::Table;

/// An entry of an endpoint that still exists.
pub struct EndpointValue<V> {
    pub service: ServicePortId,
    /// The port number in the Service spec.
    pub port: u16,
    pub backend_id: u32,
    pub backend: BackendEntry,
    pub value: V,
}

/// Returns the entries for which `is_selected` returns true, of endpoints that still exist. They
/// are sorted by Service and address. The list is empty if the maps belong to an agent without this
/// map.
pub fn read<V: Plain>(
    maps: &MapHandles,
    map: MapName,
    is_selected: impl Fn(&BackendEntry, &V) -> bool,
) -> io::Result<Vec<EndpointValue<V>>> {
    let entries = match maps.table::<EndpointKey, V>(map) {
        Ok(table) => table.entries()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    if entries.is_empty() {
        return Ok(Vec::new());
    }
    let backends = BackendArrays::open(maps)?;
    let names: Table<u32, ServiceName> = maps.table(MapName::SERVICE_NAMES)?;
    let mut selected = Vec::new();
    for (key, value) in entries {
        let backend = backends.get(family(&key), key.backend_id)?;
        let Some(backend) = backend.filter(|backend| is_selected(backend, &value)) else { continue };
        let name = names.get(&backend.service_id)?;
        let Some((service, port)) = name.as_ref().and_then(parse_service_name) else { continue };
        selected.push(EndpointValue { service, port, backend_id: key.backend_id, backend, value });
    }
    selected.sort_by(|a, b| (&a.service, a.backend.address).cmp(&(&b.service, b.backend.address)));
    Ok(selected)
}

/// Removes the entries of removed endpoints, and those for which `is_kept` returns false.
pub fn retain<V: Plain>(
    maps: &MapHandles,
    map: MapName,
    is_kept: impl Fn(&BackendEntry, &V) -> bool,
) -> io::Result<()> {
    let table: Table<EndpointKey, V> = maps.table(map)?;
    let entries = table.entries()?;
    if entries.is_empty() {
        return Ok(());
    }
    let backends = BackendArrays::open(maps)?;
    for (key, value) in entries {
        let backend = backends.get(family(&key), key.backend_id)?;
        if !backend.is_some_and(|backend| is_kept(&backend, &value)) {
            table.remove(&key)?;
        }
    }
    Ok(())
}

/// Returns the IP family of an endpoint.
pub fn family(key: &EndpointKey) -> IpFamily {
    if key.is_v6 == 0 { IpFamily::V4 } else { IpFamily::V6 }
}
