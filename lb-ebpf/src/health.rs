//! Passive health: leaves out endpoints that refuse clients or do not answer them. The rules are in
//! [`lb_common::health`]. An endpoint whose connections are answered has no entry in [`HEALTH`].

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated::{bpf_spin_lock, bpf_spin_unlock};
use lb_common::hash::hash;
use lb_common::health::{Admission, client_bit};
use lb_common::layout::{EndpointHealth, EndpointKey, backend_flags};
use lb_common::reason::Reason;

use crate::clock::now;
use crate::count::count;
use crate::maps::{FLOW_LOCK_COUNT, FLOW_LOCKS, HEALTH, Maps};
use crate::record::{note, recording};
use crate::service::backend;

/// The results of a connection attempt. The bits below are those of `records.rs`.
pub mod attempt {
    /// The endpoint has answered.
    pub const ANSWERED: u64 = 1 << 2;
    /// The endpoint, or a router, has refused the connection.
    pub const REFUSED: u64 = 1 << 3;
    /// The client has repeated its SYN, and the endpoint has not answered.
    pub const SILENT: u64 = 1 << 4;
    /// All of them.
    pub const ANY: u64 = ANSWERED | REFUSED | SILENT;
}

/// Takes note of the result of a connection attempt, of [`attempt`], if the Service leaves out
/// endpoints. `number` is the record of the connection.
#[inline(always)]
pub fn judge<F: Maps>(number: u32, result: u64, now: u64) {
    if recording() {
        return;
    }
    let Some(flow) = F::flows().get(number) else { return };
    let (backend_id, service_id) = (flow.backend_id, flow.service_id);
    if !backend::<F>(backend_id).is_some_and(|backend| {
        backend.flags & backend_flags::PASSIVE_HEALTH != 0 && backend.service_id == service_id
    }) {
        return;
    }
    let key = EndpointKey { backend_id, is_v6: F::IS_V6 as u32 };
    let health = HEALTH.get_ptr_mut(&key);
    if result & attempt::ANSWERED != 0 {
        if health.is_some() {
            let _ = HEALTH.remove(&key);
        }
        return;
    }
    // Each refused connection counts, because a refusal comes from the endpoint. Silence may be
    // that of the path to one client, so a client counts once.
    let port = if result & attempt::REFUSED != 0 { flow.client_port } else { 0 };
    let address = &raw const flow.client_addr;
    // SAFETY: an address has four bytes, and sixteen in IPv6.
    let words = unsafe {
        let word = |index: usize| address.cast::<u32>().add(index).read_unaligned() as u64;
        if F::IS_V6 { (word(0) | word(1) << 32, word(2) | word(3) << 32) } else { (word(0), 0) }
    };
    let client = client_bit(hash(words, port));
    let Some(health) = health else {
        // A full map, or another CPU that inserts first: one failure is not counted.
        let _ = HEALTH.insert(&key, &EndpointHealth::first_failure(client, now), BPF_NOEXIST as u64);
        return;
    };
    let Some(lock) = FLOW_LOCKS.get_ptr_mut(backend_id % FLOW_LOCK_COUNT) else { return };
    // SAFETY: both are map values. Between the two helpers there are aligned loads and stores only.
    // If the entry was removed meanwhile and its memory belongs to another endpoint, that one has a
    // failure too many.
    let is_left_out = unsafe {
        bpf_spin_lock(&raw mut (*lock).lock);
        let is_left_out = (*health).fail(client, now);
        bpf_spin_unlock(&raw mut (*lock).lock);
        is_left_out
    };
    if is_left_out {
        count(Reason::EndpointLeftOut);
    }
}

/// Returns the [`Admission`] of an endpoint of a Service that leaves out endpoints, as a number.
/// The verifier checks this function separately, and not in each turn of a caller's loop.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_admission(backend_id: u32, is_v6: u32, now: u64) -> u32 {
    let admission = match HEALTH.get_ptr_mut(&EndpointKey { backend_id, is_v6 }) {
        // SAFETY: a map value; aligned words. A mixture of two states lets one connection through,
        // or leaves the endpoint out once more.
        Some(health) => unsafe { (*health).admission(now) },
        None => Admission::Yes,
    };
    admission as u32
}

/// Returns 1 if an endpoint is left out and `budget`, the number of endpoints that may be left out,
/// is not used up. The verifier checks this function separately.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_is_skipped(backend_id: u32, is_v6: u32, budget: u32) -> u32 {
    (budget != 0 && lb_admission(backend_id, is_v6, now()) == LEFT_OUT) as u32
}

/// The numbers that [`lb_admission`] returns.
pub const ADMITTED: u32 = Admission::Yes as u32;
pub const LEFT_OUT: u32 = Admission::No as u32;

/// Reserves the connection that tries an endpoint again. Returns 1 if the caller has it, and 0 if
/// the endpoint is left out. The verifier checks this function separately.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lb_try_again(backend_id: u32, is_v6: u32, now: u64) -> u32 {
    let key = EndpointKey { backend_id, is_v6 };
    let (Some(health), Some(lock)) =
        (HEALTH.get_ptr_mut(&key), FLOW_LOCKS.get_ptr_mut(backend_id % FLOW_LOCK_COUNT))
    else {
        return 1;
    };
    // SAFETY: as in `judge`.
    let is_mine = unsafe {
        bpf_spin_lock(&raw mut (*lock).lock);
        let is_mine = (*health).try_again(now);
        bpf_spin_unlock(&raw mut (*lock).lock);
        is_mine
    };
    if is_mine {
        count(Reason::EndpointTried);
    }
    is_mine as u32
}

/// Records that the endpoint which was selected first is left out.
#[inline(always)]
pub fn note_left_out(id: u32) {
    note(|record| record.left_out = id);
}
