//! The maps that describe this host: devices, addresses, networks and network namespaces.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use lb_common::layout::{Device, KnownAddress, LinkAddress, NamespaceAddrs, address_flags, network_flags};

use crate::apply::map_name::{MapName, TableError};
use crate::family_table::FamilyTable;
use crate::first_filter::{Filter, Mark};
use crate::handles::MapHandles;
use crate::known_addresses::KnownAddresses;
use crate::table::Table;

/// Reads and writes the maps that describe this host. Writing `None` removes an entry, if it
/// exists.
#[derive(Debug)]
pub struct HostMaps {
    devices: Table<u32, Device>,
    links: Table<u32, LinkAddress>,
    namespaces: Table<u64, NamespaceAddrs>,
    addresses: KnownAddresses,
    networks: FamilyTable<IpNet, u32>,
    filter: Arc<Filter>,
}

impl HostMaps {
    pub(crate) fn new(handles: &MapHandles, filter: Arc<Filter>) -> io::Result<Self> {
        Ok(Self {
            devices: handles.table(MapName::DEVICES)?,
            links: handles.table(MapName::LINK_ADDRESSES)?,
            namespaces: handles.table(MapName::NAMESPACES)?,
            addresses: KnownAddresses::open(handles)?,
            networks: FamilyTable::open(handles, MapName::NETWORKS)?,
            filter,
        })
    }

    pub fn set_device(&self, ifindex: u32, device: Option<&Device>) -> Result<(), TableError> {
        self.devices.set(&ifindex, device)
    }

    pub fn set_link(&self, ifindex: u32, link: Option<&LinkAddress>) -> Result<(), TableError> {
        self.links.set(&ifindex, link)
    }

    pub fn set_namespace(&self, cookie: u64, addresses: Option<&NamespaceAddrs>) -> Result<(), TableError> {
        self.namespaces.set(&cookie, addresses)
    }

    /// Writes the flags that the node has for an address. The flags of Services stay.
    pub fn set_address(&self, address: IpAddr, value: Option<&KnownAddress>) -> Result<(), TableError> {
        let (ifindex, flags) = value.map_or((0, 0), |value| (value.ifindex, value.flags));
        self.addresses.update(address, |known| KnownAddress {
            ifindex,
            flags: known.flags & !address_flags::OF_HOST | flags,
        })
    }

    pub fn set_network(&self, network: IpNet, flags: Option<u32>) -> Result<(), TableError> {
        match flags {
            Some(flags) if flags & network_flags::SERVICES != 0 => {
                self.filter.mark(Mark::Network(network))?;
            }
            _ => self.filter.note_removal(),
        }
        self.networks.set(network, flags.as_ref())
    }

    /// Returns the devices, by interface index, and the entry of the node.
    pub fn devices(&self) -> Result<Vec<(u32, Device)>, TableError> {
        self.devices.entries()
    }

    /// Returns the MAC addresses of devices, by interface index.
    pub fn links(&self) -> Result<Vec<(u32, LinkAddress)>, TableError> {
        self.links.entries()
    }

    /// Returns the addresses of pods and of this node, by the cookie of their network namespace.
    pub fn namespaces(&self) -> Result<Vec<(u64, NamespaceAddrs)>, TableError> {
        self.namespaces.entries()
    }

    /// Returns the addresses of this node and of Services of other proxies, with all flags that are
    /// not those of served Services.
    pub fn addresses(&self) -> Result<Vec<(IpAddr, KnownAddress)>, TableError> {
        let of_host =
            |known: KnownAddress| KnownAddress { flags: known.flags & address_flags::OF_HOST, ..known };
        let entries = self.addresses.entries()?.into_iter().map(|(address, known)| (address, of_host(known)));
        Ok(entries.filter(|(_, known)| known.flags != 0).collect())
    }

    /// Returns the networks of pods, of Services, and to which the kernel forwards, with their
    /// flags.
    pub fn networks(&self) -> Result<Vec<(IpNet, u32)>, TableError> {
        self.networks.entries()
    }
}
