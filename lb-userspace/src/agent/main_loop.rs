//! The loop, and what it says in the log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use lb_datapath::{Datapath, FlowTimeouts, ServiceTables, monotonic_ns};
use lb_model::{Protocol, Severity, SourceEvent};
use lb_objects::kubernetes::events::{EventRecorder, ObjectWarning};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, error, info, warn};

use super::AgentError;
use super::network::{Network, Step, Wanted};
use super::reconciler::{Outcome, Reconciler};
use super::stop::Stop;
use super::wanted;
use crate::config::{Config, TerminateSockets};
use crate::node::NodeState;
use crate::node::addresses::{device_table, listen_addresses};
use crate::node::devices::Programs;
use crate::node::namespaces::follow::Follower;
use crate::serve::{Metrics, Progress, ServiceHealth, State};

/// Retries, and a sign of life.
const TICK: Duration = Duration::from_secs(1);
/// Flows that are over are removed this often.
const SWEEP: Duration = Duration::from_secs(10);
/// Events taken in at once. What is queued is planned together; what comes meanwhile is the next batch.
const BATCH: usize = 4096;

pub struct MainLoop<'a> {
    pub config: &'a Config,
    pub datapath: Datapath,
    pub reconciler: Reconciler<ServiceTables>,
    pub network: Network,
    pub node: watch::Receiver<Arc<NodeState>>,
    pub namespaces: Follower,
    pub health: watch::Sender<State>,
    pub service_health: watch::Sender<ServiceHealth>,
    pub metrics: Arc<Metrics>,
    /// None when the objects come from manifests.
    pub recorder: Option<EventRecorder>,
    /// Triggers before this time were served by an earlier agent.
    pub started: SystemTime,
    /// Devices that are left alone, and why: each is said once.
    pub left: BTreeMap<String, String>,
}

