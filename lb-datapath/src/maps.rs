//! The maps by name, and the two groups of them that the agent writes: services, and facts of the host.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use ipnet::IpNet;
use lb_common::layout::{
    self, Backend, Device, KnownAddress, NamespaceAddrs, Service, ServiceKey, ServiceName, SourceRange,
    address_flags,
};
use lb_common::plain::Plain;
use lb_model::IpFamily;

use crate::Pins;
use crate::apply::tables::{BackendEntry, Capacity, ServiceAddress, SizedMap, TableError, Tables};
use crate::programs::LoadError;
use crate::sys;
use crate::table::{ArrayTable, LpmKey, Table};

/// An address type that is part of map keys.
pub trait MapAddress: Plain + Copy {
    const FAMILY: IpFamily;
    /// Ends the names of this family's maps.
    const SUFFIX: &'static str;
    fn to_ip(self) -> IpAddr;
}

impl MapAddress for [u8; 4] {
    const FAMILY: IpFamily = IpFamily::V4;
    const SUFFIX: &'static str = "V4";
    fn to_ip(self) -> IpAddr {
        Ipv4Addr::from(self).into()
    }
}

impl MapAddress for [u8; 16] {
    const FAMILY: IpFamily = IpFamily::V6;
    const SUFFIX: &'static str = "V6";
    fn to_ip(self) -> IpAddr {
        Ipv6Addr::from(self).into()
    }
}

/// Descriptors of maps, by name.
#[derive(Debug, Clone, Default)]
pub struct MapHandles(HashMap<String, Arc<OwnedFd>>);

impl MapHandles {
    pub fn insert(&mut self, name: &str, map: OwnedFd) {
        self.0.insert(name.to_owned(), Arc::new(map));
    }

    /// Opens what an agent has pinned.
    pub fn open(pins: &Pins) -> io::Result<Self> {
        let mut handles = Self::default();
        for entry in std::fs::read_dir(pins.maps())? {
            let entry = entry?;
            handles.insert(&entry.file_name().to_string_lossy(), sys::open_pin(&entry.path())?);
        }
        Ok(handles)
    }

    pub fn get(&self, name: &str) -> io::Result<Arc<OwnedFd>> {
        self.0
            .get(name)
            .cloned()
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("there is no map {name}")))
    }

    pub fn fd(&self, name: &str) -> io::Result<BorrowedFd<'_>> {
        match self.0.get(name) {
            Some(map) => Ok(map.as_fd()),
            None => Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no map {name}"))),
        }
    }

    pub fn table<K: Plain, V: Plain>(&self, name: &str) -> io::Result<Table<K, V>> {
        Table::new(self.get(name)?)
    }

    pub fn array<V: Plain>(&self, name: &str) -> io::Result<ArrayTable<V>> {
        ArrayTable::new(&*self.get(name)?)
    }

    pub fn service_tables(&self) -> Result<ServiceTables, LoadError> {
        ServiceTables::new(self).map_err(|source| LoadError::Map { map: "of services".into(), source })
    }
}

/// The kernel's maps of services, as the apply engine writes them.
#[derive(Debug)]
pub struct ServiceTables {
    services_v4: Table<ServiceKey<[u8; 4]>, Service>,
    services_v6: Table<ServiceKey<[u8; 16]>, Service>,
    names: Table<u32, ServiceName>,
    slots: ArrayTable<u32>,
    backends_v4: ArrayTable<Backend<[u8; 4]>>,
    backends_v6: ArrayTable<Backend<[u8; 16]>>,
    addresses_v4: Table<[u8; 4], KnownAddress>,
    addresses_v6: Table<[u8; 16], KnownAddress>,
    source_ranges_v4: Table<LpmKey<SourceRange<[u8; 4]>>, u32>,
    source_ranges_v6: Table<LpmKey<SourceRange<[u8; 16]>>, u32>,
    capacity: Capacity,
}

