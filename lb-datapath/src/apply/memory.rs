//! The service maps in memory, for tests. Each write checks the invariants that packets depend on,
//! and panics if one is broken.

use std::cell::{Ref, RefCell, RefMut};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use lb_common::layout::{self, address_flags, service_flags};
use lb_model::{IpFamily, PerFamily};
use lb_plan::desired::ServicePortId;

use super::engine::ReferencedIds;
use super::entry::{SlotRange, parse_service_name, slot_ranges};
use super::tables::{BackendEntry, Capacity, ServiceAddress, TableError, Tables};

/// A handle to the maps. Clones share the maps, so the maps outlive an engine like pinned maps
/// outlive an agent.
#[derive(Debug, Clone)]
pub struct Memory(Rc<RefCell<MemoryState>>);

#[derive(Debug)]
pub struct MemoryState {
    pub capacity: Capacity,
    pub services: BTreeMap<ServiceAddress, layout::ServiceEntry>,
    pub names: BTreeMap<u32, layout::ServiceName>,
    pub thresholds: BTreeMap<u32, layout::Thresholds>,
    pub overloaded: BTreeSet<(IpFamily, u32)>,
    pub slots: Vec<u32>,
    /// The next slot of each range whose slots are used in turn, by its base.
    pub cursors: BTreeMap<u32, u32>,
    pub backends: PerFamily<BTreeMap<u32, BackendEntry>>,
    /// Flags of Services, by address.
    pub marks: BTreeMap<IpAddr, u32>,
    pub source_ranges: BTreeSet<(u32, IpNet)>,
    /// The source ranges that a test expects. Writes of load balancer addresses are checked against
    /// them.
    pub guards: HashMap<ServicePortId, Guard>,
    /// The ids of each open flow: (family, service id, backend id).
    pub flows: Vec<(IpFamily, u32, u32)>,
    /// The number of successful writes.
    pub writes: usize,
    /// If set, the write after this number of further writes fails, once.
    pub fail_after: Option<usize>,
    pub now: Instant,
    pub grace: Duration,
    /// The number of service entries whose ranges contain a slot.
    slot_users: HashMap<u32, usize>,
    /// The time when the last range with a slot was removed.
    slot_left: HashMap<u32, Instant>,
    /// The time when a backend was removed.
    backend_left: PerFamily<HashMap<u32, Instant>>,
}

/// The expected source ranges of each family. `None` allows all clients.
pub type Guard = PerFamily<Option<BTreeSet<IpNet>>>;

impl MemoryState {
    /// Makes the maps larger.
    #[cfg(test)]
    pub fn grow(&mut self, capacity: Capacity) {
        self.slots.resize(capacity.slots as usize, 0);
        self.capacity = capacity;
    }
}

impl Memory {
    pub fn new(capacity: Capacity, grace: Duration, now: Instant) -> Self {
        Self(Rc::new(RefCell::new(MemoryState {
            capacity,
            services: BTreeMap::new(),
            names: BTreeMap::new(),
            thresholds: BTreeMap::new(),
            overloaded: BTreeSet::new(),
            slots: vec![0; capacity.slots as usize],
            cursors: BTreeMap::new(),
            backends: PerFamily::default(),
            marks: BTreeMap::new(),
            source_ranges: BTreeSet::new(),
            guards: HashMap::new(),
            flows: Vec::new(),
            writes: 0,
            fail_after: None,
            now,
            grace,
            slot_users: HashMap::new(),
            slot_left: HashMap::new(),
            backend_left: PerFamily::default(),
        })))
    }

    /// Returns maps with a capacity of at least 100 entries.
    pub fn roomy(now: Instant) -> Self {
        let capacity = Capacity {
            services: PerFamily { v4: 100, v6: 100 },
            slots: 1000,
            backends: PerFamily { v4: 100, v6: 100 },
            service_names: 100,
            source_ranges: PerFamily { v4: 100, v6: 100 },
        };
        Self::new(capacity, Duration::from_secs(1), now)
    }

    pub fn state(&self) -> Ref<'_, MemoryState> {
        self.0.borrow()
    }

    pub fn state_mut(&self) -> RefMut<'_, MemoryState> {
        self.0.borrow_mut()
    }
}

impl MemoryState {
    /// Returns the ids in open flows.
    pub fn referenced_ids(&self) -> ReferencedIds {
        let mut referenced = ReferencedIds::default();
        for &(family, service_id, backend_id) in &self.flows {
            referenced.add(family, service_id, backend_id);
        }
        referenced
    }

