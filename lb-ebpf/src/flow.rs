//! The two-entry flow table: finding, opening, promoting and closing connections.
//!
//! A connection has two entries, keyed by the tuple of each direction as it arrives. The reply entry is inserted first
//! and only if absent: that insert **is** the allocation of the source port. New connections stand in the half-open
//! table and are promoted when both sides have spoken, so that a flood never evicts an established one.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::helpers::bpf_get_prandom_u32;
use lb_common::layout::{Flow, FlowKey, SEEN_GRANULARITY_NS, deliver, direction, tcp_flags};
use lb_common::reason::Reason;

use crate::clock::now;
use crate::count::count;
use crate::frame::Frame;
use crate::maps::Maps;
use crate::packet::Packet;
use crate::record::recording;
use crate::service::still_serves;
use crate::settings::{SNAT_PORT_COUNT, SNAT_PORT_FIRST};
use crate::socket;

/// How many source ports are tried before a connection is given up: at nine ports in ten taken, one in six fails.
const PORT_ATTEMPTS: u32 = 16;

/// `EEXIST`, as map updates return it.
const EEXIST: i32 = -17;

/// The table an entry was found in.
#[derive(Copy, Clone, PartialEq, Eq)]
pub enum Stage {
    Open,
    HalfOpen,
}

/// An entry, alive until the program ends.
pub struct Found<A: 'static> {
    pub flow: &'static Flow<A>,
    pointer: *mut Flow<A>,
    pub stage: Stage,
}

impl<A> Found<A> {
    /// A reply that goes on along its path.
    #[inline(always)]
    pub fn is_passing_reply(&self) -> bool {
        self.flow.direction == direction::REPLY && self.flow.deliver == deliver::PASS
    }

    #[inline(always)]
    fn new(pointer: *mut Flow<A>, stage: Stage) -> Self {
        // SAFETY: a map value, valid until the program ends; after its creation only `last_seen_ns` and `tcp_seen` change,
        // each one aligned word or byte.
        Self { flow: unsafe { &*pointer }, pointer, stage }
    }
}

#[inline(always)]
fn open_entry<F: Maps>(key: &FlowKey<F::Addr>) -> Option<Found<F::Addr>> {
    F::flows().get_ptr_mut(key).map(|pointer| Found::new(pointer, Stage::Open))
}

#[inline(always)]
fn half_open_entry<F: Maps>(key: &FlowKey<F::Addr>) -> Option<Found<F::Addr>> {
    F::half_open().get_ptr_mut(key).map(|pointer| Found::new(pointer, Stage::HalfOpen))
}

/// The entry of a tuple, whatever its state.
#[inline(always)]
pub fn lookup<F: Maps>(key: &FlowKey<F::Addr>) -> Option<Found<F::Addr>> {
    match open_entry::<F>(key) {
        Some(found) => Some(found),
        None => half_open_entry::<F>(key),
    }
}

/// The entry for a packet of an established connection.
#[inline(always)]
pub fn find<F: Maps>(packet: &Packet<F>) -> Option<Found<F::Addr>> {
    open_entry::<F>(&packet.key).and_then(|found| unless_stale(packet, found))
}

/// The entry for a packet of a connection in the making.
#[inline(always)]
pub fn find_half_open<F: Maps>(packet: &Packet<F>) -> Option<Found<F::Addr>> {
    half_open_entry::<F>(&packet.key).and_then(|found| unless_stale(packet, found))
}

/// Removes the entry and returns nothing when the packet opens a connection over the remains of an old one.
#[inline(always)]
fn unless_stale<F: Maps>(packet: &Packet<F>, found: Found<F::Addr>) -> Option<Found<F::Addr>> {
    let flow = found.flow;
    if flow.direction == direction::REQUEST {
        let stale = if !packet.is_datagram() {
            // A client that uses its port again. As long as the old connection lives the endpoint itself answers.
            packet.opens()
                && (flow.tcp_seen & (tcp_flags::FIN | tcp_flags::RST) != 0
                    || peer_closed::<F>(flow, packet.key.protocol)
                    || !still_serves::<F>(flow.backend_id, flow.service_id))
        } else {
            // Datagrams must not be sent to an endpoint that is gone.
            !still_serves::<F>(flow.backend_id, flow.service_id)
        };
        if stale {
            remove::<F>(&packet.key, flow);
            return None;
        }
    }
    Some(found)
}

