//! Records decisions for `lb explain`, which loads the programs again on the same maps, with the
//! global `RECORDING` set. These programs make the same decisions and record them. They change no
//! flow, affinity or counter. In the attached programs the verifier removes all of this code.

use lb_common::layout::{Record, ServiceEntry};
use lb_common::reason::Reason;

use crate::maps::RECORD;
use crate::settings::RECORDING;

/// Returns whether this program records. Then it may write no other map than `RECORD`.
#[inline(always)]
pub fn recording() -> bool {
    RECORDING.load() != 0
}

/// Records a decision.
#[inline(always)]
pub fn note(decision: impl FnOnce(&mut Record)) {
    if recording()
        && let Some(record) = RECORD.get_ptr_mut(0)
    {
        // SAFETY: each process of `lb explain` has a map of its own, and runs one packet after the
        // other.
        decision(unsafe { &mut *record });
    }
}

/// Records the reason that would be counted.
#[inline(always)]
pub fn note_reason(reason: Reason) {
    note(|record| record.reason = reason as u32 + 1);
}

/// Records the service that was matched.
#[inline(always)]
pub fn note_service(service: &ServiceEntry) {
    note(|record| {
        record.service_id = service.service_id;
        record.kind = service.kind as u32;
        record.flags = service.flags;
        record.scheduler = service.scheduler as u32;
    });
}

/// Returns the network namespace of the socket whose call is to be explained.
#[inline(always)]
pub fn socket_namespace() -> u64 {
    RECORD.get(0).map_or(0, |record| record.netns_cookie)
}
