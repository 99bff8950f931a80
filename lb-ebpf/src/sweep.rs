//! Ends connections that are over and whose records no program has taken yet. The agent finds them
//! when it reads the flow table, and runs this program on a list of them. Until then, they count at
//! their endpoints.

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::programs::TcContext;
use lb_common::family::{V4, V6};
use lb_common::layout::{SWEEP_HEADER, SWEEP_RECORDS, sweep};

use crate::clock::now;
use crate::records::Records as _;

/// The packet is a list of records, see [`sweep`].
#[inline(always)]
pub fn end_connections(context: &TcContext) -> i32 {
    let now = now();
    for position in 0..SWEEP_RECORDS {
        let Ok(record) = context.load::<u64>(SWEEP_HEADER + position * size_of::<u64>()) else { break };
        let (number, generation) = (record as u32, (record >> 32) as u16);
        if record & sweep::V6 != 0 {
            V6::end_if_over(number, generation, now);
        } else {
            V4::end_if_over(number, generation, now);
        }
    }
    TC_ACT_UNSPEC
}
