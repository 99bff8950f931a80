//! Selects the endpoint of a new connection.

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::helpers::generated::{bpf_spin_lock, bpf_spin_unlock};
use lb_common::SECOND;
use lb_common::family::{V4, V6};
use lb_common::hash::{hash, position};
use lb_common::health::is_within_half;
use lb_common::layout::{
    Affinity, AffinityKey, Backend, FlowKey, ServiceEntry, affinity_client, algorithm, backend_flags,
    counted, record_client, service_flags,
};
use lb_common::load::{SAMPLE, sampled};
use lb_common::reason::Reason;

use crate::aligned::Aligned;
use crate::client::Client;
use crate::clock::now;
use crate::count::count as count_reason;
use crate::health::{self, ADMITTED, LEFT_OUT, lb_admission, lb_try_again};
use crate::loads::{self, lb_take, random, taken};
use crate::maps::{AFFINITY, CURSORS, FLOW_LOCK_COUNT, FLOW_LOCKS, Maps, SLOTS};
use crate::record::{note, recording};
use crate::records;
use crate::seam::unknown;
use crate::service::backend;

/// The reason why no endpoint is selected.
#[derive(Copy, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The client receives an error.
    Reject,
    /// The client receives nothing.
    Drop(Reason),
}

/// Identifies the client of a packet for session affinity: by its source address.
#[inline(always)]
pub fn name_by_address<F: Maps>(key: &mut AffinityKey, service: &ServiceEntry, addr: F::Addr) {
    key.client = [0; 16];
    // SAFETY: an address has at most 16 bytes.
    unsafe { key.client.as_mut_ptr().cast::<F::Addr>().write_unaligned(addr) };
    key.service_id = service.service_id;
    key.client_kind = if F::IS_V6 { affinity_client::ADDRESS_V6 } else { affinity_client::ADDRESS_V4 };
}

/// Identifies the client of a call for session affinity: by its pod or node, because the socket may
/// have no source address yet.
#[inline(always)]
pub fn name_by_namespace<F: Maps>(service: &ServiceEntry, netns_cookie: u64) -> Aligned<AffinityKey> {
    // SAFETY: both types have the same size and take any bytes.
    let client = unsafe { core::mem::transmute::<[u64; 2], [u8; 16]>([netns_cookie, 0]) };
    let client_kind = if F::IS_V6 { affinity_client::NAMESPACE_V6 } else { affinity_client::NAMESPACE_V4 };
    Aligned(AffinityKey { client, service_id: service.service_id, client_kind })
}

/// The endpoints that are eligible for a client.
#[derive(Copy, Clone)]
pub struct Eligible {
    /// First slot and number of slots.
    base: u32,
    count: u32,
    /// The bit of [`backend_flags`] that all of them have.
    list: u16,
    /// If there is no endpoint: drop instead of reject.
    drop: bool,
}

impl Eligible {
    /// Returns the endpoints of a service that are eligible for a client.
    #[inline(always)]
    pub fn of(service: &ServiceEntry, client: Client) -> Self {
        let (base, count, local, drop) = match client {
            Client::Outside => (
                service.outside_base,
                service.outside_count,
                service_flags::OUTSIDE_LOCAL,
                service_flags::OUTSIDE_DROP,
            ),
            Client::Inside => (
                service.inside_base,
                service.inside_count,
                service_flags::INSIDE_LOCAL,
                service_flags::INSIDE_DROP,
            ),
        };
        let list =
            if service.flags & local != 0 { backend_flags::IN_LOCAL } else { backend_flags::IN_CLUSTER };
        Self { base, count, list, drop: service.flags & drop != 0 }
    }

    /// Returns the treatment of a client if no endpoint can be selected.
    #[inline(always)]
    fn refusal(&self) -> Refusal {
        if self.drop { Refusal::Drop(Reason::NoEndpointDropped) } else { Refusal::Reject }
    }

