//! The engine: records of what the maps hold, and the changes that lead from there to what is wanted.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use lb_common::layout;
use lb_model::{IpFamily, PerFamily, Protocol};
use lb_plan::desired::{DesiredServicePort, EndpointList, FrontendKind, ListPolicy, ServicePortId};

use super::entry::{self, SlotRange};
use super::error::ApplyError;
use super::ids::{IdPool, settled_before};
use super::marks::AddressMarks;
use super::slots::SlotPool;
use super::tables::{BackendEntry, Capacity, MapName, ServiceAddress, TableError, Tables};

/// Keeps the service maps equal to what is wanted. Never sleeps and has no clock: time is an argument.
///
/// The cost of a call is proportional to the service port it is about, whatever the size of the cluster.
#[derive(Debug)]
pub struct Engine<T> {
    pub(super) services: HashMap<Arc<ServicePortId>, Installed>,
    /// What could not be done yet.
    pending: BTreeMap<Arc<ServicePortId>, Pending>,
    pub(super) writer: Writer<T>,
}

/// Ids that entries written by the programs name, collected by a sweep over all tables that hold such: flows, half-open
/// flows and socket peers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamedByFlows {
    pub services: HashSet<u32>,
    pub backends: PerFamily<HashSet<u32>>,
}

impl NamedByFlows {
    pub fn add(&mut self, family: IpFamily, service_id: u32, backend_id: u32) {
        self.services.insert(service_id);
        self.backends[family].insert(backend_id);
    }
}

/// Entries of a map that hold something, without those that wait to be reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapUsage {
    pub map: &'static str,
    pub entries: u64,
    pub capacity: u32,
}

/// What the maps hold of one service port.
#[derive(Debug)]
pub(super) struct Installed {
    pub service_id: u32,
    /// Port number in its `SERVICE_NAMES` entry. `None`: it has none yet.
    pub named_port: Option<u16>,
    pub entries: BTreeMap<ServiceAddress, layout::Service>,
    pub families: PerFamily<InstalledFamily>,
    /// Read back at start, and no source has asked for it since.
    pub adopted: bool,
}

#[derive(Debug, Default)]
pub(super) struct InstalledFamily {
    pub backends: HashMap<SocketAddr, InstalledBackend>,
    /// One for all lists with the same content. More than the entries refer to only after a failed write.
    pub ranges: Vec<Slots>,
    pub source_ranges: BTreeSet<IpNet>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InstalledBackend {
    pub id: u32,
    pub flags: u16,
}

/// A range of the `SLOTS` array with its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slots {
    pub base: u32,
    pub backend_ids: Vec<u32>,
}

impl Slots {
    pub fn count(&self) -> u32 {
        u32::try_from(self.backend_ids.len()).unwrap_or(u32::MAX)
    }

    pub fn range(&self) -> SlotRange {
        SlotRange { base: self.base, count: self.count() }
    }
}

impl Installed {
    fn new(service_id: u32) -> Self {
        Self {
            service_id,
            named_port: None,
            entries: BTreeMap::new(),
            families: PerFamily::default(),
            adopted: false,
        }
    }

    /// The maps hold nothing of it.
    fn is_blank(&self) -> bool {
        self.named_port.is_none()
            && self.entries.is_empty()
            && IpFamily::BOTH.iter().all(|&family| {
                let family = &self.families[family];
                family.backends.is_empty() && family.ranges.is_empty() && family.source_ranges.is_empty()
            })
    }
}

#[derive(Debug)]
struct Pending {
    intent: Intent,
    needs_room: bool,
}

#[derive(Debug)]
enum Intent {
    Apply(Box<DesiredServicePort>),
    Remove,
}

impl<T: Tables> Engine<T> {
    pub(super) fn new(services: HashMap<Arc<ServicePortId>, Installed>, writer: Writer<T>) -> Self {
        Self { services, pending: BTreeMap::new(), writer }
    }

