//! Takes over the maps of an earlier agent. Their entries become the records of the engine, so
//! unchanged Service ports cause no writes, and the ids in flows keep their meaning.
//!
//! Incomplete entries are removed before ids and slots are allocated. If an agent ends in the
//! middle of a change, backends without a name or slots without a service entry can be left. If
//! another program writes to the maps, there can be service entries without backends.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use lb_common::layout;
use lb_model::{IpFamily, PerFamily};
use lb_plan::desired::ServicePortId;

use super::engine::{Engine, ReferencedIds, Writer};
use super::entry::{self, SlotRange};
use super::ids::IdPool;
use super::installed::{Installed, InstalledBackend, InstalledRange};
use super::marks::AddressFlags;
use super::slots::SlotPool;
use super::tables::{Capacity, ServiceAddress, TableError, Tables};

impl<T: Tables> Engine<T> {
    /// Returns an engine with the current contents of the maps. `referenced` has the ids to which
    /// flows refer. `grace` is longer than a program runs for one packet.
    ///
    /// Free slots can be reused at once: this process has started since the last change of the
    /// earlier agent, which takes longer than the grace period.
    pub fn adopt(
        tables: T,
        referenced: &ReferencedIds,
        grace: Duration,
        now: Instant,
    ) -> Result<Self, TableError> {
        let mut reader = MapReader::new(tables)?;
        for family in IpFamily::BOTH {
            reader.read_backends(family)?;
        }
        let stale_entries = reader.read_entries()?;
        let stale_source_ranges = reader.read_source_ranges()?;
        let stale_thresholds = reader.read_thresholds()?;

        // Entries are removed before the entries to which they refer.
        for address in stale_entries {
            reader.tables.remove_service(address)?;
        }
        for (service_id, sources) in stale_source_ranges {
            reader.tables.remove_source_range(service_id, sources)?;
        }
        for service_id in stale_thresholds {
            reader.tables.remove_thresholds(service_id)?;
        }
        for family in IpFamily::BOTH {
            for &id in &reader.stale_backends[family] {
                reader.tables.clear_backend(family, id)?;
            }
        }
        for &id in &reader.stale_names {
            reader.tables.remove_service_name(id)?;
        }
        reader.repair_cursors()?;
        let marked = reader.tables.marked_addresses()?;
        let mut engine = reader.into_engine(referenced, marked, grace, now);
        let Writer { tables, marks, .. } = &mut engine.writer;
        marks.remove_unneeded(tables)?;
        Ok(engine)
    }
}

/// The service id of each adopted backend, by backend id.
type BackendOwners = HashMap<u32, u32>;

/// Reads the maps and sorts their entries into complete and stale ones.
struct MapReader<T> {
    tables: T,
    capacity: Capacity,
    services: HashMap<u32, (ServicePortId, Installed)>,
    /// Service ids with a name entry that is not valid.
    stale_names: Vec<u32>,
    backend_owners: PerFamily<BackendOwners>,
    /// Ids of backends whose Service port does not exist.
    stale_backends: PerFamily<Vec<u32>>,
    slots: SlotPool,
}

impl<T: Tables> MapReader<T> {
    fn new(tables: T) -> Result<Self, TableError> {
        let capacity = tables.capacity();
        let mut names = tables.service_names()?;
        names.sort_by_key(|(service_id, _)| *service_id);
        let mut services = HashMap::with_capacity(names.len());
        let mut stale_names = Vec::new();
        let mut seen = HashSet::with_capacity(names.len());
        for (service_id, name) in names {
            match entry::parse_service_name(&name) {
                Some((id, port))
                    if (1..capacity.service_id_end()).contains(&service_id) && seen.insert(id.clone()) =>
                {
                    services.insert(service_id, (id, Installed::adopted(service_id, port)));
                }
                _ => stale_names.push(service_id),
            }
        }
        Ok(Self {
            tables,
            capacity,
            services,
            stale_names,
            backend_owners: PerFamily::default(),
            stale_backends: PerFamily::default(),
            slots: SlotPool::new(capacity.slots),
        })
    }

    /// Adds backends to the records of their Service ports, or to the stale ones.
    fn read_backends(&mut self, family: IpFamily) -> Result<(), TableError> {
        let owners = &mut self.backend_owners[family];
        let stale = &mut self.stale_backends[family];
        for (id, backend) in self.tables.backends(family)? {
            let record = self.services.get_mut(&backend.service_id).filter(|_| id != 0);
            let Some((_, installed)) = record else {
                stale.push(id);
                continue;
            };
            let known = &mut installed.families[family].backends;
            match known.entry(backend.address) {
                Entry::Vacant(new) => {
                    new.insert(InstalledBackend { id, flags: backend.flags, weight: backend.weight });
                    owners.insert(id, backend.service_id);
                }
                Entry::Occupied(_) => stale.push(id),
            }
        }
        Ok(())
    }

    /// Adds source ranges to the records of their Service ports. Returns the stale ones.
    fn read_source_ranges(&mut self) -> Result<Vec<(u32, IpNet)>, TableError> {
        let mut stale = Vec::new();
        for (service_id, sources) in self.tables.source_ranges()? {
            match self.services.get_mut(&service_id) {
                Some((_, installed)) => {
                    installed.families[IpFamily::of(&sources.addr())].source_ranges.insert(sources);
                }
                None => stale.push((service_id, sources)),
            }
        }
        Ok(stale)
    }

