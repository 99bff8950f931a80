//! The main loop of the agent: it waits for events, changes of the host, and time, and applies
//! them.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use ipnet::IpNet;
use lb_common::SECOND;
use lb_datapath::apply::MapUsage;
use lb_datapath::inspect::AgentMaps;
use lb_datapath::{
    AttachError, Datapath, DrainingEndpoints, Drift, DriftKind, GrowError, LeftOutEndpoint, LoadError,
    LoadOptions, MapSizes, NewGeneration, Pins, ServiceTables, mebibytes, monotonic_ns,
};
use lb_model::{IpFamily, ObjectName, PerFamily, Problem, Protocol, Severity, SourceEvent, Trigger};
use lb_objects::kubernetes::WatchAges;
use lb_objects::kubernetes::events::{EventRecorder, ObjectWarning};
use lb_plan::Changes;
use lb_plan::desired::ServicePortId;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep_until};
use tracing::{debug, error, info, warn};

use super::api_address;
use super::coalesce::Coalescer;
use super::connection_ages::{AgeSearch, ConnectionAges, SharedSocketAges, SocketAges};
use super::desired_host::{DesiredHost, device_choices, forwarded_by_kernel, known_networks};
use super::drain_limits::DrainLimits;
use super::drift::DriftReport;
use super::error::AgentError;
use super::full_maps::FullMaps;
use super::growth::Growth;
use super::host_reconciler::{Comparison, HostChange, HostReconciler};
use super::lock::{LockError, NodeLock};
use super::logging;
use super::reconciler::{ReconcileOutcome, Reconciler};
use super::reload::{Reload, Reloaded};
use super::stale_sockets::{CurrentEndpoints, Overdue};
use super::stop::Stop;
use super::sweep::{Report, Sweep, Sweeps};
use crate::config::{Config, ForwardMode, TerminateSockets};
use crate::node::NodeState;
use crate::node::addresses::listen_addresses;
use crate::node::devices::{DeviceChoice, Hooks};
use crate::node::namespaces::follow::Follower;
use crate::serve::{AgentState, MapMemory, Metrics, Progress, ServiceHealth};

/// The period of retries and of updates of health and metrics.
const TICK: Duration = Duration::from_secs(1);
/// The pause between two sweeps of the flow table.
pub const SWEEP: Duration = Duration::from_secs(10);
/// If more Service ports are written after failures, the log has only their number.
const MOST_NAMED: usize = 20;
/// Maximum number of events in one batch. Queued events are planned together.
const BATCH: usize = 4096;

pub struct MainLoop {
    /// The settings in force.
    pub config: Config,
    /// `None` without a configuration file.
    pub reload: Option<Reload>,
    /// The options with which the programs are loaded.
    pub options: LoadOptions,
    /// Ends before `lock` is released.
    pub sweeps: Sweeps,
    pub growth: Growth,
    /// The changes of the initial sync and when they began, while they wait for larger maps.
    /// Nothing else changes meanwhile.
    pub waiting: Option<(Changes, Instant)>,
    pub datapath: Datapath,
    /// The task that copies the log of the programs. `None` if they write none.
    pub datapath_log: Option<JoinHandle<()>>,
    /// The maps that the thread of the network namespaces reads.
    pub endpoints: CurrentEndpoints,
    /// The maps whose counts `/metrics` reads.
    pub counted: Arc<Mutex<AgentMaps>>,
    pub reconciler: Reconciler<ServiceTables>,
    pub coalescer: Coalescer,
    pub host_reconciler: HostReconciler,
    pub node: watch::Receiver<Arc<NodeState>>,
    pub namespaces: Follower,
    pub health: watch::Sender<AgentState>,
    pub service_health: watch::Sender<ServiceHealth>,
    pub metrics: Arc<Metrics>,
    /// `None` if the objects come from manifests.
    pub recorder: Option<EventRecorder>,
    pub watch_ages: WatchAges,
    /// The addresses of the API servers. Empty if one of them has a name, and for manifests.
    pub api_servers: Vec<IpAddr>,
    /// The reported problem of these addresses.
    pub api_problem: Option<Problem>,
    /// An earlier agent has measured the changes before this time.
    pub started: SystemTime,
    /// The lock of this node.
    pub lock: NodeLock,
    /// The cgroup with the socket programs. `None` if they are not attached.
    pub sockets: Option<PathBuf>,
    pub drift: DriftReport,
    /// Devices that are not attached to, with the reason. Each is logged once.
    pub skipped: BTreeMap<String, String>,
    /// The networks to which the kernel forwards translated packets. `None` before they are logged.
    pub by_kernel: Option<BTreeSet<IpNet>>,
    /// The usage of the flow tables when they were last read.
    pub flow_maps: Vec<MapUsage>,
    /// When the next sweep of the flow table begins. `None` during a sweep.
    pub sweep_due: Option<Instant>,
    /// The endpoints that drain and had connections when the flow table was read last.
    pub draining: BTreeSet<(ServicePortId, SocketAddr)>,
    pub drain_limits: DrainLimits,
    /// The endpoints whose sockets are to be closed.
    pub overdue: Overdue,
    pub connection_ages: ConnectionAges,
    /// The next tick searches the flow table by the new ages: many Services may change at once.
    pub ages_changed: bool,
    pub socket_ages: SharedSocketAges,
    /// The endpoints that were left out when the flow table was read last.
    pub left_out: BTreeSet<(ServicePortId, SocketAddr)>,
    pub full_maps: FullMaps,
}

