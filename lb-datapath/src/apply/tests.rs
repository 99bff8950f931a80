//! Tests of the engine: sequences of desired states, restarts, failed writes and full maps.

mod audit;
mod cursors;
mod sequences;
mod transitions;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use lb_common::layout::{address_flags, backend_flags, service_flags};
use lb_model::{Algorithm, HashInput, IpFamily, PerFamily, Protocol, SourceRanges, Thresholds, Weight};
use lb_plan::desired::*;
use proptest::prelude::*;

use super::demand::Demand;
use super::engine::{Engine, ReferencedIds};
use super::entry::{algorithm, max_age_of, parse_service_name, service_address, slot_ranges};
use super::error::ApplyError;
use super::memory::{Guard, Memory, marks_needed};
use super::tables::{Capacity, TableError};

const GRACE: Duration = Duration::from_secs(1);

fn engine(memory: &Memory) -> Engine<Memory> {
    let (referenced, now) = (memory.state().referenced_ids(), memory.state().now);
    Engine::adopt(memory.clone(), &referenced, GRACE, now).expect("the maps can be read")
}

fn id(number: u8) -> ServicePortId {
    ServicePortId {
        namespace: "default".into(),
        name: format!("web-{number}"),
        port_name: if number.is_multiple_of(2) { String::new() } else { "http".into() },
        protocol: Protocol::Tcp,
    }
}

/// The description of a Service port in a test. All addresses and ports are derived from numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Spec {
    number: u8,
    port: u16,
    /// Number of the endpoint → (local, draining).
    v4: BTreeMap<u8, (bool, bool)>,
    v6: BTreeMap<u8, (bool, bool)>,
    node_port: bool,
    dual: bool,
    local_policy: bool,
    affinity: Option<u32>,
    /// An address that several Services may have.
    shared: Option<u8>,
    /// A load balancer address. Services with even numbers share one address, and those with odd
    /// numbers another one. Service 5 has the ClusterIP of service 1 instead. The inner value lists
    /// the numbers of the networks that may use the address. `None` allows all.
    balancer: Option<Option<BTreeSet<u8>>>,
}

fn spec(number: u8, endpoints: &[u8]) -> Spec {
    Spec {
        number,
        port: 80,
        v4: endpoints.iter().map(|endpoint| (*endpoint, (false, false))).collect(),
        v6: BTreeMap::new(),
        node_port: false,
        dual: false,
        local_policy: false,
        affinity: None,
        shared: None,
        balancer: None,
    }
}

fn endpoint_address(family: IpFamily, number: u8) -> SocketAddr {
    match family {
        IpFamily::V4 => SocketAddr::new(Ipv4Addr::new(10, 1, 0, number).into(), 8080),
        IpFamily::V6 => SocketAddr::new(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into()).into(), 8080),
    }
}

/// Returns the network for a number. The networks of large numbers are inside that of 1.
fn sources(family: IpFamily, number: u8) -> IpNet {
    match (family, number) {
        (IpFamily::V4, 0..4) => format!("10.{number}.0.0/16").parse(),
        (IpFamily::V4, _) => format!("10.1.{number}.0/24").parse(),
        (IpFamily::V6, 0..4) => format!("fd0{number}::/16").parse(),
        (IpFamily::V6, _) => format!("fd01:{number}::/32").parse(),
    }
    .expect("a network")
}

fn balancer_ip(family: IpFamily, number: u8) -> IpAddr {
    match (family, number) {
        (IpFamily::V4, 5) => Ipv4Addr::new(10, 96, 0, 1).into(),
        (IpFamily::V4, _) => Ipv4Addr::new(203, 0, 113, number % 2).into(),
        (IpFamily::V6, 5) => Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 1).into(),
        (IpFamily::V6, _) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, (number % 2).into()).into(),
    }
}

fn lists(family: IpFamily, endpoints: &BTreeMap<u8, (bool, bool)>) -> EndpointLists {
    let mut lists = EndpointLists::default();
    for (index, (number, (local, draining))) in (0..).zip(endpoints) {
        let address = endpoint_address(family, *number);
        lists.endpoints.push(DesiredEndpoint {
            address,
            local: *local,
            draining: *draining,
            weight: Weight::DEFAULT,
            drain_limit: None,
        });
        if !draining {
            lists.cluster.push(index);
            if *local {
                lists.local.push(index);
            }
        }
    }
    lists
}

