//! skbs at tc ingress and egress. Headers are written in place; transport checksums are changed only through
//! `bpf_l4_csum_replace`, which knows whether the skb's checksum is complete, partial or verified by the device.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{
    __sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_redir_neigh,
};
use aya_ebpf::helpers::generated::{
    bpf_csum_update, bpf_l4_csum_replace, bpf_redirect_neigh, bpf_skb_pull_data,
};
use aya_ebpf::programs::TcContext;
use lb_common::checksum::fold;
use lb_common::family::{Family, V4, V6};
use lb_common::layout::UDP;

use crate::count::count;
use crate::frame::Frame;
use crate::icmp;
use crate::log;
use crate::maps::{Maps, Scratch};
use crate::nat::Header;
use crate::packet::{Packet, ethernet, parse};
use crate::pipeline;
use crate::record::note;
use crate::route::{Next, Route};
use crate::verdict::Verdict;

/// `BPF_F_IPV6` of `bpf_l4_csum_replace` (Linux 6.16 and stable kernels): do not touch a complete checksum, because in
/// an IPv6 packet the change of the addresses and that of the transport checksum cancel each other.
const BPF_F_IPV6: u64 = 1 << 7;

/// Headers within this many bytes are made linear before they are parsed.
const LINEAR: u32 = 128;

pub struct SkbFrame(pub TcContext);

impl SkbFrame {
    #[inline(always)]
    fn skb(&self) -> *mut __sk_buff {
        self.0.skb.skb
    }

    /// Makes the headers readable in place when the driver left them in page fragments.
    #[inline(always)]
    fn linearize(&self) {
        let length = self.0.len();
        let linear = self.data_end() - self.data();
        if linear < LINEAR as usize && (linear as u32) < length {
            // On failure the packet is parsed as far as it is linear, that is, passed on untouched.
            // SAFETY: the helper checks the length; packet pointers are read anew after it.
            unsafe { bpf_skb_pull_data(self.skb(), if length < LINEAR { length } else { LINEAR }) };
        }
    }

    #[inline(always)]
    fn replace_checksum(&self, offset: usize, difference: u64, flags: u64) -> i64 {
        // SAFETY: the helper checks the offset; packet pointers are read anew after it.
        unsafe { bpf_l4_csum_replace(self.skb(), offset as u32, 0, difference, flags) as i64 }
    }
}

impl Frame for SkbFrame {
    const COMPLETE: bool = true;

    #[inline(always)]
    fn data(&self) -> usize {
        self.0.data()
    }

    #[inline(always)]
    fn data_end(&self) -> usize {
        self.0.data_end()
    }

    #[inline(always)]
    fn context(&self) -> *mut core::ffi::c_void {
        self.0.as_ptr()
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: a context field, always readable.
        unsafe { (*self.skb()).ifindex }
    }

    #[inline(always)]
    fn segment_payload(&self) -> usize {
        // SAFETY: a context field, always readable (Linux 5.7).
        unsafe { (*self.skb()).gso_size as usize }
    }

    #[inline(always)]
    fn update_checksum<F: Maps>(
        &self,
        packet: &Packet<F>,
        offset: usize,
        addresses: u64,
        ports: u64,
    ) -> Option<()> {
        let udp = if packet.key.protocol == UDP { BPF_F_MARK_MANGLED_0 as u64 } else { 0 };
        let addresses = fold(addresses) as u64;
        let pseudo = BPF_F_PSEUDO_HDR as u64 | udp;
        let mut failed = if F::IS_V6 {
            let mut result = self.replace_checksum(offset, addresses, pseudo | BPF_F_IPV6);
            if result != 0 {
                // A kernel without the flag wrongly takes the difference off a complete checksum: put it back.
                result = self.replace_checksum(offset, addresses, pseudo);
                // SAFETY: no preconditions; it fails, as it should, where the checksum is not complete.
                unsafe { bpf_csum_update(self.skb(), addresses as u32) };
            }
            result
        } else {
            self.replace_checksum(offset, addresses, pseudo)
        };
        failed |= self.replace_checksum(offset, fold(ports) as u64, udp);
        if failed != 0 { None } else { Some(()) }
    }

    #[inline(always)]
    fn can_send<F: Maps>(&self, _packet: &Packet<F>, _route: &Route, _next: Next) -> bool {
        true
    }

    #[inline(always)]
    fn send<F: Maps>(&self, _packet: &Packet<F>, route: &mut Route) -> Verdict {
        let ifindex = route.ifindex();
        note(|record| record.ifindex = ifindex);
        let size = core::mem::size_of::<bpf_redir_neigh>() as i32;
        // SAFETY: the parameters are initialized and of the size given. The helper resolves the neighbour and adds the
        // link header of the device, or none on devices that have none.
        let action = unsafe { bpf_redirect_neigh(ifindex, route.neighbour(), size, 0) };
        Verdict::Sent(action as i32)
    }
}

