//! Closes sockets that are connected to removed endpoints, or to endpoints that have drained for
//! long enough, in every network namespace of the node.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use lb_common::layout::ConnectedPeer;
use lb_datapath::Endpoints;
use lb_model::PerFamily;
use tracing::debug;

use crate::config::TerminateSockets;
use crate::node::namespaces::follow::Visitor;
use crate::node::sockets::close;

/// The greatest number of sockets that one visit closes because their endpoints have drained for
/// long enough.
const MOST_CUT: usize = 4096;

/// The backend ids of the endpoints that have drained for long enough. The main loop writes them.
pub type Overdue = Arc<Mutex<PerFamily<BTreeSet<u32>>>>;

/// The sockets to close, as read from the maps before each visit.
pub struct StaleSockets {
    endpoints: Endpoints,
    /// The sockets of removed endpoints that are closed.
    terminate: TerminateSockets,
    overdue: Overdue,
    /// The sockets of removed endpoints, by socket cookie.
    stale: HashMap<u64, ConnectedPeer>,
    /// The sockets of endpoints that have drained for long enough.
    cut: HashMap<u64, ConnectedPeer>,
}

impl StaleSockets {
    pub fn new(endpoints: Endpoints, terminate: TerminateSockets, overdue: Overdue) -> Self {
        Self { endpoints, terminate, overdue, stale: HashMap::new(), cut: HashMap::new() }
    }
}

impl Visitor for StaleSockets {
    const TASK: &'static str = "close sockets that are connected to removed or drained endpoints";

    fn prepare(&mut self) -> io::Result<bool> {
        self.stale = match self.terminate {
            TerminateSockets::None => HashMap::new(),
            TerminateSockets::Udp | TerminateSockets::All => self.endpoints.stale_sockets()?,
        };
        // A panic of the main loop ends this process.
        let overdue = self.overdue.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.cut = self.endpoints.sockets_of(&overdue, MOST_CUT)?;
        Ok(!self.stale.is_empty() || !self.cut.is_empty())
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
        Ok(())
    }
}
