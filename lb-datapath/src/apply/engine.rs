//! The engine: keeps records of the map contents, and writes the changes that lead to the desired
//! state.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use lb_common::layout;
use lb_model::{IpFamily, PerFamily, Protocol, Thresholds};
use lb_plan::desired::{
    DesiredServicePort, EndpointList, EndpointLists, Frontend, FrontendKind, ListPolicy, ServicePortId,
};

use super::demand::{Demand, Lacking, Needed, NeededOfFamily};
use super::entry::{self, SlotRange};
use super::error::ApplyError;
use super::ids::{IdPool, grace_start};
use super::installed::{Installed, InstalledBackend, InstalledRange};
use super::map_name::MapUsage;
use super::marks::AddressFlags;
use super::slots::{SlotPool, size_class};
use super::tables::{Capacity, MapName, ServiceAddress, TableError, Tables};

/// Keeps the service maps equal to the desired state. It never sleeps and reads no clock: the time
/// is an argument.
///
/// The cost of a call depends on the size of its Service port, not on the size of the cluster.
#[derive(Debug)]
pub struct Engine<T> {
    pub(super) services: HashMap<Arc<ServicePortId>, Installed>,
    /// Operations that failed, to be tried again.
    pub(super) pending: BTreeMap<Arc<ServicePortId>, PendingOperation>,
    pub(super) writer: Writer<T>,
}

/// The ids to which entries refer that the programs write: flows and socket peers. A sweep over
/// these maps collects them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReferencedIds {
    pub services: HashSet<u32>,
    pub backends: PerFamily<HashSet<u32>>,
}

impl ReferencedIds {
    /// Adds the ids of one entry.
    pub fn add(&mut self, family: IpFamily, service_id: u32, backend_id: u32) {
        self.services.insert(service_id);
        self.backends[family].insert(backend_id);
    }
}

/// A failed operation that is tried again.
#[derive(Debug)]
pub(super) struct PendingOperation {
    operation: Operation,
    /// Whether it can succeed only after entries were freed.
    needs_room: bool,
    /// What it needs. `None` if no map was full.
    pub lacking: Option<Lacking>,
}

#[derive(Debug)]
enum Operation {
    Apply(Box<DesiredServicePort>),
    Remove,
}

impl<T: Tables> Engine<T> {
    pub(super) fn new(services: HashMap<Arc<ServicePortId>, Installed>, writer: Writer<T>) -> Self {
        Self { services, pending: BTreeMap::new(), writer }
    }

    /// Writes the desired state of a Service port. If this fails, [`Engine::tick`] tries it again,
    /// until the next `apply` or `remove` of the same Service port.
    pub fn apply(&mut self, desired: &DesiredServicePort, now: Instant) -> Result<(), ApplyError> {
        let result = self.try_apply(desired, now);
        self.record_result(&desired.id, &result, || Operation::Apply(Box::new(desired.clone())));
        result
    }

    /// Removes all entries of a Service port. Does nothing if there are none.
    pub fn remove(&mut self, id: &ServicePortId, now: Instant) -> Result<(), ApplyError> {
        let result = self.try_remove(id, now);
        self.record_result(id, &result, || Operation::Remove);
        result
    }

    /// Removes the Service ports that an earlier agent wrote and that no longer exist. Call this
    /// once, when the initial sync of all sources is complete.
    pub fn finish_sync(&mut self, now: Instant) -> Vec<ApplyError> {
        let mut stale: Vec<_> = self
            .services
            .iter()
            .filter(|(_, installed)| installed.adopted)
            .map(|(id, _)| id.clone())
            .collect();
        stale.sort();
        let mut errors: Vec<_> = stale.iter().filter_map(|id| self.remove(id, now).err()).collect();
        errors.extend(self.tick(now));
        errors
    }