    /// Ends all grace periods, as at the start of an agent. See [`super::Engine::adopt`].
    pub fn forget_graces(&mut self) {
        self.slot_left.clear();
        self.backend_left = PerFamily::default();
    }

    /// Opens a flow to a slot of a service entry, as the programs do.
    pub fn connect(&mut self, address: &ServiceAddress, pick: usize) {
        let Some(service) = self.services.get(address) else { return };
        let [_, inside] = slot_ranges(service);
        if inside.count > 0 {
            let id = self.slots[inside.base as usize + pick % inside.count as usize];
            self.flows.push((IpFamily::of(&address.ip), service.service_id, id));
        }
    }

    fn write(&mut self, map: &'static str) -> Result<(), TableError> {
        if let Some(left) = &mut self.fail_after {
            if *left == 0 {
                self.fail_after = None;
                return Err(TableError::Kernel {
                    map,
                    action: "write",
                    source: io::Error::other("injected"),
                });
            }
            *left -= 1;
        }
        self.writes += 1;
        Ok(())
    }

    fn guard(&self, service_id: u32) -> Option<&Guard> {
        let (id, _) = parse_service_name(self.names.get(&service_id)?)?;
        self.guards.get(&id)
    }

    /// Checks a new service entry: from the first moment, exactly the expected clients can use it.
    fn check_new_guard(&self, key: ServiceAddress, value: &layout::ServiceEntry) {
        let Some(guard) = self.guard(value.service_id).filter(|_| value.kind == layout::kind::LOAD_BALANCER)
        else {
            return;
        };
        let expected = &guard[IpFamily::of(&key.ip)];
        let flagged = value.flags & service_flags::SOURCE_RANGES != 0;
        assert_eq!(flagged, expected.is_some(), "{key}: source ranges are missing, or apply without need");
        for sources in expected.iter().flatten() {
            assert!(
                self.source_ranges.contains(&(value.service_id, *sources)),
                "{key}: does not allow {sources}"
            );
        }
    }

    /// Checks the removal of a source range: no client that may use an address loses access.
    fn check_removed_guard(&self, service_id: u32, sources: IpNet) {
        let Some(guard) = self.guard(service_id) else { return };
        let family = IpFamily::of(&sources.addr());
        let expected = guard[family].as_ref();
        for (key, service) in self.services.iter().filter(|(_, service)| service.service_id == service_id) {
            let guarded = service.flags & service_flags::SOURCE_RANGES != 0;
            assert!(
                !guarded
                    || IpFamily::of(&key.ip) != family
                    || expected.is_some_and(|w| !w.contains(&sources)),
                "{key}: no longer allows {sources}"
            );
        }
    }

    fn cover(&mut self, value: &layout::ServiceEntry) {
        for range in slot_ranges(value) {
            for slot in range.base..range.base + range.count {
                *self.slot_users.entry(slot).or_default() += 1;
                self.slot_left.remove(&slot);
            }
        }
    }

    fn uncover(&mut self, value: &layout::ServiceEntry) {
        for range in slot_ranges(value) {
            for slot in range.base..range.base + range.count {
                let users = self.slot_users.get_mut(&slot).expect("covered before");
                *users -= 1;
                if *users == 0 {
                    self.slot_users.remove(&slot);
                    self.slot_left.insert(slot, self.now);
                }
            }
        }
    }
}

/// Returns the flags that the address of a service entry needs in `ADDRESSES`.
pub fn marks_needed(service: &layout::ServiceEntry) -> u32 {
    match service.kind {
        layout::kind::NODE_PORT => 0,
        layout::kind::CLUSTER_IP => address_flags::SERVICE | address_flags::CLUSTER_IP,
        _ => address_flags::SERVICE,
    }
}

impl Tables for Memory {
    fn capacity(&self) -> Capacity {
        self.state().capacity
    }

