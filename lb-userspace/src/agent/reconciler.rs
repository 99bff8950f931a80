//! Applies events to the service maps: the planner computes the entries, the engine writes them.
//!
//! It has no I/O except the maps, and no clock: the main loop passes events and the time, and logs
//! the [`ReconcileOutcome`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use lb_datapath::apply::tables::{TableError, Tables};
use lb_datapath::apply::{ApplyError, Audit, Demand, Engine, MapUsage, ReferencedIds};
use lb_model::{Protocol, SourceEvent};
use lb_plan::desired::{DesiredServicePort, ServicePortId};
use lb_plan::{Changes, Planner};

use crate::serve::Pending;

#[derive(Debug)]
pub struct Reconciler<T> {
    planner: Planner,
    engine: Engine<T>,
    /// Service ports whose entries could not be written.
    failing: BTreeMap<ServicePortId, FailedWrite>,
    audit: Audit,
    /// When the audit began. `None` before the first one.
    audited: Option<Instant>,
}

/// Minimum time between the beginnings of two audits of the service maps.
const AUDIT_PERIOD: Duration = Duration::from_secs(10);
/// So many entries are compared in one call of [`Reconciler::audit`], so that it takes less than a
/// millisecond.
const AUDIT_STEP: usize = 256;

#[derive(Debug)]
struct FailedWrite {
    since: Instant,
    /// The message that was logged last.
    message: String,
    /// Whether a map was full.
    lacks_room: bool,
}

/// The changes that a batch of events or a tick caused.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ReconcileOutcome {
    /// The changes of the desired state. They are written, unless `failed` or an earlier outcome
    /// reports a failure.
    pub changes: Changes,
    /// Messages about failed writes that have not been logged yet.
    pub failed: Vec<String>,
    /// As `failed`, about writes to full maps. Larger maps may have room for them.
    pub no_room: Vec<String>,
    /// Service ports that failed before and are written now.
    pub recovered: Vec<ServicePortId>,
    /// Protocols of the service ports from which an endpoint was removed.
    pub lost: BTreeSet<Protocol>,
}

impl<T: Tables> Reconciler<T> {
    pub fn new(planner: Planner, engine: Engine<T>) -> Self {
        Self { planner, engine, failing: BTreeMap::new(), audit: Audit::default(), audited: None }
    }

    pub fn planner(&self) -> &Planner {
        &self.planner
    }

    /// Applies events to the maps.
    pub fn apply(&mut self, events: impl IntoIterator<Item = SourceEvent>, now: Instant) -> ReconcileOutcome {
        let changes = self.plan(events);
        self.write(changes, now)
    }

    /// Applies events to the plan. [`Reconciler::write`] writes the result to the maps.
    pub fn plan(&mut self, events: impl IntoIterator<Item = SourceEvent>) -> Changes {
        self.planner.update(events)
    }

    /// Writes the changes of the plan to the maps.
    pub fn write(&mut self, changes: Changes, now: Instant) -> ReconcileOutcome {
        let mut errors = Vec::new();
        // Remove before adding: removal frees slots and addresses that the additions may need.
        for id in &changes.removed {
            errors.extend(self.engine.remove(id, now).err());
        }
        for desired in &changes.changed {
            errors.extend(self.engine.apply(desired, now).err());
        }
        if changes.complete {
            errors.extend(self.engine.finish_sync(now));
        } else if !changes.removed.is_empty() || !changes.changed.is_empty() {
            errors.extend(self.engine.tick(now));
        }
        ReconcileOutcome { changes, ..self.outcome(errors, now) }
    }

    /// Repeats failed writes, and frees entries whose grace period is over. To be called about once
    /// a second.
    pub fn tick(&mut self, now: Instant) -> ReconcileOutcome {
        let errors = self.engine.tick(now);
        self.outcome(errors, now)
    }

    /// Reports a sweep of the flow tables to the engine. The sweep began at `started`; `referenced`
    /// are the ids to which flows refer.
    pub fn swept(&mut self, started: Instant, referenced: &ReferencedIds) {
        self.engine.free_unreferenced_ids(started, referenced);
    }

    /// Compares some entries of the service maps with those that were written, and repairs what
    /// another program has changed. To be called about once a second. Returns a description of each
    /// difference, and whether all entries have been compared.
    pub fn audit(&mut self, now: Instant) -> Result<(Vec<String>, bool), TableError> {
        if self.audit.is_done() || self.audited.is_none() {
            if self.audited.is_some_and(|began| now.saturating_duration_since(began) < AUDIT_PERIOD) {
                return Ok((Vec::new(), false));
            }
            (self.audit, self.audited) = (Audit::default(), Some(now));
        }
        let found = self.engine.audit(&mut self.audit, AUDIT_STEP)?;
        Ok((found, self.audit.is_done()))
    }