impl MainLoop {
    /// Runs until a signal comes or the source fails.
    pub async fn run(
        mut self,
        mut events: mpsc::Receiver<SourceEvent>,
        mut source: JoinHandle<Result<(), AgentError>>,
        mut stop: Stop,
    ) -> Result<(), AgentError> {
        self.apply_host_state();
        self.publish_awaited();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::new();
        loop {
            let due = self.coalescer.next_due();
            let applies = self.waiting.is_none();
            tokio::select! {
                signal = stop.requested() => {
                    info!("{signal}: the agent ends; programs, maps and connections stay");
                    return Ok(());
                }
                ended = &mut source => {
                    return Err(match ended {
                        Ok(Err(error)) => error,
                        _ => AgentError::SourceEnded,
                    });
                }
                loaded = self.growth.loaded(), if self.sweeps.is_idle() => self.use_larger_maps(loaded)?,
                report = self.sweeps.report() => self.apply_report(report?),
                _ = events.recv_many(&mut batch, BATCH), if applies => {
                    self.apply_events(std::mem::take(&mut batch));
                }
                () = sleep_until(due.unwrap_or_else(Instant::now).into()), if applies && due.is_some() => {
                    self.apply_events(Vec::new());
                }
                Ok(()) = self.node.changed(), if applies => self.apply_host_state(),
                Ok(()) = self.namespaces.addresses.changed(), if applies => self.apply_host_state(),
                _ = tick.tick() => {
                    if !applies {
                        self.publish_waiting();
                        continue;
                    }
                    self.make_room();
                    self.tick();
                    self.cut_newly_overdue();
                    self.reset_aged();
                    self.audit_services();
                    if self.drift.is_due(Instant::now()) {
                        self.repair_drift()?;
                    }
                    if self.sweep_due.is_some_and(|due| due <= Instant::now()) {
                        self.sweep();
                        self.check_api_address();
                    }
                    self.reload_settings();
                    self.publish_health();
                    self.update_metrics();
                }
            }
        }
    }

    /// Lets the probes know that this loop runs, while it waits for the thread that makes maps.
    fn publish_waiting(&self) {
        if !self.growth.is_stuck(Instant::now()) {
            self.publish_health();
        }
    }

    /// Repeats writes that failed.
    fn tick(&mut self) {
        let outcome = self.reconciler.tick(Instant::now());
        self.log_outcome(&outcome);
        self.close_stale_sockets(&outcome);
        if self.host_reconciler.pending().is_some() {
            self.apply_host_state();
        }
    }

    /// Compares some entries of the service maps with the plan, and repairs what differs.
    fn audit_services(&mut self) {
        self.drift.services(self.reconciler.audit(Instant::now()), &self.metrics);
    }

