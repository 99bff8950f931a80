//! Pings to Service addresses. No host has such an address, so the programs answer (kube-proxy does
//! not).

use lb_common::checksum::difference;
use lb_common::reason::Reason;
use lb_common::wire::{ETHERNET_LEN, ICMP_CHECKSUM};

use super::kind::Kinds;
use crate::address::known;
use crate::compose::OWN_TTL;
use crate::count::count;
use crate::frame::skb::SkbFrame;
use crate::frame::{Frame as _, swap_link_addresses};
use crate::nat::store_addresses;
use crate::packet::{Packet, is_acceptable};
use crate::service;
use crate::verdict::{Direction, Verdict};

/// Decides about an echo request. The kernel answers requests to addresses of this node.
///
/// The reply to a request that arrives leaves by the same device. A request that leaves is a ping
/// from a pod or from this node which was routed out, because no device has the Service's address.
/// The reply to it enters by the device that the request was about to leave by. It passes strict
/// reverse path filters: the route to the Service's address is that device.
#[inline(always)]
pub fn request<F: Kinds>(frame: &SkbFrame, packet: &Packet<F>, direction: Direction) -> Verdict {
    let Some(known) = known::<F>(&packet.key.dst_addr) else {
        return service::to_unknown::<F>(packet.key.dst_addr);
    };
    if !known.is_service_only() || !is_acceptable(frame, packet) {
        return Verdict::Pass;
    }
    if reply(frame, packet).is_none() {
        return Verdict::Drop(Reason::RewriteFailed);
    }
    count(Reason::EchoAnswered);
    Verdict::Sent(match direction {
        Direction::Ingress => frame.send_out(),
        Direction::Egress => frame.receive(),
    })
}

/// Turns the request into its reply. The addresses are exchanged, which changes no sum.
#[inline(always)]
fn reply<F: Kinds>(frame: &SkbFrame, packet: &Packet<F>) -> Option<()> {
    let change = difference(first_word(F::ECHO_REQUEST), first_word(F::ECHO_REPLY));
    // This comes first because it calls helpers.
    frame.update_checksum::<F>(packet.l4 + ICMP_CHECKSUM, false, 0, change)?;
    frame.store::<[u8; 2]>(packet.l4, [F::ECHO_REPLY, 0])?;
    if packet.l3 >= ETHERNET_LEN {
        swap_link_addresses(frame)?;
    }
    F::finish(frame, packet, 0, OWN_TTL)?;
    store_addresses(frame, packet, packet.key.dst_addr, packet.key.src_addr)
}

/// Returns the first word of an echo: its type, and code 0.
#[inline(always)]
fn first_word(kind: u8) -> u64 {
    u16::from_ne_bytes([kind, 0]) as u64
}
