//! From events to maps: the planner and the engine, and what is to be said about both.
//!
//! No I/O but the maps, no clock: the main loop brings time and events, and logs the [`Outcome`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use lb_datapath::apply::tables::{ServiceAddress, Tables};
use lb_datapath::apply::{ApplyError, Engine, MapUsage, NamedByFlows};
use lb_model::{ObjectName, Problem, Protocol, SourceEvent, Trigger};
use lb_plan::desired::ServicePortId;
use lb_plan::{HealthCheck, Planner};

use crate::serve::Pending;

#[derive(Debug)]
pub struct Reconciler<T> {
    planner: Planner,
    engine: Engine<T>,
    /// Service ports that the maps do not hold as they are wanted.
    unsettled: BTreeMap<ServicePortId, Unsettled>,
}

#[derive(Debug)]
struct Unsettled {
    since: Instant,
    /// What was last said about it.
    message: String,
}

/// What happened, for the log.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Service ports that were written and removed.
    pub changed: usize,
    pub removed: usize,
    /// Every source has been read in full, for the first time: the maps hold everything and nothing else.
    pub complete: bool,
    pub node_changed: bool,
    pub service_cidrs_changed: bool,
    pub other_proxies_changed: bool,
    pub health_checks: Vec<(ObjectName, Option<HealthCheck>)>,
    /// What led to the changes of endpoints.
    pub triggers: Vec<Trigger>,
    /// Problems of the input that are new, and those that are gone.
    pub raised: Vec<Problem>,
    pub resolved: Vec<Problem>,
    /// What could not be written, each said once.
    pub failed: Vec<String>,
    /// What failed before and has been written now.
    pub settled: Vec<ServicePortId>,
    /// Protocols of the service ports that lost an endpoint.
    pub lost: BTreeSet<Protocol>,
}

impl<T: Tables> Reconciler<T> {
    pub fn new(planner: Planner, engine: Engine<T>) -> Self {
        Self { planner, engine, unsettled: BTreeMap::new() }
    }

    pub fn planner(&self) -> &Planner {
        &self.planner
    }

    /// Takes events in and brings the maps up to date.
    pub fn absorb(&mut self, events: impl IntoIterator<Item = SourceEvent>, now: Instant) -> Outcome {
        let changes = self.planner.update(events);
        let mut errors = Vec::new();
        // What is removed makes room, and frees addresses, for what comes.
        for id in &changes.removed {
            errors.extend(self.engine.remove(id, now).err());
        }
        let changed = changes.changed.len();
        for wanted in changes.changed {
            errors.extend(self.engine.apply(&wanted, now).err());
        }
        if changes.complete {
            errors.extend(self.engine.finish_sync(now));
        } else if !changes.removed.is_empty() || changed > 0 {
            errors.extend(self.engine.tick(now));
        }
        let (failed, settled) = self.take_note(errors, now);
        Outcome {
            changed,
            removed: changes.removed.len(),
            complete: changes.complete,
            node_changed: changes.node_changed,
            service_cidrs_changed: changes.service_cidrs_changed,
            other_proxies_changed: changes.other_proxies_changed,
            health_checks: changes.health_checks,
            triggers: changes.triggers,
            raised: changes.raised,
            resolved: changes.resolved,
            failed,
            settled,
            lost: self.engine.take_lost(),
        }
    }

    /// Tries again what failed, and reuses what is past its grace period. To be called about every second.
    pub fn tick(&mut self, now: Instant) -> Outcome {
        let errors = self.engine.tick(now);
        let (failed, settled) = self.take_note(errors, now);
        Outcome { failed, settled, lost: self.engine.take_lost(), ..Outcome::default() }
    }

    /// The flow tables were swept, beginning at `started`, and name these ids.
    pub fn swept(&mut self, started: Instant, named: &NamedByFlows) {
        self.engine.swept(started, named);
    }

    /// Whether a packet with this destination is served by an entry of this service port, see [`Engine::serves`].
    pub fn serves(&self, service_id: u32, destination: ServiceAddress) -> bool {
        self.engine.serves(service_id, destination)
    }

    /// How full the maps are.
    pub fn usage(&self) -> Vec<MapUsage> {
        self.engine.usage()
    }