    /// Returns the service id of a Service port that is in the maps.
    pub fn service_id(&self, id: &ServicePortId) -> Option<u32> {
        self.engine.service_id(id)
    }

    /// Returns the numbers of used and available map entries.
    pub fn usage(&self) -> Vec<MapUsage> {
        self.engine.usage()
    }

    /// Returns the entries that the maps need with these changes.
    pub fn demand(&self, changed: &[DesiredServicePort]) -> Demand {
        self.engine.demand(changed)
    }

    /// Continues on larger maps that have the same entries. The next tick repeats writes that found
    /// no room.
    pub fn move_to(&mut self, tables: T) {
        self.engine.move_to(tables);
        (self.audit, self.audited) = (Audit::default(), None);
    }

    /// Returns the write that has been failing longest, or `None` if the maps are as desired.
    pub fn pending(&self) -> Option<Pending> {
        oldest(self.failing.values())
    }

    /// As [`Reconciler::pending`], without writes to full maps.
    pub fn pending_with_room(&self) -> Option<Pending> {
        oldest(self.failing.values().filter(|failed| !failed.lacks_room))
    }

    /// Compares the errors of a batch with those before it. Returns messages to log, and service
    /// ports that are written again, without the changes. An error that a later step of the same
    /// batch repaired is not reported.
    fn outcome(&mut self, errors: Vec<ApplyError>, now: Instant) -> ReconcileOutcome {
        let failing: BTreeSet<&ServicePortId> = self.engine.pending().collect();
        let recovered: Vec<ServicePortId> =
            self.failing.keys().filter(|id| !failing.contains(id)).cloned().collect();
        for id in &recovered {
            self.failing.remove(id);
        }
        // Of several errors of one service port the last one is reported.
        let last: BTreeMap<&ServicePortId, &ApplyError> = errors
            .iter()
            .map(|error| (error.service(), error))
            .filter(|(id, _)| failing.contains(id))
            .collect();
        let (mut failed, mut no_room) = (Vec::new(), Vec::new());
        for (id, error) in last {
            let (message, lacks_room) = (error.to_string(), error.lacks_room());
            let before = self.failing.get(id);
            if before.is_none_or(|before| before.message != message) {
                let messages = if lacks_room { &mut no_room } else { &mut failed };
                messages.push(message.clone());
            }
            let since = before.map_or(now, |before| before.since);
            self.failing.insert(id.clone(), FailedWrite { since, message, lacks_room });
        }
        let lost = self.engine.take_protocols_with_lost_endpoints();
        ReconcileOutcome { changes: Changes::default(), failed, no_room, recovered, lost }
    }
}

