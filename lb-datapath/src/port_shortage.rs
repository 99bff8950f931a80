//! The map `NO_SOURCE_PORT`: endpoints for whose connections no source port was free.

use std::io;
use std::net::SocketAddr;

use lb_common::layout::PortShortage;
use lb_plan::desired::ServicePortId;

use crate::apply::map_name::MapName;
use crate::endpoint_table::{self, EndpointValue};
use crate::handles::MapHandles;

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
    let entries = endpoint_table::read(maps, MapName::NO_SOURCE_PORT, |_, _| true)?.into_iter();
    let shortages = entries.map(|EndpointValue { service, port, backend_id, backend, value }| {
        let PortShortage { packets, last_ns } = value;
        EndpointShortage { service, port, endpoint: backend.address, backend_id, packets, last_ns }
    });
    Ok(shortages.collect())
}

/// Removes the entries of removed endpoints, before other endpoints get their ids.
pub fn remove_gone(maps: &MapHandles) -> io::Result<()> {
    endpoint_table::retain(maps, MapName::NO_SOURCE_PORT, |_, _: &PortShortage| true)
}
