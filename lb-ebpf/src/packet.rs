//! Parses the link layer, the IP header and the transport ports. Nothing here changes a packet.

use lb_common::checksum::fold;
use lb_common::family::{Family, V4, V6};
use lb_common::layout::{FlowKey, FragmentKey, SCTP, TCP, UDP, tcp_flags};
use lb_common::sctp;
use lb_common::wire::{
    ETHERNET_LEN, ICMP_LEN, SCTP_CHUNK_LEN, SCTP_LEN, SCTP_TAG_LEN, TCP_LEN, UDP_LEN, UDP_LENGTH, ipv6_next,
};

use crate::frame::{Frame, bounded};
use crate::maps::Maps;
use crate::seam::forget;
use crate::settings::KERNEL_FRAGMENTS;

/// The number of IPv6 extension headers that are skipped. Real packets have fewer.
const MAX_EXTENSION_HEADERS: usize = 6;

/// The highest number of words of options in an IPv4 header.
const MAX_IPV4_OPTIONS: usize = 10;

/// Bytes of the transport header that an ICMP error quotes at least (RFC 792).
const QUOTED_TRANSPORT: usize = 8;

/// The part of a datagram that a packet carries.
#[derive(Copy, Clone, PartialEq, Eq)]
#[repr(u8)]
pub enum Fragment {
    Whole,
    /// Carries the ports, which are stored for the later fragments.
    First,
    /// Has no transport header.
    Later,
}

/// A parsed packet.
#[repr(C)]
pub struct Packet<F: Family> {
    /// The 5-tuple as it arrived. For a later fragment the ports are those of its first.
    pub key: FlowKey<F::Addr>,
    /// Offset of the IP header.
    pub l3: usize,
    /// Offset of the transport header.
    pub l4: usize,
    /// Length of the IP packet in bytes, from its header.
    pub length: usize,
    /// Length of the longest IP packet of the datagram, in bytes. For a fragment that routers may
    /// fragment further this is the MTU of the device that it is on. The kernel puts the fragments
    /// of a datagram together before it fragments it, and must receive all of them or none.
    pub longest: usize,
    /// Identification of the datagram, for fragments.
    pub id: u32,
    pub fragment: Fragment,
    /// Byte 13 of the TCP header, or the flags that correspond to an SCTP packet
    /// ([`sctp::signals`]); 0 for UDP and later fragments.
    pub tcp_flags: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Routers may fragment the packet: IPv4 without "don't fragment".
    pub may_be_fragmented: bool,
    /// TCP: sequence number. SCTP: verification tag.
    pub seq: u32,
    /// TCP: acknowledgement number. SCTP: initiate tag of an INIT or INIT ACK, else 0.
    pub ack: u32,
    /// Bytes behind the TCP header.
    pub payload: u32,
}

impl<F: Family> Packet<F> {
    /// Returns whether the packet is a UDP datagram: any datagram may be the first of a connection,
    /// and none is marked as the last.
    #[inline(always)]
    pub fn is_datagram(&self) -> bool {
        self.key.protocol == UDP
    }

    /// Returns whether the packet may be the first of a connection: a SYN (without FIN and RST: RFC
    /// 9293 3.10.7.2), an INIT, any datagram.
    #[inline(always)]
    pub fn opens(&self) -> bool {
        const OPENING: u8 = tcp_flags::SYN | tcp_flags::ACK | tcp_flags::RST | tcp_flags::FIN;
        self.is_datagram() || self.tcp_flags & OPENING == tcp_flags::SYN
    }

    /// Returns the length of the transport header and its payload, in bytes, according to the IP
    /// header.
    #[inline(always)]
    pub fn transport_length(&self) -> usize {
        (self.l3 + self.length).saturating_sub(self.l4)
    }

    /// Returns the key that all fragments of this datagram have.
    #[inline(always)]
    pub fn fragment_key(&self) -> FragmentKey<F::Addr> {
        FragmentKey {
            src_addr: self.key.src_addr,
            dst_addr: self.key.dst_addr,
            id: self.id,
            protocol: self.key.protocol,
            pad: 0,
            reserved: 0,
        }
    }
}

/// Returns the EtherType, in host order, and the offset of the network header of an Ethernet frame.
/// The EtherType of a frame with a VLAN tag in its bytes is that of the tag: the frame is not the
/// device's own, and the program of the VLAN device receives the packet without the tag.
#[inline(always)]
pub fn ethernet<K: Frame>(frame: &K) -> Option<(u16, usize)> {
    Some((u16::from_be(frame.load::<u16>(ETHERNET_LEN - 2)?), ETHERNET_LEN))
}

