//! What a packet program builds up: one entry per CPU and family.

use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::macros::btf_map;
use lb_common::family::{Family, V4, V6};
use lb_common::layout::{AffinityKey, Flow, FlowKey};

use crate::packet::Packet;
use crate::route::RouteLookup;

/// The working memory of one run of a packet program. It is a map entry because a stack of 512
/// bytes has no room for it, and because the verifier allows misaligned access (addresses are
/// copied as words) in map values but not on the stack.
#[repr(C)]
pub struct Scratch<F: Family> {
    pub packet: Packet<F>,
    /// The packet that an ICMP error quotes.
    pub quoted: Packet<F>,
    pub route: RouteLookup,
    pub reply_key: FlowKey<F::Addr>,
    pub flow: Flow<F::Addr>,
    /// The client, as session affinity identifies it.
    pub client: AffinityKey,
}

#[btf_map]
pub static SCRATCH_V4: PerCpuArray<Scratch<V4>, 1> = PerCpuArray::new();
#[btf_map]
pub static SCRATCH_V6: PerCpuArray<Scratch<V6>, 1> = PerCpuArray::new();

/// The scratch map of an address family.
pub trait Scratches: Family {
    /// Returns this CPU's entry, with whatever an earlier program has left in it.
    ///
    /// # Safety
    /// The caller holds no other reference to the entry. Packet programs run with softirqs disabled
    /// and do not interrupt each other, so a subprogram that borrows the entry once, and is not
    /// called while a caller of it holds one, has the only reference.
    unsafe fn scratch<'run>() -> Option<&'run mut Scratch<Self>>;
}

macro_rules! scratches {
    ($($family:ty: $map:ident),*) => { $(
        impl Scratches for $family {
            #[inline(always)]
            unsafe fn scratch<'run>() -> Option<&'run mut Scratch<Self>> {
                // SAFETY: the kernel zeroes new entries, and any bytes that the programs store are
                // valid; unaliased by this function's own contract.
                $map.get_ptr_mut(0).map(|pointer| unsafe { &mut *pointer })
            }
        }
    )* };
}

scratches!(V4: SCRATCH_V4, V6: SCRATCH_V6);
