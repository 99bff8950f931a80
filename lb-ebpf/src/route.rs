//! The kernel's forwarding decision for a packet.

use core::mem::size_of;

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LOOKUP_SRC,
    bpf_fib_lookup, bpf_redir_neigh,
};
#[cfg(doc)]
use lb_common::layout::device_flags;

use crate::frame::Frame;
use crate::maps::{DEVICES, Maps};
use crate::settings::HAS_FIB_SOURCE;

/// Which route is looked up.
pub struct Query<A> {
    /// Unspecified: the lookup also determines the source address of the route, see
    /// [`Route::source`].
    pub src: A,
    pub dst: A,
    pub protocol: u8,
    /// Length of the largest IP packet in the frame, in bytes.
    pub length: usize,
}

/// Why there is no route for a packet.
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
}

/// Values of [`RouteLookup::state`].
mod state {
    /// No route was looked up for this packet.
    pub const NONE: u32 = 0;
    /// A route was found; the neighbour's link-layer address is not known.
    pub const UNRESOLVED: u32 = 1;
    /// A route was found, with both link-layer addresses.
    pub const RESOLVED: u32 = 2;
}

impl RouteLookup {
    /// Returns the largest IP packet that the path takes, in bytes. Valid after
    /// [`Unroutable::TooBig`] only.
    #[inline(always)]
    pub fn mtu(&self) -> u16 {
        // SAFETY: both members of the union are the same u16.
        unsafe { self.fib.__bindgen_anon_1.mtu_result }
    }

    /// Forgets the route of an earlier packet.
    #[inline(always)]
    pub fn clear(&mut self) {
        self.state = state::NONE;
    }

    /// Returns the route of this packet, if one was looked up and found.
    #[inline(always)]
    pub fn found(&mut self) -> Option<Route<'_>> {
        if self.state == state::NONE { None } else { Some(Route(self)) }
    }

    /// Looks up a route.
    #[inline(always)]
    pub fn find<F: Maps, K: Frame>(
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
        match result as u32 {
            BPF_FIB_LKUP_RET_SUCCESS => {
                self.state = state::RESOLVED;
                Ok(Route(self))
            }
            BPF_FIB_LKUP_RET_NO_NEIGH => {
                self.state = state::UNRESOLVED;
                Ok(Route(self))
            }
            BPF_FIB_LKUP_RET_FRAG_NEEDED => Err(Unroutable::TooBig),
            _ => Err(Unroutable::NoRoute),
        }
    }
}

/// A route that was found.
pub struct Route<'a>(&'a mut RouteLookup);

impl<'a> Route<'a> {
    /// Returns the lookup that found it.
    #[inline(always)]
    pub fn into_lookup(self) -> &'a mut RouteLookup {
        self.0
    }

    /// Returns what the agent has published about the outgoing device: bits of [`device_flags`].
    #[inline(always)]
    pub fn device_flags(&self) -> u32 {
        // SAFETY: only `flags` is read, one aligned word. If the element is reused meanwhile, the
        // flags are those of another device, for this packet alone.
        unsafe { DEVICES.get(&self.ifindex()) }.map_or(0, |device| device.flags)
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
