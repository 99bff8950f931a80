//! XDP frames: bytes are read and written in place, checksums are patched by arithmetic.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::xdp_action;
use aya_ebpf::helpers::bpf_redirect;
use aya_ebpf::programs::XdpContext;
use lb_common::checksum::{update, update_udp};
use lb_common::family::{Family, V4, V6};
use lb_common::layout::{UDP, device_flags};
use lb_common::reason::Reason;
use lb_common::wire::ETHERNET_LEN;

use crate::count::count;
use crate::frame::{Frame, swap_link_addresses};
use crate::log;
use crate::maps::{DEVICES, Maps};
use crate::nat::Header;
use crate::packet::{Packet, ethernet, parse};
use crate::pipeline;
use crate::route::{Next, Route};
use crate::verdict::Verdict;

pub struct XdpFrame(pub XdpContext);

impl Frame for XdpFrame {
    const COMPLETE: bool = false;

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
        self.0.ingress_ifindex() as u32
    }

    #[inline(always)]
    fn segment_payload(&self) -> usize {
        0
    }

    #[inline(always)]
    fn update_checksum<F: Maps>(
        &self,
        packet: &Packet<F>,
        offset: usize,
        addresses: u64,
        ports: u64,
    ) -> Option<()> {
        let old = self.load::<u16>(offset)?;
        let new = if packet.key.protocol != UDP {
            update(old, addresses + ports)
        } else if old == 0 {
            0 // none was computed (RFC 768; RFC 6935 for IPv6 tunnels)
        } else {
            update_udp(old, addresses + ports)
        };
        self.store::<u16>(offset, new)
    }

    #[inline(always)]
    fn can_send<F: Maps>(&self, packet: &Packet<F>, route: &Route, next: Next) -> bool {
        // A VLAN tag would have to be changed or removed: the VLAN device's own tc program sees the packet without it.
        if next != Next::Resolved || packet.l3 != ETHERNET_LEN {
            return false;
        }
        if route.ifindex() == self.ifindex() {
            return true;
        }
        // SAFETY: only flags, one aligned word, are read.
        match unsafe { DEVICES.get(&route.ifindex()) } {
            Some(device) => device.flags & device_flags::XDP_TARGET != 0,
            None => false,
        }
    }

    #[inline(always)]
    fn send<F: Maps>(&self, _packet: &Packet<F>, route: &mut Route) -> Verdict {
        let (source, destination) = route.link_addresses();
        if self.store::<[u8; 6]>(0, destination).is_none() || self.store::<[u8; 6]>(6, source).is_none() {
            return Verdict::Drop(Reason::RewriteFailed);
        }
        if route.ifindex() == self.ifindex() {
            return Verdict::Sent(xdp_action::XDP_TX as i32);
        }
        // SAFETY: the helper has no preconditions.
        Verdict::Sent(unsafe { bpf_redirect(route.ifindex(), 0) } as i32)
    }
}

/// Finds the network header and runs the pipeline of its family.
#[inline(always)]
pub fn ingress(context: XdpContext) -> u32 {
    let frame = XdpFrame(context);
    match ethernet(&frame) {
        Some((V4::ETHERTYPE, l3)) => ingress_v4(frame.0.ctx, l3),
        Some((V6::ETHERTYPE, l3)) => ingress_v6(frame.0.ctx, l3),
        _ => xdp_action::XDP_PASS,
    }
}

// One subprogram per family: each has a stack of its own, and the verifier walks them one after the other.

#[inline(never)]
fn ingress_v4(context: *mut aya_ebpf::bindings::xdp_md, l3: usize) -> u32 {
    run::<V4>(&XdpFrame(XdpContext::new(context)), l3)
}

#[inline(never)]
fn ingress_v6(context: *mut aya_ebpf::bindings::xdp_md, l3: usize) -> u32 {
    run::<V6>(&XdpFrame(XdpContext::new(context)), l3)
}

#[inline(always)]
fn run<F: Header>(frame: &XdpFrame, l3: usize) -> u32 {
    let Some(scratch) = F::scratch() else { return xdp_action::XDP_PASS };
    if parse(frame, l3, &mut scratch.packet).is_none() {
        return xdp_action::XDP_PASS;
    }
    match pipeline::ingress(frame, scratch) {
        Verdict::Pass => xdp_action::XDP_PASS,
        // An answer changes the length of the packet: work for tc.
        Verdict::LeaveToTc | Verdict::Answer(_) => {
            count(Reason::LeftToTc);
            xdp_action::XDP_PASS
        }
        Verdict::Sent(action) => action as u32,
        Verdict::Drop(reason) => {
            count(reason);
            log::dropped::<F>(&scratch.packet.key, reason);
            xdp_action::XDP_DROP
        }
    }
}

/// What it costs to touch a packet at all: parse the link header, swap its addresses, send the frame back.
#[inline(always)]
pub fn floor(context: XdpContext) -> u32 {
    let frame = XdpFrame(context);
    let Some((_, l3)) = ethernet(&frame) else { return xdp_action::XDP_DROP };
    if frame.load::<u16>(l3).is_none() || swap_link_addresses(&frame).is_none() {
        return xdp_action::XDP_DROP;
    }
    xdp_action::XDP_TX
}
