//! Starts the agent: checks, lock, source, data path, servers; then the main loop.

use std::collections::BTreeSet;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use lb_datapath::apply::Engine;
use lb_datapath::{AttachError, Datapath, LoadError, LoadOptions, Pins, ServiceTables, monotonic_ns};
use lb_objects::kubernetes::events::{EventRecorder, ObjectWarning};
use lb_plan::Planner;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use super::connection_ages::SharedSocketAges;
use super::drift::DriftReport;
use super::error::AgentError;
use super::growth::Growth;
use super::host_reconciler::HostReconciler;
use super::host_tables::HostTables as _;
use super::lock::NodeLock;
use super::logging;
use super::main_loop::{MainLoop, SWEEP};
use super::options::{GRACE, load_options, planner_settings};
use super::reconciler::Reconciler;
use super::reload::{ReadAgain, Reload};
use super::source::Source;
use super::stale_sockets::{Overdue, StaleSockets};
use super::stop::Stop;
use super::sweep::Sweeps;
use crate::config::{AgentArgs, Config, DatapathLogLevel, ForwardMode, IgnoredField, SocketHooks};
use crate::node;
use crate::node::namespaces::follow::follow;
use crate::node::sysctl::{Change, Sysctls};
use crate::preflight::{self, PreflightError};
use crate::serve::{
    self, AgentPort, AgentState, HealthPorts, KernelCounts, MOST_SERVICE_LOADS, Metrics, OpenError,
    ServiceHealth,
};

/// Runs the agent until a signal comes. `read_again` reads the same command line again, with the
/// files that it names.
///
/// The runtime needs a thread beside the caller's, which answers probes while the caller is busy.
pub async fn run(args: AgentArgs, read_again: ReadAgain) -> Result<(), AgentError> {
    let AgentArgs { config: file, settings, effective, ignored, .. } = args;
    let (sender, in_force) = watch::channel(effective);
    let reload = Reload::new(file, sender, read_again);
    let config = &settings;
    logging::start(&config.log_level, config.log_format);
    let mut stop = Stop::listen().map_err(AgentError::Signals)?;
    let cgroup = check_host(config)?;
    info!(version = env!("CARGO_PKG_VERSION"), node = config.node_name, "starting Sluice");

    for IgnoredField { field, reason } in ignored {
        info!("the configuration of kube-proxy: {field} has no effect: {reason}");
    }

    let started = SystemTime::now();
    let Some(lock) = NodeLock::acquire_or_wait(config, &mut stop).await? else { return Ok(()) };
    logging::follow_commands();
    let probes = serve::bind(AgentPort::Health, config.health_bind).await?;
    let diagnostics = serve::bind(AgentPort::Metrics, config.metrics_bind).await?;
    let (health, state) = watch::channel(AgentState::starting("loading the kernel programs"));
    tokio::spawn(serve::serve_probes(probes, state.clone()));

    let Source { events, task, recorder, ages, servers } = Source::start(config).await?;
    let node = node::watch::watch().await?;

    let sysctls = Sysctls::at(&config.sysctl_dir);
    let accepts_own_packets = accept_own_packets(&sysctls);
    let forward = if accepts_own_packets { config.forward } else { ForwardMode::Fast };
    if forward != config.forward {
        warn!("the programs forward translated packets, also to networks with IPsec policies");
    }
    let config = &Config { forward, ..config.clone() };
    let options = load_options(config, accepts_own_packets);
    let mut datapath = load(config, &options)?;
    if !datapath.can_serve_packets() && (cgroup.is_none() || !datapath.can_serve_sockets()) {
        return Err(AgentError::NothingServes);
    }
    let (engine, host_reconciler) = adopt(&mut datapath)?;
    enable_forwarding(&sysctls);
    let sockets = attach_socket_programs(config, cgroup, &mut datapath)?;

    let datapath_log = follow_log(config, &mut datapath)?;
    let counted = Arc::new(Mutex::new(datapath.maps()));
    let maps = Arc::clone(&counted);
    let metrics = Arc::new(Metrics::new(Box::new(move || {
        let maps = maps.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(KernelCounts {
            packets: maps.counters()?,
            port_shortages: maps.port_shortages()?,
            service_loads: maps.service_loads(MOST_SERVICE_LOADS)?,
        })
    })));
    tokio::spawn(serve::serve_diagnostics(diagnostics, metrics.clone(), in_force));
    let service_health = serve_health_checks(state, recorder.clone());
    let overdue = Overdue::default();
    let endpoints = Arc::new(Mutex::new(datapath.endpoints().map_err(AgentError::Namespaces)?));
    let socket_ages = SharedSocketAges::default();
    let sockets_to_close = StaleSockets::new(
        Arc::clone(&endpoints),
        config.terminate_sockets,
        overdue.clone(),
        socket_ages.clone(),
        metrics.clone(),
    );
    let namespaces = follow(config.netns_dir.clone(), sockets_to_close).map_err(AgentError::Namespaces)?;

    let sweeps = datapath.sweeper().and_then(Sweeps::start).map_err(AgentError::Sweeps)?;

    MainLoop {
        config: config.clone(),
        reload,
        sweeps,
        growth: Growth::new(options.map_memory),
        waiting: None,
        options,
        datapath,
        datapath_log,
        endpoints,
        counted,
        reconciler: Reconciler::new(Planner::new(planner_settings(config)), engine),
        coalescer: Default::default(),
        host_reconciler,
        node,
        namespaces,
        health,
        service_health,
        metrics,
        recorder,
        watch_ages: ages,
        api_servers: servers,
        api_problem: None,
        started,
        lock,
        sockets,
        drift: DriftReport::new(Instant::now()),
        skipped: Default::default(),
        by_kernel: None,
        flow_maps: Vec::new(),
        sweep_due: Some(Instant::now() + SWEEP),
        draining: BTreeSet::new(),
        drain_limits: Default::default(),
        overdue,
        connection_ages: Default::default(),
        ages_changed: false,
        socket_ages,
        left_out: BTreeSet::new(),
        full_maps: Default::default(),
    }
    .run(events, task, stop)
    .await
}

