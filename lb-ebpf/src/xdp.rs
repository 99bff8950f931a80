//! XDP programs: run the pipeline and turn its verdict into an action.

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::programs::XdpContext;
use lb_common::event::event_path;
use lb_common::family::{Family as _, V4, V6};
use lb_common::reason::Reason;

use crate::count::count;
use crate::event;
use crate::frame::xdp::XdpFrame;
use crate::frame::{Frame as _, swap_link_addresses};
use crate::handover::{self, PREDECESSORS_XDP};
use crate::log;
use crate::nat::Header;
use crate::packet::{ethernet, parse};
use crate::pipeline;
use crate::records::Records;
use crate::verdict::Verdict;

/// Finds the network header and runs the pipeline of its family.
#[inline(always)]
pub fn ingress(context: XdpContext) -> u32 {
    let frame = XdpFrame(context);
    let action = match ethernet(&frame) {
        Some((V4::ETHERTYPE, l3)) => ingress_v4(frame.0.ctx, l3),
        Some((V6::ETHERTYPE, l3)) => ingress_v6(frame.0.ctx, l3),
        _ => xdp_action::XDP_PASS,
    };
    if action != HAND_OVER {
        return action;
    }
    handover::hand_over(&frame.0, &PREDECESSORS_XDP, 0);
    xdp_action::XDP_PASS
}

/// Returned in place of an action: the earlier program decides.
const HAND_OVER: u32 = 0x80;

// One subprogram per family: each has a stack of its own, and the verifier walks them one after the
// other.

#[inline(never)]
fn ingress_v4(context: *mut aya_ebpf::bindings::xdp_md, l3: usize) -> u32 {
    run::<V4>(&XdpFrame(XdpContext::new(context)), l3)
}

#[inline(never)]
fn ingress_v6(context: *mut aya_ebpf::bindings::xdp_md, l3: usize) -> u32 {
    run::<V6>(&XdpFrame(XdpContext::new(context)), l3)
}

#[inline(always)]
fn run<F: Header + Records>(frame: &XdpFrame, l3: usize) -> u32 {
    // SAFETY: the only borrow in this program.
    let Some(scratch) = (unsafe { F::scratch() }) else { return xdp_action::XDP_PASS };
    if parse(frame, l3, &mut scratch.packet).is_none() {
        return if handover::is_going_on() { HAND_OVER } else { xdp_action::XDP_PASS };
    }
    match pipeline::ingress(frame, scratch) {
        Verdict::Pass => xdp_action::XDP_PASS,
        // An answer changes the length of the packet: the tc program sends it.
        Verdict::LeaveToTc | Verdict::Answer(_) => {
            count(Reason::LeftToTc);
            xdp_action::XDP_PASS
        }
        Verdict::HandOver => HAND_OVER,
        Verdict::Sent(action) => action as u32,
        Verdict::Drop(reason) => {
            count(reason);
            log::dropped::<F>(&scratch.packet.key, reason);
            event::dropped::<F>(&scratch.packet.key, reason, event_path::XDP);
            xdp_action::XDP_DROP
        }
    }
}

/// Parses the link header, swaps its addresses, and sends the frame back: the least that a program
/// can do with a packet.
#[inline(always)]
pub fn floor(context: XdpContext) -> u32 {
    let frame = XdpFrame(context);
    let Some((_, l3)) = ethernet(&frame) else { return xdp_action::XDP_DROP };
    if frame.load::<u16>(l3).is_none() || swap_link_addresses(&frame).is_none() {
        return xdp_action::XDP_DROP;
    }
    xdp_action::XDP_TX
}
