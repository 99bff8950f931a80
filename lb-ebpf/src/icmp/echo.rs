//! Ping to a Service address: nobody has the address, so the programs answer (kube-proxy does not).

use aya_ebpf::bindings::BPF_F_INGRESS;
use aya_ebpf::helpers::generated::bpf_redirect;
use lb_common::checksum::difference;
use lb_common::layout::address_flags;
use lb_common::reason::Reason;
use lb_common::wire::{ETHERNET_LEN, ICMP_CHECKSUM};

use super::OWN_TTL;
use crate::count::count;
use crate::frame::{Frame, swap_link_addresses};
use crate::nat::{Header, store_addresses};
use crate::packet::Packet;
use crate::pipeline;
use crate::service::known;
use crate::tc::Way;
use crate::verdict::Verdict;

/// An echo request. Those to addresses that this node has itself are the kernel's to answer.
///
/// A request that arrives is answered to the device it came by. One that leaves is a ping from a pod or from this node that
/// found no device of the Service's address and was routed out; its reply enters by that device, as if somebody out there
/// had answered: it passes strict reverse path filters, because the route to the Service's address is that same device.
#[inline(always)]
pub fn request<F: Header, K: Frame>(frame: &K, packet: &Packet<F>, way: Way) -> Verdict {
    let flags = known::<F>(&packet.key.dst_addr);
    if flags == 0 {
        return pipeline::to_unknown::<F>(packet.key.dst_addr);
    }
    if flags & (address_flags::SERVICE | address_flags::NODE) != address_flags::SERVICE {
        return Verdict::Pass;
    }
    if reply(frame, packet).is_none() {
        return Verdict::Drop(Reason::RewriteFailed);
    }
    count(Reason::EchoAnswered);
    let direction = if way == Way::In { 0 } else { BPF_F_INGRESS as u64 };
    // SAFETY: no preconditions.
    Verdict::Sent(unsafe { bpf_redirect(frame.ifindex(), direction) } as i32)
}

/// Turns the request into its reply. Exchanged addresses change no sum.
#[inline(always)]
fn reply<F: Header, K: Frame>(frame: &K, packet: &Packet<F>) -> Option<()> {
    let (asked, replied) = F::ECHO;
    let change = difference(first_word(asked), first_word(replied));
    // First, because it calls helpers.
    frame.update_checksum(packet, packet.l4 + ICMP_CHECKSUM, 0, change)?;
    frame.store::<[u8; 2]>(packet.l4, [replied, 0])?;
    if packet.l3 >= ETHERNET_LEN {
        swap_link_addresses(frame)?;
    }
    F::finish(frame, packet, 0, OWN_TTL)?;
    store_addresses(frame, packet, packet.key.dst_addr, packet.key.src_addr)
}

/// The first word of an echo: type, and code 0.
#[inline(always)]
fn first_word(kind: u8) -> u64 {
    u16::from_ne_bytes([kind, 0]) as u64
}
