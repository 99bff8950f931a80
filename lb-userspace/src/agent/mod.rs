//! The agent: one loop that brings events, the state of the host and time to those who know what to do with them.
//!
//! ```text
//! source ─ events ─► Reconciler (planner, engine) ─► service maps
//! node ─ devices, addresses, namespaces ─► Network ─► attachments, host maps
//! clock ─► retries, flow sweeps          all of it ─► log, /healthz
//! ```
//!
//! **Invariant:** whenever this process ends, however it ends, the data path goes on as it is.

mod host;
mod lock;
mod logging;
mod main_loop;
mod network;
mod networks;
pub mod once;
mod reconciler;
mod sockets;
mod stop;
mod wanted;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use lb_datapath::apply::Engine;
use lb_datapath::{AttachError, Datapath, FlowTimeouts, LoadError, LoadOptions, Pins, monotonic_ns};
use lb_model::SourceEvent;
use lb_objects::kubernetes::events::{EventRecorder, ObjectWarning};
use lb_objects::kubernetes::{self, KubernetesError};
use lb_objects::manifests::{self, ManifestError};
use lb_plan::{Planner, PlannerSettings};
use serde_json::{Map, Value};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::config::{Config, DatapathLog, ExternalIps, SocketHooks, TerminateSockets};
use crate::node::namespaces::follow::follow;
use crate::node::sysctl::Sysctls;
use crate::node::{self, NodeError};
use crate::preflight::{self, PreflightError};
use crate::serve::{self, BindError, HealthPorts, Metrics, OpenError, Port, ServiceHealth, State};
pub use lock::{LockError, NodeLock};
use main_loop::MainLoop;
use network::Network;
use reconciler::Reconciler;
use sockets::StaleSockets;
use stop::Stop;

/// Longer than a packet can be in the hands of a program: what nothing refers to any more is reused after this time.
const GRACE: Duration = Duration::from_secs(2);
/// How often the lock is tried while another agent holds it.
const LOCK_RETRY: Duration = Duration::from_millis(200);
/// Events that may wait in the channel before a source has to pause.
const EVENT_QUEUE: usize = 1024;

/// Why the agent cannot start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("cannot listen to signals")]
    Signals(#[source] io::Error),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Kubernetes(#[from] KubernetesError),
    #[error(transparent)]
    Manifests(#[from] ManifestError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error("cannot read what an earlier agent left")]
    Adopt(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("cannot follow network namespaces")]
    Namespaces(#[source] io::Error),
    #[error("the source of Services has ended by itself")]
    SourceEnded,
}

impl AgentError {
    /// What a person can do, where the message does not say it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Preflight(error) => Some(error.hint()),
            Self::Lock(LockError::Held { .. }) => {
                Some("end it first, or give --wait-lock to start when it has ended".into())
            }
            Self::Adopt(_) => Some("`lb cleanup` removes it; open connections break then".into()),
            _ => None,
        }
    }
}

