//! The maps of facts about this host: devices, addresses, networks and network namespaces.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use lb_common::layout::{Device, KnownAddress, NamespaceAddrs, address_flags};

use crate::apply::map_name::{MapName, TableError};
use crate::family_table::FamilyTable;
use crate::handles::MapHandles;
use crate::known_addresses::KnownAddresses;
use crate::table::Table;

/// Writes and reads what the programs know of this host. `None` as a value removes an entry, which
/// may be absent.
#[derive(Debug)]
pub struct HostMaps {
    devices: Table<u32, Device>,
    namespaces: Table<u64, NamespaceAddrs>,
    addresses: KnownAddresses,
    networks: FamilyTable<IpNet, u32>,
}

impl HostMaps {
    pub(crate) fn new(handles: &MapHandles) -> io::Result<Self> {
        Ok(Self {
            devices: handles.table(MapName::DEVICES)?,
            namespaces: handles.table(MapName::NAMESPACES)?,
            addresses: KnownAddresses::open(handles)?,
            networks: FamilyTable::open(handles, MapName::NETWORKS)?,
        })
    }

    pub fn set_device(&self, ifindex: u32, device: Option<&Device>) -> Result<(), TableError> {
        self.devices.set(&ifindex, device)
    }

    pub fn set_namespace(&self, cookie: u64, addresses: Option<&NamespaceAddrs>) -> Result<(), TableError> {
        self.namespaces.set(&cookie, addresses)
    }

    /// Writes what the node knows of an address. The flags that Services have set there stay.
    pub fn set_address(&self, address: IpAddr, value: Option<&KnownAddress>) -> Result<(), TableError> {
        let (ifindex, flags) = value.map_or((0, 0), |value| (value.ifindex, value.flags));
        self.addresses.update(address, |known| KnownAddress {
            ifindex,
            flags: known.flags & !address_flags::OF_HOST | flags,
        })
    }

    pub fn set_network(&self, network: IpNet, flags: Option<u32>) -> Result<(), TableError> {
        self.networks.set(network, flags.as_ref())
    }

    /// Devices by interface index.
    pub fn devices(&self) -> Result<Vec<(u32, Device)>, TableError> {
        self.devices.entries()
    }

    /// Addresses of pods and of this node, by the cookie of their network namespace.
    pub fn namespaces(&self) -> Result<Vec<(u64, NamespaceAddrs)>, TableError> {
        self.namespaces.entries()
    }

    /// Addresses of this node and of Services of other proxies, with the flags that do not follow
    /// from Services served here.
    pub fn addresses(&self) -> Result<Vec<(IpAddr, KnownAddress)>, TableError> {
        let of_host =
            |known: KnownAddress| KnownAddress { flags: known.flags & address_flags::OF_HOST, ..known };
        let entries = self.addresses.entries()?.into_iter().map(|(address, known)| (address, of_host(known)));
        Ok(entries.filter(|(_, known)| known.flags != 0).collect())
    }

    /// Networks of pods and of Services, with their flags.
    pub fn networks(&self) -> Result<Vec<(IpNet, u32)>, TableError> {
        self.networks.entries()
    }
}