    /// Returns the endpoint with this id if it is eligible now. The agent reuses ids: the id may
    /// belong to another endpoint of the same service by now, which is eligible as well.
    #[inline(always)]
    pub fn get<F: Maps>(&self, service: &ServiceEntry, id: u32) -> Option<&'static Backend<F::Addr>> {
        backend::<F>(id)
            .filter(|backend| backend.service_id == service.service_id && backend.flags & self.list != 0)
    }

    /// Returns the endpoint with this id if a client that uses it may keep it: the endpoint is
    /// eligible now, or it terminates and still serves. Terminating endpoints are in neither list.
    #[inline(always)]
    pub fn keep<F: Maps>(&self, service: &ServiceEntry, id: u32) -> Option<&'static Backend<F::Addr>> {
        const LISTS: u16 = backend_flags::IN_CLUSTER | backend_flags::IN_LOCAL;
        backend::<F>(id).filter(|backend| {
            backend.service_id == service.service_id
                && (backend.flags & self.list != 0 || backend.flags & LISTS == 0)
        })
    }
}

/// Records the client and the endpoints that are eligible for it.
#[inline(always)]
pub fn note_eligible(client: Client, eligible: &Eligible) {
    note(|record| {
        record.client = match client {
            Client::Inside => record_client::INSIDE,
            Client::Outside => record_client::OUTSIDE,
        };
        (record.slot_base, record.slot_count) = (eligible.base, eligible.count);
    });
}

/// The way in which a slot of a range is selected.
#[derive(Copy, Clone)]
pub enum Choice {
    /// The slots are used one after the other.
    InTurn,
    /// A number. Equal numbers select the same slot; all numbers are equally probable.
    By(u32),
    /// The endpoint that an algorithm, one of [`algorithm`], selects by the open connections.
    ByLoad(u8),
}

impl Choice {
    /// Returns the choice for a new connection of a packet. `client` identifies the client.
    ///
    /// While connections give way to new ones, a hash of the client and its port selects: a
    /// handshake whose record gave way then reaches the same endpoint again with the client's next
    /// SYN. `now`: the time.
    #[inline(always)]
    pub fn for_packet<F: Maps>(
        service: &ServiceEntry,
        client: &AffinityKey,
        key: &FlowKey<F::Addr>,
        now: u64,
    ) -> Self {
        match service.algorithm {
            algorithm::HASH_SOURCE => Self::By(hash(client_words(client), 0)),
            algorithm::HASH_SOURCE_PORT => Self::By(hash(client_words(client), key.src_port)),
            algorithm::HASH_DESTINATION => Self::By(hash(address_words::<F>(key.dst_addr), 0)),
            algorithm if algorithm >= algorithm::LEAST => Self::ByLoad(algorithm),
            _ if records::is_under_pressure::<F>(now) => {
                let (low, high) = client_words(client);
                let service = service.service_id as u64;
                Self::By(hash((low ^ service << 32, high), key.src_port))
            }
            algorithm::IN_TURN => Self::InTurn,
            _ => Self::By(random()),
        }
    }

    /// Returns the choice for a call at a socket that uses the address `destination`.
    #[inline(always)]
    pub fn for_call<F: Maps>(service: &ServiceEntry, client: &AffinityKey, destination: F::Addr) -> Self {
        match service.algorithm {
            algorithm::HASH_SOURCE => Self::By(hash(client_words(client), 0)),
            algorithm::HASH_DESTINATION => Self::By(hash(address_words::<F>(destination), 0)),
            algorithm::IN_TURN => Self::InTurn,
            algorithm if algorithm >= algorithm::LEAST => Self::ByLoad(algorithm),
            // The source port is not known yet.
            _ => Self::By(random()),
        }
    }
}

/// Returns whether a selection depends on the identity of the client.
#[inline(always)]
pub fn depends_on_client(service: &ServiceEntry) -> bool {
    service.affinity_seconds != 0 || service.algorithm == algorithm::HASH_SOURCE
}

/// Returns the identity of a client as two words.
#[inline(always)]
fn client_words(key: &AffinityKey) -> (u64, u64) {
    // SAFETY: sixteen bytes, of which any are a number.
    unsafe { key.client.as_ptr().cast::<(u64, u64)>().read_unaligned() }
}

