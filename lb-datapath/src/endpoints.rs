//! The endpoints of connected sockets, for a thread that closes the sockets of removed endpoints.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, Read};
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use lb_common::age;
use lb_common::layout::{Backend, ConnectedPeer, ConnectedSocket, backend_flags};
use lb_model::{IpFamily, PerFamily};

use crate::address::MapAddress;
use crate::apply::map_name::MapName;
use crate::handles::MapHandles;
use crate::programs::{ITERATOR, Programs};
use crate::sys;
use crate::table::ArrayTable;

/// The map of endpoints, and the iterator over sockets that are connected to an endpoint of a
/// Service.
#[derive(Debug)]
pub struct Endpoints {
    /// `None` if the kernel cannot list sockets, see [`crate::Features`].
    list: Option<OwnedFd>,
    connected: Arc<OwnedFd>,
    v4: ArrayTable<Backend<[u8; 4]>>,
    v6: ArrayTable<Backend<[u8; 16]>>,
}

/// A socket that is connected through a Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServedSocket {
    pub peer: ConnectedPeer,
    /// The second of `CLOCK_MONOTONIC` when it was connected, or up to 18 s later. `None` if it was
    /// connected through the programs of an agent that did not store it.
    pub opened_s: Option<u64>,
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

    /// Returns whether the kernel can list sockets. If not, the lists are empty.
    pub fn can_list(&self) -> bool {
        self.list.is_some()
    }

    /// Returns the sockets that were connected through a Service to an endpoint that was removed,
    /// by their cookie. The application may have connected such a socket to another address since.
    pub fn stale_sockets(&self) -> io::Result<HashMap<u64, ConnectedPeer>> {
        Ok(self.peers()?.filter(|(_, peer)| !self.serves(peer)).collect())
    }

    fn peers(&self) -> io::Result<impl Iterator<Item = (u64, ConnectedPeer)>> {
        Ok(self.sockets()?.into_iter().map(|(cookie, socket)| (cookie, socket.peer)))
    }

    /// Returns all sockets that are connected through a Service, by their cookie.
    fn sockets(&self) -> io::Result<Vec<(u64, ServedSocket)>> {
        let Some(list) = &self.list else { return Ok(Vec::new()) };
        let mut bytes = Vec::new();
        sys::iterate(list.as_fd(), self.connected.as_fd())?.read_to_end(&mut bytes)?;
        let cookie = |[low, high]: [u32; 2]| u64::from(low) | u64::from(high) << 32;
        let now_ns = sys::monotonic_ns();
        let served = |socket: ConnectedSocket| {
            let opened_s = age::second_of(socket.opened as u16, now_ns);
            (cookie(socket.cookie), ServedSocket { peer: socket.peer, opened_s })
        };
        Ok(sys::values(&bytes).map(served).collect())
    }

    /// Returns the sockets that are connected through a Service to one of these endpoints, by their
    /// cookie, at most `most`. An endpoint whose drain has ended has none.
    pub fn sockets_of(
        &self,
        backends: &PerFamily<BTreeSet<u32>>,
        most: usize,
    ) -> io::Result<HashMap<u64, ConnectedPeer>> {
        if backends.v4.is_empty() && backends.v6.is_empty() {
            return Ok(HashMap::new());
        }
        let connected = |peer: &ConnectedPeer| {
            IpFamily::BOTH.into_iter().any(|family| {
                backends[family].contains(&peer.backend_id)
                    && self.flags(family, peer).is_some_and(|flags| flags & ELIGIBLE == 0)
            })
        };
        // The flags are read after the list of sockets, and an endpoint has its flags before it
        // gets connections again: no socket in the list is newer than the drain.
        Ok(self.peers()?.filter(|(_, peer)| connected(peer)).take(most).collect())
    }

    /// Returns the sockets that are connected through a Service to an endpoint that the Service
    /// still has, by their cookie.
    pub fn served_sockets(&self) -> io::Result<HashMap<u64, ServedSocket>> {
        Ok(self.sockets()?.into_iter().filter(|(_, socket)| self.serves(&socket.peer)).collect())
    }

    /// Returns whether the Service port still has the endpoint, ready or draining.
    fn serves(&self, peer: &ConnectedPeer) -> bool {
        IpFamily::BOTH.into_iter().any(|family| self.flags(family, peer).is_some())
    }

    /// Returns the flags of the endpoint, if the Service port still has it and it has this family.
    /// The entry does not contain the family of the socket: an IPv4 address is in the first four
    /// bytes, or is mapped.
    fn flags(&self, family: IpFamily, peer: &ConnectedPeer) -> Option<u16> {
        let [a, b, c, d, ..] = peer.backend_addr;
        let v6 = Ipv6Addr::from(peer.backend_addr);
        match family {
            IpFamily::V4 => flags(&self.v4, peer, [a, b, c, d])
                .or_else(|| flags(&self.v4, peer, v6.to_ipv4_mapped()?.octets())),
            IpFamily::V6 => flags(&self.v6, peer, v6.octets()),
        }
    }
}

/// The flags of an endpoint that gets new connections.
const ELIGIBLE: u16 = backend_flags::IN_CLUSTER | backend_flags::IN_LOCAL;

/// Returns the flags of a backend if it is still the endpoint at this address. If the agent writes
/// the entry at this moment, the old endpoint was removed before.
fn flags<A: MapAddress + PartialEq>(
    backends: &ArrayTable<Backend<A>>,
    peer: &ConnectedPeer,
    addr: A,
) -> Option<u16> {
    let backend = backends.read(peer.backend_id).ok()?;
    let is_same = backend.flags & backend_flags::PRESENT != 0
        && (backend.addr, backend.port, backend.service_id) == (addr, peer.backend_port, peer.service_id);
    is_same.then_some(backend.flags)
}
