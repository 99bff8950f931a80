//! The working memory of a packet program: one entry for each CPU and family.

use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::macros::btf_map;
use lb_common::connection::Yields;
use lb_common::family::{Family, V4, V6};
use lb_common::layout::{AffinityKey, FlowKey};

use crate::frame::RememberedLink;
use crate::packet::Packet;
use crate::route::RouteLookup;
use crate::translation::Translation;

/// The working memory of one run of a packet program. It is a map entry because a stack of 512
/// bytes has no room for it, and because the verifier allows misaligned access (addresses are
/// copied as words) in map values but not on the stack.
#[repr(C)]
pub struct Scratch<F: Family> {
    pub packet: Packet<F>,
    /// The packet that an ICMP error quotes.
    pub quoted: Packet<F>,
    pub route: RouteLookup,
    /// The tuple of replies to the quoted packet.
    pub reply_key: FlowKey<F::Addr>,
    pub translation: Translation<F::Addr>,
    /// The client, as session affinity identifies it.
    pub client: AffinityKey,
    /// XDP keeps it from packet to packet.
    pub link: RememberedLink,
}

#[btf_map]
pub static SCRATCH_V4: PerCpuArray<Scratch<V4>, 1> = PerCpuArray::new();
#[btf_map]
pub static SCRATCH_V6: PerCpuArray<Scratch<V6>, 1> = PerCpuArray::new();

/// A connection that may give way, as it was when a program examined it.
#[repr(C)]
#[derive(Copy, Clone)]
pub struct YieldCandidate {
    pub last_seen_ns: u64,
    /// Number of its record.
    pub number: u32,
    /// A [`Yields`].
    pub yields: u32,
    pub generation: u16,
    /// The port of its replies, if the caller looks for one.
    pub port: u16,
    pub pad: u32,
}

impl YieldCandidate {
    /// No connection.
    pub const NONE: Self = Self {
        last_seen_ns: u64::MAX,
        number: 0,
        yields: Yields::Never as u32,
        generation: 0,
        port: 0,
        pad: 0,
    };
}

/// The working memory of the functions in [`crate::records`]. They take numbers only, and look this
/// entry up themselves. It is separate from [`Scratch`], which their callers borrow.
#[repr(C)]
pub struct FlowKeys<A> {
    /// The tuple of the replies to a new connection.
    pub reply: FlowKey<A>,
    /// A tuple of a connection that is removed.
    pub old: FlowKey<A>,
    /// The connection that gives way next.
    pub weakest: YieldCandidate,
}

#[btf_map]
pub static FLOW_KEYS_V4: PerCpuArray<FlowKeys<[u8; 4]>, 1> = PerCpuArray::new();
#[btf_map]
pub static FLOW_KEYS_V6: PerCpuArray<FlowKeys<[u8; 16]>, 1> = PerCpuArray::new();

/// The scratch maps of an address family.
pub trait Scratches: Family {
    /// Returns this CPU's entry, with whatever an earlier program has left in it.
    ///
    /// # Safety
    /// The caller holds no other reference to the entry. Packet programs run with softirqs disabled
    /// and do not interrupt each other, so a subprogram that borrows the entry once, and is not
    /// called while a caller of it holds one, has the only reference.
    unsafe fn scratch<'run>() -> Option<&'run mut Scratch<Self>>;

    /// Returns this CPU's entry of keys. Only `flow` and `records` use it, each for the time of one
    /// expression.
    fn keys() -> Option<*mut FlowKeys<Self::Addr>>;
}

macro_rules! scratches {
    ($($family:ty: $map:ident, $keys:ident;)*) => { $(
        impl Scratches for $family {
            #[inline(always)]
            unsafe fn scratch<'run>() -> Option<&'run mut Scratch<Self>> {
                // SAFETY: the kernel zeroes new entries, and any bytes that the programs store are
                // valid; unaliased by this function's own contract.
                $map.get_ptr_mut(0).map(|pointer| unsafe { &mut *pointer })
            }

            #[inline(always)]
            fn keys() -> Option<*mut FlowKeys<Self::Addr>> {
                $keys.get_ptr_mut(0)
            }
        }
    )* };
}

scratches! {
    V4: SCRATCH_V4, FLOW_KEYS_V4;
    V6: SCRATCH_V6, FLOW_KEYS_V6;
}
