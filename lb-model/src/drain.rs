//! Nodes that drain.

use std::collections::BTreeSet;

use crate::balancing::PlaceHash;
use crate::slice::Endpoint;

/// The annotation that makes a cordoned node drain.
pub const DRAIN_ANNOTATION: &str = "lb.sluice.dev/drain";

/// A Node that is cordoned and has the annotation [`DRAIN_ANNOTATION`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeDrain;

/// The nodes that drain. Their endpoints get new connections only if no other endpoint can.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DrainingNodes(BTreeSet<PlaceHash>);

impl DrainingNodes {
    /// Adds or removes the node of this name. Returns whether that changes anything.
    pub fn set(&mut self, node: &str, drain: Option<NodeDrain>) -> bool {
        let node = PlaceHash::of(node);
        match drain {
            Some(NodeDrain) => self.0.insert(node),
            None => self.0.remove(&node),
        }
    }

    /// Returns whether the endpoint runs on a node that drains.
    pub fn contain(&self, endpoint: &Endpoint) -> bool {
        endpoint.node.is_some_and(|node| self.0.contains(&node))
    }
}
