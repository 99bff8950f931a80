//! The service maps in the kernel, which the engine writes.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use lb_common::layout::{EndpointKey, KnownAddress, ServiceEntry, ServiceName, Thresholds, address_flags};
use lb_model::IpFamily;

use crate::apply::map_name::{MapName, TableError};
use crate::apply::tables::{BackendEntry, Capacity, ServiceAddress, Tables};
use crate::family_table::{AllowedSource, BackendArrays, FamilyTable};
use crate::first_filter::{Filter, Mark};
use crate::handles::MapHandles;
use crate::known_addresses::KnownAddresses;
use crate::table::{ArrayTable, Table};

/// The service maps in the kernel.
#[derive(Debug)]
pub struct ServiceTables {
    services: FamilyTable<ServiceAddress, ServiceEntry>,
    names: Table<u32, ServiceName>,
    /// `None`: the maps belong to an agent without this map. Only commands open such maps.
    thresholds: Option<Table<u32, Thresholds>>,
    /// As `thresholds`.
    overloaded: Option<Table<EndpointKey, u32>>,
    slots: ArrayTable<u32>,
    cursors: Table<u32, u32>,
    backends: BackendArrays,
    addresses: KnownAddresses,
    source_ranges: FamilyTable<AllowedSource, u32>,
    filter: Arc<Filter>,
    capacity: Capacity,
}

impl ServiceTables {
    pub fn new(handles: &MapHandles, filter: Arc<Filter>) -> io::Result<Self> {
        let services = FamilyTable::open(handles, MapName::SERVICES)?;
        let names: Table<_, _> = handles.table(MapName::SERVICE_NAMES)?;
        let thresholds = if_exists(handles.table(MapName::THRESHOLDS))?;
        let overloaded = if_exists(handles.table(MapName::OVERLOADED))?;
        let slots: ArrayTable<_> = handles.array(MapName::SLOTS)?;
        let cursors = handles.table(MapName::CURSORS)?;
        let backends = BackendArrays::open(handles)?;
        let source_ranges = FamilyTable::open(handles, MapName::SOURCE_RANGES)?;
        let capacity = Capacity {
            services: services.capacity(),
            slots: slots.capacity(),
            backends: backends.capacity(),
            service_names: names.capacity(),
            source_ranges: source_ranges.capacity(),
        };
        let addresses = KnownAddresses::open(handles)?;
        Ok(Self {
            services,
            names,
            thresholds,
            overloaded,
            slots,
            cursors,
            backends,
            addresses,
            source_ranges,
            filter,
            capacity,
        })
    }
}

/// Returns `None` for a map that does not exist.
fn if_exists<T>(table: io::Result<T>) -> io::Result<Option<T>> {
    match table {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        table => table.map(Some),
    }
}

impl Tables for ServiceTables {
    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn put_service(&mut self, address: ServiceAddress, value: ServiceEntry) -> Result<(), TableError> {
        if let Some(mark) = Mark::of_node_port(address) {
            self.filter.mark(mark)?;
        }
        self.services.set(address, Some(&value))
    }

    fn remove_service(&mut self, address: ServiceAddress) -> Result<(), TableError> {
        self.filter.note_removal();
        self.services.set(address, None)
    }

    fn put_service_name(&mut self, service_id: u32, name: &ServiceName) -> Result<(), TableError> {
        self.names.put(&service_id, name)
    }

    fn remove_service_name(&mut self, service_id: u32) -> Result<(), TableError> {
        self.names.remove(&service_id).map(drop)
    }

    fn put_thresholds(&mut self, service_id: u32, thresholds: Thresholds) -> Result<(), TableError> {
        match &self.thresholds {
            Some(table) => table.put(&service_id, &thresholds),
            None => Err(MapName::THRESHOLDS.failed(0, "write", io::ErrorKind::NotFound.into())),
        }
    }

    fn remove_thresholds(&mut self, service_id: u32) -> Result<(), TableError> {
        self.thresholds.as_ref().map_or(Ok(()), |table| table.remove(&service_id).map(drop))
    }

    fn relieve(&mut self, family: IpFamily, backend_ids: &[u32]) -> Result<(), TableError> {
        let Some(table) = &self.overloaded else { return Ok(()) };
        let is_v6 = u32::from(family == IpFamily::V6);
        let mut keys = backend_ids.iter().map(|&backend_id| EndpointKey { backend_id, is_v6 });
        keys.try_for_each(|key| table.remove(&key).map(drop))
    }

    fn write_slots(&mut self, base: u32, backend_ids: &[u32]) -> Result<(), TableError> {
        let end = u64::from(base) + backend_ids.len() as u64;
        if end > u64::from(self.capacity.slots) {
            return Err(MapName::SLOTS.full(self.capacity.slots));
        }
        (base..).zip(backend_ids).try_for_each(|(slot, id)| self.slots.write(slot, *id))
    }

