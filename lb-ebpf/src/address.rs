//! Properties of an address: whether it is one of this node or of Services, whether it is in a
//! network of pods, whether it is a loopback address.

use core::num::NonZeroU32;

use aya_ebpf::btf_maps::lpm_trie::Key;
use lb_common::layout::address_flags;
#[cfg(doc)]
use lb_common::layout::network_flags;

use crate::maps::Maps;

/// The flags that the agent has published for an address of this node or of a Service: bits of
/// [`address_flags`], at least one.
#[derive(Copy, Clone)]
pub struct Known(NonZeroU32);

impl Known {
    /// Returns whether any of these bits is set.
    #[inline(always)]
    pub fn has(self, flags: u32) -> bool {
        self.0.get() & flags != 0
    }

    /// Returns whether NodePorts are served at this address.
    #[inline(always)]
    pub fn takes_node_ports(self) -> bool {
        self.has(address_flags::NODE_PORTS)
    }

    /// Returns whether the address is a Service's and not this node's.
    #[inline(always)]
    pub fn is_service_only(self) -> bool {
        self.has(address_flags::SERVICE) && !self.has(address_flags::NODE)
    }
}

/// Returns the flags of an address, or `None` for an address that is neither this node's nor a
/// Service's. Most packets are not for Services: this one lookup identifies them.
#[inline(always)]
pub fn known<F: Maps>(addr: &F::Addr) -> Option<Known> {
    // SAFETY: only `flags` is read, one aligned word. If the element was removed and is reused
    // meanwhile, the flags are those of another address, for this packet alone.
    let entry = unsafe { F::addresses().get(addr) }?;
    NonZeroU32::new(entry.flags).map(Known)
}

/// A key of `NETWORKS` whose address is aligned, see [`crate::aligned::Aligned`].
#[repr(C, align(8))]
struct NetworkKey<A> {
    pad: u32,
    key: Key<A>,
}

/// Returns the bits of [`network_flags`] of the smallest network that contains the address; 0 if
/// none does.
#[inline(always)]
pub fn network<F: Maps>(addr: F::Addr) -> u32 {
    let lookup = NetworkKey { pad: 0, key: Key::new(size_of::<F::Addr>() as u32 * 8, addr) };
    F::networks().get(&lookup.key).copied().unwrap_or(0)
}

/// Returns whether the address is a loopback address.
#[inline(always)]
pub fn is_loopback<F: Maps>(addr: &F::Addr) -> bool {
    if F::IS_V6 { *addr == F::LOOPBACK } else { addr.as_ref().first() == Some(&127) }
}
