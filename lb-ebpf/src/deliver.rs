//! The delivery of a translated packet: up the stack, or out of this node along a route.

use core::mem::size_of;

use aya_ebpf::bindings::{bpf_redir_neigh, xdp_action};
use aya_ebpf::helpers::bpf_redirect;
use aya_ebpf::helpers::generated::bpf_redirect_neigh;
use lb_common::layout::{SCTP, TCP, address_flags, deliver, device_flags};
use lb_common::reason::Reason;
use lb_common::wire::{TCP_DATA_OFFSET, TCP_LEN, UDP_LEN};

use crate::address::known;
use crate::frame::skb::{LOOPBACK, SkbFrame};
use crate::frame::xdp::XdpFrame;
use crate::frame::{Frame, RememberedLink};
use crate::maps::{DEVICES, Maps};
use crate::packet::Packet;
use crate::record::note;
use crate::route::{Query, Route, RouteLookup, Unroutable};
use crate::settings::KERNEL_FRAGMENTS;
use crate::translation::Translation;
use crate::verdict::{Answer, Verdict};

/// The delivery of a packet after it is rewritten.
pub enum Delivery<'a> {
    /// It continues up the stack.
    UpStack,
    /// It leaves this node along this route.
    Out(Route<'a>),
}

/// A decided [`Delivery`]. It is stored in the route lookup, not in a variable: otherwise the
/// verifier follows the code that rewrites a packet once for each variant.
pub struct Decided<'a>(&'a mut RouteLookup);

impl<'a> Decided<'a> {
    #[inline(always)]
    pub fn up_stack(lookup: &'a mut RouteLookup) -> Self {
        lookup.clear();
        Self(lookup)
    }

    /// Returns the delivery that was decided with this lookup before.
    #[inline(always)]
    pub fn before(lookup: &'a mut RouteLookup) -> Self {
        Self(lookup)
    }

    #[inline(always)]
    pub fn out(route: Route<'a>) -> Self {
        Self(route.into_lookup())
    }

    /// Returns whether this hook can deliver the packet. Callers check this before they change the
    /// packet.
    #[inline(always)]
    pub fn is_possible<K: Deliver>(&mut self, frame: &K) -> bool {
        K::COMPLETE || self.0.found().is_none_or(|route| frame.can_send(&route))
    }

    /// Returns whether the frame is addressed to this node. XDP sees the frames that a switch
    /// floods, too. It leaves a frame with another address of the device to tc, which has the
    /// kernel's own check.
    ///
    /// The kernel returns the MAC address of the outgoing device with a route. If that is the
    /// device of the frame, the check needs no lookup. Otherwise it uses the remembered address.
    #[inline(always)]
    pub fn is_of_frame_for_this_node<K: Frame>(
        &mut self,
        frame: &K,
        remembered: &mut RememberedLink,
        now: u64,
    ) -> bool {
        if K::COMPLETE {
            return true;
        }
        match self.0.found() {
            Some(route) if route.is_resolved() && route.ifindex() == frame.ifindex() => {
                frame.is_addressed_to(route.link_addresses().0)
            }
            _ => frame.is_addressed_to_remembered(remembered, now),
        }
    }

    /// Returns the address of this node that the kernel would use as source on the route. Returns
    /// `None` if the packet continues up the stack, or if the device has no address.
    #[inline(always)]
    pub fn source<F: Maps>(&mut self) -> Option<F::Addr> {
        self.0.found()?.source::<F>()
    }

    /// Returns whether the packet leaves this node along a route.
    #[inline(always)]
    pub fn is_out(&mut self) -> bool {
        self.0.found().is_some()
    }

    /// Returns whether the program forwards the packet, and not the kernel.
    #[inline(always)]
    pub fn is_forwarded(&mut self) -> bool {
        self.0.is_for_program()
    }

    #[inline(always)]
    pub fn delivery(self) -> Delivery<'a> {
        match self.0.found() {
            Some(route) => Delivery::Out(route),
            None => Delivery::UpStack,
        }
    }
}

/// Sends packets.
pub trait Deliver: Frame {
    /// Returns whether [`Deliver::send`] can send a packet along this route.
    fn can_send(&self, route: &Route<'_>) -> bool;
    /// Sends the rewritten packet, whose IP header is at `l3`, out along `route`.
    fn send(&self, route: Route<'_>, l3: usize) -> Verdict;
}

/// Returns the delivery of a packet with this translation, or the verdict if it cannot be
/// delivered.
#[inline(always)]
pub fn of_translation<'a, F: Maps, K: Frame>(
    frame: &K,
    packet: &Packet<F>,
    translation: &Translation<F::Addr>,
    lookup: &'a mut RouteLookup,
    now: u64,
) -> Result<Decided<'a>, Verdict> {
    if translation.deliver != deliver::ROUTE {
        return Ok(Decided::up_stack(lookup));
    }
    let (src, dst) = (translation.new_src_addr, translation.new_dst_addr);
    find_route(frame, packet, lookup, src, dst, now).map(Decided::out)
}

/// Finds the route of a packet from `src` to `dst`. Returns the verdict if no route takes the
/// packet. With `src` unspecified, the route determines the source address.
#[inline(always)]
pub fn find_route<'a, F: Maps, K: Frame>(
    frame: &K,
    packet: &Packet<F>,
    lookup: &'a mut RouteLookup,
    src: F::Addr,
    dst: F::Addr,
    now: u64,
) -> Result<Route<'a>, Verdict> {
    let query = Query { src, dst, protocol: packet.key.protocol, length: longest(frame, packet), now };
    let found = if is_fragmented_by_kernel::<F, K>(packet) {
        lookup.find_of_any_mtu::<F, K>(frame, &query)
    } else {
        lookup.find::<F, K>(frame, &query)
    };
    match found {
        Err(Unroutable::NoRoute) if K::COMPLETE => Err(Verdict::Drop(Reason::NoRoute)),
        Err(Unroutable::NoRoute) => Err(Verdict::LeaveToTc),
        Err(Unroutable::TooBig) => Err(Verdict::Answer(Answer::TooBig)),
        Ok(_) if packet.ttl <= 1 => Err(Verdict::Answer(Answer::TimeExceeded)),
        Ok(route) => Ok(route),
    }
}

