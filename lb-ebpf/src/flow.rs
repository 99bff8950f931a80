//! Connections: finds the connection of a packet, updates it, and opens a new one.
//!
//! A connection is one record. Two index entries lead to it, from the tuple of each direction as it
//! arrives. The index entry of the reply is inserted first and only if absent: that insert **is**
//! the allocation of the source port. [`lb_common::connection`] moves a connection from phase to
//! phase, and [`crate::records`] provides the records.

use aya_ebpf::bindings::BPF_ANY;
use lb_common::SECOND;
use lb_common::connection::{self, REPEATED_NS, Segment, Yields};
use lb_common::family::Family;
use lb_common::layout::{
    Flow, FlowIndex, FlowKey, SEEN_GRANULARITY_NS, UDP, backend_flags, counted, deliver, direction,
    flow_phase,
};
use lb_common::reason::Reason;

use crate::clock::now;
use crate::count::{count, note_port_shortage};
use crate::event;
use crate::frame::Frame;
use crate::health::attempt;
use crate::loads::{self, lb_take, taken};
use crate::maps::Maps;
use crate::packet::Packet;
use crate::record::recording;
use crate::records::{self, Claimed, PORT_ATTEMPTS, Records, Reserved, random_port};
use crate::scratch::YieldCandidate;
use crate::service::{backend, still_serves};
use crate::socket;
use crate::translation::Translation;

/// The number of times that the port of a new connection is replaced because a socket of this node
/// has it.
const SOCKET_ATTEMPTS: u32 = 4;

/// The record of a connection, with the direction that was looked up. Other programs may give the
/// record to another connection at any time. Its generation changes then.
pub struct Found<A: 'static> {
    flow: *mut Flow<A>,
    number: u32,
    generation: u16,
    direction: u8,
    /// The time at which it was looked up.
    now: u64,
}

/// Looks a tuple up and fills in the translation of its packets. Returns `None` if no connection
/// has the tuple. Does not check whether the connection is over, see [`Found::is_over`].
#[inline(always)]
pub fn lookup<F: Maps>(
    key: &FlowKey<F::Addr>,
    translation: &mut Translation<F::Addr>,
) -> Option<Found<F::Addr>> {
    // SAFETY: copied at once, one aligned word. If the element is reused meanwhile, it refers to a
    // record that has another tuple.
    let FlowIndex { record: number, generation, direction, .. } = *unsafe { F::flow_index().get(key) }?;
    let pointer = F::flows().get_ptr_mut(number)?;
    // SAFETY: a map value. While it is read, other programs change single aligned words of it, or
    // give it to another connection; the latter changes the generation, which is compared before
    // and after.
    let flow = unsafe { &*pointer };
    if flow.generation != generation || !flow.has_tuple(key, direction) {
        return None;
    }
    translation.set(flow, direction);
    // SAFETY: as above. The volatile read makes the compiler load the words again.
    let (after, phase) = unsafe {
        ((&raw const (*pointer).generation).read_volatile(), (&raw const (*pointer).phase).read_volatile())
    };
    if after != generation || phase == flow_phase::FREE || phase == flow_phase::CLAIMED {
        return None;
    }
    Some(Found { flow: pointer, number, generation, direction, now: now() })
}

/// Finds the connection of a packet that arrives here. If the packet opens a new connection with
/// the same tuple, this function ends the old connection and does not return it.
#[inline(always)]
pub fn find<F: Records>(
    packet: &Packet<F>,
    translation: &mut Translation<F::Addr>,
) -> Option<Found<F::Addr>> {
    translation.avoid = 0;
    let found = lookup::<F>(&packet.key, translation)?;
    if found.is_over::<F>() {
        return None;
    }
    if found.direction == direction::REQUEST {
        let moves = found.is_unanswered_by(packet);
        if moves || found.is_replaced_by(packet) {
            if moves {
                translation.avoid = found.ids().1;
                count(Reason::FlowMoved);
                F::judge(found.number, attempt::SILENT, found.now);
            }
            if !recording() {
                F::end(found.number, found.generation);
            }
            return None;
        }
    }
    Some(found)
}

/// Finds the connection of a reply that leaves this node along its path. Only requests decide
/// whether a connection is replaced.
#[inline(always)]
pub fn find_reply<F: Records>(
    packet: &Packet<F>,
    translation: &mut Translation<F::Addr>,
) -> Option<Found<F::Addr>> {
    let found = lookup::<F>(&packet.key, translation)?;
    if translation.is_passing_reply() && !found.is_over::<F>() { Some(found) } else { None }
}

