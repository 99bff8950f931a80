//! What connected sockets were given, and whether it is still there; for another thread than the
//! one that writes the maps.

use std::collections::HashMap;
use std::io::{self, Read};
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use lb_common::layout::{Backend, ConnectedPeer, ConnectedSocket, backend_flags};

use crate::address::MapAddress;
use crate::apply::map_name::MapName;
use crate::handles::MapHandles;
use crate::programs::{ITERATOR, Programs};
use crate::sys;
use crate::table::ArrayTable;

/// The endpoints, and the sockets that were connected to one through a Service.
#[derive(Debug)]
pub struct Endpoints {
    /// None: the kernel cannot list them, see [`crate::Features`].
    list: Option<OwnedFd>,
    connected: Arc<OwnedFd>,
    v4: ArrayTable<Backend<[u8; 4]>>,
    v6: ArrayTable<Backend<[u8; 16]>>,
}

impl Endpoints {
    pub(crate) fn new(programs: &Programs, maps: &MapHandles) -> io::Result<Self> {
        Ok(Self {
            list: programs.get(ITERATOR).map(|program| program.try_clone_to_owned()).transpose()?,
            connected: maps.get("CONNECTED")?,
            v4: maps.array(MapName::BACKENDS.v4)?,
            v6: maps.array(MapName::BACKENDS.v6)?,
        })
    }

    /// Sockets that were connected through a Service to an endpoint that is gone, with what they
    /// were given, by their cookie. They may have been connected to something else since.
    pub fn stale_sockets(&self) -> io::Result<HashMap<u64, ConnectedPeer>> {
        let Some(list) = &self.list else { return Ok(HashMap::new()) };
        let mut bytes = Vec::new();
        sys::iterate(list.as_fd(), self.connected.as_fd())?.read_to_end(&mut bytes)?;
        let cookie = |[low, high]: [u32; 2]| u64::from(low) | u64::from(high) << 32;
        let sockets = sys::values(&bytes).filter(|socket: &ConnectedSocket| !self.serves(&socket.peer));
        Ok(sockets.map(|socket| (cookie(socket.cookie), socket.peer)).collect())
    }

    /// Whether the endpoint is there for the service port, be it only for the connections it has
    /// (draining). The entry does not say of which family the socket is: an IPv4 address stands in
    /// the first four bytes.
    fn serves(&self, peer: &ConnectedPeer) -> bool {
        let [a, b, c, d, ..] = peer.backend_addr;
        let v6 = Ipv6Addr::from(peer.backend_addr);
        is(&self.v4, peer, [a, b, c, d])
            || v6.to_ipv4_mapped().is_some_and(|v4| is(&self.v4, peer, v4.octets()))
            || is(&self.v6, peer, v6.octets())
    }
}

/// Whether the backend that a socket was given is still the endpoint at this address. An entry that
/// is just being written was gone before, or is another endpoint's.
fn is<A: MapAddress + PartialEq>(backends: &ArrayTable<Backend<A>>, peer: &ConnectedPeer, addr: A) -> bool {
    backends.read(peer.backend_id).is_ok_and(|backend| {
        backend.flags & backend_flags::PRESENT != 0
            && (backend.addr, backend.port, backend.service_id) == (addr, peer.backend_port, peer.service_id)
    })
}
