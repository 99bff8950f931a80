//! The records of connections and the index entries that lead to them. The functions take a record
//! for a new connection, reserve the tuple of its replies, and release both.
//!
//! Connections that are over need not be removed. A program that opens a connection examines a few
//! records: first from the position where this CPU stopped last time (like the hand of a clock),
//! then from a random position. It takes the first record that is free or over. If it finds none,
//! the weakest of these connections gives way: half-open before idle UDP before closed, and before
//! one in the middle of its handshake. An established connection never gives way.
//!
//! The `extern "C"` functions take and return numbers, so the verifier checks each of them once,
//! and not once for every state of a caller. Their other input is in
//! [`FlowKeys`](crate::scratch::FlowKeys).

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::helpers::bpf_get_smp_processor_id;
use aya_ebpf::helpers::generated::{bpf_spin_lock, bpf_spin_unlock};
use lb_common::SECOND;
use lb_common::connection::{self, ConnectionState, REPEATED_NS, Segment, Yields};
use lb_common::event::{event_end, event_path};
use lb_common::family::{V4, V6};
use lb_common::hash::position;
use lb_common::layout::{
    Flow, FlowHand, FlowIndex, FlowKey, FlowTimeouts, SEEN_GRANULARITY_NS, backend_flags, counted, deliver,
    direction, flow_phase, tcp_flags,
};
use lb_common::reason::Reason;

use crate::aligned::Aligned;
use crate::count::count;
use crate::event::{self, Events};
use crate::filter;
use crate::health::{self, attempt};
use crate::loads::{self, random};
use crate::maps::{FLOW_HANDS, FLOW_LOCK_COUNT, FLOW_LOCKS, FLOW_TIMEOUTS, Maps};
use crate::scratch::{Scratches, YieldCandidate};
use crate::service::{backend, has_port_of_node};
use crate::settings::{FLOW_RECORDS, SNAT_PORT_COUNT, SNAT_PORT_FIRST};

/// The number of records that are examined for a new connection. Usually the first is over. A table
/// that is nearly full of live connections takes more.
const LOOKS: u32 = 16;

/// The time, after a connection gave way, during which endpoints are selected by a hash, see
/// [`is_under_pressure`].
const PRESSURE_NS: u64 = 60_000_000_000;

/// `EEXIST`, as map updates return it.
const EEXIST: i32 = -17;

/// A record that belongs to this program until the program stores a phase in it.
#[derive(Copy, Clone)]
pub struct Claimed {
    pub number: u32,
    pub generation: u16,
}

impl Claimed {
    /// Returns the record, or `None` if no record has this number.
    #[inline(always)]
    pub fn flow<F: Maps>(self) -> Option<*mut Flow<F::Addr>> {
        F::flows().get_ptr_mut(self.number)
    }

    /// Returns the index entry of one direction.
    #[inline(always)]
    pub fn index(self, direction: u8) -> FlowIndex {
        FlowIndex { record: self.number, generation: self.generation, direction, pad: 0 }
    }

    /// Returns the claim as one number, which is never zero.
    #[inline(always)]
    fn pack(self) -> u64 {
        1 << 63 | (self.generation as u64) << 32 | self.number as u64
    }

    #[inline(always)]
    fn unpack(number: u64) -> Option<Self> {
        if number == 0 {
            None
        } else {
            Some(Self { number: number as u32, generation: (number >> 32) as u16 })
        }
    }
}

/// Replaces a candidate by a connection that gives way before it.
#[inline(always)]
fn keep_weaker<A: Copy>(weakest: &mut YieldCandidate, number: u32, flow: &Flow<A>, now: u64, port: u16) {
    let yields = yields(flow, now) as u32;
    let is_weaker =
        yields > weakest.yields || (yields == weakest.yields && flow.last_seen_ns < weakest.last_seen_ns);
    if yields != Yields::Never as u32 && is_weaker {
        let (last_seen_ns, generation) = (flow.last_seen_ns, flow.generation);
        *weakest = YieldCandidate { last_seen_ns, number, yields, generation, port, pad: 0 };
    }
}

