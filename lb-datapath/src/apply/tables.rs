//! The interface of the engine to the service maps. The kernel maps ([`crate::ServiceTables`])
//! implement it, and so does an in-memory double for tests.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use lb_common::layout::{self, backend_flags};
use lb_model::{IpFamily, PerFamily};

pub use super::map_name::{MapName, TableError};

/// A key of `SERVICES_V4` or `SERVICES_V6`. The unspecified address stands for all addresses of
/// this node that serve NodePorts.
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

/// An entry of `BACKENDS_V4` or `BACKENDS_V6`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackendEntry {
    pub address: SocketAddr,
    /// Bits of [`layout::backend_flags`]. 0 means that the entry is unused.
    pub flags: u16,
    pub service_id: u32,
    pub weight: u32,
}

impl BackendEntry {
    /// Returns whether the endpoint keeps its connections and gets no new ones.
    pub fn drains(&self) -> bool {
        self.flags & (backend_flags::IN_CLUSTER | backend_flags::IN_LOCAL) == 0
    }
}

/// The capacity of each map, in entries. Slots and backends are arrays with the indices
/// `0..capacity`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    pub services: PerFamily<u32>,
    pub slots: u32,
    pub backends: PerFamily<u32>,
    pub service_names: u32,
    pub source_ranges: PerFamily<u32>,
}

impl Capacity {
    /// Service ids are below the capacity of the map of names. This is correct for a hash map and
    /// for an array.
    pub(super) fn service_id_end(&self) -> u32 {
        self.service_names
    }
}

/// The service maps. When a write returns, the programs see it. A failed write has changed nothing.
pub trait Tables {
    fn capacity(&self) -> Capacity;

    fn put_service(&mut self, key: ServiceAddress, value: layout::ServiceEntry) -> Result<(), TableError>;
    /// Removes a service entry. Does nothing if it does not exist.
    fn remove_service(&mut self, key: ServiceAddress) -> Result<(), TableError>;
    fn put_service_name(&mut self, service_id: u32, name: &layout::ServiceName) -> Result<(), TableError>;
    fn remove_service_name(&mut self, service_id: u32) -> Result<(), TableError>;
    fn put_thresholds(&mut self, service_id: u32, thresholds: layout::Thresholds) -> Result<(), TableError>;
    /// Removes the thresholds of a Service port. Does nothing if it has none.
    fn remove_thresholds(&mut self, service_id: u32) -> Result<(), TableError>;
    /// Makes endpoints not overloaded, until the programs find again that they are.
    fn relieve(&mut self, family: IpFamily, backend_ids: &[u32]) -> Result<(), TableError>;
    /// Writes `SLOTS[base..base + backend_ids.len()]`.
    fn write_slots(&mut self, base: u32, backend_ids: &[u32]) -> Result<(), TableError>;
    /// Writes the next slot of the range that begins at `base`, counted from `base`.
    fn put_cursor(&mut self, base: u32, next: u32) -> Result<(), TableError>;
    /// Removes the cursor of a range. Does nothing if it does not exist.
    fn remove_cursor(&mut self, base: u32) -> Result<(), TableError>;
    fn write_backend(&mut self, family: IpFamily, id: u32, entry: BackendEntry) -> Result<(), TableError>;
    /// Zeroes the entry.
    fn clear_backend(&mut self, family: IpFamily, id: u32) -> Result<(), TableError>;
    /// Writes an entry to which programs may refer and that another program has changed. No program
    /// sees the new flags with the old address.
    fn rewrite_backend(&mut self, family: IpFamily, id: u32, entry: BackendEntry) -> Result<(), TableError>;
    /// Writes a slot to which programs may refer and that another program has changed.
    fn rewrite_slot(&mut self, slot: u32, backend_id: u32) -> Result<(), TableError>;
    /// Writes the flags of an address in `ADDRESSES_V4` or `ADDRESSES_V6`: bits of
    /// [`layout::address_flags::OF_SERVICES`], or 0 if no Service has the address. Other flags of
    /// the address stay.
    fn mark_address(&mut self, ip: IpAddr, flags: u32) -> Result<(), TableError>;
    /// Allows a network to use service entries with [`layout::service_flags::SOURCE_RANGES`].
    fn put_source_range(&mut self, service_id: u32, sources: IpNet) -> Result<(), TableError>;
    /// Adds a source range if it does not exist. Returns whether it did not.
    fn restore_source_range(&mut self, service_id: u32, sources: IpNet) -> Result<bool, TableError>;
    /// Removes a source range. Does nothing if it does not exist.
    fn remove_source_range(&mut self, service_id: u32, sources: IpNet) -> Result<(), TableError>;

    fn service(&self, key: ServiceAddress) -> Result<Option<layout::ServiceEntry>, TableError>;
    /// Returns at most `count` keys of service entries that follow a key in the order of the maps,
    /// from the first one on for `None`. No key follows the last one.
    fn service_keys(
        &self,
        after: Option<ServiceAddress>,
        count: usize,
    ) -> Result<Vec<ServiceAddress>, TableError>;
    fn service_name(&self, service_id: u32) -> Result<Option<layout::ServiceName>, TableError>;
    fn thresholds_of(&self, service_id: u32) -> Result<Option<layout::Thresholds>, TableError>;
    /// Returns an entry whose flags are not 0.
    fn backend(&self, family: IpFamily, id: u32) -> Result<Option<BackendEntry>, TableError>;
    /// Returns the flags that [`Tables::mark_address`] has written.
    fn mark(&self, ip: IpAddr) -> Result<u32, TableError>;

    /// Returns all service entries. The engine reads the maps once at start, so that ids and slots
    /// survive a restart.
    fn services(&self) -> Result<Vec<(ServiceAddress, layout::ServiceEntry)>, TableError>;
    fn service_names(&self) -> Result<Vec<(u32, layout::ServiceName)>, TableError>;
    /// Returns the thresholds of all Service ports that have any.
    fn thresholds(&self) -> Result<Vec<(u32, layout::Thresholds)>, TableError>;
    fn read_slots(&self, base: u32, count: u32) -> Result<Vec<u32>, TableError>;
    /// Returns all cursors, as (base, next).
    fn cursors(&self) -> Result<Vec<(u32, u32)>, TableError>;
    /// Returns the cursor of a range. `None` if it does not exist.
    fn cursor(&self, base: u32) -> Result<Option<u32>, TableError>;
    /// Returns all entries whose flags are not 0, as (id, entry).
    fn backends(&self, family: IpFamily) -> Result<Vec<(u32, BackendEntry)>, TableError>;
    /// Returns all addresses with flags of Services, with these flags.
    fn marked_addresses(&self) -> Result<Vec<(IpAddr, u32)>, TableError>;
    fn source_ranges(&self) -> Result<Vec<(u32, IpNet)>, TableError>;
}