/// Runs until a signal comes. Needs a runtime with a thread beside the caller's, which answers probes meanwhile.
/// `effective`: the settings for people who ask a running agent.
pub async fn run(config: &Config, effective: Map<String, Value>) -> Result<(), AgentError> {
    logging::start(&config.log_level, config.log_format);
    let mut stop = Stop::listen().map_err(AgentError::Signals)?;
    preflight::may_load()?;
    preflight::check_bpffs(&config.bpffs)?;
    let cgroup = match config.socket_hooks {
        SocketHooks::Off => None,
        SocketHooks::All | SocketHooks::Host => Some(preflight::check_cgroup(config.cgroup.as_deref())?),
    };
    info!(version = env!("CARGO_PKG_VERSION"), node = config.node_name, "Sluice starts");

    let started = SystemTime::now();
    let Some(_lock) = wait_for_lock(config, &mut stop).await? else { return Ok(()) };
    let probes = serve::bind(Port::Health, config.health_bind).await?;
    let diagnostics = serve::bind(Port::Metrics, config.metrics_bind).await?;
    let (health, state) = watch::channel(State::starting("the kernel programs are being loaded"));
    tokio::spawn(serve::serve_probes(probes, state.clone()));

    let Source { events, task, recorder } = start_source(config).await?;
    let node = node::watch::watch().await?;

    let pins = Pins::new(&config.bpffs);
    let mut datapath = load(config, &pins)?;
    if config.datapath_log != DatapathLog::Off {
        logging::follow_datapath(datapath.take_log()?);
    }
    let adopt = |error: Box<dyn std::error::Error + Send + Sync>| AgentError::Adopt(error);
    // What is served is known when the maps are read; flows of what is not wait for the next sweep.
    let flows = datapath
        .sweep_flows(monotonic_ns(), &FlowTimeouts::default(), |_, _| true)
        .map_err(|e| adopt(e.into()))?;
    let engine = Engine::adopt(datapath.tables()?, &flows.named, GRACE, Instant::now())
        .map_err(|e| adopt(e.into()))?;
    let maps = datapath.maps();
    let network = Network::adopt(
        maps.devices().map_err(|e| adopt(e.into()))?,
        maps.node_addresses().map_err(|e| adopt(e.into()))?,
        maps.networks().map_err(|e| adopt(e.into()))?,
        maps.namespaces().map_err(|e| adopt(e.into()))?,
        datapath.attached_devices()?,
    );
    enable_forwarding();
    serve_sockets(config, cgroup, &mut datapath)?;

    let counters = datapath.maps();
    let metrics = Arc::new(Metrics::new(Box::new(move || counters.counters())));
    tokio::spawn(serve::serve_diagnostics(diagnostics, metrics.clone(), effective));
    let (service_health, wanted) = watch::channel(ServiceHealth::default());
    let teller = recorder.clone();
    let failed = move |failure: &OpenError| {
        if let Some(recorder) = &teller {
            recorder.record(ObjectWarning::health_check_failed(&failure.service, failure.to_string()));
        }
    };
    tokio::spawn(HealthPorts::new(wanted, state, failed).run());

    let stale = |endpoints| StaleSockets::new(endpoints, config.terminate_sockets == TerminateSockets::All);
    let namespaces = datapath
        .endpoints()
        .and_then(|endpoints| follow(config.netns_dir.clone(), stale(endpoints)))
        .map_err(AgentError::Namespaces)?;

    MainLoop {
        config,
        datapath,
        reconciler: Reconciler::new(Planner::new(planner_settings(config)), engine),
        network,
        node,
        namespaces,
        health,
        service_health,
        metrics,
        recorder,
        started,
        left: Default::default(),
    }
    .run(events, task, stop)
    .await
}

/// `None`: asked to stop while waiting.
async fn wait_for_lock(config: &Config, stop: &mut Stop) -> Result<Option<NodeLock>, AgentError> {
    let path = config.bpffs.join("sluice");
    let mut told = false;
    loop {
        match NodeLock::acquire(&path) {
            Ok(lock) => return Ok(Some(lock)),
            Err(LockError::Held { holder, .. }) if config.wait_lock => {
                if !told {
                    info!("waiting for {holder} to end");
                    told = true;
                }
            }
            Err(error) => return Err(error.into()),
        }
        tokio::select! {
            signal = stop.requested() => {
                info!("{signal}: not started");
                return Ok(None);
            }
            () = tokio::time::sleep(LOCK_RETRY) => {}
        }
    }
}

/// Where the objects come from.
struct Source {
    events: mpsc::Receiver<SourceEvent>,
    /// Ends by itself only with an error.
    task: JoinHandle<Result<(), AgentError>>,
    /// Where to say what is wrong with them; the log alone when they come from manifests.
    recorder: Option<EventRecorder>,
}