/// Returns whether a connection that is not over gives way.
#[inline(always)]
pub fn yields<A: Copy>(flow: &Flow<A>, now: u64) -> Yields {
    if flow.phase == flow_phase::CLAIMED {
        return Yields::Never;
    }
    // Another CPU may have seen a packet after `now`.
    flow.state().yields(flow.protocol, now.saturating_sub(flow.last_seen_ns))
}

/// Returns the time-outs in force.
#[inline(always)]
pub fn timeouts() -> Option<&'static FlowTimeouts> {
    FLOW_TIMEOUTS.get(0)
}

#[inline(always)]
fn hand<F: Maps>() -> Option<*mut FlowHand> {
    FLOW_HANDS.get_ptr_mut(F::IS_V6 as u32)
}

/// Returns whether connections gave way on this CPU lately. A handshake may then lose its record
/// before it is complete. With a choice of endpoints by a hash of the tuple, the client's next SYN
/// reaches the same endpoint again.
#[inline(always)]
pub fn is_under_pressure<F: Maps>(now: u64) -> bool {
    let Some(hand) = hand::<F>() else { return false };
    // SAFETY: a map value of this CPU: no other program changes it meanwhile.
    let since = unsafe { (*hand).pressure_ns };
    since != 0 && now.wrapping_sub(since) < PRESSURE_NS
}

/// Makes the record this program's own, if it still has this generation and no other program has
/// claimed it. The index entries of its earlier connection are void from then on.
///
/// The lock replaces a compare-and-swap, which the instruction set has only since Linux 5.12.
///
/// The earlier connection does not count at its endpoint from then on. Its end is reported as
/// `end`, one of [`event_end`], unless it had ended before.
#[inline(always)]
fn take<F: Events>(number: u32, flow: *mut Flow<F::Addr>, generation: u16, end: u8) -> bool {
    let Some(lock) = FLOW_LOCKS.get_ptr_mut(number % FLOW_LOCK_COUNT) else { return false };
    // SAFETY: both are map values. Between the two helpers there are aligned loads and stores only.
    let (is_same, phase, counted, backend_id) = unsafe {
        bpf_spin_lock(&raw mut (*lock).lock);
        let phase = (&raw const (*flow).phase).read_volatile();
        let is_same =
            (&raw const (*flow).generation).read_volatile() == generation && phase != flow_phase::CLAIMED;
        if is_same {
            (&raw mut (*flow).phase).write_volatile(flow_phase::CLAIMED);
            (&raw mut (*flow).generation).write_volatile(generation.wrapping_add(1));
        }
        let counted = (&raw const (*flow).counted).read_volatile();
        let backend_id = (&raw const (*flow).backend_id).read_volatile();
        if is_same {
            (&raw mut (*flow).counted).write_volatile(counted::NONE);
        }
        bpf_spin_unlock(&raw mut (*lock).lock);
        (is_same, phase, counted, backend_id)
    };
    if is_same && counted != counted::NONE {
        loads::recount::<F>(backend_id, counted, counted::NONE);
    }
    if is_same && phase != flow_phase::FREE {
        // SAFETY: the record is this program's own and holds the earlier connection.
        let state = ConnectionState { phase, ..unsafe { (*flow).state() } };
        if !state.has_ended() {
            event::closed::<F>(number, end, event_path::RECORD);
        }
    }
    is_same
}