impl ServiceTables {
    pub fn new(maps: &MapHandles) -> io::Result<Self> {
        let services_v4 = maps.table("SERVICES_V4")?;
        let services_v6 = maps.table("SERVICES_V6")?;
        let names = maps.table("SERVICE_NAMES")?;
        let slots = maps.array("SLOTS")?;
        let backends_v4 = maps.array("BACKENDS_V4")?;
        let backends_v6 = maps.array("BACKENDS_V6")?;
        let source_ranges_v4 = maps.table("SOURCE_RANGES_V4")?;
        let source_ranges_v6 = maps.table("SOURCE_RANGES_V6")?;
        let capacity = Capacity {
            services_v4: services_v4.capacity()?,
            services_v6: services_v6.capacity()?,
            slots: slots.capacity(),
            backends_v4: backends_v4.capacity(),
            backends_v6: backends_v6.capacity(),
            service_names: names.capacity()?,
            source_ranges_v4: source_ranges_v4.capacity()?,
            source_ranges_v6: source_ranges_v6.capacity()?,
        };
        Ok(Self {
            services_v4,
            services_v6,
            names,
            slots,
            backends_v4,
            backends_v6,
            addresses_v4: maps.table("ADDRESSES_V4")?,
            addresses_v6: maps.table("ADDRESSES_V6")?,
            source_ranges_v4,
            source_ranges_v6,
            capacity,
        })
    }
}

/// What an error of a write means.
fn failed(map: SizedMap, capacity: u32, action: &'static str) -> impl FnOnce(io::Error) -> TableError {
    move |source| match source.raw_os_error() {
        // Hash maps say E2BIG, longest-prefix maps ENOSPC.
        Some(libc::E2BIG | libc::ENOSPC) => map.full(capacity),
        _ => TableError::Kernel { map: map.name, action, source },
    }
}

/// Key of a service entry in the family's own form.
fn key<A>(addr: A, key: ServiceAddress) -> ServiceKey<A> {
    ServiceKey { addr, port: key.port, protocol: key.protocol, pad: 0 }
}

fn backend<A>(addr: A, entry: &BackendEntry) -> Backend<A> {
    Backend { addr, port: entry.address.port(), flags: entry.flags, service_id: entry.service_id }
}

fn wrong_family(map: SizedMap) -> TableError {
    let source = io::Error::new(io::ErrorKind::InvalidInput, "an endpoint address of the other family");
    TableError::Kernel { map: map.name, action: "write", source }
}

fn backend_entries<A: MapAddress>(table: &ArrayTable<Backend<A>>) -> io::Result<Vec<(u32, BackendEntry)>>
where
    Backend<A>: Plain,
{
    let mut entries = Vec::new();
    for id in 0..table.capacity() {
        let Backend { addr, port, flags, service_id } = table.read(id)?;
        if flags != 0 {
            let address = SocketAddr::new(addr.to_ip(), port);
            entries.push((id, BackendEntry { address, flags, service_id }));
        }
    }
    Ok(entries)
}

fn service_entries<A: MapAddress>(
    table: &Table<ServiceKey<A>, Service>,
    entries: &mut Vec<(ServiceAddress, Service)>,
) -> io::Result<()>
where
    ServiceKey<A>: Plain,
{
    table.for_each(|key, service| {
        let address = ServiceAddress { ip: key.addr.to_ip(), port: key.port, protocol: key.protocol };
        entries.push((address, *service));
    })
}

/// Bits of the service id, which stands before the address in a key of source ranges.
const ID_BITS: u32 = u32::BITS;

fn source_range<A>(service_id: u32, addr: A, prefix_len: u8) -> LpmKey<SourceRange<A>> {
    LpmKey { prefix_len: ID_BITS + u32::from(prefix_len), data: SourceRange { service_id, addr } }
}

fn source_range_entries<A: MapAddress>(
    table: &Table<LpmKey<SourceRange<A>>, u32>,
    entries: &mut Vec<(u32, IpNet)>,
) -> io::Result<()>
where
    LpmKey<SourceRange<A>>: Plain,
{
    table.for_each(|key, _| {
        // Prefixes that do not cover the whole id are nothing that an agent writes.
        let length = key.prefix_len.checked_sub(ID_BITS).and_then(|length| u8::try_from(length).ok());
        let network = length.and_then(|length| IpNet::new(key.data.addr.to_ip(), length).ok());
        entries.extend(network.map(|network| (key.data.service_id, network)));
    })
}

fn marked_addresses<A: MapAddress>(
    table: &Table<A, KnownAddress>,
    entries: &mut Vec<(IpAddr, u32)>,
) -> io::Result<()> {
    table.for_each(|address, known| {
        let flags = known.flags & address_flags::OF_SERVICES;
        if flags != 0 {
            entries.push((address.to_ip(), flags));
        }
    })
}

