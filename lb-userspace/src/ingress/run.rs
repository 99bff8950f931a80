//! Starts the proxy, and applies changes of objects to it.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
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
use lb_objects::kubernetes::{self, KubernetesError, WatchAges};
use lb_objects::manifests::{self, ManifestError};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::args::IngressArgs;
use crate::agent::logging;
use crate::agent::stop::Stop;
use crate::config::Machine;
use crate::serve::{self, AgentPort, BindError};

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
    #[error(transparent)]
    Bind(#[from] BindError),
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

    let admin = serve::bind(AgentPort::Ingress, args.admin).await?;
    let log = match args.no_access_log {
        true => None,
        false => Some(AccessLog::start(io::stdout()).map_err(IngressError::AccessLog)?),
    };
    let observer = Observer { log, ..Observer::default() };
    let mut registry = Registry::default();
    observer.metrics.register(&mut registry);
    let (ready, is_ready) = watch::channel(false);
    tokio::spawn(serve::serve_ingress_probes(admin, registry, is_ready));

    let settings = GatewaySettings {
        trusted_proxies: args.trusted_proxies.clone(),
        proxy_protocol: args.proxy_protocol,
        https_port: args.public_https_port.unwrap_or_else(|| args.https.port()),
        max_connections: args.max_connections,
        ..GatewaySettings::default()
    };
    let gateway = Arc::new(Gateway::new(settings, CertificateStore::new(self_signed()?), observer)?);
    let listeners = [("--http", args.http, ListenerKind::Http), ("--https", args.https, ListenerKind::Https)];
    let mut open = Vec::new();
    for (option, address, kind) in listeners {
        let listener = TcpListener::bind(address).await;
        let listener = listener.map_err(|source| IngressError::Listen { option, address, source })?;
        open.push((listener, kind));
    }

    let classes = ClassRules {
        controllers: args.controller.clone(),
        names: args.ingress_class.clone(),
        without_class: args.without_class,
    };
    let named_secrets = match &args.manifests {
        Some(_) => NamedSecrets::All,
        None => NamedSecrets::OnRequest,
    };
    let settings = Settings { classes, default_backend: args.default_backend.clone(), named_secrets };
    let mut controller = Controller::new(gateway.clone(), settings);
    let (named, is_named) = watch::channel(BTreeSet::new());
    let (mut events, mut source, recorder) = start_source(args, &node_name, is_named).await?;

    let (drain, begin_drain, mut ended) = Drain::new();
    let mut serving = false;
    let mut batch: Vec<SourceEvent> = Vec::new();
    let reason = loop {
        tokio::select! {
            biased;
            reason = stop.requested() => break reason,
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
                report(&outcome, recorder.as_ref());
                named.send_if_modified(|names| {
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
                    let ingresses = controller.translator().served().count();
                    info!(ingresses, http = %args.http, https = %args.https, "initial sync complete: serving");
                }
            }
        }
    };
    info!(reason, seconds = args.drain, "stopping: open requests may end");
    ready.send_replace(false);
    begin_drain.send_replace(true);
    drop(drain);
    tokio::select! {
        _ = ended.recv() => info!("all connections have ended"),
        () = tokio::time::sleep(Duration::from_secs(args.drain)) => warn!("closing the remaining connections"),
        reason = stop.requested() => warn!(reason, "closing the remaining connections"),
    }
    Ok(())
}

type Source = (mpsc::Receiver<SourceEvent>, JoinHandle<Result<(), IngressError>>, Option<EventRecorder>);

async fn start_source(
    args: &IngressArgs,
    node_name: &str,
    named_secrets: watch::Receiver<BTreeSet<ObjectName>>,
) -> Result<Source, IngressError> {
    let (sender, events) = mpsc::channel(EVENT_QUEUE);
    let selection = ObjectSelection::of_ingresses(node_name);
    let Some(folder) = args.manifests.clone() else {
        let access = kubernetes::connect(args.kubeconfig.as_deref(), &[], WatchAges::default()).await?;
        let client = access.client;
        let recorder = EventRecorder::start(client.clone(), &selection.this_node);
        info!("reading Ingresses from the Kubernetes API");
        let task = tokio::spawn(async move {
            let secrets = kubernetes::watch_named_secrets(client.clone(), named_secrets, sender.clone());
            tokio::join!(kubernetes::watch(client, selection, sender), secrets);
            Ok(())
        });
        return Ok((events, task, Some(recorder)));
    };
    info!(folder = %folder.display(), "reading Ingresses from manifests");
    let task = tokio::spawn(async move { Ok(manifests::watch(folder, selection, sender).await?) });
    Ok((events, task, None))
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
