//! What an earlier agent left in the maps becomes the record of this one, so that nothing is written for what did not
//! change, and ids that flows name keep their meaning.
//!
//! Only what is whole is kept: a crash in the middle of a change leaves backends without a name, ranges without an entry,
//! and, if something else wrote to the maps, entries that lead nowhere. All of that is removed here, before anything is
//! given out again.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use lb_common::layout;
use lb_model::{IpFamily, PerFamily};
use lb_plan::desired::ServicePortId;

use super::engine::{Engine, Installed, InstalledBackend, NamedByFlows, Slots, Writer};
use super::entry::{self, SlotRange};
use super::ids::IdPool;
use super::marks::AddressMarks;
use super::slots::SlotPool;
use super::tables::{Capacity, ServiceAddress, TableError, Tables};

impl<T: Tables> Engine<T> {
    /// Takes over the maps as they are. `named`: every id that the flow tables name now. `grace`: longer than a packet
    /// can be in the hands of a program.
    ///
    /// Free slots count as reusable at once: between the last change of the agent before and this call lies the start of a
    /// process, far more than the time a packet is handled in.
    pub fn adopt(tables: T, named: &NamedByFlows, grace: Duration, now: Instant) -> Result<Self, TableError> {
        let mut reader = Reader::new(tables)?;
        let mut backends = PerFamily::default();
        let mut stale_backends = PerFamily::default();
        for family in IpFamily::BOTH {
            (backends[family], stale_backends[family]) = reader.read_backends(family)?;
        }
        let stale_entries = reader.read_entries(&backends)?;
        let stale_source_ranges = reader.read_source_ranges()?;

        // From the referring to the referred, so that what is left is whole at each step.
        for address in stale_entries {
            reader.tables.remove_service(address)?;
        }
        for (service_id, sources) in stale_source_ranges {
            reader.tables.remove_source_range(service_id, sources)?;
        }
        for family in IpFamily::BOTH {
            for &id in &stale_backends[family] {
                reader.tables.clear_backend(family, id)?;
            }
        }
        for &id in &reader.stale_names {
            reader.tables.remove_service_name(id)?;
        }
        let marked = reader.tables.marked_addresses()?;
        let mut engine = reader.into_engine(named, &backends, &stale_backends, marked, grace, now);
        let Writer { tables, marks, .. } = &mut engine.writer;
        marks.tidy(tables)?;
        Ok(engine)
    }
}

/// Backend id → service id, of the backends that were adopted.
type Owners = HashMap<u32, u32>;

struct Reader<T> {
    tables: T,
    capacity: Capacity,
    services: HashMap<u32, (ServicePortId, Installed)>,
    /// Service ids whose name is of no use.
    stale_names: Vec<u32>,
    slots: SlotPool,
}