/// IP header without options.
#[repr(C)]
#[derive(Copy, Clone)]
struct Ipv4Header {
    version_length: u8,
    tos: u8,
    total_length: [u8; 2],
    id: [u8; 2],
    fragment: [u8; 2],
    ttl: u8,
    protocol: u8,
    checksum: [u8; 2],
    src: [u8; 4],
    dst: [u8; 4],
}

/// IP header without extension headers.
#[repr(C)]
#[derive(Copy, Clone)]
struct Ipv6Header {
    version_class_label: [u8; 4],
    payload_length: [u8; 2],
    next_header: u8,
    hop_limit: u8,
    src: [u8; 16],
    dst: [u8; 16],
}

lb_common::plain! {
    Ipv4Header { version_length, tos, total_length, id, fragment, ttl, protocol, checksum, src, dst }
    Ipv6Header { version_class_label, payload_length, next_header, hop_limit, src, dst }
}

/// Reads the IP header of a family.
pub trait Parse: Maps {
    /// Fills all fields except ports and TCP flags. Returns `None` if the header is malformed.
    fn network<K: Frame>(frame: &K, l3: usize, packet: &mut Packet<Self>) -> Option<()>
    where
        Self: Sized;
    /// Returns whether the checksum of the IP header, if the family has one, is correct.
    fn is_intact<K: Frame>(frame: &K, packet: &Packet<Self>) -> bool
    where
        Self: Sized;
    /// Returns whether the address may be the source of a packet from another host: it is not
    /// unspecified, loopback, multicast, reserved or broadcast (RFC 1812 5.3.7, RFC 4291 2.5, 2.7).
    fn is_host(addr: &Self::Addr) -> bool;
}

/// Returns whether a packet may open a connection, and may be answered: its header is intact, and
/// its source is one host (RFC 1812 4.3.2.7, RFC 4443 2.4(e)). The caller checks that the frame is
/// for this node.
#[inline(always)]
pub fn is_acceptable<F: Parse, K: Frame>(frame: &K, packet: &Packet<F>) -> bool {
    F::is_host(&packet.key.src_addr) && F::is_intact(frame, packet)
}

impl Parse for V4 {
    #[inline(always)]
    fn network<K: Frame>(frame: &K, l3: usize, packet: &mut Packet<V4>) -> Option<()> {
        const MORE_FRAGMENTS: u16 = 0x2000;
        const OFFSET: u16 = 0x1fff;
        const DONT_FRAGMENT: u16 = 0x4000;
        /// RFC 3514.
        const EVIL: u16 = 0x8000;
        let header = frame.load::<Ipv4Header>(l3)?;
        let header_length = ((header.version_length & 0xf) as usize) * 4;
        let length = u16::from_be_bytes(header.total_length) as usize;
        if header.version_length >> 4 != 4 || header_length < V4::HEADER_LEN {
            return None;
        }
        packet.key.src_addr = header.src;
        packet.key.dst_addr = header.dst;
        packet.key.protocol = header.protocol;
        packet.l4 = l3 + header_length;
        packet.length = length;
        packet.id = u16::from_be_bytes(header.id) as u32;
        packet.ttl = header.ttl;
        let bits = u16::from_be_bytes(header.fragment);
        packet.may_be_fragmented = bits & DONT_FRAGMENT == 0;
        packet.fragment = match (bits & OFFSET, bits & MORE_FRAGMENTS) {
            (0, 0) => Fragment::Whole,
            (0, _) => Fragment::First,
            _ => Fragment::Later,
        };
        packet.longest = length;
        // A fragment without DONT_FRAGMENT, by one comparison.
        if (bits & !EVIL).wrapping_sub(1) < DONT_FRAGMENT - 1 && KERNEL_FRAGMENTS.load() != 0 {
            packet.longest = core::cmp::max(length, frame.mtu());
        }
        Some(())
    }

    #[inline(always)]
    fn is_intact<K: Frame>(frame: &K, packet: &Packet<V4>) -> bool {
        let Some([a, b, c, d, e]) = frame.load::<[u32; V4::HEADER_LEN / 4]>(packet.l3) else { return false };
        let mut sum = a as u64 + b as u64 + c as u64 + d as u64 + e as u64;
        let mut option = packet.l3 + V4::HEADER_LEN;
        for _ in 0..MAX_IPV4_OPTIONS {
            if option >= packet.l4 {
                break;
            }
            let Some(word) = frame.load::<u32>(option) else { return false };
            sum += word as u64;
            option += 4;
        }
        fold(sum) == 0xffff
    }

