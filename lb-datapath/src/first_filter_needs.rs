//! Finds the bits of the map `FILTER` that entries and connections need.

use std::io;
use std::sync::Arc;

use lb_common::filter::{LINES, node_port};
use lb_common::layout::{FilterLine, address_flags, network_flags};
use lb_model::IpFamily;

use crate::apply::tables::Tables as _;
use crate::first_filter::{EMPTY, Filter, Mark};
use crate::flows;
use crate::handles::MapHandles;
use crate::host_maps::HostMaps;
use crate::service_tables::ServiceTables;

/// Returns the bits that the entries and the connections in the maps need.
pub fn find(handles: &MapHandles, filter: &Arc<Filter>, now_ns: u64) -> io::Result<Vec<FilterLine>> {
    let mut lines = vec![EMPTY; LINES];
    let mut mark = |mark: Mark| {
        mark.for_each(|position| {
            position.set(&mut lines[position.line as usize]);
        });
    };
    let tables = ServiceTables::new(handles, Arc::clone(filter))?;
    for (address, flags) in tables.marked_addresses()? {
        if flags & address_flags::OF_SERVICES != 0 {
            mark(Mark::Service(address));
        }
    }
    tables.services()?.into_iter().filter_map(|(entry, _)| Mark::of_node_port(entry)).for_each(&mut mark);
    for family in IpFamily::BOTH {
        tables.backends(family)?.iter().for_each(|(_, backend)| mark(Mark::Endpoint(backend.address)));
    }
    for (network, flags) in HostMaps::new(handles, Arc::clone(filter))?.networks()? {
        if flags & network_flags::SERVICES != 0 {
            mark(Mark::Network(network));
        }
    }
    let connections = flows::read(handles, now_ns)?;
    connections.iter().for_each(|flow| mark(Mark::Endpoint(flow.backend)));
    // A connection may outlive its NodePort. Then its requests need the bit of their destination,
    // which may not be set yet. The bit of the port is not cleared before the next call.
    for flow in connections {
        let by_port = node_port(flow.service.port(), flow.protocol);
        if !by_port.is_set(&lines[by_port.line as usize]) {
            let destination = Mark::Service(flow.service.ip());
            filter.mark(destination)?;
            destination.for_each(|position| {
                position.set(&mut lines[position.line as usize]);
            });
        }
    }
    Ok(lines)
}

/// Sets the bits that are missing. Clears none: see [`Filter::tidy`].
pub fn complete(handles: &MapHandles, filter: &Arc<Filter>, now_ns: u64) -> io::Result<()> {
    Ok(filter.add(&find(handles, filter, now_ns)?)?)
}
