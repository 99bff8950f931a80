//! The kernel's forwarding decision for a packet.

use core::mem::size_of;

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LOOKUP_SRC,
    bpf_fib_lookup, bpf_redir_neigh,
};
#[cfg(doc)]
use lb_common::layout::device_flags;
use lb_common::layout::network_flags;

use crate::address::network;
use crate::clock::REMEMBER_NS;
use crate::frame::Frame;
use crate::maps::{DEVICES, Maps, NEIGHBOUR_CHECK_COUNT, NEIGHBOUR_CHECKS, ROUTE_COUNT};
use crate::record::recording;
use crate::settings::{HAS_FIB_SOURCE, NEIGHBOUR_CHECK_MS};

/// The parameters of a route lookup.
pub struct Query<A> {
    /// If this is unspecified, the lookup also determines the source address of the route, see
    /// [`Route::source`].
    pub src: A,
    pub dst: A,
    pub protocol: u8,
    /// Length of the largest IP packet in the frame, in bytes. 0: the MTU of the path does not
    /// matter.
    pub length: usize,
    /// The time.
    pub now: u64,
}

/// The reason why there is no route for a packet.
#[derive(Copy, Clone, PartialEq, Eq)]
#[repr(u32)]
pub enum Unroutable {
    /// The packet is longer than the MTU of the path, [`RouteLookup::mtu`].
    TooBig,
    /// The table has no route, or one that refuses.
    NoRoute,
}

/// Parameters and results of `bpf_fib_lookup`, and the next hop for `bpf_redirect_neigh`.
#[repr(C)]
pub struct RouteLookup {
    fib: bpf_fib_lookup,
    neighbour: bpf_redir_neigh,
    /// One of [`state`].
    state: u32,
    /// See [`Route::device_flags`].
    device_flags: u32,
}

/// Values of [`RouteLookup::state`].
mod state {
    /// No route was looked up for this packet.
    pub const NONE: u32 = 0;
    /// A route was found; the neighbour's link-layer address is not known.
    pub const UNRESOLVED: u32 = 1;
    /// A route was found, with both link-layer addresses.
    pub const RESOLVED: u32 = 2;
    /// A route was found. The kernel forwards the packet: the packet does not fit its path, or the
    /// destination is in a network with [`network_flags::BY_KERNEL`].
    ///
    /// [`network_flags::BY_KERNEL`]: lb_common::layout::network_flags::BY_KERNEL
    pub const BY_KERNEL: u32 = 3;
}

impl RouteLookup {
    /// Returns the largest IP packet that the path takes, in bytes. Valid after
    /// [`Unroutable::TooBig`]; since Linux 5.12 also after a route was found.
    #[inline(always)]
    pub fn mtu(&self) -> u16 {
        // SAFETY: both members of the union are the same u16.
        unsafe { self.fib.__bindgen_anon_1.mtu_result }
    }

    /// Discards the route of an earlier packet.
    #[inline(always)]
    pub fn clear(&mut self) {
        self.state = state::NONE;
    }

    /// Returns whether a route was found along which a program sends the packet.
    #[inline(always)]
    pub fn is_for_program(&self) -> bool {
        const { assert!(state::UNRESOLVED == 1 && state::RESOLVED == 2) };
        // One comparison: what follows is then checked for two cases, not for three.
        self.state.wrapping_sub(1) < 2
    }

