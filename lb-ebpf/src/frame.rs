//! A packet as a hook hands it over: the few operations in which XDP frames and skbs differ.

use core::mem::size_of;

use crate::maps::Maps;
use crate::packet::Packet;
use crate::route::{Next, Route};
use crate::verdict::Verdict;

/// Headers are looked at within this many bytes; what reaches beyond is passed on untouched.
/// A power of two minus one: masking an offset with it is what proves the access to the verifier.
const OFFSET_MASK: usize = 0x1ff;

/// An XDP frame or an skb.
pub trait Frame {
    /// False for XDP: it finishes what it can and leaves the rest, untouched, to the tc program of the same device.
    const COMPLETE: bool;

    /// First byte of the linear data.
    fn data(&self) -> usize;
    /// One past the last byte of the linear data.
    fn data_end(&self) -> usize;
    /// The hook's context, as helpers want it.
    fn context(&self) -> *mut core::ffi::c_void;
    /// Interface index of the device the packet is on.
    fn ifindex(&self) -> u32;
    /// Bytes of payload in each segment of a GRO-merged or GSO packet; 0 when it is a single packet.
    fn segment_payload(&self) -> usize;

    /// Applies a change to the transport checksum at `offset`. `addresses` and `ports` are differences as
    /// [`lb_common::checksum::difference`] makes them: of what the pseudo-header covers, and of the header itself.
    fn update_checksum<F: Maps>(
        &self,
        packet: &Packet<F>,
        offset: usize,
        addresses: u64,
        ports: u64,
    ) -> Option<()>;

    /// Whether [`Frame::send`] can take this packet along this route. Asked before the packet is changed.
    fn can_send<F: Maps>(&self, packet: &Packet<F>, route: &Route, next: Next) -> bool;
    /// Sends the rewritten packet out along `route`.
    fn send<F: Maps>(&self, packet: &Packet<F>, route: &mut Route) -> Verdict;

    /// A pointer to `T` at `offset` bytes into the packet, or nothing if the packet is shorter.
    #[inline(always)]
    fn at<T>(&self, offset: usize) -> Option<*mut T> {
        // The compiler turns a check for one byte into `start >= end`, from which the verifier learns nothing.
        const { assert!(size_of::<T>() >= 2) };
        let start = self.data() + (offset & OFFSET_MASK);
        if offset > OFFSET_MASK || start + size_of::<T>() > self.data_end() {
            None
        } else {
            Some(start as *mut T)
        }
    }

    #[inline(always)]
    fn load<T: Copy>(&self, offset: usize) -> Option<T> {
        // SAFETY: `at` checked that the whole T lies within the packet; any bytes are a valid T (plain numbers and arrays).
        self.at::<T>(offset).map(|pointer| unsafe { pointer.read_unaligned() })
    }

    #[inline(always)]
    fn store<T: Copy>(&self, offset: usize, value: T) -> Option<()> {
        // SAFETY: `at` checked that the whole T lies within the packet.
        self.at::<T>(offset).map(|pointer| unsafe { pointer.write_unaligned(value) })
    }
}

/// Exchanges the addresses of an Ethernet header: the frame goes back to whom it came from.
#[inline(always)]
pub fn swap_link_addresses<K: Frame>(frame: &K) -> Option<()> {
    let destination = frame.load::<[u8; 6]>(0)?;
    let source = frame.load::<[u8; 6]>(6)?;
    frame.store(0, source)?;
    frame.store(6, destination)
}
