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
        // SAFETY: elements of an array are never freed, and this one belongs to this CPU. If
        // packets interrupt a socket program between load and store, one count is lost.
        unsafe { *counter += 1 };
    }
}