    /// Returns the route of this packet, if one was looked up and found.
    #[inline(always)]
    pub fn found(&mut self) -> Option<Route<'_>> {
        if self.state == state::NONE { None } else { Some(Route(self)) }
    }

    /// Finds a route: a remembered one of this CPU, or the result of the kernel's lookup.
    #[inline(always)]
    pub fn find<F: Maps, K: Frame>(
        &mut self,
        frame: &K,
        query: &Query<F::Addr>,
    ) -> Result<Route<'_>, Unroutable> {
        // The kernel checks the length of the skb if the query has none.
        if query.length == 0 || recording() {
            return self.look_up::<F, K>(frame, query);
        }
        let slot = F::routes().get_ptr_mut(hash::<F>(&query.src, &query.dst) % ROUTE_COUNT as u32);
        let Some(slot) = slot else { return Err(Unroutable::NoRoute) };
        // SAFETY: a map value of this CPU: no other program changes it meanwhile.
        let slot = unsafe { &mut *slot };
        let is_known = slot.expires_ns > query.now
            && slot.dst == query.dst
            && slot.src == query.src
            && slot.ifindex == frame.ifindex()
            && slot.protocol == query.protocol as u32
            && query.length as u32 <= slot.mtu
            // XDP looks up again whether the neighbour is known by now.
            && (K::COMPLETE || slot.state != state::UNRESOLVED);
        if is_known {
            self.fib = slot.fib;
            self.state = slot.state;
            self.device_flags = slot.device_flags;
            return Ok(Route(self));
        }
        self.look_up::<F, K>(frame, query)?;
        slot.expires_ns = query.now + REMEMBER_NS;
        (slot.src, slot.dst) = (query.src, query.dst);
        slot.ifindex = frame.ifindex();
        slot.protocol = query.protocol as u32;
        // Before Linux 5.12 this is the length of the packet.
        slot.mtu = self.mtu() as u32;
        slot.state = self.state;
        slot.device_flags = self.device_flags;
        slot.fib = self.fib;
        if !K::COMPLETE && self.state == state::RESOLVED && is_check_due::<F>(&self.fib.dmac, query.now) {
            self.state = state::UNRESOLVED;
        }
        Ok(Route(self))
    }

    /// Finds a route, also one whose path the packet fits only in fragments.
    #[inline(always)]
    pub fn find_of_any_mtu<F: Maps, K: Frame>(
        &mut self,
        frame: &K,
        query: &Query<F::Addr>,
    ) -> Result<Route<'_>, Unroutable> {
        match self.find::<F, K>(frame, query).map(|_| ()) {
            Err(Unroutable::TooBig) => {
                // Every path takes one byte.
                self.look_up::<F, K>(frame, &Query { length: 1, ..*query })?;
                self.state = state::BY_KERNEL;
                Ok(Route(self))
            }
            found => found.map(|()| Route(self)),
        }
    }

    /// Looks up a route in the kernel's tables.
    #[inline(always)]
    fn look_up<F: Maps, K: Frame>(
        &mut self,
        frame: &K,
        query: &Query<F::Addr>,
    ) -> Result<Route<'_>, Unroutable> {
        let fib = &mut self.fib;
        fib.family = F::AF;
        fib.l4_protocol = query.protocol;
        fib.sport = 0;
        fib.dport = 0;
        fib.__bindgen_anon_1.tot_len = query.length as u16;
        fib.ifindex = frame.ifindex();
        fib.__bindgen_anon_2.flowinfo = 0;
        // SAFETY: the unions are 16 bytes long, and an IPv4 address is their first four.
        unsafe {
            (&raw mut fib.__bindgen_anon_3).cast::<F::Addr>().write_unaligned(query.src);
            (&raw mut fib.__bindgen_anon_4).cast::<F::Addr>().write_unaligned(query.dst);
        }
        let wants_source = query.src == F::UNSPECIFIED && HAS_FIB_SOURCE.load() != 0;
        let flags = if wants_source { BPF_FIB_LOOKUP_SRC } else { 0 };
        // SAFETY: `fib` has the size given; all fields that the helper reads are set above.
        let result = unsafe {
            aya_ebpf::helpers::generated::bpf_fib_lookup(
                frame.context(),
                &raw mut *fib,
                size_of::<bpf_fib_lookup>() as i32,
                flags,
            )
        };
        self.state = match result as u32 {
            BPF_FIB_LKUP_RET_SUCCESS => state::RESOLVED,
            BPF_FIB_LKUP_RET_NO_NEIGH => state::UNRESOLVED,
            BPF_FIB_LKUP_RET_FRAG_NEEDED => return Err(Unroutable::TooBig),
            _ => return Err(Unroutable::NoRoute),
        };
        if network::<F>(query.dst) & network_flags::BY_KERNEL != 0 {
            self.state = state::BY_KERNEL;
        }
        // SAFETY: only `flags` is read, one aligned word. If the element is reused meanwhile, the
        // flags are those of another device, until the next lookup.
        self.device_flags = unsafe { DEVICES.get(&self.fib.ifindex) }.map_or(0, |device| device.flags);
        Ok(Route(self))
    }
}