/// The entry for a reply that leaves this node along its path. Nothing is judged or removed here: requests decide about that.
#[inline(always)]
pub fn find_reply<F: Maps>(packet: &Packet<F>) -> Option<Found<F::Addr>> {
    lookup::<F>(&packet.key).filter(Found::is_passing_reply)
}

/// Whether the other side of a connection has closed or reset it.
#[inline(always)]
fn peer_closed<F: Maps>(flow: &Flow<F::Addr>, protocol: u8) -> bool {
    match lookup::<F>(&flow.other_key(protocol)) {
        Some(peer) => peer.flow.tcp_seen & (tcp_flags::FIN | tcp_flags::RST) != 0,
        None => true,
    }
}

#[inline(always)]
fn remove<F: Maps>(key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>) {
    if recording() {
        return;
    }
    let other = flow.other_key(key.protocol);
    // An entry is in one of the two tables; that the other has none is no error.
    let _ = F::flows().remove(&other);
    let _ = F::half_open().remove(&other);
    let _ = F::flows().remove(key);
    let _ = F::half_open().remove(key);
}

impl<A: Copy + 'static> Found<A> {
    /// Notes that a packet of this direction went by; promotes the connection when this packet proves both sides alive.
    #[inline(always)]
    pub fn touch<F: Maps<Addr = A>>(&self, packet: &Packet<F>) {
        if recording() {
            return;
        }
        let now = now();
        if now.wrapping_sub(self.flow.last_seen_ns) > SEEN_GRANULARITY_NS {
            // SAFETY: see `lookup`; one aligned word.
            unsafe { (&raw mut (*self.pointer).last_seen_ns).write_volatile(now) };
        }
        if packet.tcp_flags & !self.flow.tcp_seen != 0 {
            // SAFETY: see `lookup`; one byte. A concurrent packet's flag may be lost: the sender repeats what was not acknowledged.
            unsafe {
                (&raw mut (*self.pointer).tcp_seen).write_volatile(self.flow.tcp_seen | packet.tcp_flags);
            };
        }
        if self.stage == Stage::HalfOpen && self.answered(packet) {
            promote(packet, self.flow);
        }
    }

    /// TCP and SCTP: the client acknowledges. UDP: the endpoint answers.
    #[inline(always)]
    fn answered<F: Maps<Addr = A>>(&self, packet: &Packet<F>) -> bool {
        if !packet.is_datagram() {
            self.flow.direction == direction::REQUEST
                && packet.tcp_flags & (tcp_flags::ACK | tcp_flags::SYN | tcp_flags::RST) == tcp_flags::ACK
        } else {
            self.flow.direction == direction::REPLY
        }
    }
}

/// Moves both entries of a connection to the flow table. On a full table they stay where they are.
#[inline(always)]
fn promote<F: Maps>(packet: &Packet<F>, flow: &Flow<F::Addr>) {
    let other_key = flow.other_key(packet.key.protocol);
    // SAFETY: see `lookup`.
    let Some(other) = (unsafe { F::half_open().get(&other_key) }) else { return };
    if F::flows().insert(&other_key, other, BPF_NOEXIST as u64).is_err() {
        count(Reason::FlowTableFull);
        return;
    }
    if F::flows().insert(&packet.key, flow, BPF_NOEXIST as u64).is_err() {
        let _ = F::flows().remove(&other_key);
        count(Reason::FlowTableFull);
        return;
    }
    let _ = F::half_open().remove(&other_key);
    let _ = F::half_open().remove(&packet.key);
}