impl Tables for ServiceTables {
    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn put_service(&mut self, address: ServiceAddress, value: Service) -> Result<(), TableError> {
        match address.ip {
            IpAddr::V4(ip) => self.services_v4.put(&key(ip.octets(), address), &value).map_err(failed(
                SizedMap::SERVICES_V4,
                self.capacity.services_v4,
                "write",
            )),
            IpAddr::V6(ip) => self.services_v6.put(&key(ip.octets(), address), &value).map_err(failed(
                SizedMap::SERVICES_V6,
                self.capacity.services_v6,
                "write",
            )),
        }
    }

    fn remove_service(&mut self, address: ServiceAddress) -> Result<(), TableError> {
        match address.ip {
            IpAddr::V4(ip) => self.services_v4.remove(&key(ip.octets(), address)).map_err(failed(
                SizedMap::SERVICES_V4,
                self.capacity.services_v4,
                "remove",
            )),
            IpAddr::V6(ip) => self.services_v6.remove(&key(ip.octets(), address)).map_err(failed(
                SizedMap::SERVICES_V6,
                self.capacity.services_v6,
                "remove",
            )),
        }
        .map(drop)
    }

    fn put_service_name(&mut self, service_id: u32, name: &ServiceName) -> Result<(), TableError> {
        self.names.put(&service_id, name).map_err(failed(
            SizedMap::SERVICE_NAMES,
            self.capacity.service_names,
            "write",
        ))
    }

    fn remove_service_name(&mut self, service_id: u32) -> Result<(), TableError> {
        self.names.remove(&service_id).map(drop).map_err(failed(
            SizedMap::SERVICE_NAMES,
            self.capacity.service_names,
            "remove",
        ))
    }

    fn write_slots(&mut self, base: u32, backend_ids: &[u32]) -> Result<(), TableError> {
        let end = u64::from(base) + backend_ids.len() as u64;
        if end > u64::from(self.capacity.slots) {
            return Err(SizedMap::SLOTS.full(self.capacity.slots));
        }
        for (slot, id) in (base..).zip(backend_ids) {
            self.slots.write(slot, *id).map_err(failed(SizedMap::SLOTS, self.capacity.slots, "write"))?;
        }
        Ok(())
    }

    fn write_backend(&mut self, family: IpFamily, id: u32, entry: BackendEntry) -> Result<(), TableError> {
        match (family, entry.address.ip()) {
            (IpFamily::V4, IpAddr::V4(ip)) => self
                .backends_v4
                .write(id, backend(ip.octets(), &entry))
                .map_err(failed(SizedMap::BACKENDS_V4, self.capacity.backends_v4, "write")),
            (IpFamily::V6, IpAddr::V6(ip)) => self
                .backends_v6
                .write(id, backend(ip.octets(), &entry))
                .map_err(failed(SizedMap::BACKENDS_V6, self.capacity.backends_v6, "write")),
            (IpFamily::V4, _) => Err(wrong_family(SizedMap::BACKENDS_V4)),
            (IpFamily::V6, _) => Err(wrong_family(SizedMap::BACKENDS_V6)),
        }
    }

    fn clear_backend(&mut self, family: IpFamily, id: u32) -> Result<(), TableError> {
        match family {
            IpFamily::V4 => self
                .backends_v4
                .write(id, Backend { addr: [0; 4], port: 0, flags: 0, service_id: 0 })
                .map_err(failed(SizedMap::BACKENDS_V4, self.capacity.backends_v4, "clear")),
            IpFamily::V6 => self
                .backends_v6
                .write(id, Backend { addr: [0; 16], port: 0, flags: 0, service_id: 0 })
                .map_err(failed(SizedMap::BACKENDS_V6, self.capacity.backends_v6, "clear")),
        }
    }

    fn mark_address(&mut self, ip: IpAddr, flags: u32) -> Result<(), TableError> {
        let change = |known: KnownAddress| KnownAddress {
            flags: known.flags & !address_flags::OF_SERVICES | flags,
            ..known
        };
        let (map, done) = match ip {
            IpAddr::V4(ip) => {
                (SizedMap::ADDRESSES_V4, update_address(&self.addresses_v4, &ip.octets(), change))
            }
            IpAddr::V6(ip) => {
                (SizedMap::ADDRESSES_V6, update_address(&self.addresses_v6, &ip.octets(), change))
            }
        };
        let capacity = self.capacity.services_v4.max(self.capacity.services_v6);
        done.map_err(failed(map, capacity, "write"))
    }

