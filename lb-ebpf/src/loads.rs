//! The open connections of endpoints: counts them, and selects endpoints by them.
//!
//! Each count is the number of records, or of sockets, that are marked as counted. Whoever changes
//! a mark adds the difference, by an atomic addition. So the counts are exact when no program is
//! between the two.

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::helpers::bpf_get_prandom_u32;
use aya_ebpf::helpers::generated::{bpf_spin_lock, bpf_spin_unlock};
use lb_common::family::{V4, V6};
use lb_common::hash::position;
use lb_common::layout::{EndpointKey, Load, algorithm, backend_flags, counted};
use lb_common::load::{Candidate, SAMPLE, sampled, step};

use crate::health::lb_is_skipped;
use crate::maps::{FLOW_LOCK_COUNT, FLOW_LOCKS, Maps, OVERLOADED, SLOTS, THRESHOLDS};
use crate::record::{note, recording};
use crate::seam::unknown;

/// Counts a connection of an endpoint in the flow table differently. `before` and `after` are of
/// [`lb_common::layout::counted`].
#[inline(always)]
pub fn recount<F: Maps>(backend_id: u32, before: u8, after: u8) {
    if let Some(load) = F::loads().get_ptr_mut(backend_id) {
        add(load.cast(), step(before, after));
    }
}

/// Counts a connected socket of an endpoint differently.
#[inline(always)]
pub fn recount_socket<F: Maps>(backend_id: u32, before: u8, after: u8) {
    if let Some(load) = F::loads().get_ptr_mut(backend_id) {
        // SAFETY: the second pair of counts of a map value.
        add(unsafe { load.cast::<u64>().add(1) }, step(before, after));
    }
}

#[inline(always)]
fn add(pair: *mut u64, number: u64) {
    // SAFETY: one instruction, an atomic addition (BPF_XADD) to two neighbours of a map value,
    // which are aligned to eight bytes. The atomic types of this target have no such operation.
    unsafe {
        core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) pair, in(reg) number, options(nostack));
    }
}

/// The last argument of [`lb_take`].
pub mod taken {
    use lb_common::layout::counted;

    /// The endpoint is one of IPv6.
    pub const V6: u32 = 1 << 0;
    /// The endpoint was selected for the connection, so only its upper threshold matters.
    pub const SELECTED: u32 = 1 << 2;
    /// The connection is that of a socket.
    pub const SOCKET: u32 = 1 << 7;
    /// One of [`counted`] is in the two bits from here on. [`counted::NONE`]: nothing is taken.
    const COUNTED: u32 = 8;

    /// Returns the argument for a connection that is counted as one of [`counted`].
    #[inline(always)]
    pub fn as_counted(counted: u8) -> u32 {
        (counted as u32) << COUNTED
    }

    /// Returns one of [`counted`].
    #[inline(always)]
    pub fn counted(options: u32) -> u8 {
        (options >> COUNTED) as u8 & 3
    }

    const _: () = assert!(counted::INACTIVE <= 3 && counted::ACTIVE <= 3);
}

/// Counts a new connection of an endpoint with thresholds, unless the endpoint is overloaded.
/// Returns whether it takes the connection: 1 or 0. `options` are those of [`taken`]: with
/// [`counted::NONE`], nothing is counted. The verifier checks this function separately.
///
/// The number of connections is compared and increased under a lock. So an endpoint never gets more
/// connections than its upper threshold, also if several CPUs open connections at once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_take(id: u32, options: u32) -> u32 {
    let is_v6 = options & taken::V6;
    let (service_id, load) = if is_v6 != 0 { endpoint::<V6>(id) } else { endpoint::<V4>(id) };
    let Some(load) = load else { return 0 };
    // 0: nothing is counted.
    let number = if recording() { 0 } else { step(counted::NONE, taken::counted(options)) };
    let pair = load.cast::<u64>();
    // SAFETY: the first or the second pair of counts of a map value.
    let pair = if options & taken::SOCKET != 0 { unsafe { pair.add(1) } } else { pair };
    let key = EndpointKey { backend_id: id, is_v6 };
    // SAFETY: copied at once. The agent replaces entries; if the element is reused during the copy,
    // this connection is judged by the thresholds of another Service.
    let thresholds = unsafe { THRESHOLDS.get(&service_id) };
    let (Some(&thresholds), Some(lock)) = (thresholds, FLOW_LOCKS.get_ptr_mut(id % FLOW_LOCK_COUNT)) else {
        // The agent removes the thresholds in this instant.
        add(pair, number);
        return 1;
    };
    // SAFETY: only the presence of the entry matters.
    let was = options & taken::SELECTED == 0 && unsafe { OVERLOADED.get(&key) }.is_some();
    // SAFETY: both are map values. Between the two helpers there are aligned loads and an addition
    // only.
    let (refused, is) = unsafe {
        bpf_spin_lock(&raw mut (*lock).lock);
        let connections = copy(load).connections().sum();
        let refused = thresholds.is_overloaded(connections, was);
        if !refused {
            add(pair, number);
        }
        bpf_spin_unlock(&raw mut (*lock).lock);
        (refused, refused || thresholds.is_overloaded(connections + (number != 0) as u64, false))
    };
    if is != was && !recording() {
        // On failure the lower threshold has no effect.
        let _ = if is { OVERLOADED.insert(&key, &1, BPF_ANY as u64) } else { OVERLOADED.remove(&key) };
    }
    if refused {
        note(|record| {
            if record.overloaded == 0 {
                record.overloaded = id;
            }
        });
    }
    !refused as u32
}

