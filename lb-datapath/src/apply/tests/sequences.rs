//! Random sequences of changes, failures and restarts.

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Apply(Spec),
    Remove(u8),
    Restart,
    Pass(u16),
    Connect(u8, u8),
    CloseFlows(u8),
    Sweep,
    FailAfter(u8),
}

fn endpoints() -> impl Strategy<Value = BTreeMap<u8, (bool, bool)>> {
    proptest::collection::btree_map(1u8..9, (any::<bool>(), proptest::bool::weighted(0.2)), 0..6)
}

fn balancer() -> impl Strategy<Value = Option<Option<BTreeSet<u8>>>> {
    let networks = proptest::collection::btree_set(0u8..6, 0..4);
    proptest::option::weighted(0.4, proptest::option::weighted(0.8, networks))
}

fn any_spec() -> impl Strategy<Value = Spec> {
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    let options = (proptest::option::of(1u32..3), proptest::option::weighted(0.2, 0u8..2), balancer());
    (1u8..6, 80u16..82, endpoints(), endpoints(), flags, options).prop_map(
        |(number, port, v4, v6, (node_port, dual, local_policy), (affinity, shared, balancer))| Spec {
            number,
            port,
            v4,
            v6,
            node_port,
            dual,
            local_policy,
            affinity,
            shared,
            balancer,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => any_spec().prop_map(Step::Apply),
        2 => (1u8..6).prop_map(Step::Remove),
        1 => Just(Step::Restart),
        3 => (1u16..1500).prop_map(Step::Pass),
        3 => (any::<u8>(), any::<u8>()).prop_map(|(service, pick)| Step::Connect(service, pick)),
        1 => any::<u8>().prop_map(Step::CloseFlows),
        2 => Just(Step::Sweep),
        2 => (0u8..8).prop_map(Step::FailAfter),
    ]
}

/// An engine with its maps, and the desired state.
struct World {
    memory: Memory,
    engine: Engine<Memory>,
    wanted: BTreeMap<u8, Spec>,
}

impl World {
    fn new(capacity: Option<Capacity>) -> Self {
        let now = Instant::now();
        let memory =
            capacity.map_or_else(|| Memory::roomy(now), |capacity| Memory::new(capacity, GRACE, now));
        let engine = engine(&memory);
        Self { memory, engine, wanted: BTreeMap::new() }
    }

    fn now(&self) -> Instant {
        self.memory.state().now
    }

    fn take(&mut self, step: Step) {
        let now = self.now();
        // The engine tries failed operations again. The tests check the final state.
        match step {
            Step::Apply(spec) => {
                self.memory.state_mut().guards.insert(id(spec.number), spec.guard());
                let _ = self.engine.apply(&spec.wanted(), now);
                self.wanted.insert(spec.number, spec);
            }
            Step::Remove(number) => {
                self.memory.state_mut().guards.remove(&id(number));
                let _ = self.engine.remove(&id(number), now);
                self.wanted.remove(&number);
            }
            Step::Restart => self.restart(),
            Step::Pass(milliseconds) => {
                self.memory.state_mut().now += Duration::from_millis(milliseconds.into());
                let now = self.now();
                let _ = self.engine.tick(now);
            }
            Step::Connect(service, pick) => {
                let mut state = self.memory.state_mut();
                let addresses: Vec<_> = state.services.keys().copied().collect();
                if let Some(address) = addresses.get(usize::from(service) % addresses.len().max(1)) {
                    state.connect(address, pick.into());
                }
            }
            Step::CloseFlows(modulus) => {
                let mut index = 0;
                self.memory.state_mut().flows.retain(|_| {
                    index += 1;
                    index % (usize::from(modulus) + 1) != 0
                });
            }
            Step::Sweep => {
                let named = self.memory.state().referenced_ids();
                self.engine.free_unreferenced_ids(now, &named);
            }
            Step::FailAfter(writes) => self.memory.state_mut().fail_after = Some(writes.into()),
        }
    }

    fn restart(&mut self) {
        self.memory.state_mut().forget_graces();
        let (named, now) = (self.memory.state().referenced_ids(), self.now());
        self.engine = match Engine::adopt(self.memory.clone(), &named, GRACE, now) {
            Ok(engine) => engine,
            // A write failed at start. The agent starts again.
            Err(_) => {
                self.memory.state_mut().forget_graces();
                engine(&self.memory)
            }
        };
        for spec in self.wanted.values() {
            let _ = self.engine.apply(&spec.wanted(), now);
        }
        let _ = self.engine.finish_sync(now);
    }

    /// Lets time pass without failures, until the engine has no more work.
    fn settle(&mut self) {
        self.memory.state_mut().fail_after = None;
        self.memory.state_mut().flows.clear();
        for _ in 0..6 {
            self.take(Step::Pass(1500));
            self.take(Step::Sweep);
        }
        self.take(Step::Pass(1500));
    }

    /// Returns whether two Services have the same address. Then one of them is not fully served.
    fn contested(&self) -> bool {
        let mut seen = BTreeSet::new();
        !self.wanted.values().filter_map(|spec| spec.shared).all(|shared| seen.insert(shared))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Any write may fail. In the end the maps have exactly the desired state, nothing leaks, and a
    /// restart writes nothing. `Memory` checks each single write.
    #[test]
    fn the_maps_reach_the_desired_state(steps in proptest::collection::vec(step(), 1..60)) {
        let mut world = World::new(None);
        for step in steps {
            world.take(step);
        }
        world.settle();
        let wanted: Vec<_> = world.wanted.values().map(Spec::wanted).collect();
        if !world.contested() {
            prop_assert_eq!(world.engine.pending().collect::<Vec<_>>(), Vec::<&ServicePortId>::new());
            prop_assert_eq!(meaning(&world.memory), wish(&wanted));
        }
        assert_nothing_leaks(&world.engine, &world.memory);
        prop_assert!(!has_released_ids(&world.engine));

        let before = world.memory.state().writes;
        world.restart();
        prop_assert_eq!(world.memory.state().writes, before);
        assert_nothing_leaks(&world.engine, &world.memory);

        for number in 0..6 {
            world.take(Step::Remove(number));
        }
        world.settle();
        assert_nothing_leaks(&world.engine, &world.memory);
        prop_assert_eq!(world.engine.writer.slots.in_use(), 0);
        prop_assert_eq!(meaning(&world.memory), wish([]));
    }

    /// The maps are too small. Service ports that do not fit are reported, and all others are
    /// served. When the others are removed, each Service port fits.
    #[test]
    fn full_maps_are_survived(steps in proptest::collection::vec(step(), 1..60)) {
        let capacity = Capacity {
            services: PerFamily { v4: 6, v6: 4 },
            slots: 24,
            backends: PerFamily { v4: 12, v6: 10 },
            service_names: 5,
            // Three old and three new ones of a Service port fit.
            source_ranges: PerFamily { v4: 8, v6: 6 },
        };
        let mut world = World::new(Some(capacity));
        for step in steps {
            world.take(step);
        }
        world.settle();
        assert_nothing_leaks(&world.engine, &world.memory);
        let pending: BTreeSet<_> = world.engine.pending().cloned().collect();
        for spec in world.wanted.values().filter(|spec| !pending.contains(&id(spec.number))) {
            let (all, one) = (meaning(&world.memory), wish([&spec.wanted()]));
            for (address, text) in one.entries {
                prop_assert_eq!(all.entries.get(&address), Some(&text));
            }
        }
        let last = world.wanted.keys().next_back().copied();
        for number in (0..6).filter(|number| Some(*number) != last) {
            world.take(Step::Remove(number));
        }
        world.settle();
        let wanted: Vec<_> = world.wanted.values().map(Spec::wanted).collect();
        prop_assert_eq!(meaning(&world.memory), wish(&wanted));
        assert_nothing_leaks(&world.engine, &world.memory);
    }
}