    fn put_source_range(&mut self, service_id: u32, sources: IpNet) -> Result<(), TableError> {
        match sources {
            IpNet::V4(net) => self
                .source_ranges_v4
                .put(&source_range(service_id, net.network().octets(), net.prefix_len()), &1)
                .map_err(failed(SizedMap::SOURCE_RANGES_V4, self.capacity.source_ranges_v4, "write")),
            IpNet::V6(net) => self
                .source_ranges_v6
                .put(&source_range(service_id, net.network().octets(), net.prefix_len()), &1)
                .map_err(failed(SizedMap::SOURCE_RANGES_V6, self.capacity.source_ranges_v6, "write")),
        }
    }

    fn remove_source_range(&mut self, service_id: u32, sources: IpNet) -> Result<(), TableError> {
        match sources {
            IpNet::V4(net) => self
                .source_ranges_v4
                .remove(&source_range(service_id, net.network().octets(), net.prefix_len()))
                .map_err(failed(SizedMap::SOURCE_RANGES_V4, self.capacity.source_ranges_v4, "remove")),
            IpNet::V6(net) => self
                .source_ranges_v6
                .remove(&source_range(service_id, net.network().octets(), net.prefix_len()))
                .map_err(failed(SizedMap::SOURCE_RANGES_V6, self.capacity.source_ranges_v6, "remove")),
        }
        .map(drop)
    }

    fn services(&self) -> Result<Vec<(ServiceAddress, Service)>, TableError> {
        let mut entries = Vec::new();
        service_entries(&self.services_v4, &mut entries).map_err(failed(
            SizedMap::SERVICES_V4,
            self.capacity.services_v4,
            "read",
        ))?;
        service_entries(&self.services_v6, &mut entries).map_err(failed(
            SizedMap::SERVICES_V6,
            self.capacity.services_v6,
            "read",
        ))?;
        Ok(entries)
    }

    fn service_names(&self) -> Result<Vec<(u32, layout::ServiceName)>, TableError> {
        let mut names = Vec::new();
        self.names.for_each(|id, name| names.push((*id, *name))).map_err(failed(
            SizedMap::SERVICE_NAMES,
            self.capacity.service_names,
            "read",
        ))?;
        Ok(names)
    }

    fn read_slots(&self, base: u32, count: u32) -> Result<Vec<u32>, TableError> {
        (base..base.saturating_add(count))
            .map(|slot| self.slots.read(slot))
            .collect::<io::Result<_>>()
            .map_err(failed(SizedMap::SLOTS, self.capacity.slots, "read"))
    }

    fn backends(&self, family: IpFamily) -> Result<Vec<(u32, BackendEntry)>, TableError> {
        match family {
            IpFamily::V4 => backend_entries(&self.backends_v4).map_err(failed(
                SizedMap::BACKENDS_V4,
                self.capacity.backends_v4,
                "read",
            )),
            IpFamily::V6 => backend_entries(&self.backends_v6).map_err(failed(
                SizedMap::BACKENDS_V6,
                self.capacity.backends_v6,
                "read",
            )),
        }
    }

    fn marked_addresses(&self) -> Result<Vec<(IpAddr, u32)>, TableError> {
        let mut entries = Vec::new();
        let capacity = self.capacity;
        marked_addresses(&self.addresses_v4, &mut entries).map_err(failed(
            SizedMap::ADDRESSES_V4,
            capacity.services_v4,
            "read",
        ))?;
        marked_addresses(&self.addresses_v6, &mut entries).map_err(failed(
            SizedMap::ADDRESSES_V6,
            capacity.services_v6,
            "read",
        ))?;
        Ok(entries)
    }

    fn source_ranges(&self) -> Result<Vec<(u32, IpNet)>, TableError> {
        let mut entries = Vec::new();
        source_range_entries(&self.source_ranges_v4, &mut entries).map_err(failed(
            SizedMap::SOURCE_RANGES_V4,
            self.capacity.source_ranges_v4,
            "read",
        ))?;
        source_range_entries(&self.source_ranges_v6, &mut entries).map_err(failed(
            SizedMap::SOURCE_RANGES_V6,
            self.capacity.source_ranges_v6,
            "read",
        ))?;
        Ok(entries)
    }
}

/// The maps that say what the kernel knows of this host.
pub struct HostMaps<'a>(pub &'a MapHandles);