    fn put_cursor(&mut self, base: u32, next: u32) -> Result<(), TableError> {
        self.cursors.put(&base, &next)
    }

    fn remove_cursor(&mut self, base: u32) -> Result<(), TableError> {
        self.cursors.remove(&base).map(drop)
    }

    fn write_backend(&mut self, family: IpFamily, id: u32, entry: BackendEntry) -> Result<(), TableError> {
        self.filter.mark(Mark::Endpoint(entry.address))?;
        self.backends.write(family, id, &entry)
    }

    fn clear_backend(&mut self, family: IpFamily, id: u32) -> Result<(), TableError> {
        self.filter.note_removal();
        self.backends.clear(family, id)
    }

    fn rewrite_backend(&mut self, family: IpFamily, id: u32, entry: BackendEntry) -> Result<(), TableError> {
        self.filter.mark(Mark::Endpoint(entry.address))?;
        self.backends.clear(family, id)?;
        self.backends.write(family, id, &entry)
    }

    fn rewrite_slot(&mut self, slot: u32, backend_id: u32) -> Result<(), TableError> {
        self.slots.write(slot, backend_id)
    }

    fn mark_address(&mut self, ip: IpAddr, flags: u32) -> Result<(), TableError> {
        match flags {
            0 => self.filter.note_removal(),
            _ => self.filter.mark(Mark::Service(ip))?,
        }
        self.addresses.update(ip, |known| KnownAddress {
            flags: known.flags & !address_flags::OF_SERVICES | flags,
            ..known
        })
    }

    fn put_source_range(&mut self, service_id: u32, network: IpNet) -> Result<(), TableError> {
        self.source_ranges.set(AllowedSource { service_id, network }, Some(&1))
    }

    fn restore_source_range(&mut self, service_id: u32, network: IpNet) -> Result<bool, TableError> {
        // A lookup would find a larger network too.
        self.source_ranges.insert(AllowedSource { service_id, network }, &1)
    }

    fn remove_source_range(&mut self, service_id: u32, network: IpNet) -> Result<(), TableError> {
        self.source_ranges.set(AllowedSource { service_id, network }, None)
    }

    fn service(&self, key: ServiceAddress) -> Result<Option<ServiceEntry>, TableError> {
        self.services.get(key)
    }

    fn service_keys(
        &self,
        after: Option<ServiceAddress>,
        count: usize,
    ) -> Result<Vec<ServiceAddress>, TableError> {
        self.services.keys(after, count)
    }

    fn service_name(&self, service_id: u32) -> Result<Option<ServiceName>, TableError> {
        self.names.get(&service_id)
    }

    fn backend(&self, family: IpFamily, id: u32) -> Result<Option<BackendEntry>, TableError> {
        self.backends.get(family, id)
    }

    fn mark(&self, ip: IpAddr) -> Result<u32, TableError> {
        Ok(self.addresses.get(ip)?.map_or(0, |known| known.flags & address_flags::OF_SERVICES))
    }

    fn services(&self) -> Result<Vec<(ServiceAddress, ServiceEntry)>, TableError> {
        self.services.entries()
    }

    fn service_names(&self) -> Result<Vec<(u32, ServiceName)>, TableError> {
        self.names.entries()
    }

    fn thresholds(&self) -> Result<Vec<(u32, Thresholds)>, TableError> {
        self.thresholds.as_ref().map_or_else(|| Ok(Vec::new()), Table::entries)
    }

    fn thresholds_of(&self, service_id: u32) -> Result<Option<Thresholds>, TableError> {
        self.thresholds.as_ref().map_or(Ok(None), |table| table.get(&service_id))
    }

    fn read_slots(&self, base: u32, count: u32) -> Result<Vec<u32>, TableError> {
        let slots = base..base.saturating_add(count);
        slots.map(|slot| self.slots.read(slot)).collect()
    }

    fn cursors(&self) -> Result<Vec<(u32, u32)>, TableError> {
        self.cursors.entries()
    }

    fn cursor(&self, base: u32) -> Result<Option<u32>, TableError> {
        self.cursors.get(&base)
    }

    fn backends(&self, family: IpFamily) -> Result<Vec<(u32, BackendEntry)>, TableError> {
        self.backends.entries(family)
    }

    fn marked_addresses(&self) -> Result<Vec<(IpAddr, u32)>, TableError> {
        let marks = self.addresses.entries()?.into_iter();
        let marks = marks.map(|(address, known)| (address, known.flags & address_flags::OF_SERVICES));
        Ok(marks.filter(|(_, flags)| *flags != 0).collect())
    }

    fn source_ranges(&self) -> Result<Vec<(u32, IpNet)>, TableError> {
        let entries = self.source_ranges.entries()?.into_iter();
        Ok(entries.map(|(source, _)| (source.service_id, source.network)).collect())
    }
}