/// Ends a closed connection whose replies have the same tuple as the replies to this packet: the
/// client opens a connection to the endpoint itself, with the port that it used through a Service
/// before. `reply` is working memory.
///
/// A SYN that XDP has translated looks the same in tc, but its connection is not closed: XDP has
/// opened a new one in the place of a closed one.
#[inline(always)]
pub fn give_up_closed<F: Records>(
    packet: &Packet<F>,
    reply: &mut FlowKey<F::Addr>,
    translation: &mut Translation<F::Addr>,
) {
    if packet.is_datagram() || !packet.opens() || recording() {
        return;
    }
    *reply = packet.key.reversed();
    if let Some(found) = lookup::<F>(reply, translation)
        && translation.is_passing_reply()
        && found.has_ended()
    {
        let Found { number, generation, .. } = found;
        F::end(number, generation);
    }
}

impl<A: Copy + PartialEq + 'static> Found<A> {
    /// Returns whether both sides have closed the connection, or it was reset. A packet of its
    /// client that opens a connection takes its place.
    #[inline(always)]
    fn has_ended(&self) -> bool {
        // SAFETY: as in `is_over`.
        unsafe { &*self.flow }.state().has_ended()
    }

    /// Returns one of [`direction`].
    #[inline(always)]
    pub fn direction(&self) -> u8 {
        self.direction
    }

    /// Returns the time at which the connection was looked up.
    #[inline(always)]
    pub fn now(&self) -> u64 {
        self.now
    }

    /// Returns the ids of the service port and of the backend.
    #[inline(always)]
    pub fn ids(&self) -> (u32, u32) {
        // SAFETY: a map value; two aligned words.
        unsafe { ((*self.flow).service_id, (*self.flow).backend_id) }
    }

    /// Returns whether the packets of the connection stay as they are, see [`keep_answer`].
    #[inline(always)]
    pub fn changes_nothing(&self) -> bool {
        // SAFETY: a map value; one aligned word.
        unsafe { (*self.flow).backend_id == NO_BACKEND }
    }

    /// Returns whether the connection was silent for as long as its time-out. Its record may be
    /// taken at any time.
    #[inline(always)]
    pub fn is_over<F: Records<Addr = A>>(&self) -> bool {
        // SAFETY: a map value. If it was given to another connection since `lookup`, that one is
        // not over.
        let flow = unsafe { &*self.flow };
        self.now.wrapping_sub(flow.last_seen_ns) > SEEN_GRANULARITY_NS && F::is_over(self.number, self.now)
    }

    /// Returns the number and the generation of the record.
    #[inline(always)]
    pub fn record(&self) -> (u32, u16) {
        (self.number, self.generation)
    }

    /// Returns whether the client repeats its SYN, because the endpoint has not answered, and the
    /// Service gives such a client another endpoint.
    #[inline(always)]
    fn is_unanswered_by<F: Maps<Addr = A>>(&self, packet: &Packet<F>) -> bool {
        if packet.is_datagram() || !packet.opens() {
            return false;
        }
        // SAFETY: as in `is_over`.
        let flow = unsafe { &*self.flow };
        flow.phase == flow_phase::OPENING
            && self.now.wrapping_sub(flow.last_seen_ns) > REPEATED_NS
            && backend::<F>(flow.backend_id)
                .is_some_and(|backend| backend.flags & backend_flags::FAILOVER != 0)
    }

    /// Returns whether this request opens a new connection in the place of this one.
    #[inline(always)]
    fn is_replaced_by<F: Maps<Addr = A>>(&self, packet: &Packet<F>) -> bool {
        if !packet.opens() {
            return false;
        }
        // SAFETY: as in `is_over`.
        let flow = unsafe { &*self.flow };
        // Datagrams must not be sent to an endpoint that is gone. Open TCP connections stay: their
        // endpoint ends them.
        (flow.backend_id != NO_BACKEND && !still_serves::<F>(flow.backend_id, flow.service_id))
            || (!packet.is_datagram() && self.has_ended())
    }

    /// Updates the connection with a packet of it, which a frame of kind `K` holds.
    #[inline(always)]
    pub fn follow<F: Records<Addr = A>, K: Frame>(&self, packet: &Packet<F>) {
        if !recording() {
            let (segment, path) = (packet.segment(self.direction), event::path_of(K::COMPLETE));
            F::follow(self.number, self.generation, &segment, self.now, path);
        }
    }
}

impl<F: Family> Packet<F> {
    /// Returns the fields of the packet that the tracking of its connection uses.
    #[inline(always)]
    fn segment(&self, direction: u8) -> Segment {
        Segment { direction, flags: self.tcp_flags, seq: self.seq, ack: self.ack, length: self.payload }
    }
}