    /// Compares lock, pins, attachments and host maps with the kernel's, and repairs what differs.
    /// Fails if another agent has taken the lock, after the folder of the lock was removed.
    fn repair_drift(&mut self) -> Result<(), AgentError> {
        let (mut found, mut failures) = (Vec::new(), Vec::new());
        match self.lock.renew() {
            Ok(true) => found.push(Drift::new(DriftKind::Pin, "the folder of the lock was replaced")),
            Ok(false) => {}
            Err(held @ LockError::Held { .. }) => return Err(held.into()),
            Err(error) => failures.push(error.to_string()),
        }
        match self.datapath.repair_pins() {
            Ok(pins) => found.extend(pins),
            Err(error) => failures.push(error.to_string()),
        }
        match self.repair_sockets() {
            Ok(sockets) => found.extend(sockets),
            Err(error) => failures.push(error.to_string()),
        }
        match self.datapath.repair_filter() {
            Ok(filter) => found.extend(filter),
            Err(error) => failures.push(error.to_string()),
        }
        let (comparison, complete) = match self.host_reconciler.compare(&self.datapath) {
            Ok(comparison) => (comparison, true),
            Err(error) => {
                failures.push(error.to_string());
                (Comparison::default(), false)
            }
        };
        for left in comparison.left {
            error!("{left}: it was moved behind the program of Sluice several times, and stays now");
        }
        let host_differs = !comparison.drift.is_empty() || !complete;
        found.extend(comparison.drift);
        self.drift.host(found, &failures, &self.metrics);
        if host_differs {
            self.apply_host_state();
        }
        Ok(())
    }

    fn repair_sockets(&mut self) -> Result<Vec<Drift>, AttachError> {
        let Some(cgroup) = &self.sockets else { return Ok(Vec::new()) };
        let found = self.datapath.check_cgroup(cgroup)?;
        if !found.is_empty() {
            self.datapath.attach_cgroup(cgroup)?;
        }
        Ok(found)
    }

    /// Applies a batch of events to the service maps, and to everything that depends on them.
    fn apply_events(&mut self, batch: Vec<SourceEvent>) {
        let started = Instant::now();
        self.metrics.received(&batch);
        self.log_drains(&batch);
        let batch = self.admit(batch, started);
        if batch.is_empty() {
            return;
        }
        let events = batch.len();
        let changes = self.reconciler.plan(batch);
        debug!(events, "planned");
        if changes.complete {
            let demand = self.reconciler.demand(&changes.changed);
            let wanted = self.growth.wanted(self.datapath.sizes(), &demand, started);
            if wanted.is_some_and(|sizes| self.load_for(sizes)) {
                self.waiting = Some((changes, started));
                let text = "waiting for larger maps of Services".to_owned();
                self.health.send_modify(|state| state.progress = Progress::Starting(text));
                return;
            }
        }
        self.write(changes, started);
    }

    /// Writes changes of the plan, which began at `started`, to the service maps, and to everything
    /// that depends on them.
    fn write(&mut self, changes: Changes, started: Instant) {
        if changes.complete || changes.service_cidrs_changed {
            self.release_networks();
        }
        // The changes may have waited. Grace periods begin with the write.
        let mut outcome = self.reconciler.write(changes, Instant::now());
        self.log_outcome(&outcome);
        let health_checks = std::mem::take(&mut outcome.changes.health_checks);
        if !health_checks.is_empty() {
            self.service_health.send_modify(|desired| desired.update(health_checks));
        }
        self.close_stale_sockets(&outcome);
        let changes = outcome.changes;
        if self.drain_limits.update(&changes.changed, &changes.removed, Instant::now()) {
            // The drain of an endpoint may have ended, or have a longer limit now. The next sweep
            // finds the endpoints that are still overdue.
            self.set_overdue(PerFamily::default());
        }
        self.ages_changed |=
            self.connection_ages.update(&changes.changed, &changes.removed, monotonic_ns() / SECOND);
        let host_depends =
            changes.node_changed || changes.service_cidrs_changed || changes.other_proxies_changed;
        if host_depends || changes.complete {
            self.apply_host_state();
        }
        let (changed, removed) = (changes.changed.len(), changes.removed.len());
        if changes.complete {
            self.complete_initial_sync(changed, started);
            self.check_api_address();
        }
        if changes.complete || changed + removed > 0 {
            let micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
            debug!(changed, removed, micros, "updated service maps");
            self.metrics.synced(started.elapsed(), SystemTime::now());
        }
        self.measure_latency(changes.triggers);
        self.publish_awaited();
        self.publish_health();
    }

