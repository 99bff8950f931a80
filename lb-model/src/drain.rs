//! Nodes that drain.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::balancing::PlaceHash;
use crate::slice::Endpoint;

/// The annotation that makes a cordoned node drain.
pub const DRAIN_ANNOTATION: &str = "lb.sluice.dev/drain";

/// A Node that is cordoned and has the annotation [`DRAIN_ANNOTATION`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NodeDrain {
    /// The time after which the open connections to its endpoints are reset. `None`: they stay.
    pub limit: Option<Duration>,
}

/// The nodes that drain. Their endpoints get new connections only if no other endpoint can.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DrainingNodes(BTreeMap<PlaceHash, NodeDrain>);

impl DrainingNodes {
    /// Adds or removes the node of this name. Returns whether that changes anything.
    pub fn set(&mut self, node: &str, drain: Option<NodeDrain>) -> bool {
        let node = PlaceHash::of(node);
        let before = match drain {
            Some(drain) => self.0.insert(node, drain),
            None => self.0.remove(&node),
        };
        before != drain
    }

    /// Returns the drain of the node of this name.
    pub fn get(&self, node: &str) -> Option<NodeDrain> {
        self.0.get(&PlaceHash::of(node)).copied()
    }

    /// Returns the drain of the endpoint's node.
    pub fn of(&self, endpoint: &Endpoint) -> Option<NodeDrain> {
        self.0.get(&endpoint.node?).copied()
    }
}
