//! Tests the invariant of the planner: the result depends on the objects, not on the order in which
//! they arrive.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use lb_model::{
    Balancing, Endpoint, EndpointPort, EndpointSlice, Node, NodeDrain, NodeHint, ObjectName, PlaceHash,
    PodRef, PodWeight, Problem, ProblemKind, ProblemSource, Protocol, Service, ServicePort, Severity,
    SourceEvent, SourceRanges, TrafficPolicy, WatchedResource, Weight,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::desired::{DesiredServicePort, ServicePortId};
use super::{Changes, HealthCheck, Planner, PlannerSettings};

fn planner() -> Planner {
    Planner::new(PlannerSettings { pod_weights: true, ..PlannerSettings::default() })
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn name() -> impl Strategy<Value = ObjectName> {
    select(vec!["a", "b", "c"]).prop_map(|name| ObjectName::new("default", name))
}

fn protocol() -> impl Strategy<Value = Protocol> {
    select(vec![Protocol::Tcp, Protocol::Udp])
}

fn policy() -> impl Strategy<Value = TrafficPolicy> {
    select(vec![TrafficPolicy::Cluster, TrafficPolicy::Local])
}

fn some_of(addresses: &'static [&'static str]) -> impl Strategy<Value = Box<[IpAddr]>> {
    proptest::sample::subsequence(addresses, 0..=addresses.len())
        .prop_map(|texts| texts.into_iter().map(ip).collect())
}

prop_compose! {
    /// The pools of values are so small that Services often conflict.
    fn service()(
        created in option::of(0..3_i64),
        four in option::of(select(vec!["10.96.0.1", "10.96.0.2"])),
        six in option::of(select(vec!["fd00:96::1", "fd00:96::2"])),
        ports in vec((select(vec!["", "x"]), protocol(), select(vec![80, 81]), option::of(select(vec![30080, 30081]))), 0..3),
        external_ips in some_of(&["203.0.113.1", "2001:db8::1", "10.96.0.1"]),
        load_balancer_ips in some_of(&["203.0.113.1", "203.0.113.2"]),
        internal_policy in policy(),
        external_policy in policy(),
        affinity_seconds in option::of(Just(60)),
        health_check_node_port in option::of(Just(32000)),
    ) -> Service {
        Service {
            created,
            location: None,
            cluster_ips: four.into_iter().chain(six).map(ip).collect(),
            ports: unique(ports).map(|(name, protocol, port, node_port)| {
                ServicePort { name: name.into(), protocol, port, node_port }
            }).collect(),
            external_ips,
            load_balancer_ips,
            source_ranges: SourceRanges::default(),
            affinity_seconds,
            balancing: Balancing::default(),
            internal_policy,
            external_policy,
            health_check_node_port,
            other_proxy: false,
            external_name: false,
        }
    }
}

