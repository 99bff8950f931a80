//! The map `OVERLOADED`: endpoints that had too many connections when they got their last one.

use std::collections::HashSet;
use std::io;

use lb_common::layout::{EndpointKey, Thresholds, backend_flags};
use lb_model::{IpFamily, PerFamily};

use crate::apply::map_name::MapName;
use crate::endpoint_table;
use crate::family_table::BackendArrays;
use crate::handles::MapHandles;
use crate::loads;
use crate::table::Table;

/// Returns the endpoints that get no new connections now, by IP family and backend id. An entry
/// stays until the next connection, so it is compared with the number of connections.
pub fn read(maps: &MapHandles) -> io::Result<HashSet<(IpFamily, u32)>> {
    let entries = match table(maps) {
        Ok(table) => table.entries()?,
        // The maps belong to an agent without this map.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    let mut overloaded = HashSet::with_capacity(entries.len());
    if entries.is_empty() {
        return Ok(overloaded);
    }
    let thresholds: Table<u32, Thresholds> = maps.table(MapName::THRESHOLDS)?;
    let backends = BackendArrays::open(maps)?;
    let loads: PerFamily<loads::Loads> = loads::open(maps)?;
    for (key, _) in entries {
        let (family, id) = (endpoint_table::family(&key), key.backend_id);
        let Some(backend) = backends.get(family, id)? else { continue };
        let Some(thresholds) = thresholds.get(&backend.service_id)? else { continue };
        if thresholds.is_overloaded(loads[family].read(id)?.connections().sum(), true) {
            overloaded.insert((family, id));
        }
    }
    Ok(overloaded)
}

/// Removes the entries of endpoints that were removed, or whose Service has no thresholds any more.
pub fn tidy(maps: &MapHandles) -> io::Result<()> {
    endpoint_table::retain(maps, MapName::OVERLOADED, |backend, _: &u32| {
        backend.flags & backend_flags::THRESHOLDS != 0
    })
}

pub fn table(maps: &MapHandles) -> io::Result<Table<EndpointKey, u32>> {
    maps.table(MapName::OVERLOADED)
}