    /// Begins to replace maps of Services by larger ones if they are nearly full. Until
    /// [`MainLoop::use_larger_maps`], the agent writes the earlier ones.
    fn make_room(&mut self) {
        // The initial sync makes room itself. It may also remove entries of an earlier agent.
        if !self.reconciler.planner().is_synced() {
            return;
        }
        let demand = self.reconciler.demand(&[]);
        if let Some(sizes) = self.growth.settled(self.datapath.sizes(), &demand, Instant::now()) {
            self.load_for(sizes);
        }
    }

    /// Starts the thread that makes maps of these sizes. Returns whether it runs.
    fn load_for(&mut self, sizes: MapSizes) -> bool {
        info!(memory_mib = mebibytes(sizes.memory()), "making maps of Services larger");
        let options = LoadOptions { sizes, ..self.options.clone() };
        match self.growth.load(Pins::new(&self.config.bpffs), options, Instant::now()) {
            Ok(()) => true,
            Err(error) => {
                self.report_no_growth(&error);
                false
            }
        }
    }

    /// Copies all entries to larger maps and stops using the earlier ones. Packets and calls are
    /// served meanwhile. Fails if programs have begun to use the new maps and it cannot be
    /// finished: an agent that starts continues.
    fn use_larger_maps(&mut self, loaded: Result<NewGeneration, LoadError>) -> Result<(), AgentError> {
        let started = Instant::now();
        match loaded.map_err(GrowError::Undone).and_then(|new| self.datapath.move_to(new)) {
            Ok(()) => self.follow_larger_maps(started)?,
            Err(error @ GrowError::Interrupted(_)) => return Err(error.into()),
            Err(error @ GrowError::Undone(_)) => self.report_no_growth(&error),
        }
        match self.waiting.take() {
            Some((changes, started)) => self.write(changes, started),
            // Writes the changes that have found no room.
            None => self.tick(),
        }
        Ok(())
    }

    fn report_no_growth(&mut self, error: &dyn Error) {
        let pause = self.growth.failed(Instant::now());
        error!("cannot make maps larger, trying again in {} s: {error}", pause.as_secs());
        if let Some(pending) = self.reconciler.pending() {
            error!("{}", pending.what);
        }
    }

    /// Replaces what has descriptors of the earlier maps and programs. The copy of the entries
    /// began at `started`.
    fn follow_larger_maps(&mut self, started: Instant) -> Result<(), AgentError> {
        self.growth.succeeded();
        self.reconciler.move_to(self.datapath.tables()?);
        let endpoints = self.datapath.endpoints().map_err(AgentError::Namespaces)?;
        *self.endpoints.lock().unwrap_or_else(PoisonError::into_inner) = endpoints;
        *self.counted.lock().unwrap_or_else(PoisonError::into_inner) = self.datapath.maps();
        if let Some(task) = self.datapath_log.take() {
            task.abort();
            self.datapath_log = Some(logging::follow_datapath(self.datapath.take_log()?));
        }
        self.metrics.grown();
        let sizes = self.datapath.sizes();
        info!(
            max_services = sizes.max_services,
            max_slots = sizes.max_slots,
            max_backends = sizes.max_backends,
            max_source_ranges = sizes.max_source_ranges,
            memory_mib = mebibytes(sizes.memory()),
            seconds = started.elapsed().as_secs_f32(),
            "the maps of Services are larger now"
        );
        self.sweeps.move_to(self.datapath.sweeper().map_err(AgentError::Sweeps)?);
        // The records have other numbers in the new flow table.
        self.connection_ages.forget();
        self.ages_changed = true;
        Ok(())
    }

    /// Returns the events that are to be applied now. The initial sync needs all of them.
    fn admit(&mut self, batch: Vec<SourceEvent>, now: Instant) -> Vec<SourceEvent> {
        let planner = self.reconciler.planner();
        if !planner.is_synced() {
            return batch;
        }
        let admitted = self.coalescer.admit(batch, |slice| planner.service_of(slice).cloned(), now);
        self.metrics.set_coalesced(self.coalescer.replaced());
        admitted
    }

    fn complete_initial_sync(&self, service_ports: usize, started: Instant) {
        info!(service_ports, seconds = started.elapsed().as_secs_f32(), "initial sync complete");
        self.health.send_modify(|state| state.progress = Progress::Serving);
    }