/// Decides how packets reach an endpoint that its EndpointSlice does not place on this node.
/// Packets continue up the stack if the network shows that the endpoint is on this node all the
/// same: it has an address of this node, or the route to it leads to pods of this node.
#[inline(always)]
pub fn to_endpoint<'a, F: Maps, K: Frame>(
    frame: &K,
    packet: &Packet<F>,
    lookup: &'a mut RouteLookup,
    endpoint: F::Addr,
    now: u64,
) -> Result<Decided<'a>, Verdict> {
    let route = find_route(frame, packet, lookup, F::UNSPECIFIED, endpoint, now);
    let is_here = match route.map(|route| route.device_flags()) {
        Ok(flags) => flags & device_flags::ONLY_LOCAL_PODS != 0,
        // The kernel reports addresses of this node as not forwarded, like addresses without a
        // route.
        Err(Verdict::Drop(Reason::NoRoute) | Verdict::LeaveToTc) if is_of_node::<F>(&endpoint) => true,
        Err(verdict) => return Err(verdict),
    };
    if is_here {
        lookup.clear();
    }
    Ok(Decided::before(lookup))
}

/// Finds the route of a translated reply. Discards the route unless it leads out of the device with
/// this index.
#[inline(always)]
pub fn find_return<F: Maps, K: Frame>(
    frame: &K,
    packet: &Packet<F>,
    translation: &Translation<F::Addr>,
    lookup: &mut RouteLookup,
    ifindex: u32,
    now: u64,
) {
    let (src, dst) = (translation.new_src_addr, translation.new_dst_addr);
    let length = longest(frame, packet);
    let query = Query { src, dst, protocol: packet.key.protocol, length, now };
    lookup.clear();
    let leads_there = lookup.find::<F, K>(frame, &query).is_ok_and(|route| route.ifindex() == ifindex);
    if !leads_there {
        lookup.clear();
    }
}

/// Returns whether this node has the address.
#[inline(always)]
fn is_of_node<F: Maps>(addr: &F::Addr) -> bool {
    known::<F>(addr).is_some_and(|known| known.has(address_flags::NODE))
}

/// Returns whether the kernel fragments the packet if it does not fit the path. XDP leaves the
/// packet to tc.
#[inline(always)]
fn is_fragmented_by_kernel<F: Maps, K: Frame>(packet: &Packet<F>) -> bool {
    K::COMPLETE && !F::IS_V6 && packet.may_be_fragmented && KERNEL_FRAGMENTS.load() != 0
}

/// Returns the length of the largest IP packet in the frame, in bytes: it must fit the path. For
/// fragments see [`Packet::longest`].
#[inline(always)]
fn longest<F: Maps, K: Frame>(frame: &K, packet: &Packet<F>) -> usize {
    let segment = frame.segment_payload();
    if segment == 0 {
        return packet.longest;
    }
    if packet.key.protocol == SCTP {
        // SCTP segments vary in length (GSO_BY_FRAGS). 0 leaves the MTU check to the code that
        // segments the packet.
        return 0;
    }
    let transport = if packet.key.protocol == TCP {
        match frame.load::<[u8; 2]>(packet.l4 + TCP_DATA_OFFSET) {
            Some([offset, _]) => ((offset >> 4) as usize) * 4,
            None => TCP_LEN,
        }
    } else {
        UDP_LEN
    };
    packet.l4 - packet.l3 + transport + segment
}

impl Deliver for SkbFrame {
    #[inline(always)]
    fn can_send(&self, _route: &Route<'_>) -> bool {
        true
    }

    #[inline(always)]
    fn send(&self, mut route: Route<'_>, l3: usize) -> Verdict {
        let ifindex = if route.is_for_kernel() { LOOPBACK } else { route.ifindex() };
        note(|record| record.ifindex = ifindex);
        if route.is_for_kernel() {
            return match self.receive_by_loopback(l3) {
                Some(action) => Verdict::Sent(action),
                None => Verdict::Drop(Reason::RewriteFailed),
            };
        }
        let size = size_of::<bpf_redir_neigh>() as i32;
        // SAFETY: the parameters are initialized and have the size given. The helper resolves the
        // neighbour and adds the link header of the device, if the device has one.
        let action = unsafe { bpf_redirect_neigh(ifindex, route.neighbour(), size, 0) };
        Verdict::Sent(action as i32)
    }
}

impl Deliver for XdpFrame {
    #[inline(always)]
    fn can_send(&self, route: &Route<'_>) -> bool {
        if !route.is_resolved() {
            return false;
        }
        if route.ifindex() == self.ifindex() {
            return true;
        }
        // SAFETY: only `flags` is read, one aligned word. If the element is reused by another
        // device meanwhile, the kernel drops a frame that the device cannot send.
        match unsafe { DEVICES.get(&route.ifindex()) } {
            Some(device) => device.flags & device_flags::XDP_TARGET != 0,
            None => false,
        }
    }

    #[inline(always)]
    fn send(&self, route: Route<'_>, _l3: usize) -> Verdict {
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
