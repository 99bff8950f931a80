//! Reading the maps, for tools and tests. Plain values; nothing is rendered here.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use lb_common::layout::{Device, KnownAddress, NamespaceAddrs, Service, ServiceName, address_flags};
use lb_common::reason::Reason;

use super::Pins;
use super::flows::{self, FlowEntry};
use super::maps::{HostMaps, MapAddress, MapHandles, ServiceTables};
use super::sys;
use super::table::Table;
use crate::apply::tables::{BackendEntry, ServiceAddress, TableError, Tables as _};
use crate::plan::wanted::IpFamily;

/// The maps of an agent, or of privately loaded programs.
#[derive(Debug, Clone)]
pub struct Maps(MapHandles);

impl Maps {
    /// Opens what an agent has pinned; no agent needs to run. Fails with `NotFound` when there is nothing.
    pub fn open(pins: &Pins) -> io::Result<Self> {
        MapHandles::open(pins).map(Self)
    }

    pub(super) fn of(maps: &MapHandles) -> Self {
        Self(maps.clone())
    }

    fn tables(&self) -> io::Result<ServiceTables> {
        ServiceTables::new(&self.0)
    }

    pub fn services(&self) -> io::Result<Vec<(ServiceAddress, Service)>> {
        self.tables()?.services().map_err(unwrap)
    }

    pub fn service_names(&self) -> io::Result<Vec<(u32, ServiceName)>> {
        self.tables()?.service_names().map_err(unwrap)
    }

    pub fn backends(&self, family: IpFamily) -> io::Result<Vec<(u32, BackendEntry)>> {
        self.tables()?.backends(family).map_err(unwrap)
    }

    /// Backend ids in a range of slots.
    pub fn slots(&self, base: u32, count: u32) -> io::Result<Vec<u32>> {
        self.tables()?.read_slots(base, count).map_err(unwrap)
    }

    /// Open and half-open flows of both families.
    pub fn flows(&self) -> io::Result<Vec<FlowEntry>> {
        flows::read(&self.0)
    }

    /// Packets by reason, summed over the CPUs.
    pub fn counters(&self) -> io::Result<Vec<(Reason, u64)>> {
        let map = self.0.fd("COUNTERS")?;
        let cpus = sys::possible_cpus()?;
        Reason::ALL
            .iter()
            .map(|reason| Ok((*reason, sys::lookup_per_cpu(map, *reason as u32, cpus)?.iter().sum())))
            .collect()
    }

    /// Addresses of this node, with the flags that follow from its devices.
    pub fn node_addresses(&self) -> io::Result<Vec<(IpAddr, KnownAddress)>> {
        let mut addresses = Vec::new();
        self.node_addresses_of::<[u8; 4]>(&mut addresses)?;
        self.node_addresses_of::<[u8; 16]>(&mut addresses)?;
        Ok(addresses)
    }

    fn node_addresses_of<A: MapAddress>(
        &self,
        addresses: &mut Vec<(IpAddr, KnownAddress)>,
    ) -> io::Result<()> {
        let table: Table<A, KnownAddress> = self.0.table(&format!("ADDRESSES_{}", A::SUFFIX))?;
        table.for_each(|address, value| {
            if value.flags & address_flags::NODE != 0 {
                let flags = value.flags & address_flags::OF_NODE;
                addresses.push((address.to_ip(), KnownAddress { flags, ..*value }));
            }
        })
    }

    /// Networks of pods and of Services, with their flags.
    pub fn networks(&self) -> io::Result<Vec<(IpNet, u32)>> {
        HostMaps(&self.0).read_networks()
    }

    /// Addresses of pods and of this node, by the cookie of their network namespace.
    pub fn namespaces(&self) -> io::Result<Vec<(u64, NamespaceAddrs)>> {
        let table: Table<u64, NamespaceAddrs> = self.0.table("NAMESPACES")?;
        let mut namespaces = Vec::new();
        table.for_each(|cookie, addresses| namespaces.push((*cookie, *addresses)))?;
        Ok(namespaces)
    }

    /// Devices by interface index.
    pub fn devices(&self) -> io::Result<Vec<(u32, Device)>> {
        let table: Table<u32, Device> = self.0.table("DEVICES")?;
        let mut devices = Vec::new();
        table.for_each(|ifindex, device| devices.push((*ifindex, *device)))?;
        Ok(devices)
    }
}

fn unwrap(error: TableError) -> io::Error {
    io::Error::other(error)
}
