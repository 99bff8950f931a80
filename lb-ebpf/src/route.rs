//! The kernel's forwarding decision for a rewritten packet.

use core::mem::size_of;

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LOOKUP_SRC,
    bpf_fib_lookup, bpf_redir_neigh,
};

use crate::frame::Frame;
use crate::maps::{DEVICES, Maps};
use crate::settings::HAS_FIB_SOURCE;

/// What the lookup found.
#[derive(Copy, Clone, PartialEq, Eq)]
#[repr(u32)]
pub enum Next {
    /// Out of `ifindex`, with both link-layer addresses.
    Resolved,
    /// Out of `ifindex`, but the neighbour's link-layer address is not known yet.
    Unresolved,
    /// The packet is longer than the path allows: `mtu` bytes.
    TooBig,
    /// No way.
    None,
}

/// A forwarding decision: the parameters and results of `bpf_fib_lookup`, and the next hop for `bpf_redirect_neigh`.
#[repr(C)]
pub struct Route {
    fib: bpf_fib_lookup,
    neighbour: bpf_redir_neigh,
}

impl Route {
    /// Index of the outgoing device.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        self.fib.ifindex
    }

    /// Source and destination link-layer addresses.
    #[inline(always)]
    pub fn link_addresses(&self) -> ([u8; 6], [u8; 6]) {
        (self.fib.smac, self.fib.dmac)
    }

    /// Largest IP packet the path takes, in bytes; only when [`Next::TooBig`].
    #[inline(always)]
    pub fn mtu(&self) -> u16 {
        // SAFETY: both members of the union are the same u16.
        unsafe { self.fib.__bindgen_anon_1.mtu_result }
    }

    /// The next hop, as `bpf_redirect_neigh` wants it.
    #[inline(always)]
    pub fn neighbour(&mut self) -> *mut bpf_redir_neigh {
        self.neighbour.nh_family = self.fib.family as u32;
        // SAFETY: plain numbers; an IPv4 address is the first word, as it is in the other union.
        self.neighbour.__bindgen_anon_1.ipv6_nh = unsafe { self.fib.__bindgen_anon_4.ipv6_dst };
        &raw mut self.neighbour
    }

    /// The address of this node that the kernel would use as source on this route; nothing if the device has none.
    #[inline(always)]
    pub fn source<F: Maps>(&self) -> Option<F::Addr> {
        let source = if HAS_FIB_SOURCE.load() != 0 {
            // SAFETY: plain bytes; an IPv4 address is the first four of them.
            unsafe { (&raw const self.fib.__bindgen_anon_3).cast::<F::Addr>().read_unaligned() }
        } else {
            // SAFETY: entries are replaced whole.
            F::device_addr(unsafe { DEVICES.get(&self.fib.ifindex) }?)
        };
        if source == F::UNSPECIFIED { None } else { Some(source) }
    }

    /// Asks for the route to `dst`. `length` is that of the largest packet in the frame, in bytes of IP.
    /// With `src` unspecified the route's own source address is asked for, see [`Route::source`].
    #[inline(always)]
    pub fn find<F: Maps, K: Frame>(
        &mut self,
        frame: &K,
        src: F::Addr,
        dst: F::Addr,
        protocol: u8,
        length: usize,
    ) -> Next {
        let fib = &mut self.fib;
        fib.family = F::AF;
        fib.l4_protocol = protocol;
        fib.sport = 0;
        fib.dport = 0;
        fib.__bindgen_anon_1.tot_len = length as u16;
        fib.ifindex = frame.ifindex();
        fib.__bindgen_anon_2.flowinfo = 0;
        // SAFETY: the unions are 16 bytes long and an IPv4 address is their first four.
        unsafe {
            (&raw mut fib.__bindgen_anon_3).cast::<F::Addr>().write_unaligned(src);
            (&raw mut fib.__bindgen_anon_4).cast::<F::Addr>().write_unaligned(dst);
        }
        let wants_source = src == F::UNSPECIFIED && HAS_FIB_SOURCE.load() != 0;
        let flags = if wants_source { BPF_FIB_LOOKUP_SRC } else { 0 };
        // SAFETY: `fib` is of the size given; all that the helper reads of it is set above.
        let result = unsafe {
            aya_ebpf::helpers::generated::bpf_fib_lookup(
                frame.context(),
                &raw mut *fib,
                size_of::<bpf_fib_lookup>() as i32,
                flags,
            )
        };
        match result as u32 {
            BPF_FIB_LKUP_RET_SUCCESS => Next::Resolved,
            BPF_FIB_LKUP_RET_NO_NEIGH => Next::Unresolved,
            BPF_FIB_LKUP_RET_FRAG_NEEDED => Next::TooBig,
            _ => Next::None,
        }
    }
}