/// Returns the service id of an endpoint, and its load.
#[inline(always)]
fn endpoint<F: Maps>(id: u32) -> (u32, Option<*mut Load>) {
    (F::backends().get(id).map_or(0, |backend| backend.service_id), F::loads().get_ptr_mut(id))
}

/// Returns the position, in the range of `count` slots at `base`, of the endpoint that the
/// algorithm selects by the open connections. Returns `u32::MAX` if no endpoint is eligible. At
/// most [`SAMPLE`] slots are compared.
#[inline(always)]
pub fn least<F: Maps>(base: u32, count: u32, algorithm: u8, service_id: u32) -> u32 {
    let algorithm = algorithm as u32;
    if F::IS_V6 {
        lb_least_v6(base, count, algorithm, service_id)
    } else {
        lb_least_v4(base, count, algorithm, service_id)
    }
}

#[inline(always)]
fn least_of<F: Maps>(base: u32, count: u32, algorithm: u8, service_id: u32) -> u32 {
    let is_drawn = algorithm == algorithm::TWO_CHOICES;
    let looks = if is_drawn { 2 } else { count };
    let random = random();
    // Endpoints with at most half of the slots are left out.
    let mut may_leave_out = unknown(core::cmp::min(count, SAMPLE) as u64 / 2);
    // Linux 6.1 and older follow the loop once for each number that the verifier knows.
    let (mut best, mut best_index) = (unknown(0), unknown(u32::MAX as u64));
    for n in 0..SAMPLE {
        if n >= looks {
            break;
        }
        let index = if is_drawn { position(self::random(), count) } else { sampled(random, n, count) };
        let Some(&id) = SLOTS.get(base.wrapping_add(index)) else { break };
        let (Some(backend), Some(load)) = (F::backends().get(id), F::loads().get(id)) else { continue };
        // The service entry was replaced while this program read it, or the endpoint was removed.
        if backend.flags & backend_flags::PRESENT == 0 || backend.service_id != service_id {
            continue;
        }
        if backend.flags & backend_flags::PASSIVE_HEALTH != 0 {
            let skipped = lb_is_skipped(id, F::IS_V6 as u32, may_leave_out as u32);
            may_leave_out -= skipped as u64;
            if skipped != 0 {
                continue;
            }
        }
        if backend.flags & backend_flags::THRESHOLDS != 0 && lb_take(id, F::IS_V6 as u32) == 0 {
            continue;
        }
        let Some(candidate) = Candidate::new(algorithm, copy(load).connections(), backend.weight) else {
            continue;
        };
        if Candidate::from_number(best).is_none_or(|best| candidate.is_less(&best)) {
            (best, best_index) = (unknown(candidate.to_number()), unknown(index as u64));
        }
    }
    best_index as u32
}

/// Returns a copy of a load.
#[inline(always)]
fn copy(load: *const Load) -> Load {
    // SAFETY: two aligned words of a map value, which other programs change at the same time. Each
    // is right by itself.
    unsafe {
        let pairs = load.cast::<u64>();
        Load::of_pairs(pairs.read_volatile(), pairs.add(1).read_volatile())
    }
}

/// Returns a random number.
#[inline(always)]
pub fn random() -> u32 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_prandom_u32() }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_least_v4(base: u32, count: u32, algorithm: u32, service_id: u32) -> u32 {
    least_of::<V4>(base, count, algorithm as u8, service_id)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_least_v6(base: u32, count: u32, algorithm: u32, service_id: u32) -> u32 {
    least_of::<V6>(base, count, algorithm as u8, service_id)
}