/// Counts a connection at its endpoint as its state requires, if the record still has this
/// generation.
///
/// The state is read under the lock: of two programs that count one connection at once, the later
/// one sees the updates of both.
#[inline(always)]
fn count_flow<F: Maps>(number: u32, generation: u16) {
    let Some(flow) = F::flows().get_ptr_mut(number) else { return };
    let Some(lock) = FLOW_LOCKS.get_ptr_mut(number % FLOW_LOCK_COUNT) else { return };
    // SAFETY: as in `take`.
    let (before, after, backend_id) = unsafe {
        bpf_spin_lock(&raw mut (*lock).lock);
        let before = (&raw const (*flow).counted).read_volatile();
        let is_same = (&raw const (*flow).generation).read_volatile() == generation
            && (&raw const (*flow).phase).read_volatile() != flow_phase::CLAIMED;
        let after = if is_same { (*flow).state().counted((*flow).protocol) } else { before };
        (&raw mut (*flow).counted).write_volatile(after);
        let backend_id = (&raw const (*flow).backend_id).read_volatile();
        bpf_spin_unlock(&raw mut (*lock).lock);
        (before, after, backend_id)
    };
    if before != after {
        loads::recount::<F>(backend_id, before, after);
    }
}

/// The time at which every connection is over, for [`end_if_over`].
pub const CUT: u64 = u64::MAX;

/// Ends a connection that is over at `now`. The agent calls this for connections whose records no
/// program has taken yet, and with [`CUT`] for those whose endpoint has drained for long enough, or
/// which have reached their maximum age. `end` is one of [`event_end`].
#[inline(always)]
fn end_if_over<F: Events>(number: u32, generation: u16, now: u64, end: u8) {
    let (Some(timeouts), Some(flow)) = (timeouts(), F::flows().get_ptr_mut(number)) else { return };
    // SAFETY: a map value. If it is given to another connection meanwhile, its generation differs.
    if unsafe { (*flow).phase == flow_phase::CLAIMED || !(*flow).is_over(now, timeouts) } {
        return;
    }
    if take::<F>(number, flow, generation, end) {
        // Packets may interrupt this program, so it does not use their working memory.
        // SAFETY: the record is this program's own now.
        let mut key = Aligned(unsafe { (*flow).request_key() });
        remove_index::<F>(&key.0, number, generation);
        // SAFETY: as above.
        key.0 = unsafe { (*flow).reply_key() };
        remove_index::<F>(&key.0, number, generation);
        free(flow);
    }
}

/// Releases a record.
#[inline(always)]
pub fn free<A>(flow: *mut Flow<A>) {
    // SAFETY: a map value that is this program's own; one byte.
    unsafe { (&raw mut (*flow).phase).write_volatile(flow_phase::FREE) };
}

/// Removes the index entries of the connection that had the record with this generation. `key` is
/// working memory.
#[inline(always)]
fn unlink<F: Maps>(number: u32, flow: *const Flow<F::Addr>, generation: u16, key: *mut FlowKey<F::Addr>) {
    // SAFETY: the record is this program's own and holds the old connection until it is filled in
    // anew. The keys are this CPU's, and no one else borrows them.
    let (flow, key) = unsafe { (&*flow, &mut *key) };
    *key = flow.request_key();
    remove_index::<F>(key, number, generation);
    *key = flow.reply_key();
    remove_index::<F>(key, number, generation);
}

/// Removes the index entry of a tuple if it refers to this record. Between the lookup and the
/// removal another program may replace the entry, for a connection that it opens with the same
/// tuple at the same instant. The next packet that can open that connection opens it again.
#[inline(always)]
fn remove_index<F: Maps>(key: &FlowKey<F::Addr>, number: u32, generation: u16) {
    // SAFETY: copied at once, one aligned word.
    let Some(index) = (unsafe { F::flow_index().get(key) }) else { return };
    let FlowIndex { record, generation: known, .. } = *index;
    if record == number && known == generation {
        // The entry may have been removed already.
        let _ = F::flow_index().remove(key);
    }
}

