//! Rewrites a packet to another tuple, with every checksum.

use lb_common::checksum::{difference, update};
use lb_common::crc32c;
use lb_common::family::{Family, V4, V6};
use lb_common::layout::{SCTP, TCP, UDP};
use lb_common::reason::Reason;
use lb_common::wire::{IPV4_CHECKSUM, SCTP_CHECKSUM, TCP_CHECKSUM, UDP_CHECKSUM};

use crate::frame::Frame;
use crate::packet::{Fragment, Packet, Parse};
use crate::translation::Translation;

/// Offset of TTL and protocol in an IPv4 header.
const IPV4_TTL_PROTOCOL: usize = 8;
/// Offset of next header and hop limit in an IPv6 header.
const IPV6_NEXT_HOP_LIMIT: usize = 6;

/// Rewrites the IP header of a family.
pub trait Header: Parse {
    /// Writes the TTL or hop limit, and updates the header checksum by `addresses`, the difference
    /// of the address sums.
    fn finish<K: Frame>(frame: &K, packet: &Packet<Self>, addresses: u64, ttl: u8) -> Option<()>
    where
        Self: Sized;
}

impl Header for V4 {
    #[inline(always)]
    fn finish<K: Frame>(frame: &K, packet: &Packet<V4>, addresses: u64, ttl: u8) -> Option<()> {
        let mut change = addresses;
        if ttl != packet.ttl {
            let old = frame.load::<[u8; 2]>(packet.l3 + IPV4_TTL_PROTOCOL)?;
            let new = [ttl, old[1]];
            change += difference(u16::from_ne_bytes(old) as u64, u16::from_ne_bytes(new) as u64);
            frame.store(packet.l3 + IPV4_TTL_PROTOCOL, new)?;
        }
        let checksum = frame.load::<u16>(packet.l3 + IPV4_CHECKSUM)?;
        frame.store::<u16>(packet.l3 + IPV4_CHECKSUM, update(checksum, change))
    }
}

impl Header for V6 {
    #[inline(always)]
    fn finish<K: Frame>(frame: &K, packet: &Packet<V6>, _addresses: u64, ttl: u8) -> Option<()> {
        if ttl != packet.ttl {
            let [next, _] = frame.load::<[u8; 2]>(packet.l3 + IPV6_NEXT_HOP_LIMIT)?;
            frame.store(packet.l3 + IPV6_NEXT_HOP_LIMIT, [next, ttl])?;
        }
        Some(())
    }
}

/// Rewrites the packet to the tuple of `flow`, or returns the reason why that is impossible.
#[inline(always)]
pub fn rewrite<F: Header, K: Frame>(
    frame: &K,
    packet: &Packet<F>,
    flow: &Translation<F::Addr>,
    forwarded: bool,
) -> Result<(), Reason> {
    // The checksum of SCTP is in the first fragment and covers the other fragments, whose length is
    // unknown yet. It does not cover addresses.
    if packet.key.protocol == SCTP && packet.fragment == Fragment::First && changed_ports(packet, flow) != 0 {
        return Err(Reason::SctpFragment);
    }
    write(frame, packet, flow, forwarded).ok_or(Reason::RewriteFailed)
}

/// Writes the new headers. Returns `None` if the packet is shorter than its headers declare.
#[inline(always)]
fn write<F: Header, K: Frame>(
    frame: &K,
    packet: &Packet<F>,
    flow: &Translation<F::Addr>,
    forwarded: bool,
) -> Option<()> {
    let addresses = address_difference(packet, flow);
    // The transport header comes first: on an skb this calls helpers, which invalidate earlier
    // packet pointers.
    if packet.fragment != Fragment::Later {
        if packet.key.protocol == SCTP {
            update_crc(frame, packet, changed_ports(packet, flow))?;
        } else {
            let ports = port_difference(packet, flow);
            let checksum = if packet.key.protocol == TCP { TCP_CHECKSUM } else { UDP_CHECKSUM };
            let is_udp = packet.key.protocol == UDP;
            frame.update_checksum::<F>(packet.l4 + checksum, is_udp, addresses, ports)?;
        }
        frame.store::<[u16; 2]>(packet.l4, [flow.new_src_port.to_be(), flow.new_dst_port.to_be()])?;
    }
    F::finish(frame, packet, addresses, if forwarded { packet.ttl.wrapping_sub(1) } else { packet.ttl })?;
    store_addresses(frame, packet, flow.new_src_addr, flow.new_dst_addr)
}

/// Returns the change of the sum of a packet's addresses when it gets the tuple of `flow`. The
/// result is the same if source and destination are exchanged.
#[inline(always)]
pub fn address_difference<F: Header>(packet: &Packet<F>, flow: &Translation<F::Addr>) -> u64 {
    difference(
        F::sum(packet.key.src_addr) + F::sum(packet.key.dst_addr),
        F::sum(flow.new_src_addr) + F::sum(flow.new_dst_addr),
    )
}

/// Returns the change of the sum of a packet's ports when it gets the tuple of `flow`. The result
/// is the same if source and destination are exchanged.
#[inline(always)]
pub fn port_difference<F: Header>(packet: &Packet<F>, flow: &Translation<F::Addr>) -> u64 {
    difference(
        packet.key.src_port.to_be() as u64 + packet.key.dst_port.to_be() as u64,
        flow.new_src_port.to_be() as u64 + flow.new_dst_port.to_be() as u64,
    )
}

/// Writes the addresses of an IP header, and no checksum.
#[inline(always)]
pub fn store_addresses<F: Family, K: Frame>(
    frame: &K,
    packet: &Packet<F>,
    src: F::Addr,
    dst: F::Addr,
) -> Option<()> {
    let offset = packet.l3 + F::SOURCE_OFFSET;
    frame.store::<F::Addr>(offset, src)?;
    frame.store::<F::Addr>(offset + core::mem::size_of::<F::Addr>(), dst)
}

/// Returns the bits of the two ports that change, as the first four bytes of the transport header
/// in little-endian order.
#[inline(always)]
fn changed_ports<F: Header>(packet: &Packet<F>, flow: &Translation<F::Addr>) -> u32 {
    let source = (packet.key.src_port ^ flow.new_src_port).swap_bytes();
    let destination = (packet.key.dst_port ^ flow.new_dst_port).swap_bytes();
    source as u32 | (destination as u32) << 16
}

/// Updates the CRC of an SCTP packet whose ports change by `ports`.
///
/// A CRC of zero stays zero: the device will fill it in (`CHECKSUM_PARTIAL`, which a program cannot
/// see), or the packet has none (RFC 9653). One correct CRC in 2^32 is zero by chance; the receiver
/// discards such a packet as damaged.
///
/// The sum that a device has computed over an skb (`CHECKSUM_COMPLETE`) is left as it is: the
/// kernel does not use it for SCTP (Linux 6.17, net/openvswitch/actions.c, `set_sctp`).
#[inline(always)]
fn update_crc<F: Header, K: Frame>(frame: &K, packet: &Packet<F>, ports: u32) -> Option<()> {
    let offset = packet.l4 + SCTP_CHECKSUM;
    let crc = frame.load::<u32>(offset)?;
    if crc == 0 {
        return Some(());
    }
    let change = lb_crc_change(ports as u64, packet.transport_length() as u64) as u32;
    frame.store::<u32>(offset, crc ^ change.to_le())
}

/// Returns [`crc32c::change`]. The verifier checks the loops in it once, because this is a function
/// of numbers.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_crc_change(ports: u64, length: u64) -> u64 {
    crc32c::change(ports as u32, length as usize) as u64
}
