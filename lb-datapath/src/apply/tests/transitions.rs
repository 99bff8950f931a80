//! Changes of the type of a Service, from the API object to the maps. After each change, the maps
//! are the same as after a fresh start, and other Services are unchanged.

use std::sync::Arc;

use k8s_openapi::api::{core::v1, discovery};
use lb_common::layout;
use lb_model::{ObjectName, Problem, SourceEvent, WatchedResource};
use lb_objects::convert;
use lb_plan::{Changes, HealthCheck, Planner, PlannerSettings};
use proptest::sample::{select, subsequence};
use serde_json::{Value, json};

use super::*;
use crate::apply::tables::{BackendEntry, ServiceAddress};

const TYPES: [&str; 5] = ["ExternalName", "headless", "ClusterIP", "NodePort", "LoadBalancer"];

/// Random fields of a Service. Fields that its type does not have are not used.
#[derive(Debug, Clone)]
struct Fields {
    families: Vec<&'static str>,
    ports: Vec<(&'static str, &'static str, u16)>,
    node_ports: bool,
    external_ips: Vec<&'static str>,
    ingress: Vec<(&'static str, &'static str)>,
    source_ranges: Vec<&'static str>,
    policies: (&'static str, &'static str),
    affinity: &'static str,
}

prop_compose! {
    fn fields()(
        families in select(vec![vec!["10.96.0.10"], vec!["fd00:96::10"], vec!["10.96.0.10", "fd00:96::10"], vec!["10.96.0.11"]]),
        ports in subsequence(vec![("http", "TCP", 80), ("https", "TCP", 443), ("dns", "UDP", 80)], 1..=3),
        node_ports in any::<bool>(),
        external_ips in subsequence(vec!["203.0.113.1", "203.0.113.2", "2001:db8::1"], 0..=3),
        ingress in subsequence(vec![("203.0.113.1", "VIP"), ("203.0.113.3", "VIP"), ("203.0.113.4", "Proxy"), ("2001:db8::2", "VIP")], 0..=4),
        source_ranges in subsequence(vec!["192.0.2.0/24", "2001:db8:1::/48"], 0..=2),
        policies in select(vec![("Cluster", "Cluster"), ("Cluster", "Local"), ("Local", "Cluster"), ("Local", "Local")]),
        affinity in select(vec!["None", "ClientIP"]),
    ) -> Fields {
        Fields { families, ports, node_ports, external_ips, ingress, source_ranges, policies, affinity }
    }
}

fn endpoints() -> impl Strategy<Value = Vec<(&'static str, &'static str)>> {
    let all = vec![
        ("10.0.0.1", "here"),
        ("10.0.0.2", "there"),
        ("10.0.0.3", "there"),
        ("fd00::1", "here"),
        ("fd00::2", "there"),
    ];
    subsequence(all, 0..=5)
}

impl Fields {
    /// Returns the Service `web` with this type, as a client applies it.
    fn object(&self, kind: &str) -> Value {
        let (internal, external) = self.policies;
        let port = |(name, protocol, port): &(&str, &str, u16)| {
            let mut port = json!({"name": name, "protocol": protocol, "port": port, "targetPort": name});
            if self.node_ports && matches!(kind, "NodePort" | "LoadBalancer") {
                port["nodePort"] = (30000 + port["port"].as_u64().unwrap_or(0)).into();
            }
            port
        };
        let mut spec = json!({
            "ports": self.ports.iter().map(port).collect::<Vec<_>>(),
            "externalIPs": self.external_ips,
            "sessionAffinity": self.affinity,
            "internalTrafficPolicy": internal,
        });
        let mut status = json!({});
        match kind {
            "ExternalName" => spec = json!({"type": kind, "externalName": "www.example.org"}),
            "headless" => spec["clusterIP"] = "None".into(),
            _ => {
                spec["type"] = kind.into();
                spec["clusterIPs"] = json!(self.families);
                spec["externalTrafficPolicy"] = external.into();
            }
        }
        if kind == "LoadBalancer" {
            spec["loadBalancerSourceRanges"] = json!(self.source_ranges);
            spec["healthCheckNodePort"] = 32000.into();
            let ingress = |(ip, mode): &(&str, &str)| json!({"ip": ip, "ipMode": mode});
            status["loadBalancer"]["ingress"] = self.ingress.iter().map(ingress).collect::<Vec<_>>().into();
        }
        json!({"metadata": {"namespace": "default", "name": "web"}, "spec": spec, "status": status})
    }
}