async fn start_source(config: &Config) -> Result<Source, AgentError> {
    let (sender, events) = mpsc::channel(EVENT_QUEUE);
    let node_name: Arc<str> = config.node_name.as_str().into();
    let (task, recorder) = match &config.manifests {
        Some(folder) => {
            info!(folder = %folder.display(), "Services come from manifests");
            let folder = folder.clone();
            // Before anything is loaded; what goes wrong later ends the agent from within the main loop.
            std::fs::read_dir(&folder)
                .map_err(|source| ManifestError::Folder { path: folder.clone(), source })?;
            (tokio::spawn(async move { Ok(manifests::watch(folder, node_name, sender).await?) }), None)
        }
        None => {
            let client = kubernetes::connect(config.kubeconfig.as_deref()).await?;
            info!("Services come from the Kubernetes API");
            let recorder = EventRecorder::start(client.clone(), &node_name);
            let task = tokio::spawn(async move {
                kubernetes::watch(client, node_name, sender).await;
                Ok(())
            });
            (task, Some(recorder))
        }
    };
    Ok(Source { events, task, recorder })
}

fn load(config: &Config, pins: &Pins) -> Result<Datapath, LoadError> {
    let started = Instant::now();
    let datapath = Datapath::load(pins, &load_options(config))?;
    let features = datapath.features();
    let (major, minor) = features.kernel;
    info!(
        kernel = format!("{major}.{minor}"),
        pins = %pins.root().display(),
        map_memory_mib = config.maps.map_sizes().memory() >> 20,
        seconds = started.elapsed().as_secs_f32(),
        "kernel programs are loaded"
    );
    for missing in features.missing() {
        warn!("this kernel has {missing}");
    }
    Ok(datapath)
}

/// Attaches the socket programs to `cgroup`, or takes those of an earlier agent away.
fn serve_sockets(config: &Config, cgroup: Option<&Path>, datapath: &mut Datapath) -> Result<(), AttachError> {
    match cgroup {
        Some(cgroup) => {
            datapath.attach_cgroup(cgroup)?;
            let whose =
                if config.socket_hooks == SocketHooks::Host { "of this network namespace " } else { "" };
            info!(cgroup = %cgroup.display(), "sockets of processes {whose}in this cgroup are served");
        }
        None => {
            datapath.detach_cgroup()?;
            info!("no sockets are served: processes of the host itself reach no Service");
        }
    }
    if config.socket_hooks != SocketHooks::All && config.pod_interfaces.0.is_empty() {
        warn!(
            "pods of this node reach no Service: their sockets are not served (--socket-hooks), and their packets are not \
             seen; name their devices with --pod-interfaces"
        );
    }
    Ok(())
}

/// How the programs are to be loaded.
pub fn load_options(config: &Config) -> LoadOptions {
    let ports = &config.snat_ports.0;
    LoadOptions {
        sizes: config.maps.map_sizes(),
        snat_ports: (*ports.start(), *ports.end()),
        log_level: match config.datapath_log {
            DatapathLog::Off => 0,
            DatapathLog::Error => 1,
            DatapathLog::Warn => 2,
            DatapathLog::Info => 3,
            DatapathLog::Debug => 4,
            DatapathLog::Trace => 5,
        },
        tc_attach: config.tc_attach.into(),
        protect_node_ports: config.protect_node_ports,
        host_sockets_only: config.socket_hooks == SocketHooks::Host,
    }
}

fn planner_settings(config: &Config) -> PlannerSettings {
    match &config.external_ips {
        ExternalIps::Allow => PlannerSettings::default(),
        ExternalIps::Deny => PlannerSettings { allowed_external_ips: Vec::new() },
        ExternalIps::Within(networks) => PlannerSettings { allowed_external_ips: networks.clone() },
    }
}

/// Packets that are translated and passed up for a pod of this node are forwarded by the kernel.
fn enable_forwarding() {
    let sysctls = Sysctls::default();
    match sysctls.enable_forwarding() {
        Ok(changes) => {
            for node::sysctl::Change { name, before, after } in changes {
                info!(sysctl = name, before, after, "changed, so that packets for pods are forwarded");
            }
        }
        Err(error) => warn!("packets for pods of this node may not be forwarded: {error}"),
    }
    if let Ok(forwarding) = sysctls.forwarding()
        && !forwarding.strict_rp_filter.is_empty()
    {
        warn!(
            devices = forwarding.strict_rp_filter.join(","),
            "strict reverse path filtering (rp_filter=1) drops packets whose replies would leave by another device"
        );
    }
}