    #[inline(always)]
    fn is_host(&[first, ..]: &[u8; 4]) -> bool {
        first != 0 && first != 127 && first < 224
    }
}

impl Parse for V6 {
    #[inline(always)]
    fn network<K: Frame>(frame: &K, l3: usize, packet: &mut Packet<V6>) -> Option<()> {
        let header = frame.load::<Ipv6Header>(l3)?;
        if header.version_class_label[0] >> 4 != 6 {
            return None;
        }
        packet.key.src_addr = header.src;
        packet.key.dst_addr = header.dst;
        packet.length = u16::from_be_bytes(header.payload_length) as usize + V6::HEADER_LEN;
        packet.ttl = header.hop_limit;
        packet.may_be_fragmented = false;
        packet.longest = packet.length;
        let mut protocol = header.next_header;
        let mut l4 = l3 + V6::HEADER_LEN;
        let mut fragment = Fragment::Whole;
        for _ in 0..MAX_EXTENSION_HEADERS {
            l4 = bounded(l4)?;
            match protocol {
                ipv6_next::HOP_BY_HOP | ipv6_next::ROUTING | ipv6_next::DESTINATION | ipv6_next::MOBILITY => {
                    let [next, length] = frame.load::<[u8; 2]>(l4)?;
                    protocol = next;
                    l4 += (length as usize + 1) * 8;
                }
                ipv6_next::AUTHENTICATION => {
                    let [next, length] = frame.load::<[u8; 2]>(l4)?;
                    protocol = next;
                    l4 += (length as usize + 2) * 4;
                }
                ipv6_next::FRAGMENT => {
                    // RFC 8200 4.5: next header, reserved, offset (13 bits) and M flag,
                    // identification.
                    let [next, _, high, low, i0, i1, i2, i3] = frame.load::<[u8; 8]>(l4)?;
                    protocol = next;
                    l4 += 8;
                    packet.id = u32::from_be_bytes([i0, i1, i2, i3]);
                    if high != 0 || low & 0xf8 != 0 {
                        fragment = Fragment::Later;
                        break; // what follows is payload
                    }
                    if low & 1 != 0 {
                        fragment = Fragment::First;
                    }
                }
                _ => break,
            }
        }
        packet.key.protocol = protocol;
        packet.l4 = l4;
        packet.fragment = fragment;
        Some(())
    }

    #[inline(always)]
    fn is_intact<K: Frame>(_frame: &K, _packet: &Packet<V6>) -> bool {
        true
    }

    #[inline(always)]
    fn is_host(addr: &[u8; 16]) -> bool {
        addr[0] != 0xff && *addr != V6::UNSPECIFIED && *addr != V6::LOOPBACK
    }
}