    fn put_service(&mut self, key: ServiceAddress, value: layout::ServiceEntry) -> Result<(), TableError> {
        let mut state = self.state_mut();
        let family = IpFamily::of(&key.ip);
        let capacity = state.capacity.services[family];
        let count = state.services.keys().filter(|key| IpFamily::of(&key.ip) == family).count();
        assert!(
            state.services.contains_key(&key) || count < capacity as usize,
            "the engine counts entries itself"
        );
        assert!(state.names.contains_key(&value.service_id), "{key}: an entry without a name");
        let (marks, needed) = (state.marks.get(&key.ip).copied().unwrap_or(0), marks_needed(&value));
        assert_eq!(marks & needed, needed, "{key}: an entry whose address is not marked");
        state.check_new_guard(key, &value);
        for range in slot_ranges(&value) {
            assert!(range.count > 0 || range.base == 0, "{key}: an empty range has base 0");
            if value.algorithm == layout::algorithm::IN_TURN && range.count > 0 {
                let next = state.cursors.get(&range.base);
                assert!(next.is_some_and(|next| *next < range.count), "{key}: {range:?} has cursor {next:?}");
            }
            for slot in range.base..range.base + range.count {
                let id = state.slots[slot as usize];
                let backend = state.backends[family].get(&id);
                let backend =
                    backend.unwrap_or_else(|| panic!("{key}: slot {slot} leads to absent backend {id}"));
                assert_eq!(
                    backend.service_id, value.service_id,
                    "{key}: slot {slot} leads to another service"
                );
            }
        }
        state.write("SERVICES")?;
        let before = state.services.insert(key, value);
        state.cover(&value);
        if let Some(before) = before {
            assert_ne!(before, value, "{key}: written without need");
            state.uncover(&before);
        }
        Ok(())
    }

    fn remove_service(&mut self, key: ServiceAddress) -> Result<(), TableError> {
        let mut state = self.state_mut();
        state.write("SERVICES")?;
        if let Some(before) = state.services.remove(&key) {
            state.uncover(&before);
        }
        Ok(())
    }

    fn put_service_name(&mut self, service_id: u32, name: &layout::ServiceName) -> Result<(), TableError> {
        let mut state = self.state_mut();
        assert!(service_id != 0 && service_id < state.capacity.service_names);
        if !state.names.contains_key(&service_id) {
            assert!(
                state.flows.iter().all(|(_, id, _)| *id != service_id),
                "a flow refers to service {service_id}"
            );
        }
        state.write("SERVICE_NAMES")?;
        let before = state.names.insert(service_id, *name);
        assert_ne!(before, Some(*name), "name {service_id}: written without need");
        Ok(())
    }

    fn remove_service_name(&mut self, service_id: u32) -> Result<(), TableError> {
        let mut state = self.state_mut();
        assert!(state.services.values().all(|service| service.service_id != service_id), "still has entries");
        for family in IpFamily::BOTH {
            let mut backends = state.backends[family].values();
            assert!(backends.all(|backend| backend.service_id != service_id), "still has backends");
        }
        state.write("SERVICE_NAMES")?;
        state.names.remove(&service_id);
        Ok(())
    }

    fn put_thresholds(&mut self, service_id: u32, thresholds: layout::Thresholds) -> Result<(), TableError> {
        let mut state = self.state_mut();
        state.write("THRESHOLDS")?;
        let before = state.thresholds.insert(service_id, thresholds);
        assert_ne!(before, Some(thresholds), "thresholds of {service_id}: written without need");
        Ok(())
    }

    fn remove_thresholds(&mut self, service_id: u32) -> Result<(), TableError> {
        let mut state = self.state_mut();
        let flagged = |entry: &BackendEntry| {
            entry.service_id == service_id && entry.flags & layout::backend_flags::THRESHOLDS != 0
        };
        // Each family has ids of its own.
        let in_slots = |state: &MemoryState, family: IpFamily, id: u32| {
            let entries = state.services.iter().filter(|(address, _)| IpFamily::of(&address.ip) == family);
            let mut ranges = entries.flat_map(|(_, entry)| slot_ranges(entry));
            ranges.any(|range| state.slots[range.base as usize..][..range.count as usize].contains(&id))
        };
        for family in IpFamily::BOTH {
            let mut refers = state.backends[family].iter().filter(|(_, entry)| flagged(entry));
            assert!(
                !refers.any(|(id, _)| in_slots(&state, family, *id)),
                "the thresholds of {service_id} are in use"
            );
        }
        state.write("THRESHOLDS")?;
        state.thresholds.remove(&service_id);
        Ok(())
    }

    fn relieve(&mut self, family: IpFamily, backend_ids: &[u32]) -> Result<(), TableError> {
        let mut state = self.state_mut();
        state.overloaded.retain(|(of, id)| *of != family || !backend_ids.contains(id));
        Ok(())
    }

    fn write_slots(&mut self, base: u32, backend_ids: &[u32]) -> Result<(), TableError> {
        let mut state = self.state_mut();
        for slot in base..base + backend_ids.len() as u32 {
            assert!(!state.slot_users.contains_key(&slot), "slot {slot} is in use");
            if let Some(left) = state.slot_left.get(&slot) {
                assert!(state.now - *left >= state.grace, "slot {slot} is within its grace period");
            }
        }
        state.write("SLOTS")?;
        state.slots[base as usize..base as usize + backend_ids.len()].copy_from_slice(backend_ids);
        Ok(())
    }