impl HostMaps<'_> {
    fn devices(&self) -> io::Result<Table<u32, Device>> {
        self.0.table("DEVICES")
    }

    fn addresses<A: MapAddress>(&self) -> io::Result<Table<A, KnownAddress>> {
        self.0.table(&format!("ADDRESSES_{}", A::SUFFIX))
    }

    pub fn put_device(&self, ifindex: u32, device: &Device) -> io::Result<()> {
        self.devices()?.put(&ifindex, device)
    }

    pub fn remove_device(&self, ifindex: u32) -> io::Result<()> {
        self.devices()?.remove(&ifindex).map(drop)
    }

    fn namespaces(&self) -> io::Result<Table<u64, NamespaceAddrs>> {
        self.0.table("NAMESPACES")
    }

    pub fn put_namespace(&self, cookie: u64, addresses: &NamespaceAddrs) -> io::Result<()> {
        self.namespaces()?.put(&cookie, addresses)
    }

    pub fn remove_namespace(&self, cookie: u64) -> io::Result<()> {
        self.namespaces()?.remove(&cookie).map(drop)
    }

    /// Writes what the node knows of an address; what Services know of it stays.
    pub fn put_address(&self, address: IpAddr, value: &KnownAddress) -> io::Result<()> {
        self.update_address(address, |known| KnownAddress {
            ifindex: value.ifindex,
            flags: known.flags & !address_flags::OF_HOST | value.flags,
        })
    }

    pub fn remove_address(&self, address: IpAddr) -> io::Result<()> {
        self.update_address(address, |known| KnownAddress {
            ifindex: 0,
            flags: known.flags & !address_flags::OF_HOST,
        })
    }

    fn networks<A: MapAddress>(&self) -> io::Result<Table<LpmKey<A>, u32>>
    where
        LpmKey<A>: Plain,
    {
        self.0.table(&format!("NETWORKS_{}", A::SUFFIX))
    }

    /// Every network that the programs know, with its flags.
    pub fn read_networks(&self) -> io::Result<Vec<(IpNet, u32)>> {
        let mut networks = Vec::new();
        network_entries(&self.networks::<[u8; 4]>()?, &mut networks)?;
        network_entries(&self.networks::<[u8; 16]>()?, &mut networks)?;
        Ok(networks)
    }

    pub fn put_network(&self, network: IpNet, flags: u32) -> io::Result<()> {
        match network {
            IpNet::V4(net) => {
                self.networks()?.put(&lpm_key(net.network().octets(), net.prefix_len()), &flags)
            }
            IpNet::V6(net) => {
                self.networks()?.put(&lpm_key(net.network().octets(), net.prefix_len()), &flags)
            }
        }
    }

    pub fn remove_network(&self, network: IpNet) -> io::Result<()> {
        match network {
            IpNet::V4(net) => self.networks()?.remove(&lpm_key(net.network().octets(), net.prefix_len())),
            IpNet::V6(net) => self.networks()?.remove(&lpm_key(net.network().octets(), net.prefix_len())),
        }
        .map(drop)
    }

    fn update_address(
        &self,
        address: IpAddr,
        change: impl FnOnce(KnownAddress) -> KnownAddress,
    ) -> io::Result<()> {
        match address {
            IpAddr::V4(ip) => update_address(&self.addresses()?, &ip.octets(), change),
            IpAddr::V6(ip) => update_address(&self.addresses()?, &ip.octets(), change),
        }
    }
}

fn lpm_key<A>(addr: A, prefix_len: u8) -> LpmKey<A> {
    LpmKey { prefix_len: prefix_len.into(), data: addr }
}

fn network_entries<A: MapAddress>(
    table: &Table<LpmKey<A>, u32>,
    networks: &mut Vec<(IpNet, u32)>,
) -> io::Result<()>
where
    LpmKey<A>: Plain,
{
    table.for_each(|key, flags| {
        let length = u8::try_from(key.prefix_len).ok();
        let network = length.and_then(|length| IpNet::new(key.data.to_ip(), length).ok());
        networks.extend(network.map(|network| (network, *flags)));
    })
}

/// Changes an entry of `ADDRESSES`, which the node and Services share, and removes it when nothing is left. One thread writes
/// the map: nobody comes between reading and writing.
fn update_address<A: Plain>(
    addresses: &Table<A, KnownAddress>,
    address: &A,
    change: impl FnOnce(KnownAddress) -> KnownAddress,
) -> io::Result<()> {
    let known = addresses.get(address)?.unwrap_or(KnownAddress { ifindex: 0, flags: 0 });
    let changed = change(known);
    if changed.flags == 0 {
        addresses.remove(address).map(drop)
    } else if changed != known {
        addresses.put(address, &changed)
    } else {
        Ok(())
    }
}