/// Which way the packet goes, as seen from this node.
#[derive(Copy, Clone, PartialEq, Eq)]
pub enum Way {
    In,
    Out,
}

/// A packet on a device with Ethernet headers.
#[inline(always)]
pub fn with_ethernet(context: TcContext, way: Way) -> i32 {
    let frame = SkbFrame(context);
    // SAFETY: a context field, always readable.
    if unsafe { (*frame.skb()).vlan_present } != 0 {
        // The tag was taken off into the skb: the VLAN device's own program sees this packet next, untagged.
        return TC_ACT_UNSPEC;
    }
    frame.linearize();
    match ethernet(&frame) {
        Some((ethertype, l3)) => run(&frame, ethertype, l3, way),
        None => TC_ACT_UNSPEC,
    }
}

/// A packet on a device whose frames start with the IP header (ipip, wireguard, tun).
#[inline(always)]
pub fn without_ethernet(context: TcContext, way: Way) -> i32 {
    let frame = SkbFrame(context);
    frame.linearize();
    // SAFETY: a context field, always readable.
    let ethertype = u16::from_be(unsafe { (*frame.skb()).protocol } as u16);
    run(&frame, ethertype, 0, way)
}

#[inline(always)]
fn run(frame: &SkbFrame, ethertype: u16, l3: usize, way: Way) -> i32 {
    match (ethertype, way) {
        (V4::ETHERTYPE, Way::In) => ingress_v4(frame.skb(), l3),
        (V6::ETHERTYPE, Way::In) => ingress_v6(frame.skb(), l3),
        (V4::ETHERTYPE, Way::Out) => egress_v4(frame.skb(), l3),
        (V6::ETHERTYPE, Way::Out) => egress_v6(frame.skb(), l3),
        _ => TC_ACT_UNSPEC,
    }
}

// One subprogram per family and way: each has a stack of its own, and the verifier walks them one after the other.

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

#[inline(always)]
fn ingress<F: Header>(skb: *mut __sk_buff, l3: usize) -> i32 {
    let frame = SkbFrame(TcContext::new(skb));
    let Some(scratch) = F::scratch() else { return TC_ACT_UNSPEC };
    if parse(&frame, l3, &mut scratch.packet).is_none() {
        return other::<F>(skb, scratch, Way::In);
    }
    let verdict = match pipeline::ingress(&frame, scratch) {
        Verdict::Answer(error) => icmp::answer(&frame, skb, &scratch.packet, error, scratch.route.mtu()),
        verdict => verdict,
    };
    action(&scratch.packet, verdict)
}

#[inline(always)]
fn egress<F: Header>(skb: *mut __sk_buff, l3: usize) -> i32 {
    let frame = SkbFrame(TcContext::new(skb));
    let Some(scratch) = F::scratch() else { return TC_ACT_UNSPEC };
    if parse(&frame, l3, &mut scratch.packet).is_none() {
        return other::<F>(skb, scratch, Way::Out);
    }
    let verdict = pipeline::egress(&frame, &scratch.packet);
    action(&scratch.packet, verdict)
}

/// A packet without ports, its IP header parsed into the scratch entry.
#[inline(always)]
fn other<F: Header>(skb: *mut __sk_buff, scratch: &Scratch<F>, way: Way) -> i32 {
    if scratch.packet.key.protocol != F::ICMP {
        return TC_ACT_UNSPEC;
    }
    match way {
        Way::In => icmp_ingress::<F>(skb),
        Way::Out => icmp_egress::<F>(skb),
    }
}

#[inline(never)]
fn icmp_ingress<F: Header>(skb: *mut __sk_buff) -> i32 {
    icmp_message::<F>(skb, Way::In)
}

#[inline(never)]
fn icmp_egress<F: Header>(skb: *mut __sk_buff) -> i32 {
    icmp_message::<F>(skb, Way::Out)
}

#[inline(always)]
fn icmp_message<F: Header>(skb: *mut __sk_buff, way: Way) -> i32 {
    let Some(scratch) = F::scratch() else { return TC_ACT_UNSPEC };
    let verdict = icmp::message(&SkbFrame(TcContext::new(skb)), scratch, way);
    action(&scratch.packet, verdict)
}

/// `TC_ACT_UNSPEC` lets the next program of the device, a CNI's perhaps, have the packet too.
#[inline(always)]
fn action<F: Maps>(packet: &Packet<F>, verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Pass | Verdict::LeaveToTc | Verdict::Answer(_) => TC_ACT_UNSPEC,
        Verdict::Sent(action) => action,
        Verdict::Drop(reason) => {
            count(reason);
            log::dropped::<F>(&packet.key, reason);
            TC_ACT_SHOT
        }
    }
}