/// Returns whether the kernel has to check a neighbour that XDP sends packets to: the kernel does
/// not see these packets, and would never notice that the neighbour is gone. The kernel sends the
/// packets that XDP leaves to tc, and probes a neighbour whose entry is stale.
///
/// Neighbours with the same hash take turns by chance.
#[inline(always)]
fn is_check_due<F: Maps>(neighbour: &[u8; 6], now: u64) -> bool {
    let interval_ns = NEIGHBOUR_CHECK_MS.load() as u64 * 1_000_000;
    if interval_ns == 0 {
        return false;
    }
    let [_, _, _, _, high, low] = *neighbour;
    // The kernel has an entry for each family.
    let hash = (high as u32 * 31 + low as u32) << 1 | F::IS_V6 as u32;
    let slot = hash % NEIGHBOUR_CHECK_COUNT as u32;
    let Some(checked) = NEIGHBOUR_CHECKS.get_ptr_mut(slot) else { return false };
    // SAFETY: a map value of this CPU: no other program changes it meanwhile.
    let checked = unsafe { &mut *checked };
    let is_due = *checked == 0 || now.wrapping_sub(*checked) > interval_ns;
    if is_due {
        *checked = now;
    }
    is_due
}

/// Returns a hash of two addresses.
#[inline(always)]
fn hash<F: Maps>(src: &F::Addr, dst: &F::Addr) -> u32 {
    /// 2^64 divided by the golden ratio: multiplication by it mixes the lower bits into the upper
    /// (Knuth, TAOCP 6.4).
    const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
    let both = F::sum(*src).rotate_left(32) ^ F::sum(*dst);
    (both.wrapping_mul(MIX) >> 40) as u32
}

/// A route that was found.
pub struct Route<'a>(&'a mut RouteLookup);

impl<'a> Route<'a> {
    /// Returns the lookup that found it.
    #[inline(always)]
    pub fn into_lookup(self) -> &'a mut RouteLookup {
        self.0
    }

    /// Returns the flags that the agent had published for the outgoing device when the route was
    /// looked up: bits of [`device_flags`].
    #[inline(always)]
    pub fn device_flags(&self) -> u32 {
        self.0.device_flags
    }

    /// Returns the index of the outgoing device.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        self.0.fib.ifindex
    }

    /// Returns whether the neighbour's link-layer address is known.
    #[inline(always)]
    pub fn is_resolved(&self) -> bool {
        self.0.state == state::RESOLVED
    }

    /// Returns whether the kernel forwards the packet, and not a program.
    #[inline(always)]
    pub fn is_for_kernel(&self) -> bool {
        self.0.state == state::BY_KERNEL
    }

    /// Returns the source and destination link-layer addresses; valid if the route is resolved.
    #[inline(always)]
    pub fn link_addresses(&self) -> ([u8; 6], [u8; 6]) {
        (self.0.fib.smac, self.0.fib.dmac)
    }

    /// Returns the next hop in the form of `bpf_redirect_neigh`.
    #[inline(always)]
    pub fn neighbour(&mut self) -> *mut bpf_redir_neigh {
        self.0.neighbour.nh_family = self.0.fib.family as u32;
        // SAFETY: plain numbers; an IPv4 address is the first word, as it is in the other union.
        self.0.neighbour.__bindgen_anon_1.ipv6_nh = unsafe { self.0.fib.__bindgen_anon_4.ipv6_dst };
        &raw mut self.0.neighbour
    }

    /// Returns the address of this node that the kernel would use as source on this route; `None`
    /// if the device has none.
    #[inline(always)]
    pub fn source<F: Maps>(&self) -> Option<F::Addr> {
        let source = if HAS_FIB_SOURCE.load() != 0 {
            // SAFETY: plain bytes; an IPv4 address is the first four of them.
            unsafe { (&raw const self.0.fib.__bindgen_anon_3).cast::<F::Addr>().read_unaligned() }
        } else {
            // SAFETY: the address is copied. The agent replaces entries; if the element is reused
            // during the copy, the address may be a mixture of two, and one connection gets no
            // reply.
            F::device_addr(unsafe { DEVICES.get(&self.0.fib.ifindex) }?)
        };
        if source == F::UNSPECIFIED { None } else { Some(source) }
    }
}
