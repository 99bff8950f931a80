//! Dissects the bytes of a packet into layers. Every byte string can be dissected, and building the
//! result returns the same bytes.
//!
//! A correct field becomes `None` or [`Checksum::Correct`], a wrong field keeps its value. So the
//! layers show every fault of a packet, and [`super::verify`] only has to report it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::build::{checksum16, not_zero};
use super::layer::{
    Checksum, DatagramPart, Ethernet, Extension, FragmentHeader, Icmp, Ipv4, Ipv6, Layer, Link, Ports, Sctp,
    Tcp, Udp, Vlan, ethertype, protocol,
};
use super::sums;

/// Returns the layers of a packet.
pub fn dissect(bytes: &[u8], link: Link) -> Vec<Layer> {
    let mut layers = Vec::new();
    match link {
        Link::Ethernet => frame(bytes, &mut layers),
        Link::None => {
            let kind = if bytes.first().is_some_and(|byte| byte >> 4 == 6) {
                ethertype::IPV6
            } else {
                ethertype::IPV4
            };
            network(bytes, kind, false, &mut layers);
        }
    }
    drop_implied_numbers(&mut layers);
    layers
}

/// The fields of the enclosing IP header that the checksum of a transport header depends on.
#[derive(Clone, Copy)]
struct IpContext {
    source: IpAddr,
    destination: IpAddr,
    /// The datagram is complete, so its checksum can be checked.
    whole: bool,
}

fn frame(bytes: &[u8], layers: &mut Vec<Layer>) {
    let Some((header, mut rest)) = bytes.split_at_checked(14) else { return data(bytes, layers) };
    let mut kind = be16(header, 12);
    layers.push(Layer::Ethernet(Ethernet {
        destination: array(header, 0),
        source: array(header, 6),
        ethertype: Some(kind),
    }));
    while matches!(kind, ethertype::VLAN | ethertype::QINQ) && rest.len() >= 4 {
        let service = kind == ethertype::QINQ;
        kind = be16(rest, 2);
        layers.push(Layer::Vlan(Vlan { service, tci: be16(rest, 0), ethertype: Some(kind) }));
        rest = &rest[4..];
    }
    network(rest, kind, false, layers);
}

/// Dissects an IP packet, or data if it is none. A quoted packet may be truncated: all bytes belong
/// to it.
fn network(bytes: &[u8], kind: u16, quoted: bool, layers: &mut Vec<Layer>) {
    match kind {
        ethertype::IPV4 if ipv4(bytes, quoted, layers).is_some() => {}
        ethertype::IPV6 if ipv6(bytes, quoted, layers).is_some() => {}
        _ => data(bytes, layers),
    }
}

fn ipv4(bytes: &[u8], quoted: bool, layers: &mut Vec<Layer>) -> Option<()> {
    let header_len = usize::from(bytes.first()? & 0xf) * 4;
    if bytes[0] >> 4 != 4 || header_len < 20 || bytes.len() < header_len {
        return None;
    }
    let (header, rest) = bytes.split_at(header_len);
    let length = usize::from(be16(header, 2));
    if length < header_len {
        return None;
    }
    let end = if quoted { rest.len() } else { rest.len().min(length - header_len) };
    let (payload, trailer) = rest.split_at(end);
    let flags = be16(header, 6);
    let (offset, more) = ((flags & 0x1fff) * 8, flags & 0x2000 != 0);
    let part = if offset == 0 && !more { DatagramPart::Whole } else { DatagramPart::Raw { offset, more } };
    let mut zeroed = header.to_vec();
    zeroed[10..12].fill(0);
    let ip = Ipv4 {
        source: Ipv4Addr::from(array::<4>(header, 12)),
        destination: Ipv4Addr::from(array::<4>(header, 16)),
        ttl: header[8],
        tos: header[1],
        id: be16(header, 4),
        dont_fragment: flags & 0x4000 != 0,
        evil: flags & 0x8000 != 0,
        part,
        options: header[20..].to_vec(),
        protocol: Some(header[9]),
        length: (length != header_len + payload.len()).then_some(length as u16),
        checksum: judge16(be16(header, 10), sums::internet(&[&zeroed])),
    };
    let context = IpContext {
        source: ip.source.into(),
        destination: ip.destination.into(),
        whole: part == DatagramPart::Whole && ip.length.is_none(),
    };
    layers.push(Layer::Ipv4(ip));
    transport(payload, header[9], context, offset == 0, layers);
    if !trailer.is_empty() {
        layers.push(Layer::Trailer(trailer.to_vec()));
    }
    Some(())
}