/// Checks privileges and file systems. Returns the cgroup folder for the socket programs, if they
/// are to be attached. A host without a cgroup-v2 hierarchy has none: it is served without them.
fn check_host(config: &Config) -> Result<Option<&Path>, AgentError> {
    preflight::may_load()?;
    preflight::check_bpffs(&config.bpffs)?;
    if config.socket_hooks == SocketHooks::Off {
        return Ok(None);
    }
    match preflight::check_cgroup(config.cgroup.as_deref()) {
        Ok(cgroup) => Ok(Some(cgroup)),
        Err(unmounted @ PreflightError::CgroupUnmounted) => {
            error!(
                "{unmounted}: connections of processes are not translated at the socket, and packets are served; \
                 remedy: {}",
                unmounted.hint()
            );
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Loads the kernel programs on the pinned maps, and logs which kernel features are missing.
fn load(config: &Config, options: &LoadOptions) -> Result<Datapath, LoadError> {
    let started = Instant::now();
    let pins = Pins::new(&config.bpffs);
    let datapath = Datapath::load(&pins, options)?;
    let features = datapath.features();
    info!(
        kernel = features.kernel,
        pins = %pins.root().display(),
        map_memory_mib = datapath.sizes().memory() >> 20,
        max_map_memory_mib = config.max_map_memory,
        seconds = started.elapsed().as_secs_f32(),
        "loaded the kernel programs"
    );
    for refusal in datapath.refusals() {
        error!("{refusal}");
    }
    for missing in features.missing() {
        warn!("this kernel has {missing}");
    }
    Ok(datapath)
}

/// Starts the task that copies the log of the programs, if they write one.
fn follow_log(config: &Config, datapath: &mut Datapath) -> Result<Option<JoinHandle<()>>, LoadError> {
    if config.datapath_log == DatapathLogLevel::Off {
        return Ok(None);
    }
    Ok(Some(logging::follow_datapath(datapath.take_log()?)))
}

/// Reads the maps and attachments that an earlier agent left.
fn adopt(datapath: &mut Datapath) -> Result<(Engine<ServiceTables>, HostReconciler), AgentError> {
    let failed = |error: Box<dyn Error + Send + Sync>| AgentError::Adopt(error);
    let sweeper = datapath.sweeper().map_err(|error| failed(error.into()))?;
    sweeper.forget_gone_endpoints().map_err(|error| failed(error.into()))?;
    let flows = sweeper.flow_usage(monotonic_ns()).map_err(|error| failed(error.into()))?;
    let engine = Engine::adopt(datapath.tables()?, &flows.referenced, GRACE, Instant::now())
        .map_err(|error| failed(error.into()))?;
    let attached = datapath.attached_devices()?;
    let entries = datapath.entries().map_err(|error| failed(error.into()))?;
    Ok((engine, HostReconciler::adopt(entries, attached)))
}

/// Attaches the socket programs to `cgroup`, or detaches those of an earlier agent. Returns the
/// cgroup to which this agent has attached.
fn attach_socket_programs(
    config: &Config,
    cgroup: Option<&Path>,
    datapath: &mut Datapath,
) -> Result<Option<PathBuf>, AttachError> {
    let mut attached = None;
    match cgroup {
        // The programs of an earlier agent stay attached.
        Some(_) if !datapath.can_serve_sockets() => {
            error!("does not serve calls at sockets: the kernel refuses a program that they need");
        }
        Some(cgroup) => {
            datapath.attach_cgroup(cgroup)?;
            let host_only = config.socket_hooks == SocketHooks::Host;
            info!(cgroup = %cgroup.display(), host_only, "attached the socket programs");
            attached = Some(cgroup.to_owned());
        }
        None => {
            datapath.detach_cgroup()?;
            info!("socket programs are off: processes of this host cannot reach Services");
        }
    }
    let serves_pods = cgroup.is_some() && config.socket_hooks == SocketHooks::All;
    if !serves_pods && config.pod_interfaces.0.is_empty() {
        warn!(
            "pods of this node cannot reach Services: socket programs do not serve them \
             (--socket-hooks, --cgroup), and no programs are attached to their devices (--pod-interfaces)"
        );
    }
    Ok(attached)
}

/// Enables forwarding: the kernel forwards packets that are translated for a pod of this node.
fn enable_forwarding(sysctls: &Sysctls) {
    match sysctls.enable_forwarding() {
        Ok(changes) => {
            for Change { name, before, after } in changes {
                info!(sysctl = name, before, after, "enabled forwarding");
            }
        }
        Err(error) => warn!("the kernel may not forward packets to pods of this node: {error}"),
    }
    if let Ok(forwarding) = sysctls.forwarding()
        && !forwarding.strict_rp_filter.is_empty()
    {
        warn!(
            devices = forwarding.strict_rp_filter.join(","),
            "strict reverse path filtering (rp_filter=1) drops packets whose replies would leave \
             by another device"
        );
    }
}

/// Lets the kernel accept packets of this node's own that arrive by the loopback device, and
/// returns whether it does. Programs send packets there that the kernel has to fragment.
fn accept_own_packets(sysctls: &Sysctls) -> bool {
    match sysctls.accept_own_packets() {
        Ok(changes) => {
            for Change { name, before, after } in changes {
                info!(sysctl = name, before, after, "the kernel fragments packets for the programs");
            }
            true
        }
        Err(error) => {
            warn!(
                "IPv4 packets that do not fit the path to an endpoint are not fragmented; their sender \
                 receives an ICMP error: {error}"
            );
            false
        }
    }
}

/// Starts the task that serves the health check ports of Services. A port that cannot be opened is
/// reported as a Kubernetes Event.
fn serve_health_checks(
    state: watch::Receiver<AgentState>,
    recorder: Option<EventRecorder>,
) -> watch::Sender<ServiceHealth> {
    let (service_health, desired) = watch::channel(ServiceHealth::default());
    let on_failure = move |failure: &OpenError| {
        if let Some(recorder) = &recorder {
            recorder.record(ObjectWarning::health_check_failed(&failure.service, failure.to_string()));
        }
    };
    tokio::spawn(HealthPorts::new(desired, state, on_failure).run());
    service_health
}
