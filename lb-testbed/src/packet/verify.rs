//! Finds everything in a packet that a receiver would reject.

use super::dissect::dissect;
use super::layer::{Checksum, DatagramPart, Extension, Layer, Link, protocol};

/// Recomputes every length and checksum of a packet. Returns the faults, those of the outermost
/// layer first.
///
/// Transport checksums of fragments and of truncated quoted packets cannot be checked and are
/// skipped.
pub fn verify(bytes: &[u8], link: Link) -> Vec<String> {
    let layers = dissect(bytes, link);
    let mut wrong = Vec::new();
    let mut whole = true;
    let mut quoted = "";
    for (i, layer) in layers.iter().enumerate() {
        let mut report = |what: String| wrong.push(format!("{quoted}{what}"));
        let next = layers.get(i + 1);
        match layer {
            Layer::Ipv4(header) => {
                if let Some(length) = header.length {
                    whole = false;
                    if quoted.is_empty() {
                        report(format!("IPv4 total length {length} exceeds the packet"));
                    }
                }
                whole &= header.part == DatagramPart::Whole;
                if header.checksum != Checksum::Correct {
                    report("IPv4 header checksum is wrong".into());
                }
                if matches!(header.part, DatagramPart::Whole | DatagramPart::Raw { offset: 0, .. })
                    && quoted.is_empty()
                    && let Some(problem) = header.protocol.and_then(|kind| transport_missing(kind, next))
                {
                    report(problem);
                }
            }
            Layer::Ipv6(header) => {
                if let Some(length) = header.length {
                    whole = false;
                    if quoted.is_empty() {
                        report(format!("IPv6 payload length {length} exceeds the packet"));
                    }
                }
                if let Some(problem) = header.next.and_then(|kind| transport_missing(kind, next)) {
                    report(problem);
                }
            }
            Layer::Extension(Extension { next: Some(kind), .. }) => {
                if let Some(problem) = transport_missing(*kind, next) {
                    report(problem);
                }
            }
            Layer::Fragment(header) => whole &= header.part == DatagramPart::Whole,
            Layer::Tcp(header) if whole && header.checksum != Checksum::Correct => {
                report("TCP checksum is wrong".into());
            }
            Layer::Udp(header) if whole => {
                let over_v6 =
                    layers[..i].iter().rev().find_map(Layer::addresses).is_some_and(|(ip, _)| ip.is_ipv6());
                match header.checksum {
                    Checksum::Correct => {}
                    Checksum::Exactly(0) if !over_v6 => {}
                    Checksum::Exactly(0) => report("UDP checksum is zero, which IPv6 does not allow".into()),
                    _ => report("UDP checksum is wrong".into()),
                }
                if let Some(length) = header.length {
                    report(format!("UDP length {length} is not the length of the datagram"));
                }
            }
            Layer::Sctp(header) if whole && header.checksum != Checksum::Correct => {
                report("SCTP CRC32c is wrong".into());
            }
            Layer::Icmp(header) => {
                if whole && header.checksum != Checksum::Correct {
                    report("ICMP checksum is wrong".into());
                }
                if matches!(next, Some(Layer::Ipv4(_) | Layer::Ipv6(_))) {
                    quoted = "quoted ";
                }
            }
            Layer::Ports(_) if quoted.is_empty() && whole => report("transport header is truncated".into()),
            Layer::Data(_) if i == 0 => report("link header is truncated".into()),
            _ => {}
        }
    }
    wrong
}

/// Returns a fault if the layer before announces a header that is missing, too short or malformed.
fn transport_missing(kind: u8, next: Option<&Layer>) -> Option<String> {
    let name = match kind {
        protocol::TCP => "TCP",
        protocol::UDP => "UDP",
        protocol::SCTP => "SCTP",
        protocol::ICMP | protocol::ICMP_V6 => "ICMP",
        protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION | protocol::FRAGMENT => {
            "IPv6 extension"
        }
        _ => return None,
    };
    matches!(next, None | Some(Layer::Data(_) | Layer::Trailer(_)))
        .then(|| format!("{name} header is truncated"))
}