    /// Applies a change of the configuration file.
    fn reload_settings(&mut self) {
        let (args, live, restart) = match self.reload.as_mut().and_then(Reload::check) {
            None => return,
            Some(Reloaded::Refused(reason)) => {
                error!("the settings stay as they are, the configuration file is not valid: {reason}");
                return;
            }
            Some(Reloaded::Changed { args, live, restart }) => (*args, live.join(", "), restart.join(", ")),
        };
        if !restart.is_empty() {
            warn!("the configuration file has changes that need a restart of this agent: {restart}");
        }
        if live.is_empty() {
            return;
        }
        let new = args.settings;
        if new.log_level != self.config.log_level {
            logging::set_filter(&new.log_level);
        }
        self.config = Config {
            devices: new.devices,
            log_level: new.log_level,
            mode: new.mode,
            nodeport_addresses: new.nodeport_addresses,
            pod_interfaces: new.pod_interfaces,
            ..self.config.clone()
        };
        info!("applied changes of the configuration file: {live}");
        self.apply_host_state();
    }

    /// Reports an API server whose address only this agent serves, once.
    fn check_api_address(&mut self) {
        let without_kube_proxy = self.node.borrow().without_kube_proxy;
        let problem = api_address::problem(&self.api_servers, self.reconciler.planner(), without_kube_proxy);
        if problem == self.api_problem {
            return;
        }
        if let Some(solved) = std::mem::replace(&mut self.api_problem, problem) {
            self.metrics.resolved(&solved);
            info!("resolved: {}: {}", solved.object, solved.reason);
        }
        if let Some(problem) = &self.api_problem {
            self.report_problem(problem);
        }
    }

    /// Records the time from changes in the cluster until now. Without a complete map it records
    /// nothing: the changes may not be in the maps yet.
    fn measure_latency(&self, triggers: Vec<Trigger>) {
        if !self.reconciler.planner().is_synced() || self.reconciler.pending().is_some() {
            return;
        }
        let now = SystemTime::now();
        for trigger in triggers.into_iter().filter(|trigger| trigger.at > self.started) {
            self.metrics.programmed(trigger, now);
        }
    }

    /// Logs which nodes begin or end to drain. Call this before the events are planned.
    fn log_drains(&self, batch: &[SourceEvent]) {
        for event in batch {
            let SourceEvent::NodeDrain(name, drain) = event else { continue };
            let name = name.name();
            let before = self.reconciler.planner().drain_of(name);
            // A Node changes often, its drain seldom.
            if before == *drain {
                continue;
            }
            match drain {
                Some(_) => info!("node {name} drains: its endpoints get no new connections"),
                None => info!("node {name} does not drain any more"),
            }
        }
    }

    /// Removes ServiceCIDRs that are gone, before their Services are removed.
    fn release_networks(&mut self) {
        let by_kernel = forwarded_by_kernel(self.config.forward, &self.node.borrow());
        let namespaces = self.namespaces.addresses.borrow();
        if let Some(networks) = known_networks(self.reconciler.planner(), &namespaces, &by_kernel) {
            self.host_reconciler.release_networks(&networks, &mut self.datapath);
        }
    }

    /// Attaches programs to devices, and writes devices, addresses, networks and namespaces.
    fn apply_host_state(&mut self) {
        let state = Arc::clone(&self.node.borrow_and_update());
        let namespaces = Arc::clone(&self.namespaces.addresses.borrow_and_update());
        let choices = device_choices(&self.config, &state);
        self.log_skipped_devices(&choices);
        self.log_forwarding(&state);
        let planner = self.reconciler.planner();
        let desired = DesiredHost::new(&self.config, &state, &choices, planner, namespaces);
        let listen = listen_addresses(&self.config.nodeport_addresses, &desired.addresses);
        self.service_health.send_if_modified(|desired| {
            let before = std::mem::replace(&mut desired.addresses, listen);
            before != desired.addresses
        });
        for change in self.host_reconciler.converge(&desired, &mut self.datapath, Instant::now()) {
            match change {
                HostChange::Attached { device, how, reason } => {
                    self.skipped.remove(&device);
                    info!("attached to {device} by {how}: {reason}");
                }
                HostChange::Unserved { device, reason } => {
                    error!("does not serve packets that arrive by {device}: {reason}");
                }
                HostChange::Detached { device } => info!("detached from {device}"),
                HostChange::Failed { action, reason } => {
                    error!("cannot {action}, trying again: {reason}");
                }
            }
        }
    }