    /// Makes the maps say what is wanted of this service port. What fails is remembered and tried again by
    /// [`Engine::tick`], until the next `apply` or `remove` of the same service port.
    pub fn apply(&mut self, wanted: &DesiredServicePort, now: Instant) -> Result<(), ApplyError> {
        let result = self.try_apply(wanted, now);
        self.remember(&wanted.id, &result, || Intent::Apply(Box::new(wanted.clone())));
        result
    }

    /// Removes everything of this service port. One that is not there is none of our business.
    pub fn remove(&mut self, id: &ServicePortId, now: Instant) -> Result<(), ApplyError> {
        let result = self.try_remove(id, now);
        self.remember(id, &result, || Intent::Remove);
        result
    }

    /// To be called once, after every source has delivered its first full state: removes the service ports that an
    /// earlier agent left and that nobody asked for since. Nothing is pruned before.
    pub fn finish_sync(&mut self, now: Instant) -> Vec<ApplyError> {
        let mut leftover: Vec<_> = self
            .services
            .iter()
            .filter(|(_, installed)| installed.adopted)
            .map(|(id, _)| id.clone())
            .collect();
        leftover.sort();
        let mut errors: Vec<_> = leftover.iter().filter_map(|id| self.remove(id, now).err()).collect();
        errors.extend(self.tick(now));
        errors
    }

    /// Frees what is past its grace period and tries again what failed. To be called after each batch of changes (an
    /// address that one service port gave up may be what another one waits for) and about every second.
    /// The errors are those of what was tried and failed again.
    pub fn tick(&mut self, now: Instant) -> Vec<ApplyError> {
        let writer = &mut self.writer;
        writer.freed |= writer.slots.expire(now, writer.grace);
        let room = std::mem::take(&mut writer.freed);
        // Of changes that failed half-way and wait for room now. If this fails too there is always a next tick, and a mark too
        // many does no harm.
        let _ = writer.marks.tidy(&mut writer.tables);
        let due: Vec<_> =
            self.pending.iter().filter(|(_, p)| room || !p.needs_room).map(|(id, _)| id.clone()).collect();
        let mut errors = Vec::new();
        for id in due {
            let Some(pending) = self.pending.remove(&id) else { continue };
            let result = match &pending.intent {
                Intent::Apply(wanted) => self.try_apply(wanted, now),
                Intent::Remove => self.try_remove(&id, now),
            };
            self.remember(&id, &result, || pending.intent);
            errors.extend(result.err());
        }
        errors
    }

    /// Whether ids wait for a sweep of the flow tables. Without any there is no need for one.
    pub fn wants_sweep(&self) -> bool {
        let writer = &self.writer;
        writer.service_ids.has_retired()
            || IpFamily::BOTH.iter().any(|&family| writer.backend_ids[family].has_retired())
    }

    /// All tables of [`NamedByFlows`] were read, beginning at `started`; `named` holds every id found there. Frees the ids that were
    /// withdrawn a grace period before and that no flow names.
    pub fn swept(&mut self, started: Instant, named: &NamedByFlows) {
        let writer = &mut self.writer;
        let before = settled_before(started, writer.grace);
        writer.freed |= writer.service_ids.swept(before, &named.services);
        for family in IpFamily::BOTH {
            writer.freed |= writer.backend_ids[family].swept(before, &named.backends[family]);
        }
    }

    /// Protocols of the service ports that have lost an endpoint since this was asked last.
    pub fn take_lost(&mut self) -> BTreeSet<Protocol> {
        std::mem::take(&mut self.writer.lost)
    }