impl Spec {
    fn wanted(&self) -> DesiredServicePort {
        let cluster = ListPolicy { list: EndpointList::Cluster, when_empty: WhenEmpty::Reject };
        let local = ListPolicy { list: EndpointList::Local, when_empty: WhenEmpty::Drop };
        let outside = if self.local_policy { local } else { cluster };
        let mut frontends = Vec::new();
        for family in IpFamily::BOTH.into_iter().take(if self.dual { 2 } else { 1 }) {
            let [cluster_ip, shared_ip]: [IpAddr; 2] = match family {
                IpFamily::V4 => [
                    Ipv4Addr::new(10, 96, 0, self.number).into(),
                    Ipv4Addr::new(192, 0, 2, self.shared.unwrap_or(0)).into(),
                ],
                IpFamily::V6 => {
                    [0, 1].map(|net| Ipv6Addr::new(0xfd96, net, 0, 0, 0, 0, 0, self.number.into()).into())
                }
            };
            let mut frontend = |address, port, kind, outside| {
                frontends.push(Frontend { address, port, kind, outside, inside: cluster });
            };
            frontend(FrontendAddress::Ip(cluster_ip), self.port, FrontendKind::ClusterIp, cluster);
            if self.node_port {
                let port = 30000 + u16::from(self.number);
                frontend(FrontendAddress::Node(family), port, FrontendKind::NodePort, outside);
            }
            if self.balancer.is_some() {
                let (ip, port) = (balancer_ip(family, self.number), 8000 + u16::from(self.number));
                frontend(FrontendAddress::Ip(ip), port, FrontendKind::LoadBalancer, outside);
            }
            if self.shared.is_some() && family == IpFamily::V4 {
                frontend(FrontendAddress::Ip(shared_ip), 443, FrontendKind::ExternalIp, outside);
            }
        }
        frontends.sort();
        DesiredServicePort {
            id: id(self.number),
            port: self.port,
            algorithm: self.algorithm(),
            hash: HashInput::default(),
            failover: false,
            passive_health: false,
            thresholds: self.thresholds(),
            fallback: false,
            max_connection_age: self.max_age(),
            affinity_seconds: self.affinity,
            source_ranges: self.source_ranges(),
            frontends,
            v4: lists(IpFamily::V4, &self.v4),
            v6: lists(IpFamily::V6, &self.v6),
        }
    }
}

impl Spec {
    /// An algorithm without a cursor or with one. A changed port changes the algorithm.
    fn algorithm(&self) -> Algorithm {
        [Algorithm::Random, Algorithm::RoundRobin][usize::from(self.port) % 2]
    }

    /// Thresholds or none. A changed port changes them.
    fn thresholds(&self) -> Option<Thresholds> {
        let upper = u32::from(self.port) % 3;
        (upper > 0).then_some(Thresholds { upper, lower: 0 })
    }

    /// A maximum age or none. A changed port changes it.
    fn max_age(&self) -> Option<Duration> {
        self.port.is_multiple_of(2).then_some(Duration::from_secs(7 * 24 * 3600))
    }

    fn source_ranges(&self) -> SourceRanges {
        let numbers = self.balancer.iter().flatten().next();
        let nets = |family| Some(numbers?.iter().map(move |number| sources(family, *number)));
        SourceRanges {
            v4: nets(IpFamily::V4).map(|nets| {
                nets.filter_map(|net| if let IpNet::V4(net) = net { Some(net) } else { None }).collect()
            }),
            v6: nets(IpFamily::V6).map(|nets| {
                nets.filter_map(|net| if let IpNet::V6(net) = net { Some(net) } else { None }).collect()
            }),
        }
    }

    fn guard(&self) -> Guard {
        let numbers = self.balancer.iter().flatten().next();
        let nets =
            |family| numbers.map(|numbers| numbers.iter().map(|number| sources(family, *number)).collect());
        Guard { v4: nets(IpFamily::V4), v6: nets(IpFamily::V6) }
    }
}

/// The meaning of the map contents for packets, without ids and positions. It must equal the
/// desired state.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Meaning {
    entries: BTreeMap<String, String>,
    backends: BTreeSet<String>,
    names: BTreeSet<String>,
    /// The flags in `ADDRESSES`.
    marks: BTreeMap<IpAddr, u32>,
    source_ranges: BTreeSet<String>,
}