/// Takes a record for a new connection.
#[inline(always)]
fn claim_record<F: Records>(now: u64) -> Option<Claimed> {
    let (hand, keys) = (hand::<F>()?, F::keys()?);
    let records = FLOW_RECORDS.load();
    // SAFETY: map values of this CPU: no other program changes them meanwhile.
    unsafe {
        if (*hand).next == 0 {
            (*hand).next = first_of_this_cpu(records);
        }
        (*keys).weakest = YieldCandidate::NONE;
        for look in 0..LOOKS {
            if look == LOOKS / 2 {
                // Connections that were opened together have records that follow each other. The
                // search continues elsewhere.
                (*hand).next = position(random(), records);
            }
            if (*hand).next >= records {
                (*hand).next = 0;
            }
            let number = (*hand).next;
            (*hand).next += 1;
            if let Some(claimed) = F::take_if_over(number, now) {
                return Some(claimed);
            }
        }
    }
    F::evict(now)
}

/// Takes a record whose connection is over. Otherwise compares the connection with
/// `FlowKeys::weakest`.
#[inline(always)]
fn take_record_if_over<F: Events + Scratches>(number: u32, now: u64) -> Option<Claimed> {
    let (timeouts, keys) = (timeouts()?, F::keys()?);
    let pointer = F::flows().get_ptr_mut(number)?;
    // SAFETY: map values: the keys are this CPU's. Other programs may change the record: `take`
    // notices if it is given to another connection, and any mixture that is read here only makes
    // the choice of a record worse.
    let (flow, keys) = unsafe { (&*pointer, &mut *keys) };
    let generation = flow.generation;
    if flow.phase == flow_phase::CLAIMED || !flow.is_over(now, timeouts) {
        keep_weaker(&mut keys.weakest, number, flow, now, 0);
        return None;
    }
    let was_free = flow.phase == flow_phase::FREE;
    if !take::<F>(number, pointer, generation, event_end::IDLE) {
        return None;
    }
    if !was_free {
        unlink::<F>(number, pointer, generation, &raw mut keys.old);
    }
    Some(Claimed { number, generation: generation.wrapping_add(1) })
}

/// Lets the connection in `FlowKeys::weakest` give way, if there is one and it still exists. Its
/// record then belongs to this program.
#[inline(always)]
fn evict_weakest<F: Events + Scratches>(now: u64) -> Option<Claimed> {
    // SAFETY: a map value of this CPU: no other program changes it meanwhile.
    let keys = unsafe { &mut *F::keys()? };
    let YieldCandidate { number, generation, yields, .. } = keys.weakest;
    let reason = match yields {
        CLOSED => Reason::EvictedClosed,
        DATAGRAM => Reason::EvictedDatagrams,
        OPENING | HALF_OPEN => Reason::EvictedHalfOpen,
        _ => return None,
    };
    let flow = F::flows().get_ptr_mut(number)?;
    if !take::<F>(number, flow, generation, event_end::EVICTED) {
        return None;
    }
    count(reason);
    if let Some(hand) = hand::<F>() {
        // SAFETY: a map value of this CPU: no other program changes it meanwhile.
        unsafe { (&raw mut (*hand).pressure_ns).write_volatile(now) };
    }
    unlink::<F>(number, flow, generation, &raw mut keys.old);
    Some(Claimed { number, generation: generation.wrapping_add(1) })
}

const OPENING: u32 = Yields::Opening as u32;
const CLOSED: u32 = Yields::Closed as u32;
const DATAGRAM: u32 = Yields::Datagram as u32;
const HALF_OPEN: u32 = Yields::HalfOpen as u32;

/// Returns the position at which this CPU starts its search. The CPUs start at a distance from each
/// other.
#[inline(always)]
fn first_of_this_cpu(records: u32) -> u32 {
    /// 2^32 divided by the golden ratio: its multiples are spread evenly (Knuth, TAOCP 6.4).
    const SPREAD: u32 = 0x9e37_79b9;
    // SAFETY: the helper has no preconditions.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    ((cpu.wrapping_mul(SPREAD) as u64 * records as u64) >> 32) as u32
}