    /// Logs to which networks the kernel forwards translated packets, when that changes.
    fn log_forwarding(&mut self, state: &NodeState) {
        let networks = forwarded_by_kernel(self.config.forward, state);
        self.metrics.set_networks_by_kernel(networks.len());
        let before = self.by_kernel.as_ref();
        if before == Some(&networks) {
            return;
        }
        let list = networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        match (self.config.forward, before) {
            (ForwardMode::Stack, _) => info!("the kernel forwards all translated packets (--forward stack)"),
            (ForwardMode::Auto, None) if state.ipsec.is_none() => warn!(
                "cannot list the IPsec policies of this node: translated packets pass by them \
                 (--forward stack prevents that)"
            ),
            (_, None) if networks.is_empty() => {}
            (_, _) if networks.is_empty() => {
                info!("no IPsec policies are left: the programs forward translated packets again");
            }
            (_, _) => info!("the kernel forwards translated packets to {list}, which have IPsec policies"),
        }
        self.by_kernel = Some(networks);
    }

    fn log_skipped_devices(&mut self, choices: &[DeviceChoice]) {
        for choice in choices.iter().filter(|choice| choice.hooks == Hooks::None) {
            if self.skipped.get(&choice.name) != Some(&choice.reason) {
                info!("not attached to {}: {}", choice.name, choice.reason);
                self.skipped.insert(choice.name.clone(), choice.reason.clone());
            }
        }
        self.skipped.retain(|name, _| choices.iter().any(|choice| choice.name == *name));
    }

    /// Closes sockets that are connected to removed endpoints. After the initial sync this includes
    /// endpoints that were removed while no agent ran.
    fn close_stale_sockets(&self, outcome: &ReconcileOutcome) {
        let lost = match self.config.terminate_sockets {
            TerminateSockets::None => return,
            TerminateSockets::Udp => outcome.lost.contains(&Protocol::Udp),
            TerminateSockets::All => !outcome.lost.is_empty(),
        };
        if lost || outcome.changes.complete {
            self.namespaces.visit();
        }
    }

    /// Begins a sweep of the flow table.
    fn sweep(&mut self) {
        self.sweep_due = None;
        let search = self.search_aged();
        self.sweeps.sweep(search);
    }

    /// Applies a report of the thread that reads the flow table.
    fn apply_report(&mut self, report: Report) {
        match report {
            Report::Swept(swept) => {
                self.sweep_due = Some(Instant::now() + SWEEP);
                match swept {
                    Ok(sweep) => self.apply_sweep(*sweep),
                    Err(error) => {
                        warn!("cannot read the flow table, trying again in {} s: {error}", SWEEP.as_secs());
                    }
                }
            }
            Report::FoundAged(Ok(found)) => self.connection_ages.schedule(found.version, found.flows),
            Report::FoundAged(Err(error)) => {
                warn!("cannot read the ages of connections, trying again in {} s: {error}", SWEEP.as_secs());
            }
            Report::FoundDraining(Ok(draining)) => self.cut_overdue(&draining),
            Report::FoundDraining(Err(error)) => warn!("cannot read the connections of endpoints: {error}"),
            Report::Cut(Ok(cut)) => self.metrics.cut(cut),
            Report::Cut(Err(error)) => {
                warn!("cannot reset connections to endpoints that have drained: {error}");
            }
            Report::EndedAged(Ok(reset)) => self.metrics.aged_flows(reset),
            Report::EndedAged(Err(error)) => warn!("cannot reset connections that are too old: {error}"),
        }
    }

    /// Lets the engine reuse ids to which no connection refers any more, and reports what a sweep
    /// has found.
    fn apply_sweep(&mut self, sweep: Sweep) {
        let Sweep { started, usage, draining, aged, left_out, overloaded } = sweep;
        self.reconciler.swept(started, &usage.referenced);
        self.metrics.set_flows(usage.open, usage.half_open);
        self.flow_maps = usage.maps;
        self.cut_overdue(&draining);
        self.report_drained(draining);
        self.connection_ages.schedule(aged.version, aged.flows);
        self.report_left_out(left_out);
        self.metrics.set_overloaded(overloaded);
    }