    /// Frees slots after their grace period, and tries failed operations again. Returns the errors
    /// of those that fail again. Call this about every second and after each batch of changes: a
    /// Service port may wait for an address that another one has released.
    pub fn tick(&mut self, now: Instant) -> Vec<ApplyError> {
        let writer = &mut self.writer;
        writer.freed |= writer.slots.expire(now, writer.grace);
        let room = std::mem::take(&mut writer.freed);
        // Changes that failed half-way may have left flags. If this write fails, the next tick
        // tries it again. Unneeded flags do not change what happens to a packet.
        let _ = writer.marks.remove_unneeded(&mut writer.tables);
        let tables = &mut writer.tables;
        writer.unused_cursors.retain(|base| tables.remove_cursor(*base).is_err());
        let due: Vec<_> =
            self.pending.iter().filter(|(_, p)| room || !p.needs_room).map(|(id, _)| id.clone()).collect();
        let mut errors = Vec::new();
        for id in due {
            let Some(pending) = self.pending.remove(&id) else { continue };
            let result = match &pending.operation {
                Operation::Apply(desired) => self.try_apply(desired, now),
                Operation::Remove => self.try_remove(&id, now),
            };
            self.record_result(&id, &result, || pending.operation);
            errors.extend(result.err());
        }
        errors
    }

    /// Frees the ids that were released at least a grace period before `started` and are not in
    /// `referenced`. A sweep of the flows, which began at `started`, has found the ids in
    /// `referenced`.
    pub fn free_unreferenced_ids(&mut self, started: Instant, referenced: &ReferencedIds) {
        let writer = &mut self.writer;
        let before = grace_start(started, writer.grace);
        writer.freed |= writer.service_ids.free_unreferenced(before, &referenced.services);
        for family in IpFamily::BOTH {
            let backends = &referenced.backends[family];
            writer.freed |= writer.backend_ids[family].free_unreferenced(before, backends);
        }
    }

    /// Returns the protocols of the Service ports that have lost an endpoint since the last call.
    pub fn take_protocols_with_lost_endpoints(&mut self) -> BTreeSet<Protocol> {
        std::mem::take(&mut self.writer.protocols_with_lost_endpoints)
    }