    /// How full the maps are.
    pub fn usage(&self) -> Vec<MapUsage> {
        let Writer { capacity, entry_count, backend_ids, slots, source_range_count, .. } = &self.writer;
        let backends = |family| backend_ids[family].in_use() as u64;
        [
            (MapName::SERVICES.v4, u64::from(entry_count.v4), capacity.services.v4),
            (MapName::SERVICES.v6, u64::from(entry_count.v6), capacity.services.v6),
            (MapName::SERVICE_NAMES, self.services.len() as u64, capacity.service_names),
            (MapName::SLOTS, slots.in_use(), capacity.slots),
            (MapName::BACKENDS.v4, backends(IpFamily::V4), capacity.backends.v4),
            (MapName::BACKENDS.v6, backends(IpFamily::V6), capacity.backends.v6),
            (MapName::SOURCE_RANGES.v4, source_range_count.v4.into(), capacity.source_ranges.v4),
            (MapName::SOURCE_RANGES.v6, source_range_count.v6.into(), capacity.source_ranges.v6),
        ]
        .map(|(map, entries, capacity)| MapUsage { map: map.name, entries, capacity })
        .into()
    }

    /// Service ports that are not, or not fully, as they are wanted.
    pub fn unsettled(&self) -> impl Iterator<Item = &ServicePortId> {
        self.pending.keys().map(Arc::as_ref)
    }

    fn remember(
        &mut self,
        id: &ServicePortId,
        result: &Result<(), ApplyError>,
        intent: impl FnOnce() -> Intent,
    ) {
        match result {
            Ok(()) => {
                self.pending.remove(id);
            }
            Err(error) => {
                let pending = Pending { intent: intent(), needs_room: error.needs_room() };
                self.pending.insert(Arc::new(id.clone()), pending);
            }
        }
    }

    fn try_apply(&mut self, wanted: &DesiredServicePort, now: Instant) -> Result<(), ApplyError> {
        if wanted.frontends.is_empty() {
            return self.try_remove(&wanted.id, now);
        }
        let (id, mut installed) = match self.services.remove_entry(&wanted.id) {
            Some(known) => known,
            None => {
                let id = Arc::new(wanted.id.clone());
                let service_id = self.writer.take_service_id(&id)?;
                (id, Installed::new(service_id))
            }
        };
        installed.adopted = false;
        let result = self.writer.apply(&id, &mut installed, wanted, now);
        if installed.is_blank() {
            self.writer.service_ids.put_back(installed.service_id);
        } else {
            self.services.insert(id, installed);
        }
        result
    }

    fn try_remove(&mut self, id: &ServicePortId, now: Instant) -> Result<(), ApplyError> {
        let Some((id, mut installed)) = self.services.remove_entry(id) else { return Ok(()) };
        installed.adopted = false;
        match self.writer.remove(&id, &mut installed, now) {
            Ok(()) => Ok(()),
            Err(source) => {
                self.services.insert(id.clone(), installed);
                Err(ApplyError::Table { service: id, source })
            }
        }
    }
}

/// The maps and what is free in them: everything that is shared between service ports.
#[derive(Debug)]
pub(super) struct Writer<T> {
    pub tables: T,
    pub capacity: Capacity,
    pub grace: Duration,
    /// Who holds an address. Every key of the service maps is here.
    pub owners: HashMap<ServiceAddress, Arc<ServicePortId>>,
    /// How many of them there are.
    pub entry_count: PerFamily<u32>,
    /// What the maps say of the addresses of all entries.
    pub marks: AddressMarks,
    /// How many source ranges there are.
    pub source_range_count: PerFamily<u32>,
    pub service_ids: IdPool,
    pub backend_ids: PerFamily<IdPool>,
    pub slots: SlotPool,
    /// Something was freed since the last tick.
    pub freed: bool,
    /// See [`Engine::take_lost`].
    pub lost: BTreeSet<Protocol>,
}

/// What is to be written for one service port. Its ids and ranges are taken, and nothing is published yet.
#[derive(Debug, Default)]
struct Draft {
    new_backends: PerFamily<BTreeMap<SocketAddr, InstalledBackend>>,
    changed_backends: PerFamily<Vec<(SocketAddr, InstalledBackend)>>,
    new_slots: PerFamily<Vec<Slots>>,
    /// All source ranges of the service port, new or not.
    source_ranges: PerFamily<BTreeSet<IpNet>>,
    /// All entries of the service port, changed or not.
    entries: BTreeMap<ServiceAddress, layout::Service>,
}

