//! How full the maps are.

use std::collections::BTreeSet;
use std::io;

use lb_model::IpFamily;

use crate::apply::map_name::{MapName, MapUsage};
use crate::inspect::AgentMaps;
use crate::sys;

impl AgentMaps {
    /// Returns the usage of each map that refuses entries when it is full. Maps that replace their
    /// least recently used entries are left out.
    pub fn usage(&self) -> io::Result<Vec<MapUsage>> {
        let handles = self.handles();
        let mut usage = Vec::new();
        let by_family = [MapName::SERVICES, MapName::ADDRESSES, MapName::SOURCE_RANGES];
        let hash_maps = by_family.into_iter().flat_map(|maps| IpFamily::BOTH.map(|family| maps[family]));
        for map in hash_maps.chain([MapName::SERVICE_NAMES]) {
            let entries = sys::count_entries(handles.fd(map.name)?)?;
            usage.extend(handles.usage(map, entries)?);
        }
        let flows = self.flows()?;
        for family in IpFamily::BOTH {
            let backends = self.backends(family)?.len();
            usage.extend(handles.usage(MapName::BACKENDS[family], backends)?);
            let open = flows.iter().filter(|flow| flow.family == family).count();
            usage.extend(handles.usage(MapName::FLOWS[family], open)?);
        }
        // Services with equal lists of endpoints share a range.
        let ranges: BTreeSet<_> = self
            .services()?
            .into_iter()
            .flat_map(|(_, service)| {
                [(service.inside_base, service.inside_count), (service.outside_base, service.outside_count)]
            })
            .collect();
        let slots = ranges.into_iter().map(|(_, count)| count as usize).sum();
        usage.extend(handles.usage(MapName::SLOTS, slots)?);
        Ok(usage)
    }
}
