//! A packet as bytes: the operations that differ between XDP frames and skbs, and access to bytes
//! in place.

/// The methods of [`Frame`] that are the same for all contexts of `aya_ebpf`.
macro_rules! accessors {
    () => {
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
    };
}

pub mod skb;
pub mod xdp;

use core::mem::size_of;

use aya_ebpf::helpers::generated::bpf_check_mtu;
use lb_common::family::Family;
use lb_common::plain::Plain;

/// Headers are read within this number of bytes. A packet whose headers reach further is passed on
/// untouched. The value is a power of two minus one, so that a mask bounds an offset for the
/// verifier.
const OFFSET_MASK: usize = 511;

/// The MAC address of a device, as `LINK_ADDRESSES` had it at the last lookup of this CPU.
#[repr(C)]
pub struct RememberedLink {
    /// The time from which a packet causes another lookup.
    pub expires_ns: u64,
    /// Interface index of the device. 0: no lookup yet.
    pub ifindex: u32,
    pub addr: [u8; 6],
    pub pad: [u8; 6],
}

/// An XDP frame or an skb.
pub trait Frame {
    /// False for XDP. XDP finishes the packets that it can, and leaves the others, untouched, to
    /// the tc program of the same device.
    const COMPLETE: bool;

    /// Returns the address of the first byte of the linear data.
    fn data(&self) -> usize;
    /// Returns the address after the last byte of the linear data.
    fn data_end(&self) -> usize;
    /// Returns the hook's context, for helpers.
    fn context(&self) -> *mut core::ffi::c_void;
    /// Returns the interface index of the device that the packet is on.
    fn ifindex(&self) -> u32;
    /// Returns the bytes of payload in each segment of a GRO-merged or GSO packet, or 0 for a
    /// single packet.
    fn segment_payload(&self) -> usize;
    /// Returns the MTU of the device that the packet is on. Only where `KERNEL_FRAGMENTS` is set.
    fn mtu(&self) -> usize {
        let mut mtu = 0;
        // SAFETY: the helper writes the MTU to `mtu`. It cannot fail for the packet's own device.
        unsafe { bpf_check_mtu(self.context(), 0, &raw mut mtu, 0, 0) };
        mtu as usize
    }
    /// Returns whether the packet leaves by the device that it arrived by. At egress only.
    fn came_back(&self) -> bool;
    /// Returns whether the packet has at least `end` bytes, in all its buffers.
    fn reaches(&self, end: usize) -> bool;
    /// Returns whether the frame is addressed to the device that it arrived on, by the address of
    /// the device that this CPU remembers. `now` is the time. XDP programs see frames that a switch
    /// floods to every port; tc programs have checked it already (`tc.rs`).
    fn is_addressed_to_remembered(&self, remembered: &mut RememberedLink, now: u64) -> bool;
    /// Returns whether the frame is addressed to this MAC address of the device that it arrived on.
    /// tc programs have checked the receiver already.
    fn is_addressed_to(&self, addr: [u8; 6]) -> bool;

    /// Applies a change to the transport checksum at `offset`. Both differences are made by
    /// [`lb_common::checksum::difference`]: `addresses` of the pseudo-header, `data` of the rest.
    /// In UDP a checksum of zero stands for none, and a computed zero is written as all ones.
    fn update_checksum<F: Family>(
        &self,
        offset: usize,
        is_udp: bool,
        addresses: u64,
        data: u64,
    ) -> Option<()>;

    /// Returns a pointer to the `T` at `offset`, or `None` if the packet is shorter.
    #[inline(always)]
    fn at<T: Plain>(&self, offset: usize) -> Option<*mut T> {
        // The compiler turns a check for one byte into `start >= end`. The verifier derives no
        // bound from that.
        const { assert!(size_of::<T>() >= 2) };
        if offset > OFFSET_MASK {
            return None;
        }
        let start = self.data() + within_mask(offset);
        if start + size_of::<T>() > self.data_end() { None } else { Some(start as *mut T) }
    }

    /// Reads the `T` at `offset`.
    #[inline(always)]
    fn load<T: Plain>(&self, offset: usize) -> Option<T> {
        // SAFETY: `at` checked that the whole T lies within the packet; any bytes are a T.
        self.at::<T>(offset).map(|pointer| unsafe { pointer.read_unaligned() })
    }

    /// Writes the `T` at `offset`.
    #[inline(always)]
    fn store<T: Plain>(&self, offset: usize, value: T) -> Option<()> {
        // SAFETY: `at` checked that the whole T lies within the packet.
        self.at::<T>(offset).map(|pointer| unsafe { pointer.write_unaligned(value) })
    }
}

/// Exchanges the addresses of an Ethernet header, so that the frame returns to its sender.
#[inline(always)]
pub fn swap_link_addresses<K: Frame>(frame: &K) -> Option<()> {
    let destination = frame.load::<[u8; 6]>(0)?;
    let source = frame.load::<[u8; 6]>(6)?;
    frame.store(0, source)?;
    frame.store(6, destination)
}

/// Returns `offset`, which must not exceed [`OFFSET_MASK`], with that bound visible to the
/// verifier, for the reasons of [`below_16`].
#[inline(always)]
fn within_mask(mut offset: usize) -> usize {
    // SAFETY: one instruction that changes its operand only.
    unsafe { core::arch::asm!("{0} &= 511", inout(reg) offset, options(pure, nomem, nostack)) };
    offset
}

/// Returns `offset` if headers may be read there, see [`OFFSET_MASK`]. The result has the same
/// bounds for the verifier, whatever numbers were added up before.
#[inline(always)]
pub fn bounded(offset: usize) -> Option<usize> {
    if offset > OFFSET_MASK { None } else { Some(within_mask(offset)) }
}

/// Returns `offset`, which must be below 16, with that bound visible to the verifier.
///
/// The compiler removes a mask that it can prove redundant, and may reload the value from the
/// stack. Before Linux 6.8 the verifier does not apply the check of a filled register to the
/// spilled value, and then refuses the access. The compiler cannot see through this mask.
#[inline(always)]
pub fn below_16(mut offset: usize) -> usize {
    // SAFETY: one instruction that changes its operand only.
    unsafe { core::arch::asm!("{0} &= 15", inout(reg) offset, options(pure, nomem, nostack)) };
    offset
}