impl<T: Tables> Writer<T> {
    fn take_service_id(&mut self, service: &Arc<ServicePortId>) -> Result<u32, ApplyError> {
        self.service_ids.take().ok_or_else(|| ApplyError::Table {
            service: service.clone(),
            source: MapName::SERVICE_NAMES.full(self.capacity.service_names),
        })
    }

    fn apply(
        &mut self,
        id: &Arc<ServicePortId>,
        installed: &mut Installed,
        wanted: &DesiredServicePort,
        now: Instant,
    ) -> Result<(), ApplyError> {
        let table_error = |source| ApplyError::Table { service: id.clone(), source };
        let name = entry::service_name(&wanted.id, wanted.port)
            .ok_or_else(|| ApplyError::NameTooLong { service: id.clone() })?;

        let mut draft = Draft::default();
        let mut taken = None;
        let result = self
            .prepare(id, installed, wanted, &mut draft, &mut taken)
            .and_then(|()| self.install(id, installed, &mut draft, &name))
            .and_then(|()| self.withdraw(id, installed, Some(wanted), &draft, now));
        self.discard(draft);
        self.retire_unused_slots(installed, now);
        result.map_err(table_error)?;
        taken.map_or(Ok(()), Err)
    }

    /// Decides on ids, slots and entries, and takes them. Writes nothing.
    ///
    /// An address that another service port holds is left out and reported in `taken`.
    fn prepare(
        &mut self,
        id: &Arc<ServicePortId>,
        installed: &Installed,
        wanted: &DesiredServicePort,
        draft: &mut Draft,
        taken: &mut Option<ApplyError>,
    ) -> Result<(), TableError> {
        for family in IpFamily::BOTH {
            let mut frontends = Vec::new();
            for frontend in wanted.frontends.iter().filter(|f| f.address.family() == family) {
                let address = entry::service_address(frontend, wanted.id.protocol);
                match self.owners.get(&address) {
                    Some(owner) if owner != id => {
                        *taken =
                            Some(ApplyError::Taken { service: id.clone(), address, owner: owner.clone() });
                    }
                    _ => frontends.push((address, frontend)),
                }
            }
            if frontends.is_empty() {
                continue;
            }
            let known = &installed.families[family];
            let lists = wanted.endpoints(family);

            let mut ids = Vec::with_capacity(lists.endpoints.len());
            for (index, endpoint) in (0..).zip(&lists.endpoints) {
                let flags = entry::backend_flags(lists, index, endpoint);
                let backend = match known.backends.get(&endpoint.address) {
                    Some(&InstalledBackend { id, flags: before }) => {
                        if flags != before {
                            draft.changed_backends[family]
                                .push((endpoint.address, InstalledBackend { id, flags }));
                        }
                        id
                    }
                    None => match draft.new_backends[family].get(&endpoint.address) {
                        Some(twice) => twice.id,
                        None => {
                            let id = self.take_backend_id(family)?;
                            draft.new_backends[family]
                                .insert(endpoint.address, InstalledBackend { id, flags });
                            id
                        }
                    },
                };
                ids.push(backend);
            }

            // Slots for the lists that some address uses; lists with the same content share them.
            let [mut cluster, mut local] = [SlotRange::default(); 2];
            for (list, indices, range) in [
                (EndpointList::Cluster, &lists.cluster, &mut cluster),
                (EndpointList::Local, &lists.local, &mut local),
            ] {
                if indices.is_empty()
                    || !frontends.iter().any(|(_, f)| f.outside.list == list || f.inside.list == list)
                {
                    continue;
                }
                let backend_ids: Vec<u32> =
                    indices.iter().filter_map(|index| ids.get(*index as usize).copied()).collect();
                let same = |slots: &&Slots| slots.backend_ids == backend_ids;
                *range = match known.ranges.iter().chain(&draft.new_slots[family]).find(same) {
                    Some(slots) => slots.range(),
                    None => {
                        let slots = self.take_slots(backend_ids)?;
                        let range = slots.range();
                        draft.new_slots[family].push(slots);
                        range
                    }
                };
            }
            let range_of = |policy: ListPolicy| match policy.list {
                EndpointList::Cluster => cluster,
                EndpointList::Local => local,
            };

            let mut new_entries = 0;
            for &(address, frontend) in &frontends {
                let value = entry::service(installed.service_id, wanted, frontend, range_of);
                if let Entry::Vacant(vacant) = draft.entries.entry(address) {
                    vacant.insert(value);
                    new_entries += u32::from(!installed.entries.contains_key(&address));
                }
            }
            let (map, capacity) = (MapName::SERVICES[family], self.capacity.services[family]);
            if self.entry_count[family] + new_entries > capacity {
                return Err(map.full(capacity));
            }

            if frontends.iter().any(|(_, frontend)| frontend.kind == FrontendKind::LoadBalancer) {
                draft.source_ranges[family] =
                    entry::source_ranges(wanted, family).into_iter().flatten().collect();
            }
            let (map, capacity) = (MapName::SOURCE_RANGES[family], self.capacity.source_ranges[family]);
            // Those that go make room only when the entries no longer need them.
            let new = draft.source_ranges[family].difference(&known.source_ranges).count();
            if new > capacity.saturating_sub(self.source_range_count[family]) as usize {
                return Err(map.full(capacity));
            }
        }
        Ok(())
    }