/// What a new connection's packets shall become.
pub struct Opening<A> {
    pub backend_addr: A,
    pub backend_port: u16,
    pub backend_id: u32,
    pub service_id: u32,
    /// The address replies are sent to: the client's own, or an address of this node.
    pub source: A,
    /// True: `source` is this node's, and its port comes from the range for that.
    pub masquerade: bool,
    /// One of [`lb_common::layout::deliver`], for both directions.
    pub deliver: u8,
}

/// Makes both entries of a new connection in the half-open table and returns the request entry.
#[inline(always)]
pub fn open<'a, F: Maps, K: Frame>(
    frame: &K,
    packet: &Packet<F>,
    opening: &Opening<F::Addr>,
    reply_key: &mut FlowKey<F::Addr>,
    flow: &'a mut Flow<F::Addr>,
) -> Result<&'a Flow<F::Addr>, Reason> {
    *reply_key = FlowKey {
        src_addr: opening.backend_addr,
        dst_addr: opening.source,
        src_port: opening.backend_port,
        dst_port: if opening.masquerade { random_port() } else { packet.key.src_port },
        protocol: packet.key.protocol,
        pad: 0,
        reserved: 0,
    };
    *flow = Flow {
        last_seen_ns: now(),
        new_src_addr: packet.key.dst_addr,
        new_dst_addr: packet.key.src_addr,
        new_src_port: packet.key.dst_port,
        new_dst_port: packet.key.src_port,
        backend_id: opening.backend_id,
        service_id: opening.service_id,
        direction: direction::REPLY,
        deliver: opening.deliver,
        tcp_seen: 0,
        pad: 0,
    };
    let mut allocated = false;
    for _ in 0..PORT_ATTEMPTS {
        if claim::<F, K>(frame, reply_key, flow, opening.masquerade)? {
            allocated = true;
            break;
        }
        // Without masquerading this is a client that reaches one endpoint by two addresses from one port.
        reply_key.dst_port = random_port();
    }
    if !allocated {
        return Err(Reason::NoSourcePort);
    }
    flow.new_src_addr = opening.source;
    flow.new_src_port = reply_key.dst_port;
    flow.new_dst_addr = opening.backend_addr;
    flow.new_dst_port = opening.backend_port;
    flow.direction = direction::REQUEST;
    flow.tcp_seen = packet.tcp_flags;
    if recording() {
        return Ok(flow);
    }
    if F::half_open().insert(&packet.key, &*flow, BPF_ANY as u64).is_err() {
        let _ = F::half_open().remove(&*reply_key);
        return Err(Reason::FlowTableFull);
    }
    Ok(flow)
}

/// Inserts the reply entry if its tuple is free: in both tables and, for this node's own addresses, among its sockets.
#[inline(always)]
fn claim<F: Maps, K: Frame>(
    frame: &K,
    key: &FlowKey<F::Addr>,
    flow: &Flow<F::Addr>,
    masquerade: bool,
) -> Result<bool, Reason> {
    if recording() {
        return Ok(lookup::<F>(key).is_none());
    }
    match F::half_open().insert(key, flow, BPF_NOEXIST as u64) {
        Ok(()) => {}
        Err(EEXIST) => return Ok(false),
        Err(_) => return Err(Reason::FlowTableFull),
    }
    // In this order: a connection that is promoted meanwhile is in the flow table before it leaves the half-open one.
    let taken = F::flows().get_ptr(key).is_some() || (masquerade && socket::exists::<F, K>(frame, key));
    if taken {
        let _ = F::half_open().remove(key);
    }
    Ok(!taken)
}

#[inline(always)]
fn random_port() -> u16 {
    // SAFETY: the helper has no preconditions.
    let random = unsafe { bpf_get_prandom_u32() } & 0xffff;
    SNAT_PORT_FIRST.load().wrapping_add(((random * SNAT_PORT_COUNT.load() as u32) >> 16) as u16)
}