/// Returns an address as two words.
#[inline(always)]
fn address_words<F: Maps>(addr: F::Addr) -> (u64, u64) {
    let pointer = (&raw const addr).cast::<u32>();
    // SAFETY: an address has four bytes, and sixteen in IPv6.
    let word = |index: usize| unsafe { pointer.add(index).read_unaligned() as u64 };
    if F::IS_V6 { (word(0) | word(1) << 32, word(2) | word(3) << 32) } else { (word(0), 0) }
}

/// Returns the next position in the range of `count` slots at `base`, and moves the cursor. The
/// verifier checks this function separately.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_take_turn(base: u32, count: u32) -> u32 {
    let base = Aligned(base);
    let Some(cursor) = CURSORS.get_ptr_mut(&base.0) else { return 0 };
    if recording() {
        // SAFETY: one aligned word of a map value.
        return unsafe { cursor.read_volatile() };
    }
    let Some(lock) = FLOW_LOCKS.get_ptr_mut(base.0 % FLOW_LOCK_COUNT) else { return 0 };
    // SAFETY: both are map values. Between the two helpers there is one aligned load and one store.
    // If the agent removed the cursor meanwhile and its memory has become another range's, an
    // endpoint of that range is skipped.
    unsafe {
        bpf_spin_lock(&raw mut (*lock).lock);
        let position = cursor.read_volatile();
        let next = position.wrapping_add(1);
        cursor.write_volatile(if next < count { next } else { 0 });
        bpf_spin_unlock(&raw mut (*lock).lock);
        position
    }
}

/// The last argument of [`lb_choose`], [`lb_admit`] and the searches for another endpoint: these
/// bits, those of [`taken`], and the algorithm of the Service.
mod search {
    use lb_common::layout::{algorithm, service_flags};

    use crate::loads::taken;

    /// The endpoints are those of IPv6.
    pub const V6: u32 = taken::V6;
    /// The Service leaves out endpoints.
    pub const HEALTH: u32 = 1 << 1;
    /// Another endpoint replaces one that is overloaded.
    pub const REPLACE: u32 = service_flags::REPLACE_OVERLOADED;
    /// The bits from here on are one of [`algorithm`].
    pub const ALGORITHM: u32 = 16;

    const _: () = assert!(REPLACE == 1 << 6 && taken::SOCKET == 1 << 7);

    /// Returns whether another endpoint is that of a slot nearby. Otherwise it is that of a slot at
    /// random: the next endpoint after one that gets no connection would get the share of both.
    /// With a hash, the client keeps an endpoint nearby.
    #[inline(always)]
    pub fn is_by_hash(options: u32) -> bool {
        /// The algorithms by a hash have successive numbers, the last of which is greater by this.
        const HASHES: u8 = algorithm::HASH_DESTINATION - algorithm::HASH_SOURCE;
        ((options >> ALGORITHM) as u8).wrapping_sub(algorithm::HASH_SOURCE) <= HASHES
    }

    /// Returns whether the slots are used in turn.
    #[inline(always)]
    pub fn is_in_turn(options: u32) -> bool {
        (options >> ALGORITHM) as u8 == algorithm::IN_TURN
    }
}

/// Returns whether the endpoint `id`, of the range of `count` slots at `base`, gets a new
/// connection: 1 or 0. The verifier checks this function separately.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_admit(base: u32, count: u32, id: u32, options: u32) -> u32 {
    let now = now();
    let is_v6 = options & search::V6;
    let admission = lb_admission(id, is_v6, now);
    if admission == ADMITTED {
        return 1;
    }
    if admission != LEFT_OUT && (recording() || lb_try_again(id, is_v6, now) != 0) {
        return 1;
    }
    // Endpoints with half of the slots may be left out, those with the smallest ids.
    let looks = core::cmp::min(count, SAMPLE);
    let start = random();
    // The verifier would follow the loop once for each pair of numbers.
    let (mut less, mut own) = (unknown(0), unknown(0));
    for n in 0..SAMPLE {
        if n >= looks {
            break;
        }
        let Some(&other) = SLOTS.get(base.wrapping_add(sampled(start, n, count))) else { break };
        if other == id {
            own = unknown(own + 1);
        } else if other < id && lb_admission(other, is_v6, now) == LEFT_OUT {
            less = unknown(less + 1);
        }
    }
    !is_within_half(less as u32, if own == 0 { 1 } else { own as u32 }, looks) as u32
}

