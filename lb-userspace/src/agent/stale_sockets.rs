//! Closes sockets that are connected to removed endpoints, in every network namespace of the node.

use std::collections::HashMap;
use std::io;

use lb_common::layout::ConnectedPeer;
use lb_datapath::Endpoints;
use tracing::debug;

use crate::node::namespaces::follow::Visitor;
use crate::node::sockets::close;

/// The sockets to close, as read from the maps before each visit.
pub struct StaleSockets {
    endpoints: Endpoints,
    /// Whether TCP sockets are closed too. UDP sockets always are.
    close_tcp: bool,
    /// By socket cookie.
    stale: HashMap<u64, ConnectedPeer>,
}

impl StaleSockets {
    pub fn new(endpoints: Endpoints, close_tcp: bool) -> Self {
        Self { endpoints, close_tcp, stale: HashMap::new() }
    }
}

impl Visitor for StaleSockets {
    const TASK: &'static str = "close sockets that are connected to removed endpoints";

    fn prepare(&mut self) -> io::Result<bool> {
        self.stale = self.endpoints.stale_sockets()?;
        Ok(!self.stale.is_empty())
    }

    fn visit(&self) -> io::Result<()> {
        let closed = close(&self.stale, self.close_tcp)?;
        if closed > 0 {
            debug!(closed, "closed sockets that were connected to removed endpoints");
        }
        Ok(())
    }
}