fn wish<'a>(services: impl IntoIterator<Item = &'a DesiredServicePort>) -> Meaning {
    let mut meaning = Meaning {
        entries: BTreeMap::new(),
        backends: BTreeSet::new(),
        names: BTreeSet::new(),
        marks: BTreeMap::new(),
        source_ranges: BTreeSet::new(),
    };
    for wanted in services {
        meaning.names.insert(format!("{} {} {:?}", wanted.id, wanted.port, wanted.thresholds));
        for frontend in &wanted.frontends {
            let family = frontend.address.family();
            let lists = wanted.endpoints(family);
            let view = |policy: ListPolicy| {
                let indices = match policy.list {
                    EndpointList::Cluster => &lists.cluster,
                    EndpointList::Local => &lists.local,
                };
                let slots = lists.slots(indices, wanted.algorithm, wanted.thresholds.is_some());
                let addresses: Vec<_> = slots.iter().map(|i| lists.endpoints[*i as usize].address).collect();
                let drop = addresses.is_empty() && policy.when_empty == WhenEmpty::Drop;
                format!("{addresses:?} {drop}")
            };
            let (outside, inside) = (view(frontend.outside), view(frontend.inside));
            let differ = outside != inside;
            if let FrontendAddress::Ip(ip) = frontend.address {
                *meaning.marks.entry(ip).or_default() |= match frontend.kind {
                    FrontendKind::ClusterIp => address_flags::SERVICE | address_flags::CLUSTER_IP,
                    _ => address_flags::SERVICE,
                };
            }
            let mut guarded = false;
            if frontend.kind == FrontendKind::LoadBalancer {
                let ranges: Option<Vec<IpNet>> = match family {
                    IpFamily::V4 => (wanted.source_ranges.v4.as_ref())
                        .map(|nets| nets.iter().map(|net| net.trunc().into()).collect()),
                    IpFamily::V6 => (wanted.source_ranges.v6.as_ref())
                        .map(|nets| nets.iter().map(|net| net.trunc().into()).collect()),
                };
                guarded = ranges.is_some();
                let ranges = ranges.into_iter().flatten();
                meaning.source_ranges.extend(ranges.map(|net| format!("{} {net}", wanted.id)));
            }
            let text = format!(
                "{} algorithm {} age {:?} kind {} affinity {} outside {outside} inside {inside} local {differ} guarded {guarded}",
                wanted.id,
                algorithm(wanted),
                wanted.max_connection_age.map(|age| age.as_secs() as u32),
                frontend.kind as u8,
                wanted.affinity_seconds.unwrap_or(0),
            );
            meaning.entries.insert(service_address(frontend, wanted.id.protocol).to_string(), text);
            for endpoint in &lists.endpoints {
                let DesiredEndpoint { address, local, draining, .. } = endpoint;
                meaning.backends.insert(format!("{} {address} local {local} draining {draining}", wanted.id));
            }
        }
    }
    meaning
}

fn meaning(memory: &Memory) -> Meaning {
    let state = memory.state();
    let ids: BTreeMap<u32, (ServicePortId, u16)> =
        state.names.iter().map(|(id, name)| (*id, parse_service_name(name).expect("a name"))).collect();
    let entries = state.services.iter().map(|(address, service)| {
        let family = IpFamily::of(&address.ip);
        let drops =
            [service_flags::OUTSIDE_DROP, service_flags::INSIDE_DROP].map(|flag| service.flags & flag != 0);
        let ranges = slot_ranges(service);
        let [outside, inside] = [0, 1].map(|side: usize| {
            let slots = &state.slots[ranges[side].base as usize..][..ranges[side].count as usize];
            let addresses: Vec<_> = slots.iter().map(|id| state.backends[family][id].address).collect();
            format!("{addresses:?} {}", drops[side])
        });
        let text = format!(
            "{} algorithm {} age {:?} kind {} affinity {} outside {outside} inside {inside} local {} guarded {}",
            ids[&service.service_id].0,
            service.algorithm,
            max_age_of(service.flags),
            service.kind,
            service.affinity_seconds,
            service.flags & service_flags::POLICY_LOCAL != 0,
            service.flags & service_flags::SOURCE_RANGES != 0,
        );
        (address.to_string(), text)
    });
    let backends =
        IpFamily::BOTH.into_iter().flat_map(|family| state.backends[family].values()).map(|backend| {
            let local = backend.flags & backend_flags::LOCAL != 0;
            let draining = backend.flags & (backend_flags::IN_CLUSTER | backend_flags::IN_LOCAL) == 0;
            // The name is written after the backends, and this write may have failed.
            let service = ids.get(&backend.service_id).map_or_else(|| "?".into(), |(id, _)| id.to_string());
            format!("{service} {} local {local} draining {draining}", backend.address)
        });
    Meaning {
        entries: entries.collect(),
        backends: backends.collect(),
        names: ids
            .iter()
            .map(|(service, (id, port))| format!("{id} {port} {:?}", state.thresholds.get(service)))
            .collect(),
        marks: state.marks.clone(),
        source_ranges: state
            .source_ranges
            .iter()
            .map(|(id, net)| {
                format!("{} {net}", ids.get(id).map_or_else(|| "?".into(), |(id, _)| id.to_string()))
            })
            .collect(),
    }
}

