//! Closes sockets whose endpoint is gone, in every network namespace of the node.

use std::collections::HashMap;
use std::io;

use lb_common::layout::ConnectedPeer;
use lb_datapath::Endpoints;
use tracing::debug;

use crate::node::namespaces::follow::Visitor;
use crate::node::sockets::close;

pub struct StaleSockets {
    endpoints: Endpoints,
    /// TCP too.
    tcp: bool,
    stale: HashMap<u64, ConnectedPeer>,
}

impl StaleSockets {
    pub fn new(endpoints: Endpoints, tcp: bool) -> Self {
        Self { endpoints, tcp, stale: HashMap::new() }
    }
}

impl Visitor for StaleSockets {
    const TASK: &'static str = "close sockets whose endpoint is gone";

    fn prepare(&mut self) -> io::Result<bool> {
        self.stale = self.endpoints.stale_sockets()?;
        Ok(!self.stale.is_empty())
    }

    fn visit(&self) -> io::Result<()> {
        let closed = close(&self.stale, self.tcp)?;
        if closed > 0 {
            debug!(closed, "sockets are closed: their endpoints are gone");
        }
        Ok(())
    }
}
