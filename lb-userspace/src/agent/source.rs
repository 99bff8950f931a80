//! The source of Kubernetes objects: the API server, or a folder of manifests.

use lb_model::SourceEvent;
use lb_objects::ObjectSelection;
use lb_objects::kubernetes::events::EventRecorder;
use lb_objects::kubernetes::{self, WatchAges};
use lb_objects::manifests::{self, ManifestError};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::info;

use super::error::AgentError;
use crate::config::Config;

/// Capacity of the event channel. A source waits while the channel is full.
const EVENT_QUEUE: usize = 1024;

/// A running source.
pub struct Source {
    pub events: mpsc::Receiver<SourceEvent>,
    /// Ends only with an error.
    pub task: JoinHandle<Result<(), AgentError>>,
    /// Writes Kubernetes Events about faulty objects. `None` for manifests: there is no API server.
    pub recorder: Option<EventRecorder>,
    /// When the API server last sent something. Empty for manifests.
    pub ages: WatchAges,
}

impl Source {
    /// Starts the configured source as a task of the runtime.
    pub async fn start(config: &Config) -> Result<Self, AgentError> {
        let (sender, events) = mpsc::channel(EVENT_QUEUE);
        let selection = ObjectSelection::of_services(config.node_name.as_str());
        let Some(folder) = config.manifests.clone() else {
            let ages = WatchAges::default();
            let client = kubernetes::connect(config.kubeconfig.as_deref(), ages.clone()).await?;
            info!("reading Services from the Kubernetes API");
            let recorder = EventRecorder::start(client.clone(), &selection.this_node);
            let task = tokio::spawn(async move {
                kubernetes::watch(client, selection, sender).await;
                Ok(())
            });
            return Ok(Self { events, task, recorder: Some(recorder), ages });
        };
        info!(folder = %folder.display(), "reading Services from manifests");
        // A wrong folder is reported before programs are loaded. Later errors end the main loop.
        std::fs::read_dir(&folder)
            .map_err(|source| ManifestError::Folder { path: folder.clone(), source })?;
        let task = tokio::spawn(async move { Ok(manifests::watch(folder, selection, sender).await?) });
        Ok(Self { events, task, recorder: None, ages: WatchAges::default() })
    }
}