/// Returns whether ids wait for a sweep of the flows.
fn has_released_ids(engine: &Engine<Memory>) -> bool {
    let writer = &engine.writer;
    writer.service_ids.has_released()
        || IpFamily::BOTH.iter().any(|&family| writer.backend_ids[family].has_released())
}

/// Checks that map entries refer to all allocated ids and slots, and that the records match the
/// maps.
fn assert_nothing_leaks(engine: &Engine<Memory>, memory: &Memory) {
    let state = memory.state();
    let writer = &engine.writer;
    assert_eq!(writer.service_ids.in_use(), engine.services.len());
    let named = engine.services.values().filter(|installed| installed.named_port.is_some()).count();
    assert_eq!(named, state.names.len());
    assert_eq!(writer.address_owners.len(), state.services.len());
    let mut slots = BTreeSet::new();
    for family in IpFamily::BOTH {
        assert_eq!(writer.backend_ids[family].in_use(), state.backends[family].len());
        let entries = state.services.keys().filter(|key| IpFamily::of(&key.ip) == family).count();
        assert_eq!(writer.entry_count[family] as usize, entries);
    }
    assert_eq!(writer.marks.written(), state.marks);
    let mut needed = BTreeMap::new();
    for (address, service) in state.services.iter().filter(|(address, _)| !address.ip.is_unspecified()) {
        *needed.entry(address.ip).or_default() |= marks_needed(service);
    }
    assert_eq!(state.marks, needed, "an address is marked by its entries, and by nothing else");
    for family in IpFamily::BOTH {
        let ranges = state.source_ranges.iter().filter(|(_, net)| IpFamily::of(&net.addr()) == family);
        assert_eq!(writer.source_range_count[family] as usize, ranges.count());
    }
    for (id, installed) in &engine.services {
        let service_id = installed.service_id;
        let guarded = state.services.values().any(|service| {
            service.service_id == service_id && service.flags & service_flags::SOURCE_RANGES != 0
        });
        let unused = !guarded && state.source_ranges.iter().any(|(other, _)| *other == service_id);
        // A change that failed half-way may have written some.
        assert!(!unused || engine.pending().any(|other| *other == **id), "source ranges without an entry");
    }
    let ids: BTreeSet<u32> = engine.services.values().map(|installed| installed.service_id).collect();
    assert!(state.source_ranges.iter().all(|(id, _)| ids.contains(id)), "source ranges of no service");
    for range in state.services.values().flat_map(slot_ranges) {
        slots.extend(range.base..range.base + range.count);
    }
    let held: u64 = engine
        .services
        .values()
        .flat_map(|installed| IpFamily::BOTH.map(|family| &installed.families[family].ranges))
        .flatten()
        .map(|slots| u64::from(slots.count()))
        .sum();
    assert_eq!(held, slots.len() as u64, "a range that no entry refers to");
    assert!(writer.slots.in_use() >= held && writer.slots.in_use() * 3 <= held * 4, "size classes only");
}

#[test]
fn a_service_is_one_entry_per_address_and_an_unchanged_one_is_not_written() {
    let memory = Memory::roomy(Instant::now());
    let mut engine = engine(&memory);
    let now = memory.state().now;
    let mut spec = Spec { node_port: true, dual: true, ..spec(1, &[1, 2, 3]) };
    spec.v6 = [(1, (true, false))].into();
    engine.apply(&spec.wanted(), now).expect("applied");
    assert_eq!(meaning(&memory), wish([&spec.wanted()]));
    assert_eq!(memory.state().services.len(), 4);
    assert_nothing_leaks(&engine, &memory);

    // 3 + 1 backends, 2 ranges, 1 name, 1 entry of thresholds, 2 flags of addresses, 4 service
    // entries.
    assert_eq!(memory.state().writes, 14);
    engine.apply(&spec.wanted(), now).expect("applied");
    assert_eq!(memory.state().writes, 14);
}

#[test]
fn a_change_of_flags_is_one_write() {
    let memory = Memory::roomy(Instant::now());
    let mut engine = engine(&memory);
    let now = memory.state().now;
    let mut spec = spec(1, &[1, 2, 3]);
    engine.apply(&spec.wanted(), now).expect("applied");
    let before = memory.state().writes;
    spec.v4.insert(2, (true, false));
    engine.apply(&spec.wanted(), now).expect("applied");
    assert_eq!(memory.state().writes, before + 1);
    assert_eq!(meaning(&memory), wish([&spec.wanted()]));
}