    fn put_cursor(&mut self, base: u32, next: u32) -> Result<(), TableError> {
        let mut state = self.state_mut();
        state.write("CURSORS")?;
        state.cursors.insert(base, next);
        Ok(())
    }

    fn remove_cursor(&mut self, base: u32) -> Result<(), TableError> {
        let mut state = self.state_mut();
        let mut in_turn =
            state.services.values().filter(|service| service.algorithm == layout::algorithm::IN_TURN);
        let uses = |range: &SlotRange| range.count > 0 && range.base == base;
        assert!(
            !in_turn.any(|service| slot_ranges(service).iter().any(uses)),
            "the cursor of the range at {base} is in use"
        );
        state.write("CURSORS")?;
        state.cursors.remove(&base);
        Ok(())
    }

    fn write_backend(&mut self, family: IpFamily, id: u32, entry: BackendEntry) -> Result<(), TableError> {
        let mut state = self.state_mut();
        let capacity = state.capacity.backends[family];
        assert!(id != 0 && id < capacity, "backend {id} of {capacity}");
        assert!(entry.flags & layout::backend_flags::PRESENT != 0);
        assert_eq!(IpFamily::of(&entry.address.ip()), family);
        match state.backends[family].get(&id) {
            Some(before) => {
                let same = (before.address, before.service_id) == (entry.address, entry.service_id);
                assert!(same && before.flags != entry.flags, "backend {id}: only flags may change, and must");
            }
            None => {
                let referenced = state.flows.iter().any(|flow| (flow.0, flow.2) == (family, id));
                assert!(!referenced, "a flow refers to backend {id}");
                if let Some(left) = state.backend_left[family].get(&id) {
                    assert!(state.now - *left >= state.grace, "backend {id} is within its grace period");
                }
            }
        }
        state.write("BACKENDS")?;
        state.backends[family].insert(id, entry);
        Ok(())
    }

    fn clear_backend(&mut self, family: IpFamily, id: u32) -> Result<(), TableError> {
        let mut state = self.state_mut();
        for (key, service) in &state.services {
            for range in slot_ranges(service).into_iter().filter(|_| IpFamily::of(&key.ip) == family) {
                let slots = &state.slots[range.base as usize..(range.base + range.count) as usize];
                assert!(!slots.contains(&id), "backend {id} is still in the slots of {key}");
            }
        }
        state.write("BACKENDS")?;
        let now = state.now;
        if state.backends[family].remove(&id).is_some() {
            state.backend_left[family].insert(id, now);
        }
        Ok(())
    }

    fn rewrite_backend(&mut self, family: IpFamily, id: u32, entry: BackendEntry) -> Result<(), TableError> {
        let mut state = self.state_mut();
        state.write("BACKENDS")?;
        let before = state.backends[family].insert(id, entry);
        assert_ne!(before, Some(entry), "backend {id}: written without need");
        Ok(())
    }

    fn rewrite_slot(&mut self, slot: u32, backend_id: u32) -> Result<(), TableError> {
        let mut state = self.state_mut();
        state.write("SLOTS")?;
        assert_ne!(state.slots[slot as usize], backend_id, "slot {slot}: written without need");
        state.slots[slot as usize] = backend_id;
        Ok(())
    }

    fn mark_address(&mut self, ip: IpAddr, flags: u32) -> Result<(), TableError> {
        let mut state = self.state_mut();
        assert!(!ip.is_unspecified() && flags & !address_flags::OF_SERVICES == 0, "{ip}: flags {flags:#x}");
        assert_ne!(state.marks.get(&ip).copied().unwrap_or(0), flags, "{ip}: marked without need");
        for (key, service) in state.services.iter().filter(|(key, _)| key.ip == ip) {
            let needed = marks_needed(service);
            assert_eq!(flags & needed, needed, "{key}: the address would lose its mark");
        }
        state.write("ADDRESSES")?;
        match flags {
            0 => drop(state.marks.remove(&ip)),
            _ => drop(state.marks.insert(ip, flags)),
        }
        Ok(())
    }