/// The result of [`reserve`].
#[derive(Copy, Clone, PartialEq, Eq)]
#[repr(u64)]
pub enum Reserved {
    /// The tuple is the new connection's.
    Yes = 0,
    /// Another connection has it, or a Service.
    Taken = 1,
    /// The index is full.
    Full = 2,
}

impl Reserved {
    #[inline(always)]
    fn of(number: u64) -> Self {
        match number {
            0 => Self::Yes,
            1 => Self::Taken,
            _ => Self::Full,
        }
    }
}

/// Inserts the index entry of the replies to a new connection, `FlowKeys::reply`, if no connection
/// has that tuple. Otherwise compares the connection that has it with `FlowKeys::weakest`.
///
/// A port of a Service at an address of this node counts as taken: a reply that comes after its
/// connection is over would open a connection to the Service.
#[inline(always)]
fn reserve_tuple<F: Maps + Scratches>(claimed: Claimed, now: u64) -> Reserved {
    let Some(keys) = F::keys() else { return Reserved::Full };
    // SAFETY: a map value of this CPU: no other program changes it meanwhile.
    let keys = unsafe { &mut *keys };
    let FlowKey { dst_addr, dst_port, protocol, .. } = keys.reply;
    // SAFETY: a record that is this program's own; one byte.
    let is_of_node = claimed.flow::<F>().is_some_and(|flow| unsafe { (*flow).deliver } == deliver::ROUTE);
    if is_of_node
        && filter::may_have_port_of_node::<F>(dst_addr, dst_port, protocol)
        && has_port_of_node::<F>(dst_addr, dst_port, protocol)
    {
        return Reserved::Taken;
    }
    let index = claimed.index(direction::REPLY);
    match F::flow_index().insert(&keys.reply, &index, BPF_NOEXIST as u64) {
        Ok(()) => return Reserved::Yes,
        Err(EEXIST) => {}
        Err(_) => return Reserved::Full,
    }
    if let Some((number, flow)) = holder::<F>(&keys.reply, now) {
        keep_weaker(&mut keys.weakest, number, flow, now, keys.reply.dst_port);
        return Reserved::Taken;
    }
    // The entry is left over from a connection that is over. Replacing it is not atomic: of two
    // programs that do so in the same instant the later one has the tuple.
    match F::flow_index().insert(&keys.reply, &index, BPF_ANY as u64) {
        Ok(()) => Reserved::Yes,
        Err(_) => Reserved::Full,
    }
}

/// The number of source ports that are tried for a new connection. If all are taken, the weakest of
/// their connections gives way.
pub const PORT_ATTEMPTS: u32 = 16;

/// Reserves the tuple in `FlowKeys::reply`, or the same tuple with another of the node's ports: the
/// first that no connection has. Returns [`Reserved::Taken`] if connections have all that are
/// tried. The new connection's record and `FlowKeys::reply` hold the port.
#[inline(always)]
fn reserve_any_port<F: Records>(claimed: Claimed, now: u64) -> Reserved {
    let (Some(keys), Some(flow)) = (F::keys(), claimed.flow::<F>()) else { return Reserved::Full };
    // SAFETY: a map value of this CPU, and a record that is this program's own.
    unsafe {
        for _ in 0..PORT_ATTEMPTS {
            (*flow).source_port = (*keys).reply.dst_port;
            match F::reserve(claimed, now) {
                // Without masquerading the tuple is taken if a client reaches one endpoint by two
                // addresses from one port.
                Reserved::Taken => (*keys).reply.dst_port = random_port(),
                reserved => return reserved,
            }
        }
    }
    Reserved::Taken
}

/// Returns one of the ports that sources are rewritten to.
#[inline(always)]
pub fn random_port() -> u16 {
    let random = random() & 0xffff;
    SNAT_PORT_FIRST.load().wrapping_add(((random * SNAT_PORT_COUNT.load() as u32) >> 16) as u16)
}