    /// Reports endpoints that drain and whose last connection through this node has ended.
    fn report_drained(&mut self, endpoints: DrainingEndpoints) {
        for (service, endpoint) in self.draining.intersection(&endpoints.idle) {
            let note = format!("endpoint {endpoint} of {service} drains and has no connections any more");
            info!("{note}");
            self.metrics.drained();
            self.record(ObjectWarning::drained, service, note);
        }
        self.draining = endpoints.busy.into_keys().collect();
    }

    /// Resets the connections of endpoints whose time limit has just passed.
    fn cut_newly_overdue(&mut self) {
        let passed = self.drain_limits.report(Instant::now());
        for (service, endpoint) in &passed {
            info!(
                "endpoint {endpoint} of {service} has drained for its time limit: \
                 the connections that it still has are reset"
            );
        }
        if !passed.is_empty() {
            self.sweeps.find_draining();
        }
    }

    /// Resets the connections of all endpoints whose time limit has passed. Each call ends a
    /// limited number of them. The next sweep ends the others.
    fn cut_overdue(&mut self, draining: &DrainingEndpoints) {
        let mut backends = PerFamily::<BTreeSet<u32>>::default();
        for endpoint in self.drain_limits.overdue(Instant::now()) {
            if let Some(id) = draining.busy.get(&endpoint) {
                backends[IpFamily::of(&endpoint.1.ip())].insert(*id);
            }
        }
        let any = !backends.v4.is_empty() || !backends.v6.is_empty();
        self.set_overdue(backends.clone());
        if any {
            self.sweeps.cut(backends);
            self.namespaces.visit();
        }
    }

    /// Sets the endpoints whose sockets the thread of the namespaces closes in its next visits.
    fn set_overdue(&self, backends: PerFamily<BTreeSet<u32>>) {
        *self.overdue.lock().unwrap_or_else(PoisonError::into_inner) = backends;
    }

    /// Returns the search for the connections that reach their maximum age before the next sweep.
    /// Lets the thread of the namespaces search sockets.
    fn search_aged(&self) -> AgeSearch {
        let until_s = monotonic_ns() / SECOND + 2 * SWEEP.as_secs();
        let search = self.connection_ages.search(|id| self.reconciler.service_id(id), until_s);
        *self.socket_ages.lock().unwrap_or_else(PoisonError::into_inner) =
            SocketAges { limits: search.limits.clone(), next_s: None };
        if !search.limits.is_empty() {
            self.namespaces.visit();
        }
        search
    }

    /// Resets the connections that have reached their maximum age.
    fn reset_aged(&mut self) {
        if std::mem::take(&mut self.ages_changed) {
            let search = self.search_aged();
            self.sweeps.find_aged(search);
        }
        let now_s = monotonic_ns() / SECOND;
        let due = self.connection_ages.take_due(now_s);
        if !due.is_empty() {
            self.sweeps.end_aged(due);
        }
        let next_s = self.socket_ages.lock().unwrap_or_else(PoisonError::into_inner).next_s;
        if next_s.is_some_and(|next_s| next_s <= now_s) {
            self.namespaces.visit();
        }
    }

    /// Reports endpoints that are left out, and those that answer again.
    fn report_left_out(&mut self, endpoints: Vec<LeftOutEndpoint>) {
        let left_out: BTreeSet<_> =
            endpoints.into_iter().map(|endpoint| (endpoint.service, endpoint.endpoint)).collect();
        for (service, endpoint) in left_out.difference(&self.left_out) {
            let note = format!(
                "endpoint {endpoint} of {service} refuses clients or does not answer them: \
                 it gets no new connections for a while"
            );
            warn!("{note}");
            self.record(ObjectWarning::left_out, service, note);
        }
        for (service, endpoint) in self.left_out.difference(&left_out) {
            info!("endpoint {endpoint} of {service} is not left out any more");
        }
        self.metrics.set_left_out(left_out.len());
        self.left_out = left_out;
    }