fn ipv6(bytes: &[u8], quoted: bool, layers: &mut Vec<Layer>) -> Option<()> {
    let (header, rest) = bytes.split_at_checked(40)?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let length = usize::from(be16(header, 4));
    let end = if quoted { rest.len() } else { rest.len().min(length) };
    let (payload, trailer) = rest.split_at(end);
    let first = be32(header, 0);
    let ip = Ipv6 {
        source: Ipv6Addr::from(array::<16>(header, 8)),
        destination: Ipv6Addr::from(array::<16>(header, 24)),
        hop_limit: header[7],
        traffic_class: (first >> 20) as u8,
        flow_label: first & 0xf_ffff,
        next: Some(header[6]),
        length: (length != payload.len()).then_some(length as u16),
    };
    let context = IpContext {
        source: ip.source.into(),
        destination: ip.destination.into(),
        whole: ip.length.is_none(),
    };
    layers.push(Layer::Ipv6(ip));
    extensions(payload, header[6], context, layers);
    if !trailer.is_empty() {
        layers.push(Layer::Trailer(trailer.to_vec()));
    }
    Some(())
}

/// Dissects the extension headers of IPv6 and the layers after them.
fn extensions(mut bytes: &[u8], mut kind: u8, mut context: IpContext, layers: &mut Vec<Layer>) {
    let mut first_fragment = true;
    while first_fragment && bytes.len() >= 8 {
        let next = bytes[0];
        match kind {
            protocol::FRAGMENT => {
                let field = be16(bytes, 2);
                let (offset, more) = (field & !7, field & 1 != 0);
                layers.push(Layer::Fragment(FragmentHeader {
                    next: Some(next),
                    id: be32(bytes, 4),
                    part: if offset == 0 && !more {
                        DatagramPart::Whole
                    } else {
                        DatagramPart::Raw { offset, more }
                    },
                    reserved: u16::from(bytes[1]) << 2 | field >> 1 & 3,
                }));
                context.whole &= offset == 0 && !more;
                first_fragment = offset == 0;
                bytes = &bytes[8..];
            }
            protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION | protocol::AUTHENTICATION => {
                let units = usize::from(bytes[1]);
                let length = if kind == protocol::AUTHENTICATION { (units + 2) * 4 } else { (units + 1) * 8 };
                let Some((header, rest)) = bytes.split_at_checked(length) else { break };
                layers.push(Layer::Extension(Extension {
                    kind,
                    next: Some(next),
                    body: header[2..].to_vec(),
                }));
                bytes = rest;
            }
            _ => break,
        }
        kind = next;
    }
    transport(bytes, kind, context, first_fragment, layers);
}

fn transport(bytes: &[u8], kind: u8, context: IpContext, first_fragment: bool, layers: &mut Vec<Layer>) {
    let known = first_fragment
        && match kind {
            protocol::TCP => tcp(bytes, context, layers).is_some(),
            protocol::UDP => udp(bytes, context, layers).is_some(),
            protocol::SCTP => sctp(bytes, context, layers).is_some(),
            protocol::ICMP if context.source.is_ipv4() => icmp(bytes, context, layers).is_some(),
            protocol::ICMP_V6 if context.source.is_ipv6() => icmp(bytes, context, layers).is_some(),
            _ => false,
        };
    if !known {
        data(bytes, layers);
    }
}

fn tcp(bytes: &[u8], context: IpContext, layers: &mut Vec<Layer>) -> Option<()> {
    let length = bytes.get(12).map_or(0, |byte| usize::from(byte >> 4) * 4);
    if length < 20 || bytes.len() < length {
        return ports(bytes, protocol::TCP, layers);
    }
    let (header, payload) = bytes.split_at(length);
    layers.push(Layer::Tcp(Tcp {
        source: be16(header, 0),
        destination: be16(header, 2),
        seq: be32(header, 4),
        ack: be32(header, 8),
        flags: be16(header, 12) & 0xfff,
        window: be16(header, 14),
        urgent: be16(header, 18),
        options: header[20..].to_vec(),
        checksum: transport_checksum(context, protocol::TCP, bytes, 16, |correct| correct),
    }));
    data(payload, layers);
    Some(())
}

fn udp(bytes: &[u8], context: IpContext, layers: &mut Vec<Layer>) -> Option<()> {
    let Some((header, payload)) = bytes.split_at_checked(8) else {
        return ports(bytes, protocol::UDP, layers);
    };
    let length = be16(header, 4);
    let checksum = match be16(header, 6) {
        0 => Checksum::Exactly(0),
        _ => transport_checksum(context, protocol::UDP, bytes, 6, not_zero),
    };
    layers.push(Layer::Udp(Udp {
        source: be16(header, 0),
        destination: be16(header, 2),
        length: (usize::from(length) != bytes.len()).then_some(length),
        checksum,
    }));
    data(payload, layers);
    Some(())
}

