//! Reads the objects of a folder or a cluster once, for commands about Ingresses.

use std::path::Path;
use std::time::Duration;

use lb_model::{ProblemKind, ProblemSource, ResourceSet, SourceEvent, WatchedResource};
use lb_objects::kubernetes::{self, KubernetesError, WatchAges};
use lb_objects::manifests::{self, ManifestError};
use lb_objects::{ObjectSelection, ServiceSelection};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

/// The objects cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ObjectsError {
    #[error(transparent)]
    Manifests(#[from] ManifestError),
    #[error(transparent)]
    Kubernetes(#[from] KubernetesError),
    /// The API server refuses a request or cannot be reached.
    #[error("{0}")]
    Api(String),
    #[error("the API server has not sent all objects within {} s", LIMIT.as_secs())]
    TimeOut,
}

/// A list of ten thousand Ingresses takes seconds.
const LIMIT: Duration = Duration::from_secs(60);

/// Reads the objects of these resources from a folder, or from the cluster of a kubeconfig file.
/// Without either, this is the cluster of the pod's service account. `this_node` is the Node whose
/// proxy the command is about.
pub async fn read(
    folder: Option<&Path>,
    kubeconfig: Option<&Path>,
    (resources, this_node): (&[WatchedResource], &str),
) -> Result<Vec<SourceEvent>, ObjectsError> {
    let selection = ObjectSelection {
        resources: ResourceSet::of(resources),
        this_node: this_node.into(),
        services: ServiceSelection::PortsOfAll,
    };
    if let Some(folder) = folder {
        return Ok(manifests::load(folder, selection)?);
    }
    let client = kubernetes::connect(kubeconfig, &[], WatchAges::default()).await?.client;
    let (sender, mut receiver) = mpsc::channel(256);
    let mut missing = resources.len();
    let watch = tokio::spawn(kubernetes::watch(client, selection, sender));
    let mut events = Vec::new();
    let end = Instant::now() + LIMIT;
    while missing > 0 {
        let event = timeout_at(end, receiver.recv()).await;
        let event = event.ok().flatten().ok_or(ObjectsError::TimeOut)?;
        match &event {
            SourceEvent::Synced(_) => missing -= 1,
            SourceEvent::Report(ProblemSource::Watch(_), problems) => {
                let refused = problems.iter().find(|problem| problem.kind == ProblemKind::Api);
                if let Some(problem) = refused {
                    return Err(ObjectsError::Api(problem.to_string()));
                }
            }
            _ => {}
        }
        events.push(event);
    }
    watch.abort();
    Ok(events)
}
