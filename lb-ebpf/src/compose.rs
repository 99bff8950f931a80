//! Headers of the packets that this node sends itself: ICMP errors, TCP resets.

use lb_common::checksum::{finish, sum4, sum16};
use lb_common::family::{Family as _, V4, V6};
use lb_common::wire::IPV4_CHECKSUM;

use crate::frame::Frame;
use crate::nat::Header;
use crate::packet::Packet;

/// TTL and hop limit of the packets that this node sends itself.
pub const OWN_TTL: u8 = 64;

/// The values that the IP header of such a packet depends on.
pub struct OwnPacket<A> {
    pub src: A,
    pub dst: A,
    /// Bytes behind the IP header.
    pub payload: usize,
    pub protocol: u8,
}

impl<A: Copy> OwnPacket<A> {
    /// Describes the answer to a packet, with `payload` bytes of `protocol`.
    #[inline(always)]
    pub fn answering<F: Compose<Addr = A>>(packet: &Packet<F>, protocol: u8, payload: usize) -> Self {
        Self { src: packet.key.dst_addr, dst: packet.key.src_addr, payload, protocol }
    }
}

/// Writes the headers of an address family.
pub trait Compose: Header {
    /// Writes the IP header of `own` at `l3`.
    fn header<K: Frame>(frame: &K, l3: usize, own: &OwnPacket<Self::Addr>) -> Option<()>;
    /// Returns the unfolded sum of the pseudo-header, or 0 if the checksum covers none.
    fn pseudo(own: &OwnPacket<Self::Addr>) -> u64;
}

impl Compose for V4 {
    #[inline(always)]
    fn header<K: Frame>(frame: &K, l3: usize, own: &OwnPacket<[u8; 4]>) -> Option<()> {
        let [high, low] = ((V4::HEADER_LEN + own.payload) as u16).to_be_bytes();
        // ICMP errors have precedence "internetwork control" (RFC 1812 4.3.2.5).
        let precedence = if own.protocol == V4::ICMP { 0xc0 } else { 0 };
        // Version and length of the header, type of service, length.
        let start = [0x45, precedence, high, low];
        // Identification 0, don't fragment.
        let middle = [0, 0, 0x40, 0];
        let end = [OWN_TTL, own.protocol, 0, 0];
        frame.store(l3, start)?;
        frame.store(l3 + 4, middle)?;
        frame.store(l3 + 8, end)?;
        frame.store(l3 + 12, own.src)?;
        frame.store(l3 + 16, own.dst)?;
        let sum = sum4(start) + sum4(middle) + sum4(end) + sum4(own.src) + sum4(own.dst);
        frame.store(l3 + IPV4_CHECKSUM, finish(sum))
    }

    #[inline(always)]
    fn pseudo(own: &OwnPacket<[u8; 4]>) -> u64 {
        if own.protocol == V4::ICMP {
            return 0;
        }
        let [high, low] = (own.payload as u16).to_be_bytes();
        sum4(own.src) + sum4(own.dst) + sum4([0, own.protocol, high, low])
    }
}

impl Compose for V6 {
    #[inline(always)]
    fn header<K: Frame>(frame: &K, l3: usize, own: &OwnPacket<[u8; 16]>) -> Option<()> {
        let [high, low] = (own.payload as u16).to_be_bytes();
        frame.store(l3, [0x60u8, 0, 0, 0])?;
        frame.store(l3 + 4, [high, low, own.protocol, OWN_TTL])?;
        frame.store(l3 + 8, own.src)?;
        frame.store(l3 + 24, own.dst)
    }

    #[inline(always)]
    fn pseudo(own: &OwnPacket<[u8; 16]>) -> u64 {
        let length = (own.payload as u32).to_be_bytes();
        sum16(own.src) + sum16(own.dst) + sum4(length) + sum4([0, 0, 0, own.protocol])
    }
}

/// Returns [`finish`] of a sum that a loop has added up. The verifier checks this function once,
/// and not once for each end of the loop.
#[inline(always)]
pub fn finish_apart(sum: u64) -> u16 {
    lb_finish_sum(sum) as u16
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_finish_sum(sum: u64) -> u64 {
    finish(sum) as u64
}
