//! The maps as the apply engine sees them: a trait that the kernel maps (of [`crate::ServiceTables`]) and an in-memory double
//! (for property tests of the engine) implement.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use lb_common::layout;
use lb_model::{IpFamily, PerFamily};

pub use super::map_name::{MapName, TableError};

/// `SERVICES_V4`/`V6`: key of either family. An unspecified address stands for "any NodePort address of this node".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceAddress {
    pub ip: IpAddr,
    pub port: u16,
    pub protocol: u8,
}

impl fmt::Display for ServiceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            layout::TCP => "TCP",
            layout::UDP => "UDP",
            layout::SCTP => "SCTP",
            _ => "protocol?",
        };
        if self.ip.is_unspecified() {
            let family = if self.ip.is_ipv4() { "IPv4" } else { "IPv6" };
            write!(f, "{family} nodePort {} {protocol}", self.port)
        } else {
            write!(f, "{} {protocol}", SocketAddr::new(self.ip, self.port))
        }
    }
}

/// `BACKENDS_V4`/`V6`: an entry of either family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackendEntry {
    pub address: SocketAddr,
    /// Bits of [`layout::backend_flags`]; 0 means "gone".
    pub flags: u16,
    pub service_id: u32,
}

/// How many entries each map holds. Slots and backends are arrays: valid indices are `0..capacity`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    pub services: PerFamily<u32>,
    pub slots: u32,
    pub backends: PerFamily<u32>,
    pub service_names: u32,
    pub source_ranges: PerFamily<u32>,
}

/// The service maps. Every write is visible to the programs when the call returns; one that fails has changed nothing.
pub trait Tables {
    fn capacity(&self) -> Capacity;

    fn put_service(&mut self, key: ServiceAddress, value: layout::Service) -> Result<(), TableError>;
    /// Removing what is not there is not an error.
    fn remove_service(&mut self, key: ServiceAddress) -> Result<(), TableError>;
    fn put_service_name(&mut self, service_id: u32, name: &layout::ServiceName) -> Result<(), TableError>;
    fn remove_service_name(&mut self, service_id: u32) -> Result<(), TableError>;
    /// Writes `SLOTS[base..base + backend_ids.len()]`.
    fn write_slots(&mut self, base: u32, backend_ids: &[u32]) -> Result<(), TableError>;
    fn write_backend(&mut self, family: IpFamily, id: u32, entry: BackendEntry) -> Result<(), TableError>;
    /// Zeroes the entry.
    fn clear_backend(&mut self, family: IpFamily, id: u32) -> Result<(), TableError>;
    /// Says in `ADDRESSES_V4`/`V6` what Services have at an address: bits of [`layout::address_flags::OF_SERVICES`], 0 when no
    /// Service has it. What the node knows of the address stays.
    fn mark_address(&mut self, ip: IpAddr, flags: u32) -> Result<(), TableError>;
    /// Lets a network in, for service entries with [`layout::service_flags::SOURCE_RANGES`].
    fn put_source_range(&mut self, service_id: u32, sources: IpNet) -> Result<(), TableError>;
    /// Removing what is not there is not an error.
    fn remove_source_range(&mut self, service_id: u32, sources: IpNet) -> Result<(), TableError>;

    /// What the maps hold now, read once at start so that ids and ranges survive a restart.
    fn services(&self) -> Result<Vec<(ServiceAddress, layout::Service)>, TableError>;
    fn service_names(&self) -> Result<Vec<(u32, layout::ServiceName)>, TableError>;
    fn read_slots(&self, base: u32, count: u32) -> Result<Vec<u32>, TableError>;
    /// All entries with flags other than 0, as (id, entry).
    fn backends(&self, family: IpFamily) -> Result<Vec<(u32, BackendEntry)>, TableError>;
    /// Addresses with flags of Services, and those flags.
    fn marked_addresses(&self) -> Result<Vec<(IpAddr, u32)>, TableError>;
    fn source_ranges(&self) -> Result<Vec<(u32, IpNet)>, TableError>;
}