fn service(object: Value) -> SourceEvent {
    let object: v1::Service = serde_json::from_value(object).unwrap();
    let converted = convert::service(&object);
    SourceEvent::Service(converted.name, converted.value.map(Arc::new))
}

/// Returns the EndpointSlices of a Service, with the port names of [`Fields`].
fn slices(service: &str, endpoints: &[(&str, &str)]) -> Vec<SourceEvent> {
    let ports = [("http", "TCP", 8080), ("https", "TCP", 8443), ("dns", "UDP", 5353)]
        .map(|(name, protocol, port)| json!({"name": name, "protocol": protocol, "port": port}));
    let slice = |address_type: &str| {
        let of_type = endpoints.iter().filter(|(ip, _)| ip.contains(':') == (address_type == "IPv6"));
        let endpoints: Vec<_> =
            of_type.map(|(ip, node)| json!({"addresses": [ip], "nodeName": node})).collect();
        let object: discovery::v1::EndpointSlice = serde_json::from_value(json!({
            "metadata": {
                "namespace": "default", "name": format!("{service}-{address_type}"),
                "labels": {"kubernetes.io/service-name": service},
            },
            "addressType": address_type, "ports": ports, "endpoints": endpoints,
        }))
        .unwrap();
        let converted = convert::endpoint_slice(&object, "here");
        SourceEvent::EndpointSlice(converted.name, converted.value.map(Arc::new))
    };
    ["IPv4", "IPv6"].map(slice).into()
}