#[test]
fn a_greater_upper_threshold_ends_an_overload() {
    let memory = Memory::roomy(Instant::now());
    let mut engine = engine(&memory);
    let now = memory.state().now;
    let others = Spec { dual: true, ..spec(2, &[4]) };
    engine.apply(&others.wanted(), now).expect("applied");
    let mut wanted = Spec { dual: true, v6: [(1, (false, false))].into(), ..spec(1, &[1, 2]) }.wanted();
    // The upper thresholds in force, and whether an overload outlives the next ones.
    for (upper, next, stays) in [
        (Some(2), Some(3), false),
        (Some(3), Some(2), true),
        (Some(2), Some(2), true),
        (None, Some(1), false),
    ] {
        let thresholds = |upper: Option<u32>| upper.map(|upper| Thresholds { upper, lower: 1 });
        wanted.thresholds = thresholds(upper);
        engine.apply(&wanted, now).expect("applied");
        let all: BTreeSet<_> = IpFamily::BOTH
            .into_iter()
            .flat_map(|family| {
                let ids: Vec<_> = memory.state().backends[family].keys().copied().collect();
                ids.into_iter().map(move |id| (family, id))
            })
            .collect();
        assert_eq!(all.len(), 4);
        memory.state_mut().overloaded = all.clone();
        wanted.thresholds = thresholds(next);
        engine.apply(&wanted, now).expect("applied");
        let left = memory.state().overloaded.len();
        // The endpoint of the other Service port stays overloaded.
        assert_eq!(left, if stays { all.len() } else { 1 }, "{upper:?} to {next:?}");
    }
}

#[test]
fn a_family_without_changes_is_not_written() {
    let memory = Memory::roomy(Instant::now());
    let mut engine = engine(&memory);
    let now = memory.state().now;
    let mut spec = Spec { dual: true, v6: [(1, (false, false))].into(), ..spec(1, &[1]) };
    engine.apply(&spec.wanted(), now).expect("applied");
    let before = memory.state().writes;
    spec.v4.insert(2, (false, false));
    engine.apply(&spec.wanted(), now).expect("applied");
    // A backend, its slots, and the IPv4 entry.
    assert_eq!(memory.state().writes, before + 3);
}

#[test]
fn equal_lists_share_one_range() {
    let memory = Memory::roomy(Instant::now());
    let mut engine = engine(&memory);
    let now = memory.state().now;
    let mut spec = Spec { node_port: true, local_policy: true, ..spec(1, &[]) };
    spec.v4 = [(1, (true, false)), (2, (true, false))].into();
    engine.apply(&spec.wanted(), now).expect("applied");
    assert_eq!(engine.writer.slots.in_use(), 2);
    spec.v4.insert(3, (false, false));
    engine.apply(&spec.wanted(), now).expect("applied");
    assert_eq!(engine.writer.slots.in_use(), 5);
    assert_eq!(meaning(&memory), wish([&spec.wanted()]));
}

#[test]
fn a_restarted_engine_writes_nothing_and_removes_stale_services() {
    let memory = Memory::roomy(Instant::now());
    let now = memory.state().now;
    let specs: Vec<_> =
        (1..=5).map(|number| Spec { node_port: true, ..spec(number, &[number, 100]) }).collect();
    let mut first = engine(&memory);
    for spec in &specs {
        first.apply(&spec.wanted(), now).expect("applied");
    }
    drop(first);

    let before = memory.state().writes;
    let mut second = engine(&memory);
    for spec in &specs[1..] {
        second.apply(&spec.wanted(), now).expect("applied");
    }
    assert_eq!(
        memory.state().writes,
        before,
        "nothing changed, and nothing is pruned before the first full state"
    );
    assert!(second.finish_sync(now).is_empty());
    assert_eq!(meaning(&memory), wish(&specs[1..].iter().map(Spec::wanted).collect::<Vec<_>>()));
    assert_nothing_leaks(&second, &memory);
}

#[test]
fn an_id_is_reused_only_after_a_sweep_that_does_not_find_it() {
    let memory = Memory::roomy(Instant::now());
    let mut engine = engine(&memory);
    let start = memory.state().now;
    let wanted = spec(1, &[1]).wanted();
    engine.apply(&wanted, start).expect("applied");
    let address = *memory.state().services.keys().next().expect("an entry");
    memory.state_mut().connect(&address, 0);
    engine.apply(&spec(1, &[2]).wanted(), start).expect("applied");
    assert_eq!(memory.state().backend_ids(IpFamily::V4), [2].into());
    assert!(has_released_ids(&engine));

    let later = start + 2 * GRACE;
    memory.state_mut().now = later;
    assert!(engine.tick(later).is_empty());
    let named = memory.state().referenced_ids();
    engine.free_unreferenced_ids(later, &named);
    engine.apply(&wanted, later).expect("applied");
    assert_eq!(
        memory.state().backend_ids(IpFamily::V4),
        [3].into(),
        "a flow names 1, and 2 is new in quarantine"
    );

    memory.state_mut().flows.clear();
    let later = later + 2 * GRACE;
    memory.state_mut().now = later;
    let named = memory.state().referenced_ids();
    engine.free_unreferenced_ids(later, &named);
    assert!(!has_released_ids(&engine));
    engine.apply(&spec(1, &[4]).wanted(), later).expect("applied");
    assert_eq!(memory.state().backend_ids(IpFamily::V4), [1].into());
}