/// Returns the connection that has a tuple, unless it is over.
#[inline(always)]
pub fn holder<F: Maps>(key: &FlowKey<F::Addr>, now: u64) -> Option<(u32, &'static Flow<F::Addr>)> {
    // SAFETY: copied at once, one aligned word.
    let FlowIndex { record: number, generation, direction, .. } = *unsafe { F::flow_index().get(key) }?;
    let pointer = F::flows().get_ptr_mut(number)?;
    // SAFETY: a map value. If the connection is replaced while it is read, the answer is outdated,
    // as any answer is in the next instant.
    let flow = unsafe { &*pointer };
    let timeouts = timeouts()?;
    let is_live = flow.generation == generation
        && flow.has_tuple(key, direction)
        && (flow.phase == flow_phase::CLAIMED || !flow.is_over(now, timeouts));
    is_live.then_some((number, flow))
}

/// Ends a connection: its record is free afterwards. Does nothing if the record was given to
/// another one meanwhile.
#[inline(always)]
fn end_flow<F: Events + Scratches>(number: u32, generation: u16) {
    if let Some(flow) = F::flows().get_ptr_mut(number)
        && let Some(keys) = F::keys()
        && take::<F>(number, flow, generation, event_end::REPLACED)
    {
        // SAFETY: only the address of a field is taken.
        unlink::<F>(number, flow, generation, unsafe { &raw mut (*keys).old });
        free(flow);
    }
}

/// Returns whether a connection was silent for as long as its time-out at `now`.
#[inline(always)]
fn flow_is_over<F: Maps>(number: u32, now: u64) -> bool {
    match (F::flows().get(number), timeouts()) {
        (Some(flow), Some(timeouts)) => flow.is_over(now, timeouts),
        _ => true,
    }
}

/// A bit of the result of [`follow_flow`]: the count of the connection at its endpoint must change.
const RECOUNT: u64 = 1 << 0;
/// A bit of the result of [`follow_flow`]: this packet has ended the connection.
const ENDED: u64 = 1 << 1;

/// Updates a connection with a packet of it. Returns [`RECOUNT`], [`ENDED`], and the result of a
/// connection attempt, of [`attempt`], if the Service leaves out endpoints. The caller does what
/// they mean: one call inside the other would need more stack than there is.
#[inline(always)]
fn follow_flow<F: Maps>(number: u32, generation: u16, segment: &Segment, now: u64) -> u64 {
    let Some(flow) = F::flows().get_ptr_mut(number) else { return 0 };
    // SAFETY: a map value. Each field is one aligned word or less, except the sides, which only
    // packets of their own direction write: of two packets of one direction that two CPUs handle at
    // once, one update may be lost, and the next packet makes up for it. If the record was given to
    // another connection since it was looked up, the packet is not taken note of; in the instant
    // after this check, the numbers of the segment are of no use to the other connection.
    unsafe {
        if (*flow).generation != generation {
            return 0;
        }
        let silent_ns = now.wrapping_sub((*flow).last_seen_ns);
        if silent_ns > SEEN_GRANULARITY_NS {
            (&raw mut (*flow).last_seen_ns).write_volatile(now);
        }
        let before = (*flow).state();
        let age_s = ((now / SECOND) as u32).wrapping_sub((*flow).opened_s);
        let after = connection::advance((*flow).protocol, before, segment, age_s);
        if after.request != before.request {
            (*flow).request = after.request;
        }
        if after.reply != before.reply {
            (*flow).reply = after.reply;
        }
        if after.phase != before.phase {
            (&raw mut (*flow).phase).write_volatile(after.phase);
        }
        let mut changes = 0;
        if after.counted((*flow).protocol) != (*flow).counted {
            changes |= RECOUNT;
        }
        // Other packets end no connection.
        let may_end = segment.flags & (tcp_flags::FIN | tcp_flags::RST) != 0;
        if may_end && after.has_ended() && !before.has_ended() {
            changes |= ENDED;
        }
        if before.phase == flow_phase::OPENING {
            changes |= attempt_result::<F>((*flow).backend_id, after.phase, segment, silent_ns);
        }
        changes
    }
}

