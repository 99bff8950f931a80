//! The model's rules for ICMP: pings to Services, and errors about packets of connections.

use super::{
    Answer, Direction, Expected, Flow, Model, Part, SCTP, TCP, Tuple, UDP, View, adjusted, be16, obstacle,
    octets, put, route, sum,
};

/// Bytes of the ICMP header before a quoted packet.
const HEADER: usize = 8;
/// Bytes of the transport header that an error quotes at least (RFC 792).
const QUOTED_TRANSPORT: usize = 8;

impl Model {
    pub(super) fn expect_icmp(&self, view: &View, bytes: &[u8], direction: Direction) -> Expected {
        let untouched = Expected::Untouched(Vec::new());
        let kind = bytes[view.l4];
        let is_error = if view.v6 { (1..=4).contains(&kind) } else { matches!(kind, 3 | 11 | 12) };
        if is_error {
            return self.expect_error(view, bytes, direction).unwrap_or(untouched);
        }
        let echo = [if view.v6 { 128 } else { 8 }, 0];
        let to_service = self.services.keys().any(|(_, address)| address.ip() == view.destination);
        if bytes[view.l4..view.l4 + 2] == echo && to_service && view.is_intact(bytes) {
            Expected::Answered { answer: Answer::EchoReply, counter: "echo_answered" }
        } else {
            untouched
        }
    }

    /// Returns `None` if the message does not quote a packet that this node has translated.
    fn expect_error(&self, view: &View, bytes: &[u8], direction: Direction) -> Option<Expected> {
        let end = (view.l3 + view.length).min(bytes.len());
        let at = view.l4 + HEADER;
        let mut quoted = if view.v6 { View::v6(&bytes[at..])? } else { View::v4(&bytes[at..])? };
        (quoted.l3, quoted.l4) = (at, at + quoted.l4);
        let has_ports = matches!(quoted.protocol, TCP | UDP | SCTP) && quoted.part != Part::Later;
        if !has_ports || quoted.l4 + QUOTED_TRANSPORT > end.min(super::HEADERS_WITHIN) {
            return None;
        }
        let sent = self.tuple(&quoted, bytes)?;
        let reply = sent.reversed();
        let flow = *self.flows.get(&reply)?;
        // An error is translated at the same hook as a reply to the quoted packet.
        let at_egress = flow.reply && !flow.routed;
        if view.destination != quoted.source || (direction == Direction::Egress) != at_egress {
            return None;
        }
        let to = flow.to.destination.ip();
        if flow.routed {
            match obstacle(view, to, false) {
                None => {}
                // No ICMP error is sent about an ICMP error.
                Some(Expected::Answered { counter: "ttl_expired", .. }) => {
                    return Some(Expected::Dropped("ttl_expired"));
                }
                Some(_) => return Some(Expected::Dropped("no_route")),
            }
        }
        let source = if flow.to.source.ip() == reply.source.ip() { view.source } else { flow.to.source.ip() };
        let mut new = bytes.to_vec();
        requote(&mut new, bytes, &quoted, &flow, end);
        let (source_at, width) = address_fields(view);
        put(&mut new, source_at, &octets(source));
        put(&mut new, source_at + width, &octets(to));
        if flow.routed {
            new[view.l3 + if view.v6 { 7 } else { 8 }] -= 1;
        }
        // ICMPv6 covers the addresses (RFC 4443 2.3).
        let quotation = view.l4 + HEADER..end & !1;
        let mut change = sum(&new[quotation.clone()]) - sum(&bytes[quotation]);
        if view.v6 {
            let addresses = source_at..source_at + 2 * width;
            change += sum(&new[addresses.clone()]) - sum(&bytes[addresses]);
        } else {
            fix_header(&mut new, bytes, view);
        }
        let checksum = adjusted(be16(bytes, view.l4 + 2), change);
        put(&mut new, view.l4 + 2, &checksum.to_be_bytes());
        Some(Expected::Translated { frame: new, routed: if flow.routed { route(to) } else { None } })
    }
}

/// Translates the quoted packet back to the one that its sender sent: `reply` is the flow of
/// replies to it, so the quoted packet gets that flow's translated tuple, reversed.
fn requote(new: &mut [u8], old: &[u8], quoted: &View, reply: &Flow, end: usize) {
    let sent: Tuple = reply.to.reversed();
    let (source_at, width) = address_fields(quoted);
    put(new, source_at, &octets(sent.source.ip()));
    put(new, source_at + width, &octets(sent.destination.ip()));
    put(new, quoted.l4, &sent.source.port().to_be_bytes());
    put(new, quoted.l4 + 2, &sent.destination.port().to_be_bytes());
    let addresses = source_at..source_at + 2 * width;
    let ports = quoted.l4..quoted.l4 + 4;
    let change =
        sum(&new[addresses.clone()]) - sum(&old[addresses]) + sum(&new[ports.clone()]) - sum(&old[ports]);
    let at = quoted.l4 + if quoted.protocol == TCP { 16 } else { 6 };
    if quoted.protocol != SCTP && at + 2 <= end {
        let before = be16(old, at);
        let after = match (quoted.protocol, before, adjusted(before, change)) {
            (UDP, 0, _) => 0,
            (UDP, _, 0) => 0xffff,
            (_, _, after) => after,
        };
        put(new, at, &after.to_be_bytes());
    }
    if !quoted.v6 {
        fix_header(new, old, quoted);
    }
}

/// Returns the reply to an echo request: addresses are swapped, and the TTL is 64.
pub(super) fn echoed(view: &View, bytes: &[u8]) -> Vec<u8> {
    let mut new = [&bytes[6..12], &bytes[..6], &bytes[12..]].concat();
    let (source_at, width) = address_fields(view);
    put(&mut new, source_at, &octets(view.destination));
    put(&mut new, source_at + width, &octets(view.source));
    new[view.l3 + if view.v6 { 7 } else { 8 }] = 64;
    new[view.l4] = if view.v6 { 129 } else { 0 };
    let first_word = view.l4..view.l4 + 2;
    let change = sum(&new[first_word.clone()]) - sum(&bytes[first_word]);
    let checksum = adjusted(be16(bytes, view.l4 + 2), change);
    put(&mut new, view.l4 + 2, &checksum.to_be_bytes());
    if !view.v6 {
        fix_header(&mut new, bytes, view);
    }
    new
}

/// Returns the offset of the source address and the length of an address, in bytes.
fn address_fields(view: &View) -> (usize, usize) {
    if view.v6 { (view.l3 + 8, 16) } else { (view.l3 + 12, 4) }
}

/// Updates the checksum of a changed IPv4 header. A fault of the old checksum remains.
fn fix_header(new: &mut [u8], old: &[u8], view: &View) {
    let header = view.l3..view.l3 + 20;
    let change = sum(&new[header.clone()]) - sum(&old[header]);
    let checksum = adjusted(be16(old, view.l3 + 10), change);
    put(new, view.l3 + 10, &checksum.to_be_bytes());
}
