//! Counting what happens to packets.

use lb_common::reason::Reason;

use crate::maps::COUNTERS;
use crate::record::{note_reason, recording};

/// Adds one to the counter of `reason` on this CPU.
#[inline(always)]
pub fn count(reason: Reason) {
    if recording() {
        return note_reason(reason);
    }
    if let Some(counter) = COUNTERS.get_ptr_mut(reason as u32) {
        // SAFETY: a per-CPU entry, valid for the whole run of the program; a program that interrupts this one between
        // load and store (a socket program, interrupted by packets) can lose a count, never corrupt one.
        unsafe { *counter += 1 };
    }
}
