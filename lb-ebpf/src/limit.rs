//! The rate of the packets that this node sends itself: ICMP errors (RFC 1812 4.3.2.8, RFC 4443
//! 2.4(f)) and resets. Each CPU sends at most 1,000 of a kind in a row, and then 1,000 a second.

use crate::clock::now;
use crate::maps::ANSWER_LIMITS;

/// The time between two packets of a kind, on average.
const INTERVAL_NS: u64 = 1_000_000;
/// The number of packets of a kind that may follow each other without a pause.
const BURST: u64 = 1_000;

/// A kind of packets: an index into `ANSWER_LIMITS`.
#[derive(Copy, Clone)]
#[repr(u32)]
pub enum Own {
    Error = 0,
    Reset = 1,
}

/// Returns whether this CPU may send another packet of this kind now, and counts it.
#[inline(always)]
pub fn may_send(kind: Own) -> bool {
    let Some(next) = ANSWER_LIMITS.get_ptr_mut(kind as u32) else { return false };
    let now = now();
    let earliest = now.saturating_sub(BURST * INTERVAL_NS);
    // SAFETY: elements of an array are never freed, and this one belongs to this CPU: no other
    // packet program changes it meanwhile.
    let next = unsafe { &mut *next };
    let due = if *next > earliest { *next } else { earliest };
    if due > now {
        return false;
    }
    *next = due + INTERVAL_NS;
    true
}