    /// Writes a Kubernetes Event about a Service.
    fn record(
        &self,
        warning: fn(&ObjectName, String) -> ObjectWarning,
        service: &ServicePortId,
        note: String,
    ) {
        if let Some(recorder) = &self.recorder {
            recorder.record(warning(&ObjectName::new(&service.namespace, &service.name), note));
        }
    }

    fn log_outcome(&self, outcome: &ReconcileOutcome) {
        for problem in &outcome.changes.raised {
            self.report_problem(problem);
        }
        for problem in &outcome.changes.resolved {
            self.metrics.resolved(problem);
            info!("resolved: {}: {}", problem.object, problem.reason);
        }
        for failure in &outcome.failed {
            error!("{failure}");
        }
        if !outcome.no_room.is_empty() {
            self.log_no_room(&outcome.no_room);
        }
        match outcome.recovered.as_slice() {
            services if services.len() > MOST_NAMED => {
                info!("wrote {} service ports after failures", services.len());
            }
            services => services.iter().for_each(|one| info!("wrote service port {one} after failures")),
        }
    }

    /// Logs writes to full maps. They are errors only if the maps do not become larger.
    fn log_no_room(&self, failures: &[String]) {
        let demand = self.reconciler.demand(&[]);
        if self.growth.is_expected(self.datapath.sizes(), &demand, Instant::now()) {
            info!("{} service ports wait for larger maps", failures.len());
            return;
        }
        for failure in failures {
            error!("{failure}");
        }
    }

    /// Reports a problem of an API object: in the log, as a metric and as a Kubernetes Event.
    fn report_problem(&self, problem: &Problem) {
        self.metrics.raised(problem);
        if let (Some(recorder), Some(warning)) = (&self.recorder, ObjectWarning::from_problem(problem)) {
            recorder.record(warning);
        }
        match problem.severity {
            Severity::Error => warn!("{problem}"),
            Severity::Note => info!("{problem}"),
        }
    }

    /// Publishes which parts of the initial sync are missing.
    fn publish_awaited(&self) {
        let awaited: Vec<String> =
            self.reconciler.planner().unsynced().map(|part| part.to_string()).collect();
        if !awaited.is_empty() {
            let text = format!("waiting for {}", awaited.join(", "));
            self.health.send_modify(|state| state.progress = Progress::Starting(text));
        }
    }

    /// Updates metrics that change with nearly every event, and reports maps that become nearly
    /// full. It runs once a second.
    fn update_metrics(&mut self) {
        let services = self.reconciler.usage();
        let grows = self.growth.is_under_way(Instant::now());
        let mut stay = if grows { Vec::new() } else { services.clone() };
        stay.extend(&self.flow_maps);
        let maps = [services, self.flow_maps.clone()].concat();
        for usage in self.full_maps.update(&stay) {
            let MapUsage { map, entries, capacity, option } = usage;
            warn!("map {map} is nearly full: {entries} of {capacity} entries are used; raise --{option}");
        }
        let endpoints =
            maps.iter().filter(|usage| usage.map.starts_with("BACKENDS_")).map(|usage| usage.entries).sum();
        let (bytes, most) = (self.datapath.sizes().memory(), self.growth.most);
        self.metrics.set_map_memory(MapMemory { bytes, most });
        self.metrics.set_watches(self.watch_ages.at(Instant::now()));
        self.metrics.set_served(self.reconciler.planner().service_count(), endpoints, maps);
    }

    /// Publishes the state that the probes report.
    fn publish_health(&self) {
        let planner = self.reconciler.planner();
        // A manifest folder need not contain a Node object.
        let node_eligible = planner.node().map_or(self.config.manifests.is_some(), |node| node.eligible);
        let host = self.host_reconciler.pending();
        let services = self.reconciler.pending();
        let up_to_date = host.is_none() && services.is_none();
        // Maps that become larger have room for these writes soon.
        let grows = self.growth.is_under_way(Instant::now());
        let services = if grows { self.reconciler.pending_with_room() } else { services };
        let pending = [services, host].into_iter().flatten().min_by_key(|pending| pending.since);
        self.health.send_modify(|state| {
            state.alive = Instant::now();
            state.node_eligible = node_eligible;
            if up_to_date && state.progress == Progress::Serving {
                state.last_updated = Some(SystemTime::now());
            }
            state.pending = pending;
        });
    }
}