/// The backend id of a connection that [`keep_answer`] has opened.
pub const NO_BACKEND: u32 = 0;

/// Opens a connection that changes nothing, for a datagram that leaves with an address and port of
/// a Service as source. The answer then passes untouched. `answer` is working memory.
///
/// Does nothing if the datagram is the reply of a connection, which has its translation already.
#[inline(always)]
pub fn keep_answer<F: Records, K: Frame>(
    frame: &K,
    packet: &Packet<F>,
    answer: &mut Packet<F>,
    service_id: u32,
    translation: &mut Translation<F::Addr>,
) {
    answer.key = packet.key.reversed();
    if lookup::<F>(&answer.key, translation).is_some_and(|found| !found.is_over::<F>()) {
        return;
    }
    (answer.tcp_flags, answer.seq, answer.ack, answer.payload) = (0, 0, 0, 0);
    let opening = Opening {
        backend_addr: packet.key.src_addr,
        backend_port: packet.key.src_port,
        backend_id: NO_BACKEND,
        has_thresholds: false,
        service_id,
        source: packet.key.dst_addr,
        masquerade: false,
        deliver: deliver::PASS,
        ifindex: 0,
    };
    // On failure the answer may reach an endpoint of the Service.
    if open(frame, answer, &opening, translation, now()).is_ok() {
        count(Reason::FlowOpened);
    }
}

/// A new connection.
pub struct Opening<A> {
    pub backend_addr: A,
    pub backend_port: u16,
    pub backend_id: u32,
    /// Whether the endpoint may be overloaded.
    pub has_thresholds: bool,
    pub service_id: u32,
    /// The address that replies are sent to: the client's own, or an address of this node.
    pub source: A,
    /// Whether `source` is an address of this node, so that the port is taken from the range for
    /// rewritten sources.
    pub masquerade: bool,
    /// One of [`lb_common::layout::deliver`], for both directions.
    pub deliver: u8,
    /// Interface index of the device that replies leave by if the route leads there; 0: any.
    pub ifindex: u32,
}

/// Opens a connection with a packet, and fills in the translation of the packet. `now` is the time.
#[inline(always)]
pub fn open<F: Records, K: Frame>(
    frame: &K,
    packet: &Packet<F>,
    opening: &Opening<F::Addr>,
    translation: &mut Translation<F::Addr>,
    now: u64,
) -> Result<(), Reason> {
    let keys = F::keys().ok_or(Reason::FlowTableFull)?;
    // SAFETY: a map value of this CPU: no other program changes it meanwhile.
    unsafe {
        (*keys).reply = FlowKey {
            src_addr: opening.backend_addr,
            dst_addr: opening.source,
            src_port: opening.backend_port,
            dst_port: if opening.masquerade { random_port() } else { packet.key.src_port },
            protocol: packet.key.protocol,
            pad: 0,
            reserved: 0,
        };
    }
    let port = if recording() {
        free_port::<F>(now)?
    } else {
        let claimed = F::claim(now).ok_or(Reason::FlowTableFull)?;
        let flow = claimed.flow::<F>().ok_or(Reason::FlowTableFull)?;
        fill_in(flow, packet, opening, now);
        let port = allocate::<F, K>(frame, claimed, opening.masquerade, now)
            .and_then(|port| publish(claimed, flow, packet, opening.has_thresholds).map(|()| port));
        if let Err(reason) = port {
            records::free(flow);
            if reason == Reason::NoSourcePort {
                note_port_shortage::<F>(opening.backend_id, now);
            }
        }
        port?
    };
    translation.new_src_addr = opening.source;
    translation.new_dst_addr = opening.backend_addr;
    translation.new_src_port = port;
    translation.new_dst_port = opening.backend_port;
    translation.direction = direction::REQUEST;
    translation.deliver = opening.deliver;
    Ok(())
}

/// Writes a new connection into its record, except the source port and the phase.
#[inline(always)]
fn fill_in<F: Maps>(flow: *mut Flow<F::Addr>, packet: &Packet<F>, opening: &Opening<F::Addr>, now: u64) {
    // SAFETY: a map value that is this program's own: other programs do not use it while it is
    // claimed.
    let flow = unsafe { &mut *flow };
    let state = connection::opened(packet.key.protocol, &packet.segment(direction::REQUEST));
    flow.protocol = packet.key.protocol;
    flow.deliver = opening.deliver;
    flow.last_seen_ns = now;
    flow.opened_s = (now / SECOND) as u32;
    flow.backend_id = opening.backend_id;
    flow.service_id = opening.service_id;
    flow.client_port = packet.key.src_port;
    flow.service_port = packet.key.dst_port;
    flow.backend_port = opening.backend_port;
    flow.client_addr = packet.key.src_addr;
    flow.service_addr = packet.key.dst_addr;
    flow.source_addr = opening.source;
    flow.backend_addr = opening.backend_addr;
    flow.request = state.request;
    flow.reply = state.reply;
    flow.ifindex = opening.ifindex;
}