    /// Returns the usage of the maps. Entries that wait to be reused do not count.
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
        .into_iter()
        .filter_map(|(map, entries, capacity)| map.usage(entries, capacity))
        .collect()
    }

    /// Returns the id of a Service port that has entries.
    pub fn service_id(&self, id: &ServicePortId) -> Option<u32> {
        self.services.get(id).map(|installed| installed.service_id)
    }

    /// Returns the Service ports whose last operation failed.
    pub fn pending(&self) -> impl Iterator<Item = &ServicePortId> {
        self.pending.keys().map(Arc::as_ref)
    }

    /// Returns the entries that the maps need for what they have, for operations that have failed
    /// for want of room, and for these changes. A change counts a slot for each endpoint, and none
    /// for those that the Service port has: an agent that starts on maps with all entries needs no
    /// others. If a change needs more slots because of its algorithm, or because the old ones exist
    /// for some seconds, it fails, and its exact number counts from then on.
    pub fn demand(&self, changed: &[DesiredServicePort]) -> Demand {
        let mut needed = Needed::default();
        let mut full = Demand::default();
        for desired in changed {
            needed.add(desired, self.services.get(&desired.id), |_, used, installed| {
                let present =
                    installed.map_or(0, |family| family.ranges.iter().map(|range| range.count()).sum());
                let wanted = used.iter().map(|list| list.len() as u64).sum::<u64>();
                wanted.saturating_sub(present.into())
            });
        }
        for lacking in self.pending.values().filter_map(|pending| pending.lacking.as_ref()) {
            needed.add_all(&lacking.needed);
            full.fill(lacking.full.0, lacking.full.1);
        }
        let writer = &self.writer;
        let greater = |used: PerFamily<u64>, of: fn(&NeededOfFamily) -> u64| {
            (used.v4 + of(&needed.families.v4)).max(used.v6 + of(&needed.families.v6))
        };
        let count = |counts: PerFamily<u32>| PerFamily { v4: counts.v4.into(), v6: counts.v6.into() };
        let backends = PerFamily {
            v4: writer.backend_ids.v4.in_use() as u64,
            v6: writer.backend_ids.v6.in_use() as u64,
        };
        let ports = self.services.len() as u64 + needed.ports;
        let demand = Demand {
            services: greater(count(writer.entry_count), |needed| needed.services).max(ports),
            slots: writer.slots.in_use() + needed.slots,
            backends: greater(backends, |needed| needed.backends),
            source_ranges: greater(count(writer.source_range_count), |needed| needed.source_ranges),
        };
        demand.max(full)
    }

    /// Returns what a Service port needs that has found this map full. New slots exist with
    /// the old ones for some seconds.
    fn lacking(&self, desired: &DesiredServicePort, full: (&'static str, u32)) -> Lacking {
        let mut needed = Needed::default();
        let exact = |lists: &EndpointLists, list: &[u32]| {
            let slots = lists.slots(list, desired.algorithm, desired.thresholds.is_some()).len();
            let slots = u32::try_from(slots).unwrap_or(u32::MAX);
            u64::from(size_class(slots).unwrap_or(u32::MAX))
        };
        needed.add(desired, self.services.get(&desired.id), |lists, used, _| {
            used.iter().map(|list| exact(lists, list)).sum()
        });
        Lacking { needed, full }
    }

    /// Continues on larger maps that have the same entries.
    pub fn move_to(&mut self, tables: T) {
        let writer = &mut self.writer;
        let capacity = tables.capacity();
        writer.service_ids.extend(capacity.service_id_end());
        for family in IpFamily::BOTH {
            writer.backend_ids[family].extend(capacity.backends[family]);
        }
        writer.slots.extend(capacity.slots);
        (writer.tables, writer.capacity, writer.freed) = (tables, capacity, true);
    }

    /// Keeps a failed operation to try it again.
    fn record_result(
        &mut self,
        id: &ServicePortId,
        result: &Result<(), ApplyError>,
        operation: impl FnOnce() -> Operation,
    ) {
        match result {
            Ok(()) => {
                self.pending.remove(id);
            }
            Err(error) => {
                let (operation, needs_room) = (operation(), error.needs_room());
                let lacking = match (&operation, error.full_map()) {
                    (Operation::Apply(desired), Some(full)) => Some(self.lacking(desired, full)),
                    _ => None,
                };
                let pending = PendingOperation { operation, needs_room, lacking };
                self.pending.insert(Arc::new(id.clone()), pending);
            }
        }
    }

    fn try_apply(&mut self, desired: &DesiredServicePort, now: Instant) -> Result<(), ApplyError> {
        if desired.frontends.is_empty() {
            return self.try_remove(&desired.id, now);
        }
        let (id, mut installed) = match self.services.remove_entry(&desired.id) {
            Some(known) => known,
            None => {
                let id = Arc::new(desired.id.clone());
                let service_id = self.writer.take_service_id(&id)?;
                (id, Installed::new(service_id))
            }
        };
        installed.adopted = false;
        let result = self.writer.apply(&id, &mut installed, desired, now);
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

/// Returns the first position in a new range of slots that are used in turn. It continues the range
/// in `ranges` that has the most endpoints of the new one.
fn first_turn(
    tables: &impl Tables,
    ranges: &[InstalledRange],
    backend_ids: &[u32],
) -> Result<u32, TableError> {
    let mut positions = HashMap::new();
    for (position, id) in (0..).zip(backend_ids) {
        positions.entry(*id).or_insert(position);
    }
    let common =
        |range: &&InstalledRange| range.backend_ids.iter().filter(|id| positions.contains_key(id)).count();
    let Some(replaced) = ranges.iter().filter(|range| range.in_turn).max_by_key(common) else { return Ok(0) };
    let next = tables.cursor(replaced.base)?.unwrap_or(0);
    Ok(replaced.next_in(next, &positions))
}

/// The maps, and the state that Service ports share: owners of addresses, and free ids and slots.
#[derive(Debug)]
pub(super) struct Writer<T> {
    pub tables: T,
    pub capacity: Capacity,
    pub grace: Duration,
    /// The Service port of each key in the service maps.
    pub address_owners: HashMap<ServiceAddress, Arc<ServicePortId>>,
    /// The number of entries in the service maps.
    pub entry_count: PerFamily<u32>,
    /// The flags of the addresses of all service entries.
    pub marks: AddressFlags,
    /// The number of source ranges.
    pub source_range_count: PerFamily<u32>,
    pub service_ids: IdPool,
    pub backend_ids: PerFamily<IdPool>,
    pub slots: SlotPool,
    /// The cursors of ranges that were released.
    pub unused_cursors: BTreeSet<u32>,
    /// Whether entries were freed since the last tick.
    pub freed: bool,
    /// See [`Engine::take_protocols_with_lost_endpoints`].
    pub protocols_with_lost_endpoints: BTreeSet<Protocol>,
}

/// The planned changes of one Service port. Its ids and slots are allocated, but not written yet.
#[derive(Debug, Default)]
struct Draft {
    new_backends: PerFamily<BTreeMap<SocketAddr, InstalledBackend>>,
    changed_backends: PerFamily<Vec<(SocketAddr, InstalledBackend)>>,
    new_ranges: PerFamily<Vec<InstalledRange>>,
    /// All desired source ranges, also those that are written already.
    source_ranges: PerFamily<BTreeSet<IpNet>>,
    /// All desired service entries, also those that are written already.
    entries: BTreeMap<ServiceAddress, layout::ServiceEntry>,
    /// Set if another Service port has one of the addresses. This address is left out.
    conflict: Option<ApplyError>,
}

/// The frontends of a Service port in one IP family, for [`Writer::prepare`].
struct FamilyFrontends<'a> {
    family: IpFamily,
    desired: &'a DesiredServicePort,
    installed: &'a Installed,
    frontends: Vec<(ServiceAddress, &'a Frontend)>,
}

impl FamilyFrontends<'_> {
    fn use_list(&self, list: EndpointList) -> bool {
        self.frontends.iter().any(|(_, f)| f.outside.list == list || f.inside.list == list)
    }
}

/// The slots of the two endpoint lists.
#[derive(Debug, Clone, Copy, Default)]
struct ListRanges {
    cluster: SlotRange,
    local: SlotRange,
}

impl ListRanges {
    fn of(self, policy: ListPolicy) -> SlotRange {
        match policy.list {
            EndpointList::Cluster => self.cluster,
            EndpointList::Local => self.local,
        }
    }
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
        desired: &DesiredServicePort,
        now: Instant,
    ) -> Result<(), ApplyError> {
        let table_error = |source| ApplyError::Table { service: id.clone(), source };
        let name = entry::service_name(&desired.id, desired.port)
            .ok_or_else(|| ApplyError::NameTooLong { service: id.clone() })?;

        let mut draft = Draft::default();
        let result = self
            .prepare(id, installed, desired, &mut draft)
            .and_then(|()| self.install(id, installed, &mut draft, (&name, desired.thresholds)))
            .and_then(|()| self.remove_unwanted(id, installed, Some(desired), &draft, now));
        let conflict = draft.conflict.take();
        self.discard(draft);
        self.release_unused_slots(installed, now);
        result.map_err(table_error)?;
        conflict.map_or(Ok(()), Err)
    }

    /// Fills `draft`: allocates ids and slots, and builds the entries. Writes nothing.
    fn prepare(
        &mut self,
        id: &Arc<ServicePortId>,
        installed: &Installed,
        desired: &DesiredServicePort,
        draft: &mut Draft,
    ) -> Result<(), TableError> {
        for family in IpFamily::BOTH {
            let frontends = self.available_frontends(id, desired, family, draft);
            if frontends.is_empty() {
                continue;
            }
            let frontends = FamilyFrontends { family, desired, installed, frontends };
            let lists = desired.endpoints(family);
            let ids = self.prepare_backends(&frontends, draft)?;
            let ids_of = |list: &[u32]| -> Vec<u32> {
                let can_overload = desired.thresholds.is_some();
                let slots = lists.slots(list, desired.algorithm, can_overload).into_iter();
                slots.filter_map(|index| ids.get(index as usize).copied()).collect()
            };
            let mut ranges = ListRanges::default();
            if frontends.use_list(EndpointList::Cluster) {
                ranges.cluster = self.prepare_slots(&frontends, ids_of(&lists.cluster), draft)?;
            }
            if frontends.use_list(EndpointList::Local) {
                ranges.local = self.prepare_slots(&frontends, ids_of(&lists.local), draft)?;
            }
            self.prepare_entries(&frontends, ranges, draft)?;
            self.prepare_source_ranges(&frontends, draft)?;
        }
        Ok(())
    }

    /// Returns the frontends of one IP family. If another Service port has the address of a
    /// frontend, the frontend is left out and the draft gets a conflict.
    fn available_frontends<'a>(
        &self,
        id: &Arc<ServicePortId>,
        desired: &'a DesiredServicePort,
        family: IpFamily,
        draft: &mut Draft,
    ) -> Vec<(ServiceAddress, &'a Frontend)> {
        let mut available = Vec::new();
        for frontend in desired.frontends.iter().filter(|f| f.address.family() == family) {
            let address = entry::service_address(frontend, desired.id.protocol);
            match self.address_owners.get(&address) {
                Some(owner) if owner != id => {
                    let (service, owner) = (id.clone(), owner.clone());
                    draft.conflict = Some(ApplyError::Taken { service, address, owner });
                }
                _ => available.push((address, frontend)),
            }
        }
        available
    }

    /// Allocates ids for new backends. Returns the id of each endpoint, in the order of the list.
    fn prepare_backends(
        &mut self,
        frontends: &FamilyFrontends<'_>,
        draft: &mut Draft,
    ) -> Result<Vec<u32>, TableError> {
        let family = frontends.family;
        let known = &frontends.installed.families[family].backends;
        let lists = frontends.desired.endpoints(family);
        let mut ids = Vec::with_capacity(lists.endpoints.len());
        for (index, endpoint) in (0..).zip(&lists.endpoints) {
            let address = endpoint.address;
            let flags = entry::backend_flags(frontends.desired, lists, index, endpoint);
            let weight = u32::from(endpoint.weight.get());
            let id = match (known.get(&address), draft.new_backends[family].get(&address)) {
                (Some(known), _) => {
                    if (flags, weight) != (known.flags, known.weight) {
                        let changed = InstalledBackend { id: known.id, flags, weight };
                        draft.changed_backends[family].push((address, changed));
                    }
                    known.id
                }
                // The list has the address twice.
                (None, Some(new)) => new.id,
                (None, None) => {
                    let id = self.take_backend_id(family)?;
                    draft.new_backends[family].insert(address, InstalledBackend { id, flags, weight });
                    id
                }
            };
            ids.push(id);
        }
        Ok(ids)
    }

    /// Returns a range of slots with these backends. Allocates a new range unless one with the same
    /// content exists.
    fn prepare_slots(
        &mut self,
        frontends: &FamilyFrontends<'_>,
        backend_ids: Vec<u32>,
        draft: &mut Draft,
    ) -> Result<SlotRange, TableError> {
        if backend_ids.is_empty() {
            return Ok(SlotRange::default());
        }
        let family = frontends.family;
        let in_turn = entry::algorithm(frontends.desired) == layout::algorithm::IN_TURN;
        let installed = &frontends.installed.families[family].ranges;
        let mut known = installed.iter().chain(&draft.new_ranges[family]);
        if let Some(range) = known.find(|range| range.in_turn == in_turn && range.backend_ids == backend_ids)
        {
            return Ok(range.range());
        }
        let new = self.take_slots(backend_ids, in_turn)?;
        let range = new.range();
        draft.new_ranges[family].push(new);
        Ok(range)
    }

    /// Builds the service entries. Fails if the map does not have enough room for the new ones.
    fn prepare_entries(
        &self,
        frontends: &FamilyFrontends<'_>,
        ranges: ListRanges,
        draft: &mut Draft,
    ) -> Result<(), TableError> {
        let &FamilyFrontends { family, desired, installed, .. } = frontends;
        let mut new_entries = 0;
        for &(address, frontend) in &frontends.frontends {
            let range_of = |policy| ranges.of(policy);
            let value = entry::service(installed.service_id, desired, frontend, range_of);
            if let Entry::Vacant(vacant) = draft.entries.entry(address) {
                vacant.insert(value);
                new_entries += u32::from(!installed.entries.contains_key(&address));
            }
        }
        let (map, capacity) = (MapName::SERVICES[family], self.capacity.services[family]);
        match self.entry_count[family] + new_entries > capacity {
            true => Err(map.full(capacity)),
            false => Ok(()),
        }
    }

    /// Collects the source ranges. Fails if the map does not have enough room for the new ones.
    fn prepare_source_ranges(
        &self,
        frontends: &FamilyFrontends<'_>,
        draft: &mut Draft,
    ) -> Result<(), TableError> {
        let &FamilyFrontends { family, desired, installed, .. } = frontends;
        let is_load_balancer = |frontend: &Frontend| frontend.kind == FrontendKind::LoadBalancer;
        if frontends.frontends.iter().any(|(_, frontend)| is_load_balancer(frontend)) {
            draft.source_ranges[family] =
                entry::source_ranges(desired, family).into_iter().flatten().collect();
        }
        let (map, capacity) = (MapName::SOURCE_RANGES[family], self.capacity.source_ranges[family]);
        // Old source ranges are removed only after the new service entries are written, so they do
        // not make room here.
        let known = &installed.families[family].source_ranges;
        let new = draft.source_ranges[family].difference(known).count();
        match new > capacity.saturating_sub(self.source_range_count[family]) as usize {
            true => Err(map.full(capacity)),
            false => Ok(()),
        }
    }

    fn take_backend_id(&mut self, family: IpFamily) -> Result<u32, TableError> {
        let (map, capacity) = (MapName::BACKENDS[family], self.capacity.backends[family]);
        self.backend_ids[family].take().ok_or_else(|| map.full(capacity))
    }

    fn take_slots(&mut self, backend_ids: Vec<u32>, in_turn: bool) -> Result<InstalledRange, TableError> {
        let count = u32::try_from(backend_ids.len()).unwrap_or(u32::MAX);
        let base = self.slots.take(count).ok_or_else(|| MapName::SLOTS.full(self.slots.capacity()))?;
        Ok(InstalledRange { base, backend_ids, in_turn })
    }

    /// Writes new and changed entries, in the order described in [the module](super). Each written
    /// entry moves from the draft to the record.
    fn install(
        &mut self,
        id: &Arc<ServicePortId>,
        installed: &mut Installed,
        draft: &mut Draft,
        (name, thresholds): (&layout::ServiceName, Option<Thresholds>),
    ) -> Result<(), TableError> {
        let service_id = installed.service_id;
        if let Some(new) = thresholds.filter(|new| installed.thresholds != Some(*new)) {
            self.tables.put_thresholds(service_id, new)?;
            // As in IPVS, a greater upper threshold ends the state of being overloaded. Connections
            // that begin after the write are judged by the new thresholds, so the endpoints are
            // relieved after it. A connection that began before can still overload its endpoint by
            // the earlier thresholds. That state ends with the lower threshold, as always.
            if installed.thresholds.is_none_or(|old| old.upper < new.upper) {
                for family in IpFamily::BOTH {
                    let backends = installed.families[family].backends.values();
                    let ids: Vec<_> = backends.map(|backend| backend.id).collect();
                    self.tables.relieve(family, &ids)?;
                }
            }
            installed.thresholds = Some(new);
        }
        for family in IpFamily::BOTH {
            let record = &mut installed.families[family];
            for &(address, backend) in &draft.changed_backends[family] {
                let entry = backend.entry(address, service_id);
                self.tables.write_backend(family, backend.id, entry)?;
                record.backends.insert(address, backend);
            }
            while let Some(new) = draft.new_backends[family].first_entry() {
                let (&address, &backend) = (new.key(), new.get());
                let entry = backend.entry(address, service_id);
                self.tables.write_backend(family, backend.id, entry)?;
                record.backends.insert(address, backend);
                new.remove();
            }
            while let Some(range) = draft.new_ranges[family].last() {
                self.tables.write_slots(range.base, &range.backend_ids)?;
                if range.in_turn {
                    let next = first_turn(&self.tables, &record.ranges, &range.backend_ids)?;
                    self.tables.put_cursor(range.base, next)?;
                    self.unused_cursors.remove(&range.base);
                }
                record.ranges.extend(draft.new_ranges[family].pop());
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
                    self.address_owners.insert(address, id.clone());
                    self.entry_count[IpFamily::of(&address.ip)] += 1;
                }
            }
        }
        Ok(())
    }

    /// Frees the ids and slots that were allocated but not written.
    fn discard(&mut self, draft: Draft) {
        for family in IpFamily::BOTH {
            for backend in draft.new_backends[family].values() {
                self.backend_ids[family].put_back(backend.id);
            }
            for range in &draft.new_ranges[family] {
                self.slots.put_back(range.base, range.count());
            }
        }
    }

    /// Removes the entries that are not in the draft, and everything that only they needed. Removes
    /// backends last: after that, UDP flows of these backends move to other endpoints.
    fn remove_unwanted(
        &mut self,
        id: &ServicePortId,
        installed: &mut Installed,
        desired: Option<&DesiredServicePort>,
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
            self.address_owners.remove(&address);
            self.entry_count[IpFamily::of(&address.ip)] -= 1;
            self.freed = true;
        }
        self.release_unused_slots(installed, now);
        self.marks.remove_unneeded(&mut self.tables)?;
        // No service entry leads to an endpoint with the flag any more.
        if installed.thresholds.is_some() && desired.is_none_or(|desired| desired.thresholds.is_none()) {
            self.tables.remove_thresholds(installed.service_id)?;
            installed.thresholds = None;
        }
        for family in IpFamily::BOTH {
            let record = &mut installed.families[family];
            while let Some(&sources) = record.source_ranges.difference(&draft.source_ranges[family]).next() {
                self.tables.remove_source_range(installed.service_id, sources)?;
                record.source_ranges.remove(&sources);
                self.source_range_count[family] -= 1;
                self.freed = true;
            }
            let served =
                desired.filter(|_| entries.keys().any(|address| IpFamily::of(&address.ip) == family));
            let endpoints = served.map_or([].as_slice(), |desired| &desired.endpoints(family).endpoints);
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
                self.backend_ids[family].release(backend_id, now);
                self.protocols_with_lost_endpoints.insert(id.protocol);
            }
        }
        Ok(())
    }

    /// Releases the slots to which no service entry refers: replaced ones, and those of a change
    /// that failed half-way.
    fn release_unused_slots(&mut self, installed: &mut Installed, now: Instant) {
        for family in IpFamily::BOTH {
            let used: HashSet<u32> = installed
                .entries
                .iter()
                .filter(|(address, _)| IpFamily::of(&address.ip) == family)
                .flat_map(|(_, entry)| entry::slot_ranges(entry))
                .filter(|range| range.count > 0)
                .map(|range| range.base)
                .collect();
            let ranges = &mut installed.families[family].ranges;
            for range in ranges.extract_if(.., |range| !used.contains(&range.base)) {
                if range.in_turn {
                    // The next tick removes it.
                    self.unused_cursors.insert(range.base);
                }
                self.slots.release(range.base, range.count(), now);
            }
        }
    }

    /// Removes all entries of a Service port.
    fn remove(
        &mut self,
        id: &ServicePortId,
        installed: &mut Installed,
        now: Instant,
    ) -> Result<(), TableError> {
        self.remove_unwanted(id, installed, None, &Draft::default(), now)?;
        self.tables.remove_service_name(installed.service_id)?;
        self.service_ids.release(installed.service_id, now);
        Ok(())
    }
}