    /// Adds thresholds to the records of their Service ports. Returns the service ids of the stale
    /// ones.
    fn read_thresholds(&mut self) -> Result<Vec<u32>, TableError> {
        let mut stale = Vec::new();
        for (service_id, thresholds) in self.tables.thresholds()? {
            match self.services.get_mut(&service_id) {
                Some((_, installed)) => installed.thresholds = Some(thresholds),
                None => stale.push(service_id),
            }
        }
        Ok(stale)
    }

    /// Removes the cursors of ranges that do not exist, and adds those that are missing.
    fn repair_cursors(&mut self) -> Result<(), TableError> {
        let ranges = self.services.values().flat_map(|(_, installed)| {
            let [v4, v6] = IpFamily::BOTH.map(|family| &installed.families[family].ranges);
            v4.iter().chain(v6)
        });
        let mut missing: HashSet<u32> =
            ranges.filter(|range| range.in_turn).map(|range| range.base).collect();
        for (base, _) in self.tables.cursors()? {
            if !missing.remove(&base) {
                self.tables.remove_cursor(base)?;
            }
        }
        missing.into_iter().try_for_each(|base| self.tables.put_cursor(base, 0))
    }

    /// Adds complete service entries to the records of their Service ports. Returns the keys of the
    /// stale ones.
    fn read_entries(&mut self) -> Result<Vec<ServiceAddress>, TableError> {
        let mut stale = Vec::new();
        let mut entries = self.tables.services()?;
        entries.sort_by_key(|(address, _)| *address);
        for (address, value) in entries {
            if !self.adopt_entry(address, value)? {
                stale.push(address);
            }
        }
        Ok(stale)
    }

    /// Adds a service entry to the record of its Service port. Returns false if it is not complete.
    fn adopt_entry(
        &mut self,
        address: ServiceAddress,
        value: layout::ServiceEntry,
    ) -> Result<bool, TableError> {
        let family = IpFamily::of(&address.ip);
        let Some((_, installed)) = self.services.get_mut(&value.service_id) else { return Ok(false) };
        let known = &mut installed.families[family].ranges;
        for SlotRange { base, count } in entry::slot_ranges(&value) {
            if count == 0 {
                continue;
            }
            if let Some(range) = known.iter().find(|range| range.base == base) {
                if range.count() != count {
                    return Ok(false);
                }
                continue;
            }
            if !self.slots.reserve(base, count) {
                return Ok(false);
            }
            let backend_ids = self.tables.read_slots(base, count)?;
            let owners = &self.backend_owners[family];
            if !backend_ids.iter().all(|id| owners.get(id) == Some(&value.service_id)) {
                self.slots.put_back(base, count);
                return Ok(false);
            }
            let in_turn = value.algorithm == layout::algorithm::IN_TURN;
            known.push(InstalledRange { base, backend_ids, in_turn });
        }
        installed.entries.insert(address, value);
        Ok(true)
    }

    /// Returns the engine. `marked` has the flags of addresses in the map.
    fn into_engine(
        self,
        referenced: &ReferencedIds,
        marked: Vec<(IpAddr, u32)>,
        grace: Duration,
        now: Instant,
    ) -> Engine<T> {
        let pool = |family: IpFamily, end: u32| {
            let used = self.backend_owners[family].keys().copied().collect();
            // Running programs may still refer to the backends that were removed just now.
            let stale = &self.stale_backends[family];
            let referenced = referenced.backends[family].iter().chain(stale).copied().collect();
            IdPool::adopt(end, &used, &referenced, now)
        };
        let backend_ids = PerFamily {
            v4: pool(IpFamily::V4, self.capacity.backends.v4),
            v6: pool(IpFamily::V6, self.capacity.backends.v6),
        };
        let service_ids = {
            let used = self.services.keys().copied().collect();
            let referenced = referenced.services.iter().chain(&self.stale_names).copied().collect();
            IdPool::adopt(self.capacity.service_id_end(), &used, &referenced, now)
        };
        let mut address_owners = HashMap::new();
        let (mut entry_count, mut source_range_count) = (PerFamily::default(), PerFamily::<u32>::default());
        let mut kinds = Vec::new();
        let mut services = HashMap::with_capacity(self.services.len());
        for (id, installed) in self.services.into_values() {
            let id = Arc::new(id);
            for (address, entry) in &installed.entries {
                address_owners.insert(*address, id.clone());
                entry_count[IpFamily::of(&address.ip)] += 1;
                kinds.push((address.ip, entry.kind));
            }
            for family in IpFamily::BOTH {
                source_range_count[family] += installed.families[family].source_ranges.len() as u32;
            }
            services.insert(id, installed);
        }
        let writer = Writer {
            tables: self.tables,
            capacity: self.capacity,
            grace,
            address_owners,
            entry_count,
            marks: AddressFlags::adopt(kinds, marked),
            source_range_count,
            service_ids,
            backend_ids,
            slots: self.slots,
            unused_cursors: Default::default(),
            freed: false,
            protocols_with_lost_endpoints: Default::default(),
        };
        Engine::new(services, writer)
    }
}

impl Installed {
    fn adopted(service_id: u32, port: u16) -> Self {
        Self {
            service_id,
            named_port: Some(port),
            thresholds: None,
            entries: BTreeMap::new(),
            families: PerFamily::default(),
            adopted: true,
        }
    }
}