/// Returns the result of a connection attempt, of [`attempt`], after a packet of a connection that
/// was not answered before. Returns 0 without a result, or if the Service does not leave out
/// endpoints. `silent_ns` is the time since the packet before.
#[inline(always)]
fn attempt_result<F: Maps>(backend_id: u32, phase: u8, segment: &Segment, silent_ns: u64) -> u64 {
    let is_reply = segment.direction == direction::REPLY;
    let result = match phase {
        flow_phase::ANSWERED => attempt::ANSWERED,
        flow_phase::RESET if is_reply => attempt::REFUSED,
        flow_phase::OPENING
            if !is_reply && segment.flags & tcp_flags::SYN != 0 && silent_ns > REPEATED_NS =>
        {
            attempt::SILENT
        }
        _ => return 0,
    };
    let is_judged =
        backend::<F>(backend_id).is_some_and(|backend| backend.flags & backend_flags::PASSIVE_HEALTH != 0);
    if is_judged { result } else { 0 }
}

/// Lets the connection in `FlowKeys::weakest` give way, and releases its record. Returns whether
/// the connection gave way.
#[inline(always)]
pub fn make_way<F: Records>(now: u64) -> bool {
    let Some(old) = F::evict(now) else { return false };
    if let Some(flow) = old.flow::<F>() {
        free(flow);
    }
    true
}

/// The functions that the verifier checks separately, by family.
pub trait Records: Events + Scratches {
    /// Takes a record for a new connection. Returns `None` if every record looked at holds a
    /// connection that does not give way.
    fn claim(now: u64) -> Option<Claimed>;
    /// See [`take_record_if_over`].
    fn take_if_over(number: u32, now: u64) -> Option<Claimed>;
    /// See [`evict_weakest`].
    fn evict(now: u64) -> Option<Claimed>;
    /// See [`reserve_tuple`].
    fn reserve(claimed: Claimed, now: u64) -> Reserved;
    /// See [`reserve_any_port`].
    fn reserve_any(claimed: Claimed, now: u64) -> Reserved;
    /// See [`end_flow`].
    fn end(number: u32, generation: u16);
    /// See [`flow_is_over`].
    fn is_over(number: u32, now: u64) -> bool;
    /// See [`end_if_over`].
    fn end_if_over(number: u32, generation: u16, now: u64, end: u8);
    /// See [`health::judge`].
    fn judge(number: u32, result: u64, now: u64);
    /// See [`follow_flow`], [`count_flow`] and [`health::judge`]. `path` is one of [`event_path`].
    fn follow(number: u32, generation: u16, segment: &Segment, now: u64, path: u8);
}

