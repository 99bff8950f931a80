//! ICMP messages: pings to Services, errors about packets of connections.

use super::{
    Answer, Flow, Judgement, Model, Part, SCTP, TCP, Tuple, UDP, View, Way, adjusted, be16, obstacle, octets,
    put, route, sum,
};

/// Length of the ICMP header in front of a quoted packet, and what is quoted of a transport header at least (RFC 792).
const HEADER: usize = 8;
const QUOTED_TRANSPORT: usize = 8;

impl Model {
    pub(super) fn judge_icmp(&self, view: &View, bytes: &[u8], way: Way) -> Judgement {
        let untouched = Judgement::Untouched(Vec::new());
        if view.tagged {
            return untouched;
        }
        let kind = bytes[view.l4];
        let is_error = if view.v6 { (1..=4).contains(&kind) } else { matches!(kind, 3 | 11 | 12) };
        if is_error {
            return self.judge_error(view, bytes, way).unwrap_or(untouched);
        }
        let echo = [if view.v6 { 128 } else { 8 }, 0];
        let asked = self.services.keys().any(|(_, address)| address.ip() == view.destination);
        if bytes[view.l4..view.l4 + 2] == echo && asked {
            Judgement::Answered { answer: Answer::EchoReply, counter: "echo_answered" }
        } else {
            untouched
        }
    }

    /// Nothing: it quotes no packet that this node has translated.
    fn judge_error(&self, view: &View, bytes: &[u8], way: Way) -> Option<Judgement> {
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
        // As the reply would be: translated where it leaves, or where it arrives.
        if view.destination != quoted.source || (way == Way::Out) != (flow.reply && !flow.routed) {
            return None;
        }
        let to = flow.to.destination.ip();
        if flow.routed {
            match obstacle(view, to) {
                None => {}
                // No error about an error: who would get one gets nothing.
                Some(Judgement::Answered { counter: "ttl_expired", .. }) => {
                    return Some(Judgement::Dropped("ttl_expired"));
                }
                Some(_) => return Some(Judgement::Dropped("no_route")),
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
        Some(Judgement::Translated { frame: new, routed: if flow.routed { route(to) } else { None } })
    }
}

/// Makes the quoted packet what its sender sent: the other end of what replies to it become.
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

/// The reply to an echo request: the same from the other end, with a TTL of its own.
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

/// Offset of the source address, and length of an address.
fn address_fields(view: &View) -> (usize, usize) {
    if view.v6 { (view.l3 + 8, 16) } else { (view.l3 + 12, 4) }
}

/// Gives a changed IPv4 header a checksum that is as wrong as the one before.
fn fix_header(new: &mut [u8], old: &[u8], view: &View) {
    let header = view.l3..view.l3 + 20;
    let change = sum(&new[header.clone()]) - sum(&old[header]);
    let checksum = adjusted(be16(old, view.l3 + 10), change);
    put(new, view.l3 + 10, &checksum.to_be_bytes());
}
