//! TCP resets: how a connection attempt to a port that nobody serves is refused.

use aya_ebpf::bindings::{__sk_buff, BPF_F_PSEUDO_HDR};
use aya_ebpf::helpers::generated::{bpf_l4_csum_replace, bpf_skb_change_tail};
use lb_common::checksum::fold;
use lb_common::layout::{TCP, tcp_flags};
use lb_common::wire::{ETHERNET_LEN, TCP_CHECKSUM, TCP_DATA_OFFSET, TCP_LEN};

use crate::frame::{Frame, swap_link_addresses};
use crate::packet::{Fragment, Packet, Parse};

/// The segment that answers another one, as a closed port does (RFC 9293 3.10.7.1).
pub struct Reset {
    seq: u32,
    ack: u32,
    flags: u8,
}

impl Reset {
    /// Nothing: a reset is never answered, and the length of a segment in fragments is not known.
    #[inline(always)]
    pub fn answering<F: Parse, K: Frame>(frame: &K, packet: &Packet<F>) -> Option<Self> {
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

    /// Turns the packet into the reset. IP options and extension headers are left out.
    #[inline(always)]
    pub fn build<F: Parse, K: Frame>(self, frame: &K, skb: *mut __sk_buff, packet: &Packet<F>) -> Option<()> {
        let l3 = packet.l3;
        let l4 = l3 + F::HEADER_LEN;
        // A packet with options and a partial checksum is refused here: its checksum field would be behind the new end.
        // SAFETY: the helper checks the length; packet pointers are read anew after it.
        if unsafe { bpf_skb_change_tail(skb, (l4 + TCP_LEN) as u32, 0) } != 0 {
            return None;
        }
        if l3 >= ETHERNET_LEN {
            swap_link_addresses(frame)?;
        }
        let (src, dst) = (packet.key.dst_addr, packet.key.src_addr);
        F::header(frame, l3, src, dst, TCP, TCP_LEN)?;
        let ports = ((packet.key.dst_port as u32) << 16 | packet.key.src_port as u32).to_be();
        let (seq, ack) = (self.seq.to_be(), self.ack.to_be());
        // Header of five words, flags, a window of zero.
        let flags = (0x5000_0000 | (self.flags as u32) << 16).to_be();
        frame.store::<u32>(l4, ports)?;
        frame.store::<u32>(l4 + 4, seq)?;
        frame.store::<u32>(l4 + 8, ack)?;
        frame.store::<u32>(l4 + 12, flags)?;
        // Zero in ones' complement, for a partial checksum and a complete one alike. The helper knows which it is, and that a
        // partial one is to hold the pseudo-header alone: the sender's device adds the rest, here as it would have there.
        frame.store::<[u16; 2]>(l4 + TCP_CHECKSUM, [0xffff, 0])?;
        let pseudo = F::pseudo(src, dst, TCP, TCP_LEN);
        let header = ports as u64 + seq as u64 + ack as u64 + flags as u64;
        add(skb, l4 + TCP_CHECKSUM, pseudo, BPF_F_PSEUDO_HDR as u64)?;
        add(skb, l4 + TCP_CHECKSUM, header, 0)
    }
}

/// Adds a sum to what a checksum covers.
#[inline(always)]
fn add(skb: *mut __sk_buff, offset: usize, sum: u64, flags: u64) -> Option<()> {
    // SAFETY: the helper checks the offset; packet pointers are read anew after it.
    let result = unsafe { bpf_l4_csum_replace(skb, offset as u32, 0, fold(sum) as u64, flags) };
    if result == 0 { Some(()) } else { None }
}
