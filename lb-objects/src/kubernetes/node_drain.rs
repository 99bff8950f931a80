//! Makes a Node drain, for `lb drain`.

use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use lb_model::{DRAIN_ANNOTATION, NodeDrain};
use serde_json::{Value, json};

use crate::convert;

/// The state of a Node after [`set_node_drain`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeDrainState {
    pub drain: Option<NodeDrain>,
    pub cordoned: bool,
}

/// Cordons a Node and makes it drain, or ends its drain. The end of a drain leaves the Node
/// cordoned: another person may have cordoned it. Returns `None` if there is no such Node.
///
/// # Errors
/// Fails if the API server refuses the request or does not answer.
pub async fn set_node_drain(
    client: &Client,
    node: &str,
    drain: Option<NodeDrain>,
) -> kube::Result<Option<NodeDrainState>> {
    let nodes = Api::<Node>::all(client.clone());
    let patch = Patch::Merge(node_drain_patch(drain));
    let manager = PatchParams { field_manager: Some("lb-drain".to_owned()), ..PatchParams::default() };
    match nodes.patch(node, &manager, &patch).await {
        Ok(node) => Ok(Some(NodeDrainState {
            drain: convert::node_drain(&node).value,
            cordoned: convert::is_cordoned(&node),
        })),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns the value of the annotation for a drain.
pub fn drain_annotation(drain: NodeDrain) -> String {
    drain.limit.map_or_else(|| "true".to_owned(), |limit| format!("{}s", limit.as_secs()))
}

/// Returns the fields of a Node that a drain changes.
fn node_drain_patch(drain: Option<NodeDrain>) -> Value {
    match drain {
        Some(drain) => json!({
            "metadata": { "annotations": { DRAIN_ANNOTATION: drain_annotation(drain) } },
            "spec": { "unschedulable": true },
        }),
        None => json!({ "metadata": { "annotations": { DRAIN_ANNOTATION: null } } }),
    }
}
