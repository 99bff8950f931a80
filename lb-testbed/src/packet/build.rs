//! Builds the bytes of a packet from its layers. Lengths, checksums, protocol numbers and
//! EtherTypes that the layers leave out are computed.

use std::net::IpAddr;

use super::layer::{Checksum, DatagramPart, Layer, ethertype, protocol};
use super::sums;

/// Addresses of the enclosing IP header. The transport checksum covers them.
#[derive(Clone, Copy)]
struct Pseudo {
    source: IpAddr,
    destination: IpAddr,
}

/// Returns the bytes of a packet.
pub fn build(layers: &[Layer]) -> Vec<u8> {
    let (layers, trailer) = match layers.split_last() {
        Some((Layer::Trailer(bytes), rest)) => (rest, bytes.as_slice()),
        _ => (layers, [].as_slice()),
    };
    let mut bytes = build_from(layers, None);
    bytes.extend_from_slice(trailer);
    bytes
}

fn build_from(layers: &[Layer], pseudo: Option<Pseudo>) -> Vec<u8> {
    let Some((layer, rest)) = layers.split_first() else { return Vec::new() };
    let inner_pseudo =
        layer.addresses().map(|(source, destination)| Pseudo { source, destination }).or(pseudo);
    let mut inner = build_from(rest, inner_pseudo);
    let mut bytes = Vec::new();
    match layer {
        Layer::Ethernet(header) => {
            bytes.extend(header.destination);
            bytes.extend(header.source);
            bytes.extend(header.ethertype.unwrap_or_else(|| ethertype_of(rest)).to_be_bytes());
        }
        Layer::Vlan(tag) => {
            bytes.extend(tag.tci.to_be_bytes());
            bytes.extend(tag.ethertype.unwrap_or_else(|| ethertype_of(rest)).to_be_bytes());
        }
        Layer::Ipv4(header) => {
            let (offset, more) = cut(header.part, &mut inner);
            let header_len = 20 + header.options.len();
            let length = header.length.unwrap_or((header_len + inner.len()) as u16);
            let flags =
                u16::from(header.evil) << 15 | u16::from(header.dont_fragment) << 14 | u16::from(more) << 13;
            bytes.extend([0x40 | (header_len / 4) as u8, header.tos]);
            bytes.extend(length.to_be_bytes());
            bytes.extend(header.id.to_be_bytes());
            bytes.extend((flags | (offset / 8)).to_be_bytes());
            bytes.extend([
                header.ttl,
                header.protocol.unwrap_or_else(|| protocol_of(rest, protocol::EXPERIMENT)),
            ]);
            bytes.extend([0, 0]);
            bytes.extend(header.source.octets());
            bytes.extend(header.destination.octets());
            bytes.extend(&header.options);
            let checksum = checksum16(header.checksum, sums::internet(&[&bytes]));
            bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        Layer::Ipv6(header) => {
            let first = 6 << 28 | u32::from(header.traffic_class) << 20 | (header.flow_label & 0xf_ffff);
            bytes.extend(first.to_be_bytes());
            bytes.extend(header.length.unwrap_or(inner.len() as u16).to_be_bytes());
            bytes.extend([
                header.next.unwrap_or_else(|| protocol_of(rest, protocol::NO_NEXT)),
                header.hop_limit,
            ]);
            bytes.extend(header.source.octets());
            bytes.extend(header.destination.octets());
        }
        Layer::Extension(header) => {
            let length = header.body.len() + 2;
            let units = if header.kind == protocol::AUTHENTICATION { length / 4 - 2 } else { length / 8 - 1 };
            bytes.extend([header.next.unwrap_or_else(|| protocol_of(rest, protocol::NO_NEXT)), units as u8]);
            bytes.extend(&header.body);
        }
        Layer::Fragment(header) => {
            let (offset, more) = cut(header.part, &mut inner);
            bytes.push(header.next.unwrap_or_else(|| protocol_of(rest, protocol::NO_NEXT)));
            bytes.push((header.reserved >> 2) as u8);
            bytes.extend((offset & !7 | (header.reserved & 3) << 1 | u16::from(more)).to_be_bytes());
            bytes.extend(header.id.to_be_bytes());
        }
        Layer::Tcp(header) => {
            bytes.extend(header.source.to_be_bytes());
            bytes.extend(header.destination.to_be_bytes());
            bytes.extend(header.seq.to_be_bytes());
            bytes.extend(header.ack.to_be_bytes());
            let data_offset = (5 + header.options.len() / 4) as u16;
            bytes.extend((data_offset << 12 | header.flags & 0xfff).to_be_bytes());
            bytes.extend(header.window.to_be_bytes());
            bytes.extend([0, 0]);
            bytes.extend(header.urgent.to_be_bytes());
            bytes.extend(&header.options);
            let correct = transport_checksum(pseudo, protocol::TCP, &bytes, &inner);
            bytes[16..18].copy_from_slice(&checksum16(header.checksum, correct).to_be_bytes());
        }
        Layer::Udp(header) => {
            bytes.extend(header.source.to_be_bytes());
            bytes.extend(header.destination.to_be_bytes());
            bytes.extend(header.length.unwrap_or((8 + inner.len()) as u16).to_be_bytes());
            bytes.extend([0, 0]);
            let correct = not_zero(transport_checksum(pseudo, protocol::UDP, &bytes, &inner));
            let checksum = match header.checksum {
                Checksum::Faulty => not_zero(checksum16(header.checksum, correct)),
                checksum => checksum16(checksum, correct),
            };
            bytes[6..8].copy_from_slice(&checksum.to_be_bytes());
        }
        Layer::Sctp(header) => {
            bytes.extend(header.source.to_be_bytes());
            bytes.extend(header.destination.to_be_bytes());
            bytes.extend(header.tag.to_be_bytes());
            bytes.extend([0; 4]);
            let correct = sums::crc32c(&[bytes.as_slice(), &inner].concat());
            let checksum = match header.checksum {
                Checksum::Correct => correct,
                Checksum::Faulty => correct ^ u32::from(Checksum::FAULT),
                Checksum::Exactly(value) => value,
            };
            bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
        }
        Layer::Icmp(header) => {
            inner.truncate(header.quote.unwrap_or(usize::MAX));
            bytes.extend([header.kind, header.code, 0, 0]);
            bytes.extend(header.rest);
            let correct = if header.v6 {
                transport_checksum(pseudo, protocol::ICMP_V6, &bytes, &inner)
            } else {
                sums::internet(&[&bytes, &inner])
            };
            bytes[2..4].copy_from_slice(&checksum16(header.checksum, correct).to_be_bytes());
        }
        Layer::Ports(header) => {
            bytes.extend(header.source.to_be_bytes());
            bytes.extend(header.destination.to_be_bytes());
        }
        Layer::Data(data) | Layer::Trailer(data) => bytes.extend(data),
    }
    bytes.extend(inner);
    bytes
}

/// Applies a [`DatagramPart`] to the payload of a fragment. Returns the offset in bytes and whether
/// more fragments follow.
fn cut(part: DatagramPart, payload: &mut Vec<u8>) -> (u16, bool) {
    match part {
        DatagramPart::Whole => (0, false),
        DatagramPart::Raw { offset, more } => (offset, more),
        DatagramPart::Piece { from, to } => {
            let end = to.min(payload.len());
            let more = end < payload.len();
            *payload = payload[from.min(end)..end].to_vec();
            (from as u16, more)
        }
    }
}

fn ethertype_of(rest: &[Layer]) -> u16 {
    rest.first().map_or(ethertype::EXPERIMENT, Layer::ethertype)
}

fn protocol_of(rest: &[Layer], default: u8) -> u8 {
    rest.first().and_then(Layer::protocol).unwrap_or(default)
}

fn transport_checksum(pseudo: Option<Pseudo>, protocol: u8, header: &[u8], payload: &[u8]) -> u16 {
    let pseudo = pseudo.map_or_else(Vec::new, |pseudo| {
        sums::pseudo_header(pseudo.source, pseudo.destination, protocol, header.len() + payload.len())
    });
    sums::internet(&[&pseudo, header, payload])
}

/// Returns the UDP checksum as it is sent: zero is sent as all ones (RFC 768).
pub(super) fn not_zero(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

/// Returns the value of a 16-bit checksum field, given the correct value.
pub(super) fn checksum16(checksum: Checksum, correct: u16) -> u16 {
    match checksum {
        Checksum::Correct => correct,
        Checksum::Faulty => {
            let sum = u32::from(correct) + u32::from(Checksum::FAULT);
            ((sum & 0xffff) + (sum >> 16)) as u16
        }
        Checksum::Exactly(value) => value as u16,
    }
}