#[test]
fn a_restarted_engine_does_not_reuse_ids_of_flows() {
    let memory = Memory::roomy(Instant::now());
    let now = memory.state().now;
    let mut first = engine(&memory);
    first.apply(&spec(1, &[1]).wanted(), now).expect("applied");
    let address = *memory.state().services.keys().next().expect("an entry");
    memory.state_mut().connect(&address, 0);
    first.remove(&id(1), now).expect("removed");
    drop(first);
    memory.state_mut().forget_graces();
    let mut second = engine(&memory);
    second.apply(&spec(2, &[2]).wanted(), now).expect("applied");
    assert_eq!(memory.state().backend_ids(IpFamily::V4), [2].into());
    assert_eq!(memory.state().names.keys().copied().collect::<Vec<_>>(), [2]);
}

#[test]
fn an_engine_continues_on_larger_maps() {
    let start = Instant::now();
    let capacity = Capacity {
        services: PerFamily { v4: 2, v6: 0 },
        slots: 4,
        backends: PerFamily { v4: 4, v6: 1 },
        service_names: 3,
        source_ranges: PerFamily { v4: 0, v6: 0 },
    };
    let memory = Memory::new(capacity, GRACE, start);
    let mut engine = engine(&memory);
    assert_eq!(engine.demand(&[]), Demand::default());
    engine.apply(&spec(1, &[1, 2]).wanted(), start).expect("applied");
    let one = Demand { services: 1, slots: 2, backends: 2, source_ranges: 0 };
    assert_eq!(engine.demand(&[]), one);
    assert_eq!(engine.demand(&[spec(1, &[1, 2]).wanted()]), one, "nothing new");
    let four = Demand { services: 1, slots: 4, backends: 4, source_ranges: 0 };
    assert_eq!(engine.demand(&[spec(1, &[1, 2, 3, 4]).wanted()]), four);
    let two = Spec { node_port: true, ..spec(2, &[3, 4, 5]) }.wanted();
    let both = Demand { services: 3, slots: 5, backends: 5, source_ranges: 0 };
    assert_eq!(engine.demand(std::slice::from_ref(&two)), both);

    // A change that found no room counts until it is written. Its new slots need room beside the
    // old ones.
    engine.apply(&spec(1, &[1, 2, 3]).wanted(), start).expect_err("no room");
    assert_eq!(engine.demand(&[]), Demand { slots: 5, backends: 3, ..one });
    engine.apply(&spec(1, &[1, 2]).wanted(), start).expect("applied");
    engine.apply(&two, start).expect_err("no room");
    assert_eq!(engine.demand(&[]), both);
    let larger = Capacity {
        services: PerFamily { v4: 4, v6: 0 },
        slots: 8,
        backends: PerFamily { v4: 8, v6: 1 },
        service_names: 4,
        ..capacity
    };
    memory.state_mut().grow(larger);
    engine.move_to(memory.clone());
    assert!(engine.tick(start).is_empty());
    assert_eq!(engine.pending().count(), 0);
    assert_eq!(engine.demand(&[]), both);
    let grown = meaning(&memory);
    drop(engine);
    let mut restarted = super::tests::engine(&memory);
    assert!(restarted.tick(start).is_empty());
    assert_eq!(meaning(&memory), grown, "an engine that is started on the maps finds the same");
}

