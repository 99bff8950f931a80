//! Ends connections that are over and whose records no program has taken yet. The agent finds them
//! when it reads the flow table, and runs this program on a list of them. Until then, they count at
//! their endpoints.
//!
//! The list can also contain connections that are not over: their endpoints have drained for their
//! time limit, or they have reached their maximum age.

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::programs::TcContext;
use lb_common::event::event_end;
use lb_common::family::{V4, V6};
use lb_common::layout::{SWEEP_HEADER, SWEEP_RECORDS, sweep};

use crate::clock::now;
use crate::records::{CUT, Records as _};

/// The packet is a list of records, see [`sweep`].
#[inline(always)]
pub fn end_connections(context: &TcContext) -> i32 {
    let now = now();
    for position in 0..SWEEP_RECORDS {
        let Ok(record) = context.load::<u64>(SWEEP_HEADER + position * size_of::<u64>()) else { break };
        let (number, generation) = (record as u32, (record >> 32) as u16);
        // All bits are those of `CUT` if the record has the bit. A branch would double the work of
        // the verifier in each round.
        let cut = (record >> sweep::CUT.trailing_zeros()) & 1;
        let now = now | (CUT * cut);
        let aged = (record >> sweep::AGED.trailing_zeros()) & 1;
        let end = event_end::IDLE
            + (event_end::DRAINED - event_end::IDLE) * cut as u8
            + (event_end::AGED - event_end::DRAINED) * aged as u8;
        if record & sweep::V6 != 0 {
            V6::end_if_over(number, generation, now, end);
        } else {
            V4::end_if_over(number, generation, now, end);
        }
    }
    TC_ACT_UNSPEC
}