fn oldest<'a>(failing: impl Iterator<Item = &'a FailedWrite>) -> Option<Pending> {
    let oldest = failing.min_by_key(|failed| failed.since)?;
    Some(Pending { since: oldest.since, what: oldest.message.clone() })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

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
        WatchedResource::OF_SERVICES.into_iter().map(SourceEvent::Synced)
    }

    fn reconciler(memory: &Memory, now: Instant) -> Reconciler<Memory> {
        let engine = Engine::adopt(memory.clone(), &ReferencedIds::default(), GRACE, now).unwrap();
        Reconciler::new(Planner::new(PlannerSettings::default()), engine)
    }

    #[test]
    fn an_audit_begins_again_after_its_period() {
        let now = Instant::now();
        let memory = Memory::roomy(now);
        let mut agent = reconciler(&memory, now);
        agent.apply([service("web", "10.96.0.20")].into_iter().chain(synced()), now);
        assert_eq!(agent.audit(now).unwrap(), (vec![], true));
        memory.state_mut().services.clear();
        assert_eq!(agent.audit(now).unwrap(), (vec![], false), "too early");
        let (found, done) = agent.audit(now + AUDIT_PERIOD).unwrap();
        assert_eq!((found, done), (vec!["10.96.0.20:80 TCP of default/web TCP".to_owned()], true));
        assert_eq!(memory.state().services.len(), 1);
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

        agent.apply([guarded(serde_json::json!(["192.0.2.77/24"]))].into_iter().chain(synced()), now);
        assert_eq!(guards(), guard("192.0.2.0/24"), "neither the ClusterIP nor the nodePort are restricted");
        agent.apply([guarded(serde_json::json!(["192.0.2.0/25"]))], now);
        assert_eq!(guards(), guard("192.0.2.0/25"));
        agent.apply([guarded(serde_json::json!(["192.0.2.0"]))], now);
        assert_eq!(guards(), (vec!["203.0.113.20".to_owned()], vec![]), "an invalid range admits no source");
        agent.apply([guarded(serde_json::json!([]))], now);
        assert_eq!(guards(), (vec![], vec![]));
        assert_eq!(memory.state().services.len(), 3, "served all the time");
    }

    #[test]
    fn nothing_is_written_or_pruned_before_every_source_has_synced() {
        let now = Instant::now();
        let memory = Memory::roomy(now);
        let mut before = reconciler(&memory, now);
        before.apply([service("old", "10.96.0.9")].into_iter().chain(synced()), now);
        let left = memory.state().services.clone();
        assert!(!left.is_empty());

        let mut agent = reconciler(&memory, now);
        let outcome =
            agent.apply([service("new", "10.96.0.10"), SourceEvent::Synced(WatchedResource::Services)], now);
        assert!(!outcome.changes.complete);
        assert_eq!(memory.state().services, left);

        let outcome = agent.apply(synced(), now);
        assert!(outcome.changes.complete);
        assert_eq!((outcome.changes.changed.len(), outcome.failed), (1, vec![]));
        assert!(memory.state().services.keys().all(|address| address.ip.to_string() == "10.96.0.10"));
        let used = agent.usage().into_iter().filter(|usage| usage.entries > 0);
        assert_eq!(
            used.map(|usage| (usage.map, usage.entries)).collect::<Vec<_>>(),
            [("SERVICES_V4", 1), ("SERVICE_NAMES", 1)],
            "pruned entries are not counted"
        );
        assert_eq!(agent.pending(), None);
    }

    #[test]
    fn an_address_that_changes_hands_in_one_batch_is_no_failure() {
        let now = Instant::now();
        let memory = Memory::roomy(now);
        reconciler(&memory, now).apply([service("old", "10.96.0.9")].into_iter().chain(synced()), now);
        // The Service was renamed while no agent ran. Its address belongs to an entry that is about
        // to be pruned.
        let mut agent = reconciler(&memory, now);
        let outcome = agent.apply([service("new", "10.96.0.9")].into_iter().chain(synced()), now);
        assert_eq!((outcome.failed, outcome.recovered), (vec![], vec![]));
        assert_eq!(agent.pending(), None);
    }

    #[test]
    fn a_failure_is_logged_once_and_tried_again() {
        let now = Instant::now();
        let memory = Memory::roomy(now);
        let mut agent = reconciler(&memory, now);
        agent.apply(synced(), now);

        memory.state_mut().capacity.service_names = 0;
        drop(agent);
        let mut agent = reconciler(&memory, now);
        let outcome = agent.apply([service("web", "10.96.0.10")].into_iter().chain(synced()), now);
        assert_eq!((outcome.failed.len(), outcome.no_room.len()), (0, 1), "{outcome:?}");
        assert!(outcome.no_room[0].contains("raise --max-map-memory"), "{outcome:?}");
        assert_eq!(agent.pending().unwrap().since, now);
        assert_eq!(agent.pending_with_room(), None);

        let later = now + Duration::from_secs(5);
        assert_eq!(agent.tick(later), ReconcileOutcome::default());
        assert_eq!(agent.pending().unwrap().since, now);

        // The Service is deleted: nothing is left to be written.
        let outcome = agent.apply([gone("web")], later);
        assert_eq!(outcome.recovered.len(), 1, "{outcome:?}");
        assert_eq!(agent.pending(), None);
    }

    #[test]
    fn a_write_that_fails_is_repeated_by_the_tick_of_its_batch() {
        let now = Instant::now();
        let memory = Memory::roomy(now);
        let mut agent = reconciler(&memory, now);
        agent.apply(synced(), now);
        memory.state_mut().fail_after = Some(0);
        let outcome = agent.apply([service("web", "10.96.0.10")], now);
        // The tick at the end of the batch has repeated the write.
        assert_eq!((outcome.failed, outcome.recovered), (vec![], vec![]));
        assert_eq!(memory.state().services.keys().filter(|address| address.port == 80).count(), 1);
    }
}