/// Returns two other Services. The second one gets an address of `web` when `web` releases it.
fn others() -> Vec<SourceEvent> {
    let mut events = slices("other", &[("10.0.0.1", "here"), ("10.0.9.2", "there"), ("fd00::9", "there")]);
    events.push(service(json!({
        "metadata": {"namespace": "default", "name": "other"},
        "spec": {
            "type": "LoadBalancer", "clusterIPs": ["10.96.0.99", "fd00:96::99"], "externalTrafficPolicy": "Local",
            "ports": [{"name": "http", "port": 80, "nodePort": 30999}], "loadBalancerSourceRanges": ["192.0.2.0/24"],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.99"}]}},
    })));
    events.push(service(json!({
        "metadata": {"namespace": "default", "name": "younger"},
        "spec": {"clusterIPs": ["10.96.0.98"], "externalIPs": ["203.0.113.1"], "ports": [{"port": 80}]},
    })));
    events
}

/// A planner and an engine, as in the agent.
struct Agent {
    planner: Planner,
    engine: Engine<Memory>,
    memory: Memory,
    health_checks: BTreeMap<ObjectName, HealthCheck>,
    problems: BTreeSet<Problem>,
}

impl Agent {
    fn start(events: Vec<SourceEvent>) -> Self {
        let memory = Memory::roomy(Instant::now());
        let engine = engine(&memory);
        let planner = Planner::new(PlannerSettings::default());
        let mut agent =
            Self { planner, engine, memory, health_checks: BTreeMap::new(), problems: BTreeSet::new() };
        let now =
            agent.absorb(events.into_iter().chain(WatchedResource::OF_SERVICES.map(SourceEvent::Synced)));
        assert!(agent.engine.finish_sync(now).is_empty());
        agent
    }

    fn absorb(&mut self, events: impl IntoIterator<Item = SourceEvent>) -> Instant {
        let now = self.memory.state().now + 2 * GRACE;
        self.memory.state_mut().now = now;
        let Changes { changed, removed, health_checks, raised, resolved, .. } = self.planner.update(events);
        for id in removed {
            self.engine.remove(&id, now).unwrap();
        }
        // A Service may wait for an address that a later one of the same batch releases. `tick`
        // handles this.
        let errors = changed.iter().filter_map(|wanted| self.engine.apply(wanted, now).err()).count();
        assert!(errors == 0 || self.engine.tick(now).is_empty());
        for (name, health_check) in health_checks {
            match health_check {
                Some(health_check) => self.health_checks.insert(name, health_check),
                None => self.health_checks.remove(&name),
            };
        }
        self.problems.retain(|problem| !resolved.contains(problem));
        self.problems.extend(raised);
        now
    }

    fn reported(&self) -> (Meaning, &BTreeMap<ObjectName, HealthCheck>, &BTreeSet<Problem>) {
        (meaning(&self.memory), &self.health_checks, &self.problems)
    }

    /// Returns all map entries of a Service, with ids and positions.
    fn bytes_of(&self, name: &str) -> Bytes {
        let state = self.memory.state();
        let ids = state.names.iter().filter(|(_, entry)| parse_service_name(entry).unwrap().0.name == name);
        let ids: Vec<u32> = ids.map(|(id, _)| *id).collect();
        assert!(!ids.is_empty(), "{name} is served");
        let mut slots = Vec::new();
        let mut entries = Vec::new();
        for (address, entry) in state.services.iter().filter(|(_, entry)| ids.contains(&entry.service_id)) {
            entries.push((*address, *entry));
            for range in slot_ranges(entry) {
                slots.push(state.slots[range.base as usize..][..range.count as usize].to_vec());
            }
        }
        let mut backends = Vec::new();
        for family in IpFamily::BOTH {
            let own = state.backends[family].iter().filter(|(_, entry)| ids.contains(&entry.service_id));
            backends.extend(own.map(|(id, entry)| (*id, *entry)));
        }
        let ranges = state.source_ranges.iter().filter(|(id, _)| ids.contains(id));
        let source_ranges = ranges.copied().collect();
        Bytes { ids, entries, slots, backends, source_ranges }
    }
}

#[derive(Debug, PartialEq)]
struct Bytes {
    ids: Vec<u32>,
    entries: Vec<(ServiceAddress, layout::ServiceEntry)>,
    slots: Vec<Vec<u32>>,
    backends: Vec<(u32, BackendEntry)>,
    source_ranges: Vec<(u32, IpNet)>,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_change_of_type_equals_a_fresh_start_and_does_not_affect_others(
        before in fields(),
        after in fields(),
        endpoints in endpoints(),
    ) {
        let rest = || [others(), slices("web", &endpoints)].concat();
        for old in TYPES {
            for new in TYPES {
                let mut agent = Agent::start([rest(), vec![service(before.object(old))]].concat());
                let (other, younger) = (agent.bytes_of("other"), agent.bytes_of("younger"));
                agent.absorb([service(after.object(new))]);
                let fresh = Agent::start([rest(), vec![service(after.object(new))]].concat());
                prop_assert_eq!(agent.reported(), fresh.reported(), "from {} to {}", old, new);
                assert_nothing_leaks(&agent.engine, &agent.memory);
                prop_assert_eq!(agent.bytes_of("other"), other, "from {} to {}", old, new);
                let now = agent.bytes_of("younger");
                prop_assert_eq!((now.ids, now.backends), (younger.ids, younger.backends));

                // Changes back. The entries of the other Services are the same to the last byte.
                agent.absorb([service(before.object(old))]);
                let fresh = Agent::start([rest(), vec![service(before.object(old))]].concat());
                prop_assert_eq!(agent.reported(), fresh.reported(), "from {} back to {}", new, old);
                assert_nothing_leaks(&agent.engine, &agent.memory);
            }
        }
    }
}
