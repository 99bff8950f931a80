//! TCP resets, which refuse a connection attempt to a port without endpoints.

use lb_common::layout::{TCP, tcp_flags};
use lb_common::wire::{ETHERNET_LEN, TCP_CHECKSUM, TCP_DATA_OFFSET, TCP_LEN};

use crate::compose::{Compose, OwnPacket};
use crate::frame::skb::SkbFrame;
use crate::frame::{Frame as _, swap_link_addresses};
use crate::packet::{Fragment, Packet};

/// The reset with which a closed port answers a segment (RFC 9293 3.10.7.1).
pub struct Reset {
    seq: u32,
    ack: u32,
    flags: u8,
}

impl Reset {
    /// Returns the reset for a segment. Returns `None` for a reset, which is never answered, and
    /// for fragments, because the length of the segment is unknown.
    #[inline(always)]
    pub fn answering<F: Compose>(frame: &SkbFrame, packet: &Packet<F>) -> Option<Self> {
        if packet.fragment != Fragment::Whole || packet.tcp_flags & tcp_flags::RST != 0 {
            return None;
        }
        let [seq, ack] = frame.load::<[u32; 2]>(packet.l4 + 4)?;
        if packet.tcp_flags & tcp_flags::ACK != 0 {
            return Some(Self { seq: u32::from_be(ack), ack: 0, flags: tcp_flags::RST });
        }
        let [offset, _] = frame.load::<[u8; 2]>(packet.l4 + TCP_DATA_OFFSET)?;
        let header = packet.l4 - packet.l3 + ((offset >> 4) as usize) * 4;
        let mut length = packet.length.saturating_sub(header) as u32;
        length += (packet.tcp_flags & tcp_flags::SYN != 0) as u32;
        length += (packet.tcp_flags & tcp_flags::FIN != 0) as u32;
        let ack = u32::from_be(seq).wrapping_add(length);
        Some(Self { seq: 0, ack, flags: tcp_flags::RST | tcp_flags::ACK })
    }

    /// Turns the packet into the reset. IP options and extension headers are removed.
    #[inline(always)]
    pub fn build<F: Compose>(self, frame: &SkbFrame, packet: &Packet<F>) -> Option<()> {
        let l3 = packet.l3;
        let l4 = l3 + F::HEADER_LEN;
        // This fails for a packet with options and a partial checksum: its checksum field would be
        // behind the new end.
        frame.set_length(l4 + TCP_LEN)?;
        if l3 >= ETHERNET_LEN {
            swap_link_addresses(frame)?;
        }
        let own = OwnPacket::answering(packet, TCP, TCP_LEN);
        F::header(frame, l3, &own)?;
        let ports = ((packet.key.dst_port as u32) << 16 | packet.key.src_port as u32).to_be();
        let (seq, ack) = (self.seq.to_be(), self.ack.to_be());
        // A header of five words, the flags, a window of zero.
        let flags = (0x5000_0000 | (self.flags as u32) << 16).to_be();
        frame.store::<u32>(l4, ports)?;
        frame.store::<u32>(l4 + 4, seq)?;
        frame.store::<u32>(l4 + 8, ack)?;
        frame.store::<u32>(l4 + 12, flags)?;
        // 0xffff is zero in ones' complement, and the start for both kinds of checksums. A complete
        // checksum gets the sum of pseudo-header and header. A partial one gets the pseudo-header
        // alone, and a device adds the rest. The helper distinguishes them.
        frame.store::<[u16; 2]>(l4 + TCP_CHECKSUM, [0xffff, 0])?;
        let header = ports as u64 + seq as u64 + ack as u64 + flags as u64;
        frame.add_to_checksum(l4 + TCP_CHECKSUM, F::pseudo(&own), header)
    }
}
