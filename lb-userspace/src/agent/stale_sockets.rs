//! Closes sockets that are connected to removed endpoints or to endpoints that have drained for
//! long enough, and sockets that have reached their maximum age, in every network namespace of the
//! node.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use lb_common::SECOND;
use lb_common::layout::ConnectedPeer;
use lb_datapath::{Endpoints, monotonic_ns};
use lb_model::PerFamily;
use tracing::{debug, warn};

use super::connection_ages::{SeenSockets, SharedSocketAges};
use crate::config::TerminateSockets;
use crate::node::namespaces::follow::Visitor;
use crate::node::sockets::close;
use crate::serve::Metrics;

/// The greatest number of sockets that one visit closes because their endpoints have drained for
/// long enough.
const MOST_CUT: usize = 4096;

/// The backend ids of the endpoints that have drained for long enough. The main loop writes them.
pub type Overdue = Arc<Mutex<PerFamily<BTreeSet<u32>>>>;

/// The endpoints of connected sockets. The main loop replaces them when it replaces the maps.
pub type CurrentEndpoints = Arc<Mutex<Endpoints>>;

/// The sockets to close, as read from the maps before each visit.
pub struct StaleSockets {
    endpoints: CurrentEndpoints,
    /// The sockets of removed endpoints that are closed.
    terminate: TerminateSockets,
    overdue: Overdue,
    /// The sockets of removed endpoints, by socket cookie.
    stale: HashMap<u64, ConnectedPeer>,
    /// The sockets of endpoints that have drained for long enough.
    cut: HashMap<u64, ConnectedPeer>,
    ages: SharedSocketAges,
    seen: SeenSockets,
    /// A kernel that cannot list sockets was reported.
    reported: bool,
    /// The sockets that have reached their maximum age.
    aged: HashMap<u64, ConnectedPeer>,
    metrics: Arc<Metrics>,
}

impl StaleSockets {
    pub fn new(
        endpoints: CurrentEndpoints,
        terminate: TerminateSockets,
        overdue: Overdue,
        ages: SharedSocketAges,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            endpoints,
            terminate,
            overdue,
            stale: HashMap::new(),
            cut: HashMap::new(),
            ages,
            seen: SeenSockets::default(),
            reported: false,
            aged: HashMap::new(),
            metrics,
        }
    }

    /// Returns the sockets that have reached their maximum age.
    fn aged(&mut self, endpoints: &Endpoints) -> io::Result<HashMap<u64, ConnectedPeer>> {
        let limits = self.ages.lock().unwrap_or_else(PoisonError::into_inner).limits.clone();
        if !limits.is_empty() && !endpoints.can_list() && !std::mem::replace(&mut self.reported, true) {
            warn!(
                "this kernel cannot list sockets (Linux 5.12 with CONFIG_DEBUG_INFO_BTF can): \
                 max-connection-age does not reset connections of processes on this node"
            );
        }
        let sockets = if limits.is_empty() { HashMap::new() } else { endpoints.served_sockets()? };
        let (due, next_s) = self.seen.due(sockets, &limits, monotonic_ns() / SECOND);
        self.ages.lock().unwrap_or_else(PoisonError::into_inner).next_s = next_s;
        Ok(due)
    }
}

impl Visitor for StaleSockets {
    const TASK: &'static str =
        "close sockets that are connected to removed or drained endpoints or are too old";

    fn prepare(&mut self) -> io::Result<bool> {
        // A panic of the main loop ends this process.
        let current = Arc::clone(&self.endpoints);
        let endpoints = current.lock().unwrap_or_else(PoisonError::into_inner);
        self.stale = match self.terminate {
            TerminateSockets::None => HashMap::new(),
            TerminateSockets::Udp | TerminateSockets::All => endpoints.stale_sockets()?,
        };
        let overdue = self.overdue.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.cut = endpoints.sockets_of(&overdue, MOST_CUT)?;
        self.aged = self.aged(&endpoints)?;
        Ok(!self.stale.is_empty() || !self.cut.is_empty() || !self.aged.is_empty())
    }

    fn visit(&self) -> io::Result<()> {
        for (sockets, close_tcp, endpoints) in [
            (&self.stale, self.terminate == TerminateSockets::All, "removed endpoints"),
            (&self.cut, true, "endpoints that have drained for longer than their limit"),
        ] {
            let closed = if sockets.is_empty() { 0 } else { close(sockets, close_tcp)? };
            if closed > 0 {
                debug!(closed, "closed sockets that were connected to {endpoints}");
            }
        }
        if !self.aged.is_empty() {
            self.metrics.aged_sockets(close(&self.aged, true)?);
        }
        Ok(())
    }
}