impl<T: Tables> Reader<T> {
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
                    if (1..service_id_end(&capacity)).contains(&service_id) && seen.insert(id.clone()) =>
                {
                    services.insert(service_id, (id, Installed::adopted(service_id, port)));
                }
                _ => stale_names.push(service_id),
            }
        }
        Ok(Self { tables, capacity, services, stale_names, slots: SlotPool::new(capacity.slots) })
    }

    /// Backends of known services go to their records; the ids of the others are returned as stale.
    fn read_backends(&mut self, family: IpFamily) -> Result<(Owners, Vec<u32>), TableError> {
        let mut owners = Owners::new();
        let mut stale = Vec::new();
        for (id, backend) in self.tables.backends(family)? {
            let record = self.services.get_mut(&backend.service_id).filter(|_| id != 0);
            let Some((_, installed)) = record else {
                stale.push(id);
                continue;
            };
            let known = &mut installed.families[family].backends;
            match known.entry(backend.address) {
                Entry::Vacant(new) => {
                    new.insert(InstalledBackend { id, flags: backend.flags });
                    owners.insert(id, backend.service_id);
                }
                Entry::Occupied(_) => stale.push(id),
            }
        }
        Ok((owners, stale))
    }

    /// Those of known services go to their records; the others are returned as stale.
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

    /// Entries that are whole go to the records of their services; the keys of the others are returned as stale.
    fn read_entries(&mut self, backends: &PerFamily<Owners>) -> Result<Vec<ServiceAddress>, TableError> {
        let mut stale = Vec::new();
        let mut entries = self.tables.services()?;
        entries.sort_by_key(|(address, _)| *address);
        for (address, value) in entries {
            if !self.adopt_entry(address, value, backends)? {
                stale.push(address);
            }
        }
        Ok(stale)
    }

    fn adopt_entry(
        &mut self,
        address: ServiceAddress,
        value: layout::Service,
        backends: &PerFamily<Owners>,
    ) -> Result<bool, TableError> {
        let family = IpFamily::of(&address.ip);
        let Some((_, installed)) = self.services.get_mut(&value.service_id) else { return Ok(false) };
        let known = &mut installed.families[family].ranges;
        for SlotRange { base, count } in entry::slot_ranges(&value) {
            if count == 0 {
                continue;
            }
            if let Some(slots) = known.iter().find(|slots| slots.base == base) {
                if slots.count() != count {
                    return Ok(false);
                }
                continue;
            }
            if !self.slots.reserve(base, count) {
                return Ok(false);
            }
            let backend_ids = self.tables.read_slots(base, count)?;
            if !backend_ids.iter().all(|id| backends[family].get(id) == Some(&value.service_id)) {
                self.slots.put_back(base, count);
                return Ok(false);
            }
            known.push(Slots { base, backend_ids });
        }
        installed.entries.insert(address, value);
        Ok(true)
    }

    fn into_engine(
        self,
        named: &NamedByFlows,
        backends: &PerFamily<Owners>,
        stale_backends: &PerFamily<Vec<u32>>,
        marked: Vec<(IpAddr, u32)>,
        grace: Duration,
        now: Instant,
    ) -> Engine<T> {
        let pool = |family: IpFamily, end: u32| {
            let used = backends[family].keys().copied().collect();
            // What was cleared just now is in doubt like what a flow names.
            let named = named.backends[family].iter().chain(&stale_backends[family]).copied().collect();
            IdPool::adopt(end, &used, &named, now)
        };
        let backend_ids = PerFamily {
            v4: pool(IpFamily::V4, self.capacity.backends.v4),
            v6: pool(IpFamily::V6, self.capacity.backends.v6),
        };
        let service_ids = {
            let used = self.services.keys().copied().collect();
            let named = named.services.iter().chain(&self.stale_names).copied().collect();
            IdPool::adopt(service_id_end(&self.capacity), &used, &named, now)
        };
        let mut owners = HashMap::new();
        let (mut entry_count, mut source_range_count) = (PerFamily::default(), PerFamily::<u32>::default());
        let mut kinds = Vec::new();
        let mut services = HashMap::with_capacity(self.services.len());
        for (id, installed) in self.services.into_values() {
            let id = Arc::new(id);
            for (address, entry) in &installed.entries {
                owners.insert(*address, id.clone());
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
            owners,
            entry_count,
            marks: AddressMarks::adopt(kinds, marked),
            source_range_count,
            service_ids,
            backend_ids,
            slots: self.slots,
            freed: false,
            lost: Default::default(),
        };
        Engine::new(services, writer)
    }
}

/// Service ids are below the number of names: right for a map of names of either kind, hash or array.
fn service_id_end(capacity: &Capacity) -> u32 {
    capacity.service_names
}

impl Installed {
    fn adopted(service_id: u32, port: u16) -> Self {
        Self {
            service_id,
            named_port: Some(port),
            entries: BTreeMap::new(),
            families: PerFamily::default(),
            adopted: true,
        }
    }
}
