//! tc programs at ingress and egress: run the pipeline and turn its verdict into an action.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::programs::TcContext;
use lb_common::event::event_path;
use lb_common::family::{Family as _, V4, V6};

use crate::client::came_from_pod;
use crate::count::count;
use crate::event;
use crate::frame::skb::{Receiver, SkbFrame};
use crate::handover::{self, PREDECESSORS_TC};
use crate::icmp;
use crate::icmp::effect::Effects;
use crate::icmp::kind::Kinds;
use crate::log;
use crate::maps::Maps;
use crate::packet::{Packet, ethernet, parse};
use crate::pipeline;
use crate::record::recording;
use crate::records::Records;
use crate::scratch::Scratches;
use crate::verdict::{Answer, Direction, Verdict};

/// Decides about a packet on a device with Ethernet headers.
#[inline(always)]
pub fn with_ethernet(context: TcContext, direction: Direction) -> i32 {
    let frame = SkbFrame::new(context.skb.skb);
    // The packet of `lb explain` has no link addresses.
    if direction == Direction::Ingress && !recording() && !is_for_this_node(&frame) {
        return TC_ACT_UNSPEC;
    }
    if !is_untagged(&frame, direction) {
        // The program of the VLAN device receives this packet next, without the tag.
        return TC_ACT_UNSPEC;
    }
    frame.linearize();
    match ethernet(&frame) {
        Some((ethertype, l3)) => {
            let action = run(&frame, ethertype, l3, direction);
            finish(&context, action, direction as u32)
        }
        None => TC_ACT_UNSPEC,
    }
}

/// Returns whether a frame belongs to no VLAN. A tag with id 0 carries only a priority (IEEE 802.1Q
/// 9.6). At ingress this function removes it, as the kernel does after tc
/// (`__netif_receive_skb_core`): the packet may leave by another device, which would send the tag.
#[inline(always)]
fn is_untagged(frame: &SkbFrame, direction: Direction) -> bool {
    match frame.vlan() {
        None => true,
        Some(0) => direction == Direction::Egress || (frame.pop_vlan().is_some() && frame.vlan().is_none()),
        Some(_) => false,
    }
}

/// Returns whether the frame is for this node, by its destination MAC address. A switch floods
/// frames for other hosts, too, and this node must neither translate nor answer them. Frames of
/// pods on a bridge are addressed to the bridge, and the programs are at its ports.
#[inline(always)]
fn is_for_this_node(frame: &SkbFrame) -> bool {
    match frame.receiver() {
        Receiver::Device => true,
        Receiver::OtherHost => came_from_pod(frame),
        Receiver::Many => false,
    }
}

/// Decides about a packet on a device whose frames start with the IP header (ipip, wireguard, tun).
#[inline(always)]
pub fn without_ethernet(context: TcContext, direction: Direction) -> i32 {
    let frame = SkbFrame::new(context.skb.skb);
    frame.linearize();
    let action = run(&frame, frame.ethertype(), 0, direction);
    finish(&context, action, WITHOUT_ETHERNET + direction as u32)
}

/// The number of the first program for devices without Ethernet headers in
/// [`handover::TC_PROGRAMS`].
///
/// [`handover::TC_PROGRAMS`]: lb_common::layout::handover::TC_PROGRAMS
const WITHOUT_ETHERNET: u32 = 2;

/// Returns the action. A packet that this generation cannot decide goes to an earlier program.
#[inline(always)]
fn finish(context: &TcContext, action: i32, program: u32) -> i32 {
    if action != HAND_OVER {
        return action;
    }
    handover::hand_over(context, &PREDECESSORS_TC, program);
    TC_ACT_UNSPEC
}

#[inline(always)]
fn run(frame: &SkbFrame, ethertype: u16, l3: usize, direction: Direction) -> i32 {
    let skb = frame.skb();
    match (ethertype, direction) {
        (V4::ETHERTYPE, Direction::Ingress) => match ingress_v4(skb, l3) {
            action if action < ICMP => action,
            ICMP => icmp_ingress_v4(skb),
            answer => answer_v4(skb, answer),
        },
        (V6::ETHERTYPE, Direction::Ingress) => match ingress_v6(skb, l3) {
            action if action < ICMP => action,
            ICMP => icmp_ingress_v6(skb),
            answer => answer_v6(skb, answer),
        },
        (V4::ETHERTYPE, Direction::Egress) => match egress_v4(skb, l3) {
            ICMP => icmp_egress_v4(skb),
            action => action,
        },
        (V6::ETHERTYPE, Direction::Egress) => match egress_v6(skb, l3) {
            ICMP => icmp_egress_v6(skb),
            action => action,
        },
        _ => TC_ACT_UNSPEC,
    }
}

// Each family and direction is a subprogram with a stack of its own, and so are ICMP messages and
// answers. The program calls them one after the other: the frames of nested calls together must not
// exceed 512 bytes, and older kernels (6.1) round each up to 32. The parsed packet stays in the
// scratch entry.

/// Returned in place of an action: the earlier program decides.
const HAND_OVER: i32 = 0x80;
/// Returned by a pipeline in place of an action: the packet is an ICMP message.
const ICMP: i32 = 0x100;
/// Returned by a pipeline in place of an action: this number plus an [`Answer`].
const ANSWER: i32 = 0x200;

const TOO_BIG: i32 = Answer::TooBig as i32;
const TIME_EXCEEDED: i32 = Answer::TimeExceeded as i32;
const NO_ENDPOINT: i32 = Answer::NoEndpoint as i32;
const NO_CONNECTION: i32 = Answer::NoConnection as i32;