    fn put_source_range(&mut self, service_id: u32, sources: IpNet) -> Result<(), TableError> {
        let mut state = self.state_mut();
        assert_eq!(sources, sources.trunc());
        let (capacity, v4) = match sources {
            IpNet::V4(_) => (state.capacity.source_ranges.v4, true),
            IpNet::V6(_) => (state.capacity.source_ranges.v6, false),
        };
        let held = state.source_ranges.iter().filter(|(_, net)| net.addr().is_ipv4() == v4).count();
        assert!(held < capacity as usize, "the engine counts source ranges itself");
        state.write("SOURCE_RANGES")?;
        let new = state.source_ranges.insert((service_id, sources));
        assert!(new, "{sources} of service {service_id}: written without need");
        Ok(())
    }

    fn restore_source_range(&mut self, service_id: u32, sources: IpNet) -> Result<bool, TableError> {
        let absent = !self.state().source_ranges.contains(&(service_id, sources));
        if absent {
            self.put_source_range(service_id, sources)?;
        }
        Ok(absent)
    }

    fn remove_source_range(&mut self, service_id: u32, sources: IpNet) -> Result<(), TableError> {
        let mut state = self.state_mut();
        state.check_removed_guard(service_id, sources);
        state.write("SOURCE_RANGES")?;
        state.source_ranges.remove(&(service_id, sources));
        Ok(())
    }

    fn service(&self, key: ServiceAddress) -> Result<Option<layout::ServiceEntry>, TableError> {
        Ok(self.state().services.get(&key).copied())
    }

    fn service_keys(
        &self,
        after: Option<ServiceAddress>,
        count: usize,
    ) -> Result<Vec<ServiceAddress>, TableError> {
        let state = self.state();
        let follows = |key: &&ServiceAddress| after.is_none_or(|after| **key > after);
        Ok(state.services.keys().filter(follows).take(count).copied().collect())
    }

    fn service_name(&self, service_id: u32) -> Result<Option<layout::ServiceName>, TableError> {
        Ok(self.state().names.get(&service_id).copied())
    }

    fn backend(&self, family: IpFamily, id: u32) -> Result<Option<BackendEntry>, TableError> {
        Ok(self.state().backends[family].get(&id).copied())
    }

    fn mark(&self, ip: IpAddr) -> Result<u32, TableError> {
        Ok(self.state().marks.get(&ip).copied().unwrap_or(0))
    }

    fn services(&self) -> Result<Vec<(ServiceAddress, layout::ServiceEntry)>, TableError> {
        Ok(self.state().services.iter().map(|(key, value)| (*key, *value)).collect())
    }

    fn service_names(&self) -> Result<Vec<(u32, layout::ServiceName)>, TableError> {
        Ok(self.state().names.iter().map(|(id, name)| (*id, *name)).collect())
    }

    fn thresholds(&self) -> Result<Vec<(u32, layout::Thresholds)>, TableError> {
        Ok(self.state().thresholds.iter().map(|(id, thresholds)| (*id, *thresholds)).collect())
    }

    fn thresholds_of(&self, service_id: u32) -> Result<Option<layout::Thresholds>, TableError> {
        Ok(self.state().thresholds.get(&service_id).copied())
    }

    fn read_slots(&self, base: u32, count: u32) -> Result<Vec<u32>, TableError> {
        Ok(self.state().slots[base as usize..(base + count) as usize].to_vec())
    }

    fn cursors(&self) -> Result<Vec<(u32, u32)>, TableError> {
        Ok(self.state().cursors.iter().map(|(base, next)| (*base, *next)).collect())
    }

    fn cursor(&self, base: u32) -> Result<Option<u32>, TableError> {
        Ok(self.state().cursors.get(&base).copied())
    }

    fn backends(&self, family: IpFamily) -> Result<Vec<(u32, BackendEntry)>, TableError> {
        Ok(self.state().backends[family].iter().map(|(id, entry)| (*id, *entry)).collect())
    }

    fn marked_addresses(&self) -> Result<Vec<(IpAddr, u32)>, TableError> {
        Ok(self.state().marks.iter().map(|(ip, flags)| (*ip, *flags)).collect())
    }

    fn source_ranges(&self) -> Result<Vec<(u32, IpNet)>, TableError> {
        Ok(self.state().source_ranges.iter().copied().collect())
    }
}

impl MemoryState {
    /// Writes a service entry without checks, as another program could.
    pub fn plant(&mut self, address: ServiceAddress, value: layout::ServiceEntry) {
        self.cover(&value);
        self.services.insert(address, value);
    }

    pub fn backend_ids(&self, family: IpFamily) -> BTreeSet<u32> {
        self.backends[family].keys().copied().collect()
    }
}
