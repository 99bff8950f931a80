//! Rewriting a packet to another tuple, every checksum with it.

use lb_common::checksum::{difference, sum4, sum16, update};
use lb_common::family::{V4, V6};
use lb_common::layout::{Flow, TCP};
use lb_common::wire::{IPV4_CHECKSUM, TCP_CHECKSUM, UDP_CHECKSUM};

use crate::frame::Frame;
use crate::packet::{Fragment, Packet, Parse};

/// Offset of TTL and protocol in an IPv4 header.
const IPV4_TTL_PROTOCOL: usize = 8;
/// Offset of next header and hop limit in an IPv6 header.
const IPV6_NEXT_HOP_LIMIT: usize = 6;

/// Where the IP headers differ in rewriting.
pub trait Header: Parse {
    /// Unfolded sum of an address.
    fn sum(addr: Self::Addr) -> u64;
    /// Writes what follows from new addresses (their difference) and, when `forwarded`, one hop less.
    fn finish<K: Frame>(frame: &K, packet: &Packet<Self>, addresses: u64, forwarded: bool) -> Option<()>
    where
        Self: Sized;
}

impl Header for V4 {
    #[inline(always)]
    fn sum(addr: [u8; 4]) -> u64 {
        sum4(addr)
    }

    #[inline(always)]
    fn finish<K: Frame>(frame: &K, packet: &Packet<V4>, addresses: u64, forwarded: bool) -> Option<()> {
        let mut change = addresses;
        if forwarded {
            let old = frame.load::<[u8; 2]>(packet.l3 + IPV4_TTL_PROTOCOL)?;
            let new = [old[0].wrapping_sub(1), old[1]];
            change += difference(u16::from_ne_bytes(old) as u64, u16::from_ne_bytes(new) as u64);
            frame.store(packet.l3 + IPV4_TTL_PROTOCOL, new)?;
        }
        let checksum = frame.load::<u16>(packet.l3 + IPV4_CHECKSUM)?;
        frame.store::<u16>(packet.l3 + IPV4_CHECKSUM, update(checksum, change))
    }
}

impl Header for V6 {
    #[inline(always)]
    fn sum(addr: [u8; 16]) -> u64 {
        sum16(addr)
    }

    #[inline(always)]
    fn finish<K: Frame>(frame: &K, packet: &Packet<V6>, _addresses: u64, forwarded: bool) -> Option<()> {
        if forwarded {
            let [next, hop_limit] = frame.load::<[u8; 2]>(packet.l3 + IPV6_NEXT_HOP_LIMIT)?;
            frame.store(packet.l3 + IPV6_NEXT_HOP_LIMIT, [next, hop_limit.wrapping_sub(1)])?;
        }
        Some(())
    }
}

/// Gives the packet the tuple of `flow`. Nothing: the packet is shorter than its headers say.
#[inline(always)]
pub fn rewrite<F: Header, K: Frame>(
    frame: &K,
    packet: &Packet<F>,
    flow: &Flow<F::Addr>,
    forwarded: bool,
) -> Option<()> {
    let addresses = difference(
        F::sum(packet.key.src_addr) + F::sum(packet.key.dst_addr),
        F::sum(flow.new_src_addr) + F::sum(flow.new_dst_addr),
    );
    // The transport header first: on an skb this calls helpers, after which no earlier pointer is valid.
    if packet.fragment != Fragment::Later {
        let ports = difference(
            packet.key.src_port.to_be() as u64 + packet.key.dst_port.to_be() as u64,
            flow.new_src_port.to_be() as u64 + flow.new_dst_port.to_be() as u64,
        );
        let checksum = if packet.key.protocol == TCP { TCP_CHECKSUM } else { UDP_CHECKSUM };
        frame.update_checksum(packet, packet.l4 + checksum, addresses, ports)?;
        frame.store::<[u16; 2]>(packet.l4, [flow.new_src_port.to_be(), flow.new_dst_port.to_be()])?;
    }
    F::finish(frame, packet, addresses, forwarded)?;
    frame.store::<F::Addr>(packet.l3 + F::SOURCE_OFFSET, flow.new_src_addr)?;
    frame.store::<F::Addr>(packet.l3 + F::SOURCE_OFFSET + core::mem::size_of::<F::Addr>(), flow.new_dst_addr)
}