/// A helper that sends a packet returns an action below this number. The verifier does not derive
/// that bound.
const ACTIONS: i32 = 16;

#[inline(never)]
fn ingress_v4(skb: *mut __sk_buff, l3: usize) -> i32 {
    ingress::<V4>(skb, l3)
}

#[inline(never)]
fn ingress_v6(skb: *mut __sk_buff, l3: usize) -> i32 {
    ingress::<V6>(skb, l3)
}

#[inline(never)]
fn egress_v4(skb: *mut __sk_buff, l3: usize) -> i32 {
    egress::<V4>(skb, l3)
}

#[inline(never)]
fn egress_v6(skb: *mut __sk_buff, l3: usize) -> i32 {
    egress::<V6>(skb, l3)
}

#[inline(never)]
fn icmp_ingress_v4(skb: *mut __sk_buff) -> i32 {
    message::<V4>(skb, Direction::Ingress)
}

#[inline(never)]
fn icmp_ingress_v6(skb: *mut __sk_buff) -> i32 {
    message::<V6>(skb, Direction::Ingress)
}

#[inline(never)]
fn icmp_egress_v4(skb: *mut __sk_buff) -> i32 {
    message::<V4>(skb, Direction::Egress)
}

#[inline(never)]
fn icmp_egress_v6(skb: *mut __sk_buff) -> i32 {
    message::<V6>(skb, Direction::Egress)
}

#[inline(never)]
fn answer_v4(skb: *mut __sk_buff, answer: i32) -> i32 {
    send_answer::<V4>(skb, answer)
}

#[inline(never)]
fn answer_v6(skb: *mut __sk_buff, answer: i32) -> i32 {
    send_answer::<V6>(skb, answer)
}

#[inline(always)]
fn ingress<F: Kinds + Records>(skb: *mut __sk_buff, l3: usize) -> i32 {
    let frame = SkbFrame::new(skb);
    // SAFETY: the only borrow in this subprogram, and its caller holds none.
    let Some(scratch) = (unsafe { F::scratch() }) else { return TC_ACT_UNSPEC };
    if parse(&frame, l3, &mut scratch.packet).is_none() {
        return without_ports(&scratch.packet);
    }
    match pipeline::ingress(&frame, scratch) {
        Verdict::Answer(answer) => ANSWER + answer as i32,
        verdict => action(&scratch.packet, verdict),
    }
}

#[inline(always)]
fn egress<F: Kinds + Records>(skb: *mut __sk_buff, l3: usize) -> i32 {
    let frame = SkbFrame::new(skb);
    // SAFETY: the only borrow in this subprogram, and its caller holds none.
    let Some(scratch) = (unsafe { F::scratch() }) else { return TC_ACT_UNSPEC };
    if parse(&frame, l3, &mut scratch.packet).is_none() {
        return without_ports(&scratch.packet);
    }
    let verdict = pipeline::egress(&frame, scratch);
    action(&scratch.packet, verdict)
}

/// Returns the action for a packet of which only the IP header is parsed.
#[inline(always)]
fn without_ports<F: Maps>(packet: &Packet<F>) -> i32 {
    if packet.key.protocol == F::ICMP {
        ICMP
    } else if handover::is_going_on() {
        // The earlier maps may have the ports of this fragment.
        HAND_OVER
    } else {
        TC_ACT_UNSPEC
    }
}

#[inline(always)]
fn message<F: Kinds + Effects>(skb: *mut __sk_buff, direction: Direction) -> i32 {
    // SAFETY: the only borrow in this subprogram, and its caller holds none.
    let Some(scratch) = (unsafe { F::scratch() }) else { return TC_ACT_UNSPEC };
    let verdict = icmp::message(&SkbFrame::new(skb), scratch, direction);
    action(&scratch.packet, verdict)
}

#[inline(always)]
fn send_answer<F: Kinds + Scratches>(skb: *mut __sk_buff, answer: i32) -> i32 {
    let answer = match answer - ANSWER {
        TOO_BIG => Answer::TooBig,
        TIME_EXCEEDED => Answer::TimeExceeded,
        NO_ENDPOINT => Answer::NoEndpoint,
        NO_CONNECTION => Answer::NoConnection,
        _ => Answer::UnknownPort,
    };
    // SAFETY: the only borrow in this subprogram, and its caller holds none.
    let Some(scratch) = (unsafe { F::scratch() }) else { return TC_ACT_UNSPEC };
    let verdict = icmp::answer::send(&SkbFrame::new(skb), &scratch.packet, answer, scratch.route.mtu());
    if let Verdict::Sent(_) = verdict {
        event::refused::<F>(&scratch.packet.key, answer.reason(), event_path::TC);
    }
    action(&scratch.packet, verdict)
}

/// Counts the verdict and returns the action. `TC_ACT_UNSPEC` lets the next program of the device,
/// perhaps a CNI's, run too.
#[inline(always)]
fn action<F: Maps>(packet: &Packet<F>, verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Pass | Verdict::LeaveToTc | Verdict::Answer(_) => TC_ACT_UNSPEC,
        Verdict::HandOver => HAND_OVER,
        Verdict::Sent(action) => action & (ACTIONS - 1),
        Verdict::Drop(reason) => {
            count(reason);
            log::dropped::<F>(&packet.key, reason);
            event::dropped::<F>(&packet.key, reason, event_path::TC);
            TC_ACT_SHOT
        }
    }
}