/// Finds a source port: reserves the tuple of the replies, which must be free among connections
/// and, for this node's own addresses, among its sockets. If no port that is tried is free, the
/// weakest of the connections that have them gives way.
#[inline(always)]
fn allocate<F: Records, K: Frame>(
    frame: &K,
    claimed: Claimed,
    masquerade: bool,
    now: u64,
) -> Result<u16, Reason> {
    let keys = F::keys().ok_or(Reason::FlowTableFull)?;
    let flow = claimed.flow::<F>().ok_or(Reason::FlowTableFull)?;
    // SAFETY: map values of this CPU, and a record that is this program's own.
    unsafe {
        (*keys).weakest = YieldCandidate::NONE;
        for _ in 0..SOCKET_ATTEMPTS {
            match F::reserve_any(claimed, now) {
                Reserved::Yes if masquerade && socket::exists::<F, K>(frame, &(*keys).reply) => {
                    let _ = F::flow_index().remove(&(*keys).reply);
                }
                Reserved::Yes => return Ok((*keys).reply.dst_port),
                Reserved::Taken => break,
                Reserved::Full => return Err(Reason::FlowTableFull),
            }
            (*keys).reply.dst_port = random_port();
        }
        let port = (*keys).weakest.port;
        if !records::make_way::<F>(now) {
            return Err(Reason::NoSourcePort);
        }
        (*keys).reply.dst_port = port;
        (*flow).source_port = port;
        match F::reserve(claimed, now) {
            Reserved::Yes => Ok(port),
            // Another CPU was faster.
            _ => Err(Reason::NoSourcePort),
        }
    }
}

/// Makes a new connection visible to all programs. Fails if the index is full, or if other
/// connections have reached the upper threshold of the endpoint since it was selected; the reserved
/// tuple is free again then.
#[inline(always)]
fn publish<F: Records>(
    claimed: Claimed,
    flow: *mut Flow<F::Addr>,
    packet: &Packet<F>,
    has_thresholds: bool,
) -> Result<(), Reason> {
    let index = claimed.index(direction::REQUEST);
    let counted = if packet.key.protocol == UDP { counted::INACTIVE } else { counted::ACTIVE };
    // SAFETY: a map value that is this program's own; one word.
    let backend_id = unsafe { (*flow).backend_id };
    let mut failure = None;
    if F::flow_index().insert(&packet.key, &index, BPF_ANY as u64).is_err() {
        failure = Some(Reason::FlowTableFull);
    } else if !has_thresholds {
        loads::recount::<F>(backend_id, counted::NONE, counted);
    } else if lb_take(backend_id, F::IS_V6 as u32 | taken::SELECTED | taken::as_counted(counted)) == 0 {
        let _ = F::flow_index().remove(&packet.key);
        failure = Some(Reason::ThresholdReached);
    }
    if let Some(reason) = failure {
        if let Some(keys) = F::keys() {
            // SAFETY: a map value of this CPU: no other program changes it meanwhile.
            let _ = F::flow_index().remove(unsafe { &(*keys).reply });
        }
        return Err(reason);
    }
    // SAFETY: a map value that is this program's own; single words.
    unsafe {
        (&raw mut (*flow).counted).write_volatile(counted);
        (&raw mut (*flow).phase).write_volatile(flow_phase::OPENING);
    }
    Ok(())
}

/// Returns a source port whose tuple no connection has. It is for `lb explain`, which allocates
/// nothing.
#[inline(always)]
fn free_port<F: Records>(now: u64) -> Result<u16, Reason> {
    let keys = F::keys().ok_or(Reason::FlowTableFull)?;
    // SAFETY: a map value of this CPU: no other program changes it meanwhile.
    let key = unsafe { &mut (*keys).reply };
    // 0: every connection that was found keeps its port.
    let mut taken_over = 0;
    for _ in 0..PORT_ATTEMPTS {
        match records::holder::<F>(key, now) {
            None => return Ok(key.dst_port),
            Some((_, flow)) if records::yields(flow, now) != Yields::Never => taken_over = key.dst_port,
            Some(_) => {}
        }
        key.dst_port = random_port();
    }
    if taken_over != 0 {
        return Ok(taken_over);
    }
    Err(Reason::NoSourcePort)
}