#[test]
fn a_full_map_leaves_the_service_unchanged_and_does_not_affect_others() {
    let start = Instant::now();
    let capacity = Capacity {
        services: PerFamily { v4: 3, v6: 0 },
        slots: 6,
        backends: PerFamily { v4: 6, v6: 1 },
        service_names: 10,
        source_ranges: PerFamily { v4: 0, v6: 0 },
    };
    let memory = Memory::new(capacity, GRACE, start);
    let mut engine = engine(&memory);
    engine.apply(&spec(1, &[1, 2]).wanted(), start).expect("applied");
    engine.apply(&spec(2, &[3]).wanted(), start).expect("applied");
    let before = meaning(&memory);

    // Backends: 5 usable, 3 used.
    let large = spec(1, &[1, 2, 4, 5, 6]).wanted();
    let error = engine.apply(&large, start).expect_err("no room");
    assert_eq!(
        error.to_string(),
        "service port default/web-1:http TCP: map BACKENDS_V4 is full (6 entries): raise --max-map-memory"
    );
    assert_eq!(meaning(&memory), before);
    assert_eq!(engine.pending().collect::<Vec<_>>(), [&id(1)]);

    // Slots: 6, 3 used.
    let error = engine.apply(&spec(1, &[1, 2, 4, 5]).wanted(), start).expect_err("no room");
    assert!(error.to_string().contains("SLOTS is full (6 entries): raise --max-map-memory"), "{error}");
    assert_eq!(meaning(&memory), before);

    // Entries: 3, 2 used.
    let error = engine.apply(&Spec { node_port: true, ..spec(3, &[]) }.wanted(), start).expect_err("no room");
    assert!(error.to_string().contains("SERVICES_V4 is full (3 entries): raise --max-map-memory"), "{error}");
    assert_eq!(meaning(&memory), before);
    engine.apply(&spec(4, &[7]).wanted(), start).expect("others go on");

    // Without 2 and 4, there is room for the entries of 3 at once, and for the slots and backends
    // of 1 after the grace period.
    engine.remove(&id(2), start).expect("removed");
    engine.remove(&id(4), start).expect("removed");
    assert_eq!(engine.tick(start).len(), 1, "slots are still in their grace period");
    let later = start + GRACE;
    memory.state_mut().now = later;
    engine.free_unreferenced_ids(later, &ReferencedIds::default());
    assert!(engine.tick(later).is_empty());
    let third = Spec { node_port: true, ..spec(3, &[]) }.wanted();
    assert_eq!(meaning(&memory), wish([&spec(1, &[1, 2, 4, 5]).wanted(), &third]));
    assert_eq!(engine.pending().count(), 0);
}

#[test]
fn the_first_service_keeps_an_address_and_the_second_gets_it_when_it_is_free() {
    let memory = Memory::roomy(Instant::now());
    let mut engine = engine(&memory);
    let now = memory.state().now;
    let [first, second] = [1, 2].map(|number| Spec { shared: Some(7), ..spec(number, &[number]) }.wanted());
    engine.apply(&first, now).expect("applied");
    let error = engine.apply(&second, now).expect_err("taken");
    assert!(matches!(&error, ApplyError::Taken { owner, .. } if **owner == first.id), "{error}");
    assert_eq!(memory.state().services.len(), 3, "the other address of the second one is served");
    engine.remove(&first.id, now).expect("removed");
    assert!(engine.tick(now).is_empty());
    assert_eq!(meaning(&memory), wish([&second]));
}

#[test]
fn source_ranges_are_correct_at_every_moment_of_a_change() {
    let memory = Memory::roomy(Instant::now());
    let mut engine = engine(&memory);
    let now = memory.state().now;
    let guarded = |numbers: &[u8]| Spec {
        dual: true,
        balancer: Some(Some(numbers.iter().copied().collect())),
        ..spec(1, &[1])
    };
    let open = Spec { balancer: Some(None), ..guarded(&[]) };
    // `Memory` checks each write against the new guard.
    for next in [guarded(&[1, 2]), guarded(&[2, 5]), guarded(&[]), open.clone(), guarded(&[3]), spec(1, &[1])]
    {
        memory.state_mut().guards.insert(id(1), next.guard());
        engine.apply(&next.wanted(), now).expect("applied");
        assert_eq!(meaning(&memory), wish([&next.wanted()]));
        assert_nothing_leaks(&engine, &memory);
    }
    assert!(memory.state().source_ranges.is_empty());
}

#[test]
fn source_ranges_that_do_not_fit_leave_the_service_unchanged() {
    let now = Instant::now();
    let memory = Memory::roomy(now);
    memory.state_mut().capacity.source_ranges.v4 = 2;
    let mut engine = engine(&memory);
    let guarded = |number, numbers: &[u8]| {
        Spec { balancer: Some(Some(numbers.iter().copied().collect())), ..spec(number, &[1]) }.wanted()
    };
    engine.apply(&guarded(1, &[1]), now).expect("applied");
    let before = meaning(&memory);
    let error = engine.apply(&guarded(1, &[2, 3]), now).expect_err("1 of 2 is used");
    assert_eq!(
        error.to_string(),
        "service port default/web-1:http TCP: map SOURCE_RANGES_V4 is full (2 entries): raise --max-map-memory"
    );
    assert_eq!(meaning(&memory), before);
    engine.apply(&guarded(1, &[2]), now).expect("applied");
    engine.apply(&guarded(2, &[1, 2]), now).expect_err("1 of 2 is used");
    engine.remove(&id(1), now).expect("removed");
    assert!(engine.tick(now).is_empty(), "there is room now");
    assert_eq!(meaning(&memory), wish([&guarded(2, &[1, 2])]));
}