    fn take_backend_id(&mut self, family: IpFamily) -> Result<u32, TableError> {
        let (map, capacity) = (MapName::BACKENDS[family], self.capacity.backends[family]);
        self.backend_ids[family].take().ok_or_else(|| map.full(capacity))
    }

    fn take_slots(&mut self, backend_ids: Vec<u32>) -> Result<Slots, TableError> {
        let count = u32::try_from(backend_ids.len()).unwrap_or(u32::MAX);
        let base = self.slots.take(count).ok_or_else(|| MapName::SLOTS.full(self.slots.capacity()))?;
        Ok(Slots { base, backend_ids })
    }

    /// Writes what is new, in the order in which it refers to each other. What is written moves from the draft to the
    /// record.
    fn install(
        &mut self,
        id: &Arc<ServicePortId>,
        installed: &mut Installed,
        draft: &mut Draft,
        name: &layout::ServiceName,
    ) -> Result<(), TableError> {
        let service_id = installed.service_id;
        for family in IpFamily::BOTH {
            let record = &mut installed.families[family];
            for &(address, backend) in &draft.changed_backends[family] {
                let entry = BackendEntry { address, flags: backend.flags, service_id };
                self.tables.write_backend(family, backend.id, entry)?;
                record.backends.insert(address, backend);
            }
            while let Some(new) = draft.new_backends[family].first_entry() {
                let (&address, &backend) = (new.key(), new.get());
                let entry = BackendEntry { address, flags: backend.flags, service_id };
                self.tables.write_backend(family, backend.id, entry)?;
                record.backends.insert(address, backend);
                new.remove();
            }
            while let Some(slots) = draft.new_slots[family].last() {
                self.tables.write_slots(slots.base, &slots.backend_ids)?;
                record.ranges.extend(draft.new_slots[family].pop());
            }
            for &sources in &draft.source_ranges[family] {
                if !record.source_ranges.contains(&sources) {
                    self.tables.put_source_range(service_id, sources)?;
                    record.source_ranges.insert(sources);
                    self.source_range_count[family] += 1;
                }
            }
        }
        if installed.named_port != Some(name.port) {
            self.tables.put_service_name(service_id, name)?;
            installed.named_port = Some(name.port);
        }
        for (&address, &value) in &draft.entries {
            if installed.entries.get(&address) == Some(&value) {
                continue;
            }
            self.marks.add(&mut self.tables, address.ip, value.kind)?;
            if let Err(error) = self.tables.put_service(address, value) {
                self.marks.release(address.ip, value.kind);
                return Err(error);
            }
            match installed.entries.insert(address, value) {
                Some(replaced) => self.marks.release(address.ip, replaced.kind),
                None => {
                    self.owners.insert(address, id.clone());
                    self.entry_count[IpFamily::of(&address.ip)] += 1;
                }
            }
        }
        Ok(())
    }

