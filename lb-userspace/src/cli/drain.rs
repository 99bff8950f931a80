//! `lb drain`: moves new connections away from the endpoints of a node.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use lb_model::{DRAIN_ANNOTATION, NodeDrain};
use lb_objects::convert::parse_duration;
use lb_objects::kubernetes::{
    self, KubernetesError, NodeDrainState, WatchAges, drain_annotation, with_causes,
};

#[derive(Debug, Args)]
pub struct DrainArgs {
    /// Name of the Node
    #[arg(long, value_name = "NAME")]
    node: String,

    /// Reset the connections that are open after this time, such as 90s, 10m or 1h30m. Without it,
    /// they stay until they end
    #[arg(long, value_name = "TIME", value_parser = time, conflicts_with = "off")]
    timeout: Option<Duration>,

    /// End the drain. The Node stays cordoned
    #[arg(long)]
    off: bool,

    /// Folder of the agents' manifests. Print the Node to write there, and change nothing
    #[arg(long, value_name = "DIR", conflicts_with = "kubeconfig")]
    manifests: Option<PathBuf>,

    /// kubeconfig file of the cluster. In a pod, its service account is used by default
    #[arg(long, env = "SLUICE_KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

/// An error of `lb drain`.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    #[error(transparent)]
    Kubernetes(#[from] KubernetesError),
    #[error("cannot change Node {node}: {}: grant your account the verb patch on nodes", with_causes(source))]
    Forbidden { node: String, source: Box<kube::Error> },
    #[error("cannot change Node {node}: {}", with_causes(source))]
    Api { node: String, source: Box<kube::Error> },
    #[error("there is no Node {0}: `kubectl get nodes` lists their names")]
    NoNode(String),
}

impl DrainArgs {
    /// Changes the Node, and returns the text to print.
    pub async fn run(&self) -> Result<String, DrainError> {
        if let Some(folder) = &self.manifests {
            return Ok(self.manifest(folder));
        }
        let client = kubernetes::connect(self.kubeconfig.as_deref(), &[], WatchAges::default()).await?.client;
        let changed = kubernetes::set_node_drain(&client, &self.node, self.drain()).await;
        let failed = |error| {
            let (node, source) = (self.node.clone(), Box::new(error));
            match &*source {
                kube::Error::Api(status) if status.is_forbidden() => DrainError::Forbidden { node, source },
                _ => DrainError::Api { node, source },
            }
        };
        let state = changed.map_err(failed)?.ok_or_else(|| DrainError::NoNode(self.node.clone()))?;
        Ok(self.outcome(state))
    }

    /// Returns the drain to set.
    fn drain(&self) -> Option<NodeDrain> {
        (!self.off).then_some(NodeDrain { limit: self.timeout })
    }

    fn outcome(&self, state: NodeDrainState) -> String {
        let name = &self.node;
        match state {
            NodeDrainState { drain: Some(drain), .. } => format!(
                "Node {name} is cordoned and drains: its endpoints get no new connections while others \
                 are ready.\n{}`lb get backends` on a node shows the connections that are left there. End \
                 the drain with `lb drain --node {name} --off`.\n",
                drain.limit.map_or_else(String::new, |limit| format!(
                    "Connections that are open after {} s are reset.\n",
                    limit.as_secs()
                ))
            ),
            NodeDrainState { cordoned: true, .. } => format!(
                "Node {name} does not drain any more. It is cordoned: `kubectl uncordon {name}` admits \
                 new pods.\n"
            ),
            NodeDrainState { .. } => format!("Node {name} does not drain any more.\n"),
        }
    }

    fn manifest(&self, folder: &Path) -> String {
        let (name, folder) = (&self.node, folder.display());
        let Some(drain) = self.drain() else {
            return format!(
                "# Remove the annotation {DRAIN_ANNOTATION} from Node {name} in {folder}, on every node.\n"
            );
        };
        format!(
            "# Write this to a file in {folder}, on every node. If a file there has the Node already, \
             add the fields to it.\n\
             apiVersion: v1\n\
             kind: Node\n\
             metadata:\n  \
               name: {name}\n  \
               annotations:\n    \
                 {DRAIN_ANNOTATION}: \"{}\"\n\
             spec:\n  \
               unschedulable: true\n",
            drain_annotation(drain)
        )
    }
}

/// Parses the time limit of a drain.
fn time(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "use a time of a week or less, such as 90s, 10m or 1h30m".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(off: bool) -> DrainArgs {
        DrainArgs { node: "node-2".into(), timeout: None, off, manifests: None, kubeconfig: None }
    }

    #[test]
    fn the_printed_node_drains() {
        let folder = tempfile::tempdir().unwrap();
        let limit = Some(Duration::from_secs(600));
        let text = DrainArgs { timeout: limit, ..args(false) }.manifest(folder.path());
        std::fs::write(folder.path().join("node.yaml"), text).unwrap();
        let selection = lb_objects::ObjectSelection::of_services("node-1");
        let events = lb_objects::manifests::load(folder.path(), selection).unwrap();
        let drain = events.iter().find_map(|event| match event {
            lb_model::SourceEvent::NodeDrain(name, drain) => Some((name.name(), *drain)),
            _ => None,
        });
        assert_eq!(drain, Some(("node-2", Some(NodeDrain { limit }))), "{events:?}");
        assert!(args(true).manifest(Path::new("/etc/sluice")).contains("Remove the annotation"));
    }

    #[test]
    fn the_outcome_names_the_next_step() {
        let outcome = |off, drains: bool, cordoned| {
            let drain = drains.then(NodeDrain::default);
            args(off).outcome(NodeDrainState { drain, cordoned })
        };
        assert!(outcome(false, true, true).contains("lb drain --node node-2 --off"));
        assert!(outcome(true, false, true).contains("kubectl uncordon node-2"));
        assert!(!outcome(true, false, false).contains("uncordon"));
    }
}
