//! The source of Kubernetes objects: the API server, or a folder of manifests.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;
use std::time::Duration;

use lb_datapath::Pins;
use lb_model::SourceEvent;
use lb_objects::kubernetes::events::EventRecorder;
use lb_objects::kubernetes::{self, WatchAges};
use lb_objects::manifests::{self, ManifestError};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::info;

use super::error::AgentError;
use super::options::selection;
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
    /// The addresses of the API servers. Empty if one of them has a name, and for manifests.
    pub servers: Vec<IpAddr>,
}

/// The agents of a cluster spread their first requests over this time if their nodes are served.
const SPREAD_WHEN_SERVED: Duration = Duration::from_secs(2);
/// The agents spread their first requests over this time if nothing serves their nodes yet.
const SPREAD: Duration = Duration::from_millis(300);

/// Returns how long this node waits before its first request. All agents of a cluster can start at
/// once. The name of the node decides, so that the waits are spread evenly.
fn start_delay(node_name: &str, is_served: bool) -> Duration {
    let mut hasher = DefaultHasher::new();
    node_name.hash(&mut hasher);
    let share = hasher.finish() as f64 / u64::MAX as f64;
    if is_served { SPREAD_WHEN_SERVED } else { SPREAD }.mul_f64(share)
}

impl Source {
    /// Starts the configured source as a task of the runtime.
    pub async fn start(config: &Config) -> Result<Self, AgentError> {
        let (sender, events) = mpsc::channel(EVENT_QUEUE);
        let selection = selection(config);
        let Some(folder) = config.manifests.clone() else {
            let ages = WatchAges::default();
            let servers = &config.api_server.0;
            let access = kubernetes::connect(config.kubeconfig.as_deref(), servers, ages.clone()).await?;
            let servers = access.servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            info!(servers, "reading Services from the Kubernetes API");
            let addresses = access.addresses().unwrap_or_default();
            let client = access.client;
            let recorder = EventRecorder::start(client.clone(), &selection.this_node);
            let delay = start_delay(&config.node_name, Pins::new(&config.bpffs).maps().exists());
            let task = tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                kubernetes::watch(client, selection, sender).await;
                Ok(())
            });
            return Ok(Self { events, task, recorder: Some(recorder), ages, servers: addresses });
        };
        info!(folder = %folder.display(), "reading Services from manifests");
        // A wrong folder is reported before programs are loaded. Later errors end the main loop.
        std::fs::read_dir(&folder)
            .map_err(|source| ManifestError::Folder { path: folder.clone(), source })?;
        let task = tokio::spawn(async move { Ok(manifests::watch(folder, selection, sender).await?) });
        Ok(Self { events, task, recorder: None, ages: WatchAges::default(), servers: Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_of_a_cluster_start_one_after_another() {
        for (served, spread) in [(true, SPREAD_WHEN_SERVED), (false, SPREAD)] {
            let mut delays: Vec<_> =
                (0..5000).map(|node| start_delay(&format!("worker-{node}"), served)).collect();
            delays.sort();
            assert!(delays.iter().all(|delay| *delay <= spread));
            // No tenth of the time has more than twice its share of the nodes.
            for tenth in 0..10 {
                let (begin, end) = (spread * tenth / 10, spread * (tenth + 1) / 10);
                let starts = delays.iter().filter(|delay| (begin..end).contains(*delay)).count();
                assert!(starts < 1000, "{starts} of 5000 in {begin:?}..{end:?}");
            }
        }
    }
}