    /// Gives back what was taken and not written.
    fn discard(&mut self, draft: Draft) {
        for family in IpFamily::BOTH {
            for backend in draft.new_backends[family].values() {
                self.backend_ids[family].put_back(backend.id);
            }
            for slots in &draft.new_slots[family] {
                self.slots.put_back(slots.base, slots.count());
            }
        }
    }

    /// Removes the entries that are not in the draft, with what only they needed, then the backends that are not wanted: from
    /// here on their UDP flows move to another endpoint.
    fn withdraw(
        &mut self,
        id: &ServicePortId,
        installed: &mut Installed,
        wanted: Option<&DesiredServicePort>,
        draft: &Draft,
        now: Instant,
    ) -> Result<(), TableError> {
        let entries = &draft.entries;
        let gone: Vec<_> =
            installed.entries.keys().filter(|address| !entries.contains_key(address)).copied().collect();
        for address in gone {
            self.tables.remove_service(address)?;
            if let Some(removed) = installed.entries.remove(&address) {
                self.marks.release(address.ip, removed.kind);
            }
            self.owners.remove(&address);
            self.entry_count[IpFamily::of(&address.ip)] -= 1;
            self.freed = true;
        }
        self.retire_unused_slots(installed, now);
        self.marks.tidy(&mut self.tables)?;
        for family in IpFamily::BOTH {
            let record = &mut installed.families[family];
            while let Some(&sources) = record.source_ranges.difference(&draft.source_ranges[family]).next() {
                self.tables.remove_source_range(installed.service_id, sources)?;
                record.source_ranges.remove(&sources);
                self.source_range_count[family] -= 1;
                self.freed = true;
            }
            let served = wanted.filter(|_| entries.keys().any(|address| IpFamily::of(&address.ip) == family));
            let endpoints = served.map_or([].as_slice(), |wanted| &wanted.endpoints(family).endpoints);
            let kept: HashSet<SocketAddr> = endpoints.iter().map(|endpoint| endpoint.address).collect();
            let gone: Vec<_> = record
                .backends
                .iter()
                .filter(|(address, _)| !kept.contains(address))
                .map(|(address, backend)| (*address, backend.id))
                .collect();
            for (address, backend_id) in gone {
                self.tables.clear_backend(family, backend_id)?;
                record.backends.remove(&address);
                self.backend_ids[family].retire(backend_id, now);
                self.lost.insert(id.protocol);
            }
        }
        Ok(())
    }

    /// Gives back the slots that no entry refers to: replaced ones, and those of a change that failed half-way.
    fn retire_unused_slots(&mut self, installed: &mut Installed, now: Instant) {
        for family in IpFamily::BOTH {
            let used: HashSet<u32> = installed
                .entries
                .iter()
                .filter(|(address, _)| IpFamily::of(&address.ip) == family)
                .flat_map(|(_, entry)| entry::slot_ranges(entry))
                .filter(|range| range.count > 0)
                .map(|range| range.base)
                .collect();
            for slots in installed.families[family].ranges.extract_if(.., |slots| !used.contains(&slots.base))
            {
                self.slots.retire(slots.base, slots.count(), now);
            }
        }
    }

    /// Removes everything of a service port.
    fn remove(
        &mut self,
        id: &ServicePortId,
        installed: &mut Installed,
        now: Instant,
    ) -> Result<(), TableError> {
        self.withdraw(id, installed, None, &Draft::default(), now)?;
        self.tables.remove_service_name(installed.service_id)?;
        self.service_ids.retire(installed.service_id, now);
        Ok(())
    }
}