/// The number of slots in which another endpoint is looked for.
const OTHER_LOOKS: u32 = 12;

/// Returns an endpoint other than `avoid` from the range of `count` slots at `base`, one that is
/// not left out if there is any: that of one of the next slots after `index`, or of a slot at
/// random, because the next slots may all be the same endpoint's. Returns `avoid` if there is none.
/// The verifier checks this function separately.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_other_slot(base: u32, count: u32, index: u32, avoid: u32, options: u32) -> u32 {
    let now = if options & search::HEALTH != 0 { now() } else { 0 };
    let (mut next, mut found) = (index, avoid);
    for look in 0..OTHER_LOOKS {
        let is_near = search::is_by_hash(options) && look < OTHER_LOOKS / 2;
        next = if is_near { next.wrapping_add(1) } else { position(random(), count) };
        if next >= count {
            next = 0;
        }
        if let Some(&id) = SLOTS.get(base.wrapping_add(next))
            && id != avoid
        {
            if options & search::HEALTH == 0 || lb_admission(id, options & search::V6, now) == ADMITTED {
                return id;
            }
            found = id;
        }
    }
    found
}

/// The number of slots in which an endpoint is looked for that is not overloaded.
const RELIEF_LOOKS: u32 = 64;
/// The number of them that are not neighbours: in buckets, a neighbour would get all clients of the
/// endpoint that is overloaded.
const SCATTERED_LOOKS: u32 = RELIEF_LOOKS / 2;

/// Returns an endpoint of the range of `count` slots at `base` that takes a new connection, see
/// [`lb_take`], although the one in the slot `index` is overloaded. The result is that of
/// [`lb_try_slot`]. [`RELIEF_LOOKS`] slots are examined, or all slots of a range with half as many.
/// The verifier checks this function separately.
///
/// The slots are the next turns, or slots at random, or those of further hashes of the client (as
/// those of IPVS with the flag `fallback`). Half of the looks, and those of turns, are at slots
/// that follow each other: they find each endpoint of a small range.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_relief(base: u32, count: u32, index: u32, avoid: u32, options: u32) -> u64 {
    let (mut next, mut passed_over) = (unknown(index as u64), unknown(0));
    for look in 0..RELIEF_LOOKS {
        // Every slot was looked at.
        if look / 2 >= count {
            break;
        }
        next = lb_next_look(base, count, (index as u64) << 32 | next, options, look) as u64;
        let tried = lb_try_slot(base, next as u32, (avoid as u64) << 32 | passed_over, options);
        if tried & IS_COUNTED != 0 {
            return tried;
        }
        passed_over = tried;
    }
    passed_over
}

/// Returns the slot that [`lb_relief`] looks at. The upper half of `slots` is the slot of the
/// endpoint that is overloaded, the lower half the slot of the look before. The verifier checks
/// this function separately, and not in each turn of the loop.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_next_look(base: u32, count: u32, slots: u64, options: u32, look: u32) -> u32 {
    let next = if search::is_in_turn(options) && !recording() {
        lb_take_turn(base, count)
    } else if look < core::cmp::min(count, SCATTERED_LOOKS) && !search::is_in_turn(options) {
        let is_by_hash = search::is_by_hash(options);
        position(if is_by_hash { hash((slots >> 32, look as u64), 0) } else { random() }, count)
    } else {
        slots as u32 + 1
    };
    if next < count { next } else { 0 }
}

/// Bits of the results of [`lb_try_slot`]: an endpoint that is left out, or the one to avoid, was
/// not tried.
const PASSED_OVER_LEFT_OUT: u64 = 1 << 0;
const PASSED_OVER_AVOIDED: u64 = 1 << 1;