macro_rules! records {
    ($($family:ty: $claim:ident, $take:ident, $evict:ident, $reserve:ident, $reserve_any:ident, $end:ident,
       $is_over:ident, $settle:ident, $end_over:ident, $follow:ident;)*) => { $(
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $claim(now: u64) -> u64 {
            claim_record::<$family>(now).map_or(0, Claimed::pack)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $take(number: u64, now: u64) -> u64 {
            take_record_if_over::<$family>(number as u32, now).map_or(0, Claimed::pack)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $evict(now: u64) -> u64 {
            evict_weakest::<$family>(now).map_or(0, Claimed::pack)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $reserve(claimed: u64, now: u64) -> u64 {
            Claimed::unpack(claimed).map_or(Reserved::Full, |claimed| reserve_tuple::<$family>(claimed, now)) as u64
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $reserve_any(claimed: u64, now: u64) -> u64 {
            Claimed::unpack(claimed).map_or(Reserved::Full, |claimed| reserve_any_port::<$family>(claimed, now)) as u64
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $end(number: u64, generation: u64) -> u64 {
            end_flow::<$family>(number as u32, generation as u16);
            0
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $is_over(number: u64, now: u64) -> u64 {
            flow_is_over::<$family>(number as u32, now) as u64
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $settle(number: u64, generation: u64, todo: u64, now: u64) -> u64 {
            if todo & RECOUNT != 0 {
                count_flow::<$family>(number as u32, generation as u16);
            }
            if todo & attempt::ANY != 0 {
                health::judge::<$family>(number as u32, todo, now);
            }
            0
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $end_over(number: u64, generation: u64, now: u64, end: u64) -> u64 {
            end_if_over::<$family>(number as u32, generation as u16, now, end as u8);
            0
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $follow(record: u64, kind: u64, numbers: u64, length: u64, now: u64) -> u64 {
            let (direction, flags) = ((kind >> 8) as u8, kind as u8);
            let (seq, ack) = ((numbers >> 32) as u32, numbers as u32);
            let segment = Segment { direction, flags, seq, ack, length: length as u32 };
            follow_flow::<$family>(record as u32, (record >> 32) as u16, &segment, now)
        }

        impl Records for $family {
            #[inline(always)]
            fn claim(now: u64) -> Option<Claimed> {
                Claimed::unpack($claim(now))
            }

            #[inline(always)]
            fn take_if_over(number: u32, now: u64) -> Option<Claimed> {
                Claimed::unpack($take(number as u64, now))
            }

            #[inline(always)]
            fn evict(now: u64) -> Option<Claimed> {
                Claimed::unpack($evict(now))
            }

            #[inline(always)]
            fn reserve(claimed: Claimed, now: u64) -> Reserved {
                Reserved::of($reserve(claimed.pack(), now))
            }

            #[inline(always)]
            fn reserve_any(claimed: Claimed, now: u64) -> Reserved {
                Reserved::of($reserve_any(claimed.pack(), now))
            }

            #[inline(always)]
            fn end(number: u32, generation: u16) {
                $end(number as u64, generation as u64);
            }

            #[inline(always)]
            fn is_over(number: u32, now: u64) -> bool {
                $is_over(number as u64, now) != 0
            }

            #[inline(always)]
            fn end_if_over(number: u32, generation: u16, now: u64, end: u8) {
                $end_over(number as u64, generation as u64, now, end as u64);
            }

            #[inline(always)]
            fn judge(number: u32, result: u64, now: u64) {
                $settle(number as u64, 0, result, now);
            }

            #[inline(always)]
            fn follow(number: u32, generation: u16, segment: &Segment, now: u64, path: u8) {
                let record = (generation as u64) << 32 | number as u64;
                let kind = (segment.direction as u64) << 8 | segment.flags as u64;
                let numbers = (segment.seq as u64) << 32 | segment.ack as u64;
                let changes = $follow(record, kind, numbers, segment.length as u64, now);
                if changes & !ENDED != 0 {
                    $settle(number as u64, generation as u64, changes, now);
                }
                if changes & ENDED != 0 {
                    event::closed::<$family>(number, 0, path);
                }
            }
        }
    )* };
}

records! {
    V4: lb_claim_record_v4, lb_take_if_over_v4, lb_evict_v4, lb_reserve_tuple_v4, lb_reserve_port_v4, lb_end_flow_v4,
        lb_flow_is_over_v4, lb_settle_v4, lb_end_over_v4, lb_follow_v4;
    V6: lb_claim_record_v6, lb_take_if_over_v6, lb_evict_v6, lb_reserve_tuple_v6, lb_reserve_port_v6, lb_end_flow_v6,
        lb_flow_is_over_v6, lb_settle_v6, lb_end_over_v6, lb_follow_v6;
}
