//! Counts packets by reason.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated::{bpf_spin_lock, bpf_spin_unlock};
use lb_common::family::Family;
use lb_common::layout::{EndpointKey, PortShortage};
use lb_common::reason::Reason;

use crate::maps::{COUNTERS, FLOW_LOCK_COUNT, FLOW_LOCKS, NO_SOURCE_PORT};
use crate::record::{note_reason, recording};

/// Adds one to the counter of `reason` on this CPU.
#[inline(always)]
pub fn count(reason: Reason) {
    if recording() {
        return note_reason(reason);
    }
    if let Some(counter) = COUNTERS.get_ptr_mut(reason as u32) {
        // SAFETY: elements of an array are never freed, and this one belongs to this CPU. If
        // packets interrupt a socket program between load and store, one count is lost.
        unsafe { *counter += 1 };
    }
}

/// Counts a packet for whose connection to an endpoint no source port was free.
#[inline(always)]
pub fn note_port_shortage<F: Family>(backend_id: u32, now: u64) {
    lb_note_port_shortage((F::IS_V6 as u64) << 32 | backend_id as u64, now);
}

/// The function of both families: it takes numbers only, so the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_note_port_shortage(endpoint: u64, now: u64) -> u64 {
    let key = EndpointKey { backend_id: endpoint as u32, is_v6: (endpoint >> 32) as u32 };
    // The agent removes only entries of endpoints that get no new connections. If the memory of an
    // entry is used again meanwhile, one packet is counted for the other endpoint.
    if let Some(shortage) = NO_SOURCE_PORT.get_ptr_mut(&key)
        && let Some(lock) = FLOW_LOCKS.get_ptr_mut(key.backend_id % FLOW_LOCK_COUNT)
    {
        // SAFETY: both are map values. Between the two helpers there are aligned loads and stores
        // only.
        unsafe {
            bpf_spin_lock(&raw mut (*lock).lock);
            (*shortage).packets += 1;
            (*shortage).last_ns = now;
            bpf_spin_unlock(&raw mut (*lock).lock);
        }
        return 0;
    }
    // A full map, or another CPU that inserts first: the packet is in `COUNTERS` all the same.
    let _ = NO_SOURCE_PORT.insert(&key, &PortShortage { packets: 1, last_ns: now }, BPF_NOEXIST as u64);
    0
}