impl MainLoop<'_> {
    pub async fn run(
        mut self,
        mut events: mpsc::Receiver<SourceEvent>,
        mut source: JoinHandle<Result<(), AgentError>>,
        mut stop: Stop,
    ) -> Result<(), AgentError> {
        self.follow_host();
        self.report_awaited();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut swept = Instant::now();
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                signal = stop.requested() => {
                    info!("{signal}: the agent ends; programs and maps stay, and connections go on");
                    return Ok(());
                }
                ended = &mut source => {
                    return Err(match ended {
                        Ok(Err(error)) => error,
                        _ => AgentError::SourceEnded,
                    });
                }
                _ = events.recv_many(&mut batch, BATCH) => self.follow_events(std::mem::take(&mut batch)),
                Ok(()) = self.node.changed() => self.follow_host(),
                Ok(()) = self.namespaces.addresses.changed() => self.follow_host(),
                _ = tick.tick() => {
                    let outcome = self.reconciler.tick(Instant::now());
                    self.say(&outcome);
                    self.close_sockets(&outcome);
                    if self.network.pending().is_some() {
                        self.follow_host();
                    }
                    if swept.elapsed() >= SWEEP {
                        self.sweep();
                        swept = Instant::now();
                    }
                    self.report();
                    self.measure();
                }
            }
        }
    }

    fn follow_events(&mut self, batch: Vec<SourceEvent>) {
        let started = Instant::now();
        let events = batch.len();
        self.metrics.received(&batch);
        let mut outcome = self.reconciler.absorb(batch, started);
        self.say(&outcome);
        let health_checks = std::mem::take(&mut outcome.health_checks);
        if !health_checks.is_empty() {
            self.service_health.send_modify(|wanted| wanted.update(health_checks));
        }
        self.close_sockets(&outcome);
        let facts_changed =
            outcome.node_changed || outcome.service_cidrs_changed || outcome.other_proxies_changed;
        if facts_changed || outcome.complete {
            self.follow_host();
        }
        if outcome.complete {
            let services = outcome.changed;
            info!(services, seconds = started.elapsed().as_secs_f32(), "all Service ports are in the maps");
            if wanted::pod_networks(self.config, self.reconciler.planner()).is_empty() {
                info!(
                    "no pod networks are known (neither --cluster-cidr nor podCIDRs of this Node): traffic policies and source \
                     rewriting take pods for clients outside the cluster"
                );
            }
            self.health.send_modify(|state| state.progress = Progress::Serving);
        } else if outcome.changed + outcome.removed > 0 {
            let micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
            debug!(
                events,
                changed = outcome.changed,
                removed = outcome.removed,
                micros,
                "maps are up to date"
            );
        }
        if outcome.complete || outcome.changed + outcome.removed > 0 {
            self.metrics.synced(started.elapsed(), SystemTime::now());
        }
        // What could not be written is not served yet.
        if self.reconciler.planner().is_synced() && self.reconciler.pending().is_none() {
            let now = SystemTime::now();
            for trigger in outcome.triggers.into_iter().filter(|trigger| trigger.at > self.started) {
                self.metrics.programmed(trigger, now);
            }
        }
        self.report_awaited();
        self.report();
    }

    /// Attaches where packets arrive, and tells the programs about devices, addresses and networks.
    fn follow_host(&mut self) {
        let state = Arc::clone(&self.node.borrow_and_update());
        let choices = wanted::choices(self.config, &state);
        for choice in choices.iter().filter(|choice| choice.programs == Programs::None) {
            if self.left.get(&choice.name) != Some(&choice.reason) {
                info!("{} is left alone: {}", choice.name, choice.reason);
                self.left.insert(choice.name.clone(), choice.reason.clone());
            }
        }
        self.left.retain(|name, _| state.devices.iter().any(|device| device.name == *name));

        let planner = self.reconciler.planner();
        let addresses = wanted::addresses(self.config, &state, planner);
        let namespaces = Arc::clone(&self.namespaces.addresses.borrow_and_update());
        let listen = listen_addresses(&self.config.nodeport_addresses, &addresses);
        self.service_health.send_if_modified(|wanted| {
            let before = std::mem::replace(&mut wanted.addresses, listen);
            before != wanted.addresses
        });
        let networks = wanted::networks(self.config, planner);
        let wanted = Wanted::new(&choices, device_table(&state, &choices), addresses, networks, namespaces);
        for step in self.network.converge(&wanted, &mut self.datapath, Instant::now()) {
            match step {
                Step::Attached { device, how, reason } => {
                    self.left.remove(&device);
                    info!("attached to {device} by {how}: {reason}");
                }
                Step::Detached { device } => info!("detached from {device}"),
                Step::Failed { what, reason } => error!("cannot {what}, trying again: {reason}"),
            }
        }
    }

    /// Sees to it that sockets that stand at an endpoint that is gone are closed; once also those that an earlier agent left.
    fn close_sockets(&self, outcome: &Outcome) {
        let lost = match self.config.terminate_sockets {
            TerminateSockets::None => return,
            TerminateSockets::Udp => outcome.lost.contains(&Protocol::Udp),
            TerminateSockets::All => !outcome.lost.is_empty(),
        };
        if lost || outcome.complete {
            self.namespaces.visit();
        }
    }

    /// Removes flows that are over, and lets the engine reuse the ids that no flow names any more.
    fn sweep(&mut self) {
        let started = Instant::now();
        let serves = |service_id, destination| self.reconciler.serves(service_id, destination);
        match self.datapath.sweep_flows(monotonic_ns(), &FlowTimeouts::default(), serves) {
            Ok(sweep) => {
                self.reconciler.swept(started, &sweep.named);
                self.metrics.set_flows(sweep.open, sweep.half_open);
                debug!(
                    open = sweep.open,
                    half_open = sweep.half_open,
                    expired = sweep.expired,
                    "flows are swept"
                );
            }
            Err(error) => {
                warn!("cannot sweep the flow tables, trying again in {} s: {error}", SWEEP.as_secs());
            }
        }
    }

    fn say(&self, outcome: &Outcome) {
        for problem in &outcome.raised {
            self.metrics.raised(problem);
            if let (Some(recorder), Some(notice)) = (&self.recorder, ObjectWarning::from_problem(problem)) {
                recorder.record(notice);
            }
            match problem.severity {
                Severity::Error => warn!("{problem}"),
                Severity::Note => info!("{problem}"),
            }
        }
        for problem in &outcome.resolved {
            self.metrics.resolved(problem);
            info!("resolved: {}: {}", problem.object, problem.reason);
        }
        for failure in &outcome.failed {
            error!("{failure}");
        }
        for service in &outcome.settled {
            info!("service port {service} is in the maps now");
        }
    }

    fn report_awaited(&self) {
        let awaited: Vec<String> =
            self.reconciler.planner().unsynced().map(|part| part.to_string()).collect();
        if !awaited.is_empty() {
            let text = format!("waiting for {}", awaited.join(", "));
            self.health.send_modify(|state| state.progress = Progress::Starting(text));
        }
    }

    /// What changes with nearly every event is counted once a second.
    fn measure(&self) {
        let maps = self.reconciler.usage();
        let endpoints =
            maps.iter().filter(|usage| usage.map.starts_with("BACKENDS_")).map(|usage| usage.entries).sum();
        self.metrics.set_served(self.reconciler.planner().service_count(), endpoints, maps);
    }

    /// Tells the probes how it stands.
    fn report(&self) {
        let planner = self.reconciler.planner();
        // A manifest folder need not have a Node.
        let node_eligible = planner.node().map_or(self.config.manifests.is_some(), |node| node.eligible);
        let pending = [self.reconciler.pending(), self.network.pending()];
        let pending = pending.into_iter().flatten().min_by_key(|pending| pending.since);
        self.health.send_modify(|state| {
            state.alive = Instant::now();
            state.node_eligible = node_eligible;
            if pending.is_none() && state.progress == Progress::Serving {
                state.last_updated = Some(SystemTime::now());
            }
            state.pending = pending;
        });
    }
}