    /// What has been waiting longest to get into the maps.
    pub fn pending(&self) -> Option<Pending> {
        let oldest = self.unsettled.values().min_by_key(|unsettled| unsettled.since)?;
        Some(Pending { since: oldest.since, what: oldest.message.clone() })
    }

    /// Compares what fails now with what was said before. An error that a later step of the same batch repaired is
    /// not worth a word.
    fn take_note(&mut self, errors: Vec<ApplyError>, now: Instant) -> (Vec<String>, Vec<ServicePortId>) {
        let failing: BTreeSet<&ServicePortId> = self.engine.unsettled().collect();
        let settled: Vec<ServicePortId> =
            self.unsettled.keys().filter(|id| !failing.contains(id)).cloned().collect();
        for id in &settled {
            self.unsettled.remove(id);
        }
        // The last error of a service port is the one that counts.
        let last: BTreeMap<&ServicePortId, &ApplyError> = errors
            .iter()
            .map(|error| (error.service(), error))
            .filter(|(id, _)| failing.contains(id))
            .collect();
        let mut failed = Vec::new();
        for (id, error) in last {
            let message = error.to_string();
            let known = self.unsettled.get_mut(id);
            if known.as_ref().is_none_or(|known| known.message != message) {
                failed.push(message.clone());
            }
            match known {
                Some(known) => known.message = message,
                None => drop(self.unsettled.insert(id.clone(), Unsettled { since: now, message })),
            }
        }
        (failed, settled)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use k8s_openapi::api::core::v1;
    use lb_datapath::apply::memory::Memory;
    use lb_model::WatchedResource;
    use lb_objects::convert;
    use lb_plan::PlannerSettings;

    use super::*;

    const GRACE: Duration = Duration::from_secs(1);

    fn service(name: &str, cluster_ip: &str) -> SourceEvent {
        let object: v1::Service = serde_json::from_value(serde_json::json!({
            "metadata": { "namespace": "default", "name": name },
            "spec": { "clusterIP": cluster_ip, "clusterIPs": [cluster_ip], "ports": [{ "port": 80 }] },
        }))
        .unwrap();
        let converted = convert::service(&object);
        SourceEvent::Service(converted.name, converted.value.map(Arc::new))
    }

    fn gone(name: &str) -> SourceEvent {
        match service(name, "10.96.0.1") {
            SourceEvent::Service(name, _) => SourceEvent::Service(name, None),
            other => other,
        }
    }

    fn synced() -> impl Iterator<Item = SourceEvent> {
        WatchedResource::ALL.into_iter().map(SourceEvent::Synced)
    }

    fn reconciler(memory: &Memory, now: Instant) -> Reconciler<Memory> {
        let engine = Engine::adopt(memory.clone(), &NamedByFlows::default(), GRACE, now).unwrap();
        Reconciler::new(Planner::new(PlannerSettings::default()), engine)
    }

    #[test]
    fn load_balancer_addresses_are_guarded_by_their_source_ranges() {
        let now = Instant::now();
        let memory = Memory::roomy(now);
        let mut agent = reconciler(&memory, now);
        let guarded = |ranges: serde_json::Value| {
            let object: v1::Service = serde_json::from_value(serde_json::json!({
                "metadata": { "namespace": "default", "name": "guarded" },
                "spec": {
                    "type": "LoadBalancer", "clusterIP": "10.96.0.20", "clusterIPs": ["10.96.0.20"],
                    "ports": [{ "port": 80, "nodePort": 30020 }], "loadBalancerSourceRanges": ranges,
                },
                "status": { "loadBalancer": { "ingress": [{ "ip": "203.0.113.20" }] } },
            }))
            .unwrap();
            let converted = convert::service(&object);
            SourceEvent::Service(converted.name, converted.value.map(Arc::new))
        };
        let guards = || {
            let state = memory.state();
            let guarded = state
                .services
                .iter()
                .filter(|(_, service)| service.flags & lb_common::layout::service_flags::SOURCE_RANGES != 0);
            let addresses: Vec<_> = guarded.map(|(address, _)| address.ip.to_string()).collect();
            let sources: Vec<_> = state.source_ranges.iter().map(|(_, net)| net.to_string()).collect();
            (addresses, sources)
        };
        let guard = |source: &str| (vec!["203.0.113.20".to_owned()], vec![source.to_owned()]);

        agent.absorb([guarded(serde_json::json!(["192.0.2.77/24"]))].into_iter().chain(synced()), now);
        assert_eq!(guards(), guard("192.0.2.0/24"), "neither the ClusterIP nor the nodePort");
        agent.absorb([guarded(serde_json::json!(["192.0.2.0/25"]))], now);
        assert_eq!(guards(), guard("192.0.2.0/25"));
        agent.absorb([guarded(serde_json::json!(["192.0.2.0"]))], now);
        assert_eq!(guards(), (vec!["203.0.113.20".to_owned()], vec![]), "no range that can be read: nobody");
        agent.absorb([guarded(serde_json::json!([]))], now);
        assert_eq!(guards(), (vec![], vec![]));
        assert_eq!(memory.state().services.len(), 3, "served all the time");
    }

    #[test]
    fn nothing_is_written_or_pruned_before_every_source_has_synced() {
        let now = Instant::now();
        let memory = Memory::roomy(now);
        let mut before = reconciler(&memory, now);
        before.absorb([service("old", "10.96.0.9")].into_iter().chain(synced()), now);
        let left = memory.state().services.clone();
        assert!(!left.is_empty());

        let mut agent = reconciler(&memory, now);
        let outcome =
            agent.absorb([service("new", "10.96.0.10"), SourceEvent::Synced(WatchedResource::Services)], now);
        assert!(!outcome.complete);
        assert_eq!(memory.state().services, left);

        let outcome = agent.absorb(synced(), now);
        assert!(outcome.complete);
        assert_eq!((outcome.changed, outcome.failed), (1, vec![]));
        assert!(memory.state().services.keys().all(|address| address.ip.to_string() == "10.96.0.10"));
        let used = agent.usage().into_iter().filter(|usage| usage.entries > 0);
        assert_eq!(
            used.map(|usage| (usage.map, usage.entries)).collect::<Vec<_>>(),
            [("SERVICES_V4", 1), ("SERVICE_NAMES", 1)],
            "what was pruned is not counted"
        );
        assert_eq!(agent.pending(), None);
    }

    #[test]
    fn an_address_that_changes_hands_in_one_batch_is_no_failure() {
        let now = Instant::now();
        let memory = Memory::roomy(now);
        reconciler(&memory, now).absorb([service("old", "10.96.0.9")].into_iter().chain(synced()), now);
        // While no agent ran the Service was renamed: its address is held by what is about to be pruned.
        let mut agent = reconciler(&memory, now);
        let outcome = agent.absorb([service("new", "10.96.0.9")].into_iter().chain(synced()), now);
        assert_eq!((outcome.failed, outcome.settled), (vec![], vec![]));
        assert_eq!(agent.pending(), None);
    }

    #[test]
    fn a_failure_is_said_once_and_tried_again() {
        let now = Instant::now();
        let memory = Memory::roomy(now);
        let mut agent = reconciler(&memory, now);
        agent.absorb(synced(), now);

        memory.state_mut().capacity.service_names = 0;
        drop(agent);
        let mut agent = reconciler(&memory, now);
        let outcome = agent.absorb([service("web", "10.96.0.10")].into_iter().chain(synced()), now);
        assert_eq!(outcome.failed.len(), 1, "{outcome:?}");
        assert!(outcome.failed[0].contains("raise --max-services"), "{outcome:?}");
        assert_eq!(agent.pending().unwrap().since, now);

        let later = now + Duration::from_secs(5);
        assert_eq!(agent.tick(later), Outcome::default());
        assert_eq!(agent.pending().unwrap().since, now);

        // The Service goes away: nothing is wanted any more.
        let outcome = agent.absorb([gone("web")], later);
        assert_eq!(outcome.settled.len(), 1, "{outcome:?}");
        assert_eq!(agent.pending(), None);
    }

    #[test]
    fn a_write_that_fails_is_settled_by_a_later_tick() {
        let now = Instant::now();
        let memory = Memory::roomy(now);
        let mut agent = reconciler(&memory, now);
        agent.absorb(synced(), now);
        memory.state_mut().fail_after = Some(0);
        let outcome = agent.absorb([service("web", "10.96.0.10")], now);
        // The tick at the end of the batch has tried it again already.
        assert_eq!((outcome.failed, outcome.settled), (vec![], vec![]));
        assert_eq!(memory.state().services.keys().filter(|address| address.port == 80).count(), 1);
    }
}