#[test]
fn incomplete_entries_are_removed() {
    let memory = Memory::roomy(Instant::now());
    let now = memory.state().now;
    let specs = [1, 2].map(|number| spec(number, &[number]).wanted());
    let mut first = engine(&memory);
    for wanted in &specs {
        first.apply(wanted, now).expect("applied");
    }
    drop(first);
    {
        let mut state = memory.state_mut();
        // A backend and a service entry of a missing Service port, a service entry with slots of
        // another Service port, and an invalid name.
        let mut orphan = state.backends.v4[&1];
        orphan.service_id = 77;
        orphan.address = endpoint_address(IpFamily::V4, 200);
        state.backends.v4.insert(50, orphan);
        let (address, value) =
            state.services.iter().next().map(|(address, value)| (*address, *value)).expect("one");
        let elsewhere = |port| super::tables::ServiceAddress { port, ..address };
        state.services.insert(elsewhere(1), lb_common::layout::ServiceEntry { service_id: 77, ..value });
        state.services.insert(elsewhere(2), lb_common::layout::ServiceEntry { service_id: 2, ..value });
        state.services.insert(elsewhere(3), lb_common::layout::ServiceEntry { outside_base: 5000, ..value });
        let mut broken = state.names[&1];
        broken.protocol = 99;
        state.names.insert(60, broken);
        // Source ranges of a missing Service port, unneeded flags of an address, and missing flags.
        state.source_ranges.insert((77, sources(IpFamily::V4, 1)));
        state.marks.insert("198.51.100.1".parse().expect("an address"), address_flags::SERVICE);
        state.marks.remove(&address.ip);
    }
    let rebuilt = memory_without_history(&memory);
    let mut second = engine(&rebuilt);
    assert_eq!(meaning(&rebuilt), wish(&specs));
    for wanted in &specs {
        second.apply(wanted, now).expect("applied");
    }
    assert!(second.finish_sync(now).is_empty());
    assert_nothing_leaks(&second, &rebuilt);
}

/// Returns the same maps, without their history.
fn memory_without_history(memory: &Memory) -> Memory {
    let state = memory.state();
    let fresh = Memory::new(state.capacity, state.grace, state.now);
    {
        let mut to = fresh.state_mut();
        to.names = state.names.clone();
        to.thresholds = state.thresholds.clone();
        to.slots = state.slots.clone();
        to.backends = state.backends.clone();
        to.marks = state.marks.clone();
        to.source_ranges = state.source_ranges.clone();
        for (address, value) in &state.services {
            to.plant(*address, *value);
        }
    }
    fresh
}

#[test]
fn a_full_map_has_an_error_of_its_own() {
    let memory = Memory::roomy(Instant::now());
    let mut engine = engine(&memory);
    let now = memory.state().now;
    memory.state_mut().fail_after = Some(2);
    let error = engine.apply(&spec(1, &[1, 2, 3]).wanted(), now).expect_err("the third write fails");
    assert!(matches!(error, ApplyError::Table { source: TableError::Kernel { .. }, .. }), "{error}");
    assert!(engine.tick(now).is_empty(), "tried again without waiting for room");
    assert_eq!(meaning(&memory), wish([&spec(1, &[1, 2, 3]).wanted()]));
}

#[test]
fn lost_endpoints_are_reported_once() {
    let memory = Memory::roomy(Instant::now());
    let mut engine = engine(&memory);
    let now = memory.state().now;
    let protocols = BTreeSet::from([id(1).protocol]);
    engine.apply(&spec(1, &[1, 2, 3]).wanted(), now).expect("applied");
    assert_eq!(engine.take_protocols_with_lost_endpoints(), BTreeSet::new());
    engine.apply(&spec(1, &[1, 2]).wanted(), now).expect("applied");
    assert_eq!(
        (engine.take_protocols_with_lost_endpoints(), engine.take_protocols_with_lost_endpoints()),
        (protocols.clone(), BTreeSet::new())
    );
    engine.remove(&id(1), now).expect("removed");
    assert_eq!(engine.take_protocols_with_lost_endpoints(), protocols);
    engine.remove(&id(1), now).expect("nothing to remove");
    assert_eq!(engine.take_protocols_with_lost_endpoints(), BTreeSet::new());
}