/// Returns the endpoint in a slot with the bit [`IS_COUNTED`] if it takes the connection. Otherwise
/// returns which endpoints were passed over. The upper half of `others` is the endpoint to avoid,
/// the lower half has those that were passed over before. The verifier checks this function
/// separately, and not in each turn of the loop.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_try_slot(base: u32, slot: u32, others: u64, options: u32) -> u64 {
    let passed_over = others & 0xffff_ffff;
    let Some(&id) = SLOTS.get(base.wrapping_add(slot)) else { return passed_over };
    if id == (others >> 32) as u32 {
        passed_over | PASSED_OVER_AVOIDED
    } else if options & search::HEALTH != 0 && lb_admission(id, options & search::V6, now()) != ADMITTED {
        passed_over | PASSED_OVER_LEFT_OUT
    } else if lb_take(id, options) != 0 {
        id as u64 | IS_COUNTED
    } else {
        passed_over
    }
}

/// No endpoint takes the connection.
const NONE: u32 = u32::MAX;

/// Returns the options of a search, of [`search`], without a branch.
#[inline(always)]
fn search_options<F: Maps>(service: &ServiceEntry) -> u32 {
    F::IS_V6 as u32 | service.flags & search::REPLACE | (service.algorithm as u32) << search::ALGORITHM
}

/// Returns the endpoint in the slot `index` of the range of `count` slots at `base`. Returns
/// another one if that is `avoid`, is left out, or is overloaded. Returns 0 if there is no such
/// slot, and [`NONE`] if no endpoint takes the connection. The verifier checks this function
/// separately.
///
/// If the result has the bit [`IS_COUNTED`], the connection is counted at the endpoint as `options`
/// require.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_choose(base: u32, count: u32, index: u32, avoid: u32, options: u32) -> u64 {
    let Some(&id) = SLOTS.get(base.wrapping_add(index)) else { return 0 };
    let flags = if options & search::V6 != 0 { flags::<V6>(id) } else { flags::<V4>(id) };
    let mut options = options;
    let mut chosen = id;
    if flags & backend_flags::PASSIVE_HEALTH != 0 {
        options |= search::HEALTH;
        let is_left_out = lb_admit(base, count, id, options) == 0;
        if is_left_out {
            health::note_left_out(id);
        }
        if is_left_out || id == avoid {
            chosen = lb_other_slot(base, count, index, id, options);
        }
    } else if avoid != 0 && id == avoid {
        chosen = lb_other_slot(base, count, index, id, options);
    }
    if flags & backend_flags::THRESHOLDS == 0 {
        return chosen as u64;
    }
    if lb_take(chosen, options) == 0 {
        if options & search::REPLACE == 0 {
            return NONE as u64;
        }
        let mut other = lb_relief(base, count, index, avoid, options);
        if other & PASSED_OVER_LEFT_OUT != 0 && other & IS_COUNTED == 0 {
            other = lb_relief(base, count, index, avoid, options & !search::HEALTH);
        }
        if other & IS_COUNTED != 0 {
            chosen = other as u32;
        } else if other & PASSED_OVER_AVOIDED != 0 && lb_take(avoid, options) != 0 {
            chosen = avoid;
        } else {
            return NONE as u64;
        }
        count_reason(Reason::EndpointOverloaded);
    }
    chosen as u64 | IS_COUNTED
}

/// See [`lb_choose`].
const IS_COUNTED: u64 = 1 << 32;

#[inline(always)]
fn flags<F: Maps>(id: u32) -> u16 {
    F::backends().get(id).map_or(0, |backend| backend.flags)
}

/// An endpoint for a new connection.
pub struct Selected<A: 'static> {
    pub id: u32,
    pub backend: &'static Backend<A>,
    /// The endpoint has thresholds, and the connection is counted at it, if [`select`] was called
    /// to count it.
    pub is_counted: bool,
}