/// Removes duplicate names of a protocol, as the conversion does.
fn unique<P>(
    ports: Vec<(&'static str, Protocol, u16, P)>,
) -> impl Iterator<Item = (&'static str, Protocol, u16, P)> {
    let by_name: BTreeMap<_, _> = ports.into_iter().map(|port| ((port.0, port.1), port)).collect();
    by_name.into_values()
}

prop_compose! {
    fn endpoint()(
        address in select(vec!["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1"]),
        (ready, serving, terminating, local) in any::<(bool, bool, bool, bool)>(),
        node_hint in select(vec![NodeHint::None, NodeHint::OtherNodes, NodeHint::ThisNode]),
        zone_hints in option::of(0..2_u16),
        node in option::of(select(vec!["a", "b", "c"])),
    ) -> Endpoint {
        let node = node.map(PlaceHash::of);
        let pod = Some(PodRef::new(&ObjectName::new("default", address), Some("u-1")));
        Endpoint { address: ip(address), ready, serving, terminating, local, node, pod, zone: None, node_hint, zone_hints }
    }
}

prop_compose! {
    fn slice()(
        service in name(),
        ports in vec((select(vec!["", "x"]), protocol(), select(vec![8080, 8081])), 0..3),
        endpoints in vec(endpoint(), 0..5),
        weight in option::of(0..3_u16),
    ) -> EndpointSlice {
        EndpointSlice {
            service,
            location: None,
            ports: ports.into_iter().map(|(name, protocol, port)| EndpointPort { name: name.into(), protocol, port }).collect(),
            endpoints: endpoints.into(),
            weight: weight.map(Weight::new),
            trigger: None,
            zone_sets: ["a", "b"].map(|zone| [zone.into()].into()).into(),
        }
    }
}

/// The weight of a Pod, or of an earlier one with the same name.
fn pod_weight() -> impl Strategy<Value = SourceEvent> {
    let pod = select(vec!["10.0.0.1", "10.0.0.2"]);
    let weight = (select(vec![None, Some("u-1"), Some("u-2")]), 0..3_u16);
    (pod, option::weighted(0.8, weight)).prop_map(|(pod, weight)| {
        let name = ObjectName::new("default", pod);
        let weight = weight
            .map(|(uid, weight)| PodWeight { pod: PodRef::new(&name, uid), weight: Weight::new(weight) });
        SourceEvent::PodWeight(name, weight)
    })
}

fn node() -> impl Strategy<Value = Option<Arc<Node>>> {
    select(vec![None, Some(None), Some(Some("a")), Some(Some("b"))])
        .prop_map(|node| node.map(|zone| Arc::new(Node { zone: zone.map(Into::into), ..Node::default() })))
}

/// A problem names its object, so that two problem sources never report the same problem.
fn report() -> impl Strategy<Value = SourceEvent> {
    (name(), select(vec![&[][..], &["x"], &["y"], &["x", "y"]])).prop_map(|(name, reasons)| {
        let problem = |reason: &&str| Problem {
            severity: Severity::Error,
            location: None,
            object: format!("Service {name}").into(),
            field: "".into(),
            kind: ProblemKind::Duplicate,
            reason: (*reason).into(),
            remedy: "".into(),
        };
        let problems = reasons.iter().map(problem).collect();
        SourceEvent::Report(ProblemSource::Object("Service", name), problems)
    })
}

fn event() -> impl Strategy<Value = SourceEvent> {
    prop_oneof![
        4 => (name(), option::weighted(0.8, service())).prop_map(|(name, it)| SourceEvent::Service(name, it.map(Arc::new))),
        4 => (name(), option::weighted(0.8, slice())).prop_map(|(name, it)| SourceEvent::EndpointSlice(name, it.map(Arc::new))),
        1 => node().prop_map(SourceEvent::Node),
        1 => (name(), option::of(Just(NodeDrain::default()))).prop_map(|(name, drain)| SourceEvent::NodeDrain(name, drain)),
        1 => pod_weight(),
        1 => report(),
    ]
}

/// The state that results from all changes so far.
#[derive(Debug, Default, PartialEq)]
struct Applied {
    services: BTreeMap<ServicePortId, DesiredServicePort>,
    health_checks: BTreeMap<ObjectName, HealthCheck>,
    problems: BTreeMap<Problem, i32>,
}

impl Applied {
    fn apply(&mut self, changes: Changes) {
        for service in changes.changed {
            self.services.insert(service.id.clone(), service);
        }
        for id in changes.removed {
            assert!(self.services.remove(&id).is_some(), "removed but not planned: {id}");
        }
        for (name, health_check) in changes.health_checks {
            match health_check {
                Some(health_check) => drop(self.health_checks.insert(name, health_check)),
                None => assert!(self.health_checks.remove(&name).is_some(), "not open: {name}"),
            }
        }
        for (problems, difference) in [(changes.raised, 1), (changes.resolved, -1)] {
            for problem in problems {
                *self.problems.entry(problem).or_default() += difference;
            }
        }
        self.problems.retain(|_, count| *count != 0);
    }
}

/// Returns the last event about each object. The others have no effect on the state.
fn last_of_each(events: &[SourceEvent]) -> Vec<SourceEvent> {
    let mut last = BTreeMap::new();
    for event in events {
        let object = match event {
            SourceEvent::Service(name, _) => format!("service {name}"),
            SourceEvent::EndpointSlice(name, _) => format!("slice {name}"),
            SourceEvent::NodeDrain(name, _) => format!("drain of {name}"),
            SourceEvent::PodWeight(name, _) => format!("weight of {name}"),
            SourceEvent::Report(source, _) => format!("report {source:?}"),
            _ => "node".to_owned(),
        };
        last.insert(object, event.clone());
    }
    last.into_values().collect()
}

/// Returns the state after a fresh start with the objects that these events leave.
fn from_scratch(events: &[SourceEvent]) -> Applied {
    let mut planner = planner();
    let mut applied = Applied::default();
    let objects = last_of_each(events).into_iter().rev();
    applied.apply(planner.update(objects.chain(WatchedResource::ALL.map(SourceEvent::Synced))));
    applied
}

/// Number of sequences, and of events in the longest one. Miri gets few: it is very slow.
const CASES: u32 = if cfg!(miri) { 2 } else { 512 };
const EVENTS: usize = if cfg!(miri) { 6 } else { 40 };

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, ..ProptestConfig::default() })]

    #[test]
    fn updates_in_any_order_and_batching_equal_planning_from_scratch(
        events in vec(event(), 1..EVENTS),
        synced_after in 0..EVENTS,
        batch in 1..8_usize,
    ) {
        let mut planner = planner();
        let mut applied = Applied::default();
        let (early, late) = events.split_at(synced_after.min(events.len()));
        for events in early.chunks(batch) {
            let changes = planner.update(events.iter().cloned());
            prop_assert!(changes.changed.is_empty() && changes.removed.is_empty() && !changes.complete);
            applied.apply(changes);
        }
        let synced = planner.update(WatchedResource::ALL.map(SourceEvent::Synced));
        prop_assert!(synced.complete);
        applied.apply(synced);
        prop_assert_eq!(&applied, &from_scratch(early));
        let mut received = early.len();
        for chunk in late.chunks(batch) {
            applied.apply(planner.update(chunk.iter().cloned()));
            received += chunk.len();
            prop_assert_eq!(&applied, &from_scratch(&events[..received]));
        }

        // At most one Service port owns an address.
        let mut taken = BTreeMap::new();
        for service in applied.services.values() {
            prop_assert!(!service.frontends.is_empty());
            for frontend in &service.frontends {
                let key = (frontend.address, frontend.port, service.id.protocol);
                let previous = taken.insert(key, &service.id);
                prop_assert!(previous.is_none(), "{previous:?}, {}: {frontend:?}", service.id);
            }
        }
    }

    #[test]
    fn a_repeated_event_changes_nothing(events in vec(event(), 1..EVENTS / 2)) {
        let mut planner = planner();
        planner.update(events.iter().cloned().chain(WatchedResource::ALL.map(SourceEvent::Synced)));
        let changes = planner.update(last_of_each(&events));
        prop_assert!(changes.is_empty(), "{changes:?}");
    }
}
