//! `lb explain` for calls at sockets. The kernel has no test run for socket programs, so this
//! packet program replaces them. The packet has the destination and the protocol of the call, and
//! `RECORD` has the caller. Only the recorder loads this program.

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::programs::TcContext;
use lb_common::family::{Family as _, V4, V6};
use lb_common::layout::{FlowKey, counted};
use lb_common::reason::Reason;

use crate::call::{self, Caller};
use crate::count::count;
use crate::frame::skb::SkbFrame;
use crate::maps::Maps;
use crate::packet::{Parse, ethernet, parse};
use crate::record::{note, socket_namespace};
use crate::scratch::Scratches;

/// Records the decision about a `connect` to the packet's destination. The packet is not changed.
#[inline(always)]
pub fn call(context: TcContext) -> i32 {
    let frame = SkbFrame::new(context.skb.skb);
    match ethernet(&frame) {
        Some((V4::ETHERTYPE, l3)) => record::<V4>(&frame, l3),
        Some((V6::ETHERTYPE, l3)) => record::<V6>(&frame, l3),
        _ => {}
    }
    TC_ACT_UNSPEC
}

#[inline(always)]
fn record<F: Parse + Scratches>(frame: &SkbFrame, l3: usize) {
    // SAFETY: the only borrow in this program.
    let Some(scratch) = (unsafe { F::scratch() }) else { return };
    if parse(frame, l3, &mut scratch.packet).is_some() {
        connect::<F>(&scratch.packet.key);
    }
}

/// A socket that is identified by its network namespace.
struct RecordedCaller(u64);

impl Caller for RecordedCaller {
    #[inline(always)]
    fn namespace(&self) -> u64 {
        self.0
    }
}

#[inline(always)]
fn connect<F: Maps>(key: &FlowKey<F::Addr>) {
    let caller = RecordedCaller(socket_namespace());
    let service = match call::find::<F, _>(&caller, key.dst_addr, key.dst_port, key.protocol) {
        Some(Ok(service)) => service,
        Some(Err(refusal)) => return count(call::reason(refusal)),
        None => return,
    };
    match call::select::<F, _>(&caller, service, key.dst_addr, counted::NONE) {
        Ok(selected) => {
            note(|record| record.backend_id = selected.id);
            count(Reason::SocketTranslated);
        }
        Err(refusal) => count(call::reason(refusal)),
    }
}