/// Selects an endpoint for a new connection. `client_key` identifies the client for session
/// affinity. The endpoint `avoid` is selected only if no other one is found. `counted`, one of
/// [`counted`](lb_common::layout::counted), is how the connection of a socket will be counted. If
/// the endpoint has thresholds, it is counted here, so that no other connection takes its place.
#[inline(always)]
pub fn select<F: Maps>(
    service: &ServiceEntry,
    eligible: &Eligible,
    client_key: &AffinityKey,
    choice: Choice,
    avoid: u32,
    counted: u8,
) -> Result<Selected<F::Addr>, Refusal> {
    if eligible.count == 0 {
        return Err(eligible.refusal());
    }
    let options = search_options::<F>(service) | taken::SOCKET | taken::as_counted(counted);
    if service.affinity_seconds != 0
        && let Some(selected) = recall::<F>(service, eligible, client_key, avoid, options)
    {
        return Ok(selected);
    }
    let index = match choice {
        Choice::InTurn => lb_take_turn(eligible.base, eligible.count),
        Choice::By(number) => position(number, eligible.count),
        Choice::ByLoad(algorithm) => {
            match loads::least::<F>(eligible.base, eligible.count, algorithm, service.service_id) {
                // Other endpoints than those that were compared may not be overloaded.
                NONE if options & search::REPLACE != 0 => position(random(), eligible.count),
                NONE => return stay::<F>(service, eligible, avoid),
                index => index,
            }
        }
    };
    // The cursor of a range that was replaced meanwhile may be beyond its end.
    let index = if index < eligible.count { index } else { 0 };
    let chosen = lb_choose(eligible.base, eligible.count, index, avoid, options);
    let (id, is_counted) = (chosen as u32, chosen & IS_COUNTED != 0);
    if id == NONE {
        return stay::<F>(service, eligible, avoid);
    }
    // An endpoint of another service: the service entry was replaced while this program read it.
    let Some(backend) = backend::<F>(id).filter(|backend| backend.service_id == service.service_id) else {
        if counted != counted::NONE && is_counted {
            loads::recount_socket::<F>(id, counted, counted::NONE);
        }
        return Err(Refusal::Drop(Reason::MapInconsistent));
    };
    if service.affinity_seconds != 0 && !recording() {
        let affinity = Aligned(Affinity { last_used_ns: now(), backend_id: id, pad: 0 });
        // On failure the next connection gets any endpoint.
        let _ = AFFINITY.insert(client_key, &affinity.0, BPF_ANY as u64);
    }
    Ok(Selected { id, backend, is_counted })
}

/// Returns the endpoint `avoid` if it is eligible, because no other one takes the connection. The
/// connection was counted there, and takes its place again.
#[inline(always)]
fn stay<F: Maps>(
    service: &ServiceEntry,
    eligible: &Eligible,
    avoid: u32,
) -> Result<Selected<F::Addr>, Refusal> {
    match eligible.get::<F>(service, avoid) {
        Some(backend) if avoid != 0 => Ok(Selected { id: avoid, backend, is_counted: false }),
        _ => Err(eligible.refusal()),
    }
}

/// Returns the client's last endpoint, if its affinity has not timed out and the endpoint is still
/// eligible, is not left out, not overloaded and not `avoid`.
#[inline(always)]
fn recall<F: Maps>(
    service: &ServiceEntry,
    eligible: &Eligible,
    client_key: &AffinityKey,
    avoid: u32,
    options: u32,
) -> Option<Selected<F::Addr>> {
    let affinity = AFFINITY.get_ptr_mut(client_key)?;
    // SAFETY: the entry is copied. If it is evicted and reused during the copy, the endpoint may be
    // another client's; it is used only if it is eligible for this client too.
    let known = unsafe { affinity.read() };
    let now = now();
    if now.wrapping_sub(known.last_used_ns) > service.affinity_seconds as u64 * SECOND {
        return None;
    }
    if avoid != 0 && known.backend_id == avoid {
        return None;
    }
    let backend = eligible.get::<F>(service, known.backend_id)?;
    if backend.flags & backend_flags::PASSIVE_HEALTH != 0
        && lb_admit(eligible.base, eligible.count, known.backend_id, F::IS_V6 as u32) == 0
    {
        health::note_left_out(known.backend_id);
        return None;
    }
    let is_counted = backend.flags & backend_flags::THRESHOLDS != 0;
    if is_counted && lb_take(known.backend_id, options) == 0 {
        return None;
    }
    if !recording() {
        // SAFETY: one aligned word of a map value. If the element was reused, another client's
        // affinity is prolonged.
        unsafe { (&raw mut (*affinity).last_used_ns).write_volatile(now) };
    }
    note(|record| record.by_affinity = 1);
    Some(Selected { id: known.backend_id, backend, is_counted })
}