/// Parses the packet whose IP header starts at `l3`. Returns `None` if no Service can be addressed
/// by this packet. `key.protocol` is set all the same; it is 0 if the IP header is malformed.
#[inline(always)]
pub fn parse<F: Parse, K: Frame>(frame: &K, l3: usize, packet: &mut Packet<F>) -> Option<()> {
    packet.key.protocol = 0;
    packet.l3 = l3;
    // The verifier has no bounds for the content of a map value. Read back from there, `l3` is the
    // same unknown number for every link header, so the verifier checks the following code once.
    // SAFETY: the pointer is that of a reference.
    let l3 = unsafe { (&raw const packet.l3).read_volatile() };
    F::network(frame, l3, packet)?;
    let packet = forget(packet);
    packet.key.pad = 0;
    packet.key.reserved = 0;
    packet.tcp_flags = 0;
    packet.seq = 0;
    packet.ack = 0;
    packet.payload = 0;
    let protocol = packet.key.protocol;
    let transport = match (protocol, packet.fragment) {
        (TCP | UDP | SCTP, Fragment::Later) => 0,
        (TCP, _) => TCP_LEN,
        (UDP, _) => UDP_LEN,
        (SCTP, _) => SCTP_LEN,
        _ => return None,
    };
    // Bytes behind the end of the IP packet are padding, not ports. A packet that claims to be
    // longer than the frame is malformed. (The length of GRO-merged packets over 64 KiB is 0.)
    let end = packet.l3 + packet.length;
    let is_merged = frame.segment_payload() != 0;
    if !is_merged && (packet.l4 + transport > end || !frame.reaches(end)) {
        return None;
    }
    if packet.fragment == Fragment::Later {
        // SAFETY: the ports are copied. The key was compared before; if the element is evicted and
        // reused during the copy, the ports are another datagram's, and the fragment is translated
        // for that connection or passes; its datagram is incomplete then.
        let ports = unsafe { F::fragments().get(&packet.fragment_key()) }?;
        packet.key.src_port = ports.src_port;
        packet.key.dst_port = ports.dst_port;
        return Some(());
    }
    // The whole header must be present, so that a rewrite cannot fail half-way.
    if protocol == TCP {
        let [_, seq, ack, offset_flags, _] = frame.load::<[u32; TCP_LEN / 4]>(packet.l4)?;
        let [offset, flags, ..] = offset_flags.to_ne_bytes();
        let header = (offset >> 4) as usize * 4;
        if header < TCP_LEN {
            return None;
        }
        let length = packet.transport_length();
        if header > length && packet.fragment == Fragment::Whole && !is_merged {
            return None;
        }
        packet.tcp_flags = flags;
        packet.seq = u32::from_be(seq);
        packet.ack = u32::from_be(ack);
        packet.payload = length.saturating_sub(header) as u32;
    } else if protocol == UDP {
        // A UDP length below that of the IP packet is allowed: options follow (RFC 9868).
        let [high, low] = frame.load::<[u8; 2]>(packet.l4 + UDP_LENGTH)?;
        let length = u16::from_be_bytes([high, low]) as usize;
        let is_whole = packet.fragment == Fragment::Whole;
        if !is_merged && (length < UDP_LEN || (is_whole && length > packet.transport_length())) {
            return None;
        }
    } else if protocol == SCTP {
        let [_, tag, _] = frame.load::<[u32; SCTP_LEN / 4]>(packet.l4)?;
        packet.seq = u32::from_be(tag);
        read_chunk(frame, packet);
    }
    load_ports(frame, packet)
}

/// Parses the packet that the ICMP error in `outer` quotes. Returns `None` if its ports are
/// unknown, or it has none.
#[inline(always)]
pub fn parse_quoted<F: Parse, K: Frame>(frame: &K, outer: &Packet<F>, quoted: &mut Packet<F>) -> Option<()> {
    quoted.l3 = outer.l4 + ICMP_LEN;
    F::network(frame, quoted.l3, quoted)?;
    quoted.key.pad = 0;
    quoted.key.reserved = 0;
    quoted.tcp_flags = 0;
    // Later fragments have no ports. A router that finds the path too small for one has refused the
    // first fragment already.
    let has_ports = matches!(quoted.key.protocol, TCP | UDP | SCTP) && quoted.fragment != Fragment::Later;
    if !has_ports || quoted.l4 + QUOTED_TRANSPORT > outer.l3 + outer.length {
        return None;
    }
    load_ports(frame, quoted)
}

/// Reads the ports, which are in the same place in all transport headers.
#[inline(always)]
fn load_ports<F: Family, K: Frame>(frame: &K, packet: &mut Packet<F>) -> Option<()> {
    let [s0, s1, d0, d1, ..] = frame.load::<[u8; UDP_LEN]>(packet.l4)?;
    packet.key.src_port = u16::from_be_bytes([s0, s1]);
    packet.key.dst_port = u16::from_be_bytes([d0, d1]);
    Some(())
}

/// Reads the first chunk of an SCTP packet: its effect on the association, and the initiate tag of
/// an INIT or INIT ACK. Fragments carry much data. Chunks that open and close associations are in
/// packets of their own.
#[inline(always)]
fn read_chunk<F: Family, K: Frame>(frame: &K, packet: &mut Packet<F>) {
    const CHUNK: usize = SCTP_LEN + SCTP_CHUNK_LEN;
    if packet.fragment != Fragment::Whole || packet.transport_length() < CHUNK {
        return;
    }
    let Some(kind) = frame.load::<[u8; SCTP_CHUNK_LEN]>(packet.l4 + SCTP_LEN) else { return };
    packet.tcp_flags = sctp::signals(packet.seq, kind[0]);
    if packet.tcp_flags & tcp_flags::SYN != 0
        && packet.transport_length() >= CHUNK + SCTP_TAG_LEN
        && let Some(tag) = frame.load::<u32>(packet.l4 + CHUNK)
    {
        packet.ack = u32::from_be(tag);
    }
}
