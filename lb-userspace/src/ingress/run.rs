//! Starts the proxy, and applies changes of objects to it.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lb_ingress::control::{Controller, Outcome};
use lb_ingress::ingress::{ClassRules, NamedSecrets, Settings};
use lb_ingress::observe::{AccessLog, Observer};
use lb_ingress::proxy::{Drain, Gateway, GatewaySettings, ListenerKind, serve};
use lb_ingress::tls::{CertificateError, CertificateStore, TlsError, self_signed};
use lb_model::{ObjectName, Severity, SourceEvent};
use lb_objects::ObjectSelection;
use lb_objects::kubernetes::events::{EventRecorder, ObjectWarning};
use lb_objects::kubernetes::{self, KubernetesError, LeaseTimes, WatchAges};
use lb_objects::manifests::{self, ManifestError};
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpSocket, UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::args::IngressArgs;
use super::handover::{self, Received, Sockets};
use super::status::{AddressSource, StatusSettings, StatusTask};
use crate::agent::logging;
use crate::agent::stop::Stop;
use crate::config::Machine;
use crate::serve;

/// The reasons why `lb ingress` cannot start or continue.
#[derive(Debug, thiserror::Error)]
pub enum IngressError {
    #[error("cannot install handlers for SIGTERM and SIGINT")]
    Signals(#[source] io::Error),
    #[error(
        "cannot serve {option} at {address}: {source}; end the process that uses the port, or choose another \
         address with {option}"
    )]
    Listen { option: &'static str, address: SocketAddr, source: io::Error },
    #[error("cannot start the thread of the access log")]
    AccessLog(#[source] io::Error),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error(transparent)]
    Kubernetes(#[from] KubernetesError),
    #[error(transparent)]
    Manifests(#[from] ManifestError),
    #[error("the source of Ingresses ended unexpectedly")]
    SourceEnded,
}

/// Capacity of the event channel. A source waits while the channel is full.
const EVENT_QUEUE: usize = 1024;

/// Serves until a signal comes, then lets open requests end.
pub async fn run(args: &IngressArgs) -> Result<(), IngressError> {
    logging::start(&args.log_level, args.log_format);
    let mut stop = Stop::listen().map_err(IngressError::Signals)?;
    let node_name = args.node_name.clone().unwrap_or_else(|| Machine::detect().host_name);
    info!(version = env!("CARGO_PKG_VERSION"), node = node_name, "starting Sluice ingress");

    let received = match &args.handover {
        Some(path) => handover::receive(path).await,
        None => None,
    };
    let (sockets, before) = open_sockets(args, received)?;
    let log = match args.no_access_log {
        true => None,
        false => Some(AccessLog::start(io::stdout()).map_err(IngressError::AccessLog)?),
    };
    let observer = Observer { log, ..Observer::default() };
    let mut registry = Registry::default();
    observer.metrics.register(&mut registry);
    let (ready, is_ready) = watch::channel(false);
    let registry = serve::ingress_registry(registry);
    let serve_probes = || -> Result<AbortHandle, IngressError> {
        let admin = listener("--admin", args.admin, &sockets.admin)?;
        let probes = serve::serve_ingress_probes(admin, registry.clone(), is_ready.clone());
        Ok(tokio::spawn(probes).abort_handle())
    };
    let mut probes = serve_probes()?;

    let settings = GatewaySettings {
        trusted_proxies: args.trusted_proxies.clone(),
        proxy_protocol: args.proxy_protocol,
        https_port: args.public_https_port.unwrap_or_else(|| args.https.port()),
        max_connections: args.max_connections,
        ..GatewaySettings::default()
    };
    let certificates = CertificateStore::new(self_signed()?, args.default_certificate.clone());
    let gateway = Arc::new(Gateway::new(settings, certificates, observer)?);
    let mut open = vec![
        (listener("--http", args.http, &sockets.http)?, ListenerKind::Http),
        (listener("--https", args.https, &sockets.https)?, ListenerKind::Https),
    ];

    let classes = ClassRules {
        controllers: args.controller.clone(),
        names: args.ingress_class.clone(),
        without_class: args.without_class,
    };
    let named_secrets = match &args.manifests {
        Some(_) => NamedSecrets::All,
        None => NamedSecrets::OnRequest,
    };
    let default_backend = args.default_backend.clone();
    let settings = Settings { classes, default_backend, named_secrets, pod_weights: args.pod_weights };
    let mut controller = Controller::new(gateway.clone(), settings);
    let (named, is_named) = watch::channel(BTreeSet::new());
    let Source { mut events, task: mut source, api } = start_source(args, &node_name, is_named).await?;
    let recorder = api.as_ref().map(|api| &api.recorder);
    let status = status_settings(args, &node_name).zip(api.as_ref());
    let status = status.map(|(settings, api)| {
        StatusTask::start(api.client.clone(), settings, gateway.observer.metrics.clone())
    });

    let (drain, begin_drain, mut ended) = Drain::new();
    let mut serving = false;
    let mut batch: Vec<SourceEvent> = Vec::new();
    let mut next = Next::default();
    let mut grace: Option<(&str, Instant)> = None;
    let reason = loop {
        tokio::select! {
            biased;
            reason = stop.requested() => {
                if args.shutdown_grace_period == 0 || grace.is_some() {
                    break reason;
                }
                info!(reason, seconds = args.shutdown_grace_period, "stopping: the grace period begins");
                grace = Some((reason, Instant::now() + Duration::from_secs(args.shutdown_grace_period)));
                ready.send_replace(false);
                gateway.close_after_responses();
            }
            reason = end_of(grace) => break reason,
            change = next.change(&sockets) => match change {
                Change::HandedOver => {
                    info!("the next process has the sockets, and answers the probes");
                    probes.abort();
                }
                Change::NextEnded => {
                    warn!("the next process has ended: this one answers the probes again");
                    probes = serve_probes()?;
                    if let Some(path) = &args.handover {
                        next.listen(path);
                    }
                }
            },
            result = &mut source => {
                result.unwrap_or(Err(IngressError::SourceEnded))?;
                return Err(IngressError::SourceEnded);
            }
            count = events.recv_many(&mut batch, EVENT_QUEUE) => {
                if count == 0 {
                    // The task of the source returns the reason.
                    (&mut source).await.unwrap_or(Err(IngressError::SourceEnded))?;
                    return Err(IngressError::SourceEnded);
                }
                let outcome = controller.apply(std::mem::take(&mut batch));
                report(&outcome, recorder);
                // Only an Ingress names Secrets.
                let may_name_others = !outcome.served.is_empty();
                if let Some(status) = &status {
                    status.update(outcome.served);
                }
                named.send_if_modified(|names| {
                    if !may_name_others {
                        return false;
                    }
                    let now = controller.translator().named_secrets();
                    let changed = !now.eq(names.iter());
                    if changed {
                        *names = controller.translator().named_secrets().cloned().collect();
                    }
                    changed
                });
                if outcome.ready && !serving {
                    serving = true;
                    // Connections have waited in the queue of the kernel.
                    for (listener, kind) in open.drain(..) {
                        tokio::spawn(serve(listener, kind, gateway.clone(), drain.clone()));
                    }
                    ready.send_replace(true);
                    if let Some(path) = &args.handover {
                        next.listen(path);
                    }
                    if let Some(secret) = &args.default_certificate
                        && !gateway.certificates.has(secret)
                    {
                        warn!(%secret, "the Secret of --default-certificate has no valid certificate yet");
                    }
                    let ingresses = controller.translator().served().count();
                    info!(ingresses, http = %args.http, https = %args.https, "initial sync complete: serving");
                }
            }
        }
    };
    // The next process has them, or connections are refused from now on.
    drop((next, sockets));
    info!(reason, seconds = args.drain, "stopping: open requests may end");
    ready.send_replace(false);
    begin_drain.send_replace(true);
    drop(drain);
    let drained = async {
        tokio::select! {
            _ = ended.recv() => info!("all connections have ended"),
            () = tokio::time::sleep(Duration::from_secs(args.drain)) => warn!("closing the remaining connections"),
            reason = stop.requested() => warn!(reason, "closing the remaining connections"),
        }
    };
    let lead_given_up = async {
        if let Some(status) = status {
            status.stop().await;
        }
    };
    tokio::join!(drained, lead_given_up);
    // Until now, a process before this one did not answer probes.
    drop(before);
    Ok(())
}

/// Takes the sockets of the process before, or opens them.
fn open_sockets(
    args: &IngressArgs,
    mut received: Option<Received>,
) -> Result<(Sockets, Option<UnixStream>), IngressError> {
    let mut open = |option, address| match received.as_mut().and_then(|received| received.take(address)) {
        Some(socket) => Ok(socket),
        None => bind(address).map_err(|source| IngressError::Listen { option, address, source }),
    };
    let sockets = Sockets {
        http: open("--http", args.http)?,
        https: open("--https", args.https)?,
        admin: open("--admin", args.admin)?,
    };
    Ok((sockets, received.map(|received| received.connection)))
}

/// Connections wait in the queue of the kernel until they are accepted.
fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(1024)?.into_std()
}

/// Returns another descriptor of a socket, for tokio.
fn listener(
    option: &'static str,
    address: SocketAddr,
    socket: &std::net::TcpListener,
) -> Result<TcpListener, IngressError> {
    let listener = socket.try_clone().and_then(TcpListener::from_std);
    listener.map_err(|source| IngressError::Listen { option, address, source })
}

/// Waits for the end of the grace period, if it has begun. Returns why it has begun.
async fn end_of(grace: Option<(&'static str, Instant)>) -> &'static str {
    match grace {
        Some((reason, end)) => {
            sleep_until(end).await;
            reason
        }
        None => std::future::pending().await,
    }
}

/// The process that gets the sockets of this one.
#[derive(Default)]
struct Next {
    listener: Option<UnixListener>,
    /// The connection to the process that has the sockets.
    process: Option<UnixStream>,
}

enum Change {
    HandedOver,
    NextEnded,
}

impl Next {
    fn listen(&mut self, path: &Path) {
        match handover::listen(path) {
            Ok(listener) => self.listener = Some(listener),
            Err(error) => warn!(
                "cannot serve --handover at {}: {error}: an update of this proxy will lose connections",
                path.display()
            ),
        }
    }

    /// Dropping the future loses nothing but a connection whose process gets no sockets.
    async fn change(&mut self, sockets: &Sockets) -> Change {
        match (&self.process, &self.listener) {
            (Some(process), _) => {
                handover::ended(process).await;
                self.process = None;
                Change::NextEnded
            }
            (None, Some(listener)) => {
                self.process = Some(handover::hand_over(listener, sockets).await);
                Change::HandedOver
            }
            (None, None) => std::future::pending().await,
        }
    }
}

/// Returns `None` if the settings name no address: then this proxy writes no status.
fn status_settings(args: &IngressArgs, node_name: &str) -> Option<StatusSettings> {
    let addresses = match (&args.publish_service, &*args.status_address) {
        (Some(service), _) => AddressSource::Service(service.clone()),
        (None, []) => return None,
        (None, addresses) => AddressSource::Fixed(addresses.iter().map(|text| (**text).into()).collect()),
    };
    // During an update, a node has two proxies.
    let random = std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
    Some(StatusSettings {
        addresses,
        lease: args.lease.clone().unwrap_or_else(|| ObjectName::new("", "sluice-ingress")),
        times: LeaseTimes::of_duration(Duration::from_secs(args.lease_duration.into())),
        identity: format!("{node_name}_{}", random.trim()),
        clear_on_exit: args.clear_status_on_exit,
    })
}

/// Where the objects come from.
struct Source {
    events: mpsc::Receiver<SourceEvent>,
    task: JoinHandle<Result<(), IngressError>>,
    /// `None` for a folder of manifests.
    api: Option<ApiServer>,
}

struct ApiServer {
    client: kube::Client,
    recorder: EventRecorder,
}

async fn start_source(
    args: &IngressArgs,
    node_name: &str,
    named_secrets: watch::Receiver<BTreeSet<ObjectName>>,
) -> Result<Source, IngressError> {
    let (sender, events) = mpsc::channel(EVENT_QUEUE);
    let selection = ObjectSelection::of_ingresses(node_name).with_pod_weights(args.pod_weights);
    let Some(folder) = args.manifests.clone() else {
        let access = kubernetes::connect(args.kubeconfig.as_deref(), &[], WatchAges::default()).await?;
        let client = access.client;
        let recorder = EventRecorder::start(client.clone(), &selection.this_node);
        info!("reading Ingresses from the Kubernetes API");
        let api = ApiServer { client: client.clone(), recorder };
        let task = tokio::spawn(async move {
            let secrets = kubernetes::watch_named_secrets(client.clone(), named_secrets, sender.clone());
            tokio::join!(kubernetes::watch(client, selection, sender), secrets);
            Ok(())
        });
        return Ok(Source { events, task, api: Some(api) });
    };
    info!(folder = %folder.display(), "reading Ingresses from manifests");
    let task = tokio::spawn(async move { Ok(manifests::watch(folder, selection, sender).await?) });
    Ok(Source { events, task, api: None })
}

fn report(outcome: &Outcome, recorder: Option<&EventRecorder>) {
    for problem in &outcome.raised {
        match problem.severity {
            Severity::Error => warn!("{problem}"),
            Severity::Note => info!("{problem}"),
        }
        if let Some((recorder, warning)) = recorder.zip(ObjectWarning::from_problem(problem)) {
            recorder.record(warning);
        }
    }
    for problem in &outcome.resolved {
        info!("resolved: {problem}");
    }
}
