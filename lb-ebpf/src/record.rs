//! Recording instead of acting, for `lb explain`: the programs are loaded once more on the same maps, with the global `RECORDING`
//! set. They decide as ever, write down what they decided and leave no trace in flows, affinity or counters. In the programs that
//! are attached the verifier removes all of it.

use lb_common::layout::{Record, Service};
use lb_common::reason::Reason;

use crate::maps::RECORD;
use crate::settings::RECORDING;

/// Whether nothing but `RECORD` may be written.
#[inline(always)]
pub fn recording() -> bool {
    RECORDING.load() != 0
}

/// Writes down a decision.
#[inline(always)]
pub fn note(decision: impl FnOnce(&mut Record)) {
    if recording()
        && let Some(record) = RECORD.get_ptr_mut(0)
    {
        // SAFETY: the only program that uses this map is run by one process, one packet after the other.
        decision(unsafe { &mut *record });
    }
}

/// Writes down what would be counted.
#[inline(always)]
pub fn note_reason(reason: Reason) {
    note(|record| record.reason = reason as u32 + 1);
}

/// Writes down the service that was matched.
#[inline(always)]
pub fn note_service(service: &Service) {
    note(|record| {
        record.service_id = service.service_id;
        record.kind = service.kind as u32;
        record.flags = service.flags;
    });
}

/// Returns the network namespace of the socket whose call is to be explained.
#[inline(always)]
pub fn socket_namespace() -> u64 {
    RECORD.get(0).map_or(0, |record| record.netns_cookie)
}