fn sctp(bytes: &[u8], context: IpContext, layers: &mut Vec<Layer>) -> Option<()> {
    let Some((header, payload)) = bytes.split_at_checked(12) else {
        return ports(bytes, protocol::SCTP, layers);
    };
    let found = u32::from_le_bytes(array(header, 8));
    let mut zeroed = bytes.to_vec();
    zeroed[8..12].fill(0);
    let correct = sums::crc32c(&zeroed);
    let checksum = match found {
        _ if !context.whole => Checksum::Exactly(found),
        _ if found == correct => Checksum::Correct,
        _ if found == correct ^ u32::from(Checksum::FAULT) => Checksum::Faulty,
        _ => Checksum::Exactly(found),
    };
    layers.push(Layer::Sctp(Sctp {
        source: be16(header, 0),
        destination: be16(header, 2),
        tag: be32(header, 4),
        checksum,
    }));
    data(payload, layers);
    Some(())
}

fn icmp(bytes: &[u8], context: IpContext, layers: &mut Vec<Layer>) -> Option<()> {
    let (header, payload) = bytes.split_at_checked(8)?;
    let v6 = context.source.is_ipv6();
    let checksum = if v6 {
        transport_checksum(context, protocol::ICMP_V6, bytes, 2, |correct| correct)
    } else if context.whole {
        let mut zeroed = bytes.to_vec();
        zeroed[2..4].fill(0);
        judge16(be16(header, 2), sums::internet(&[&zeroed]))
    } else {
        Checksum::Exactly(be16(header, 2).into())
    };
    layers.push(Layer::Icmp(Icmp {
        v6,
        kind: header[0],
        code: header[1],
        rest: array(header, 4),
        checksum,
        quote: None,
    }));
    match Icmp::quotes(v6, header[0]) {
        true => network(payload, if v6 { ethertype::IPV6 } else { ethertype::IPV4 }, true, layers),
        false => data(payload, layers),
    }
    Some(())
}

fn ports(bytes: &[u8], protocol: u8, layers: &mut Vec<Layer>) -> Option<()> {
    let (header, rest) = bytes.split_at_checked(4)?;
    layers.push(Layer::Ports(Ports { protocol, source: be16(header, 0), destination: be16(header, 2) }));
    data(rest, layers);
    Some(())
}

fn data(bytes: &[u8], layers: &mut Vec<Layer>) {
    if !bytes.is_empty() {
        layers.push(Layer::Data(bytes.to_vec()));
    }
}

/// Clears every EtherType and protocol number that follows from the next layer.
fn drop_implied_numbers(layers: &mut [Layer]) {
    for i in 0..layers.len() {
        let (layer, next) = match &mut layers[i..] {
            [layer, next, ..] => (layer, Some(&*next)),
            [layer] => (layer, None),
            [] => continue,
        };
        let implied = next.and_then(Layer::protocol);
        match layer {
            Layer::Ethernet(header) => {
                drop_if(&mut header.ethertype, next.map_or(ethertype::EXPERIMENT, Layer::ethertype));
            }
            Layer::Vlan(tag) => {
                drop_if(&mut tag.ethertype, next.map_or(ethertype::EXPERIMENT, Layer::ethertype));
            }
            Layer::Ipv4(header) => drop_if(&mut header.protocol, implied.unwrap_or(protocol::EXPERIMENT)),
            Layer::Ipv6(header) => drop_if(&mut header.next, implied.unwrap_or(protocol::NO_NEXT)),
            Layer::Extension(header) => drop_if(&mut header.next, implied.unwrap_or(protocol::NO_NEXT)),
            Layer::Fragment(header) => drop_if(&mut header.next, implied.unwrap_or(protocol::NO_NEXT)),
            _ => {}
        }
    }
}

fn drop_if<T: PartialEq>(field: &mut Option<T>, implied: T) {
    if *field == Some(implied) {
        *field = None;
    }
}

/// Compares the 16-bit checksum at offset `at` of `bytes` with the correct one. `bytes` are the
/// transport header and the payload. `sent_as` converts the computed value to the one that is sent.
fn transport_checksum(
    context: IpContext,
    kind: u8,
    bytes: &[u8],
    at: usize,
    sent_as: fn(u16) -> u16,
) -> Checksum {
    let found = be16(bytes, at);
    if !context.whole {
        return Checksum::Exactly(found.into());
    }
    let mut zeroed = bytes.to_vec();
    zeroed[at..at + 2].fill(0);
    let pseudo = sums::pseudo_header(context.source, context.destination, kind, bytes.len());
    judge16(found, sent_as(sums::internet(&[&pseudo, &zeroed])))
}

fn judge16(found: u16, correct: u16) -> Checksum {
    if found == correct {
        Checksum::Correct
    } else if found == checksum16(Checksum::Faulty, correct) {
        Checksum::Faulty
    } else {
        Checksum::Exactly(found.into())
    }
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(bytes, at))
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

/// Returns `N` bytes from offset `at`. Panics if they are not all there: the caller checks that.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[at + i])
}
