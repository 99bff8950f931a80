//! ICMP errors about packets of translated connections. These errors report to a client that its
//! packets are too big for the path to the endpoint, and to an endpoint that its replies are too
//! big for the path to the client.
//!
//! An error quotes the translated packet, because the packet was translated before it caused the
//! error. The sender of the packet expects the packet as it was before. The flow entry that
//! translates replies to the quoted packet has both forms:
//!
//! ```text
//! connection    client > service   became   source > endpoint      (source: the client, or this node's address)
//! an error about the request       quotes   source > endpoint  ─► client > service,   and is sent to the client
//! an error about the reply         quotes   service > client   ─► endpoint > source,  and is sent to the endpoint
//! ```
//!
//! The new destination of the error is the destination of replies. The source changes if the flow
//! entry changes the source of replies, and becomes the same, whichever router on the path sent the
//! error: the receiver may have no route to that router. RFC 5508 (REQ-5, errors from behind a NAT)
//! and netfilter do the same (Linux 6.17, `nf_nat_icmp_reply_translation`: the outer source changes
//! if the connection's status has the bit for this direction).

use lb_common::checksum::{difference, update, update_udp};
use lb_common::layout::{TCP, UDP, deliver, direction};
use lb_common::reason::Reason;
use lb_common::wire::{ICMP_CHECKSUM, TCP_CHECKSUM, UDP_CHECKSUM};

use super::effect::{Effects, consequence};
use super::kind::Kinds;
use crate::count::count;
use crate::deliver::{Deliver as _, Delivery};
use crate::flow;
use crate::frame::Frame as _;
use crate::frame::skb::SkbFrame;
use crate::handover;
use crate::log;
use crate::nat::{address_difference, port_difference, store_addresses};
use crate::packet::{Packet, parse_quoted};
use crate::record::recording;
use crate::route::Query;
use crate::scratch::Scratch;
use crate::translation::Translation;
use crate::verdict::{Direction, Verdict};

/// Decides about an ICMP error. An error about a packet of no known connection passes untouched.
#[inline(always)]
pub fn error<F: Kinds + Effects>(
    frame: &SkbFrame,
    scratch: &mut Scratch<F>,
    direction: Direction,
) -> Verdict {
    let Scratch { packet, quoted, route, reply_key, translation, .. } = scratch;
    let packet = &*packet;
    if parse_quoted(frame, packet, quoted).is_none() {
        return Verdict::Pass;
    }
    let quoted = &*quoted;
    *reply_key = quoted.key.reversed();
    let found = match flow::lookup::<F>(reply_key, translation) {
        Some(found) if !found.is_over::<F>() => found,
        _ => return handover::unknown(),
    };
    let now = found.now();
    let flow = &*translation;
    // An error is addressed to the sender of the packet that it quotes.
    if packet.key.dst_addr != quoted.key.src_addr {
        return Verdict::Pass;
    }
    // Errors are translated where replies of this flow are: at egress if replies continue on their
    // path, else at ingress.
    if (direction == Direction::Egress) != flow.is_passing_reply() {
        return Verdict::Pass;
    }
    let (number, generation) = found.record();
    let mut effect = 0;
    if found.direction() == direction::REPLY && !recording() {
        let [kind, code] = frame.load::<[u8; 2]>(packet.l4).unwrap_or_default();
        // Eight bytes of the transport header are always quoted, so a TCP sequence number is.
        let seq = u32::from_be(frame.load::<u32>(quoted.l4 + 4).unwrap_or_default());
        let record = (generation as u64) << 32 | number as u64;
        effect = F::effect(record, F::unreachable(kind, code) as u64, seq as u64, now);
    }
    if effect & consequence::WITHHELD != 0 {
        return Verdict::Drop(Reason::ErrorWithheld);
    }
    let source_stays = flow.new_src_addr == reply_key.src_addr;
    let src = if source_stays { packet.key.src_addr } else { flow.new_src_addr };
    let delivery = if flow.deliver == deliver::ROUTE {
        let query = Query { src, dst: flow.new_dst_addr, protocol: F::ICMP, length: packet.length, now };
        // An error about an error is forbidden (RFC 1122 3.2.2): what cannot be forwarded is
        // dropped.
        match route.find::<F, _>(frame, &query) {
            Ok(_) if packet.ttl <= 1 => return Verdict::Drop(Reason::TtlExpired),
            Ok(route) => Delivery::Out(route),
            Err(_) => return Verdict::Drop(Reason::NoRoute),
        }
    } else {
        Delivery::UpStack
    };
    log::translated::<F>(&quoted.key, flow);
    let is_forwarded = matches!(&delivery, Delivery::Out(route) if !route.is_for_kernel());
    let new = Outer { src, dst: flow.new_dst_addr, is_forwarded };
    let rewritten = rewrite_quoted(frame, packet, quoted, flow)
        .and_then(|change| rewrite_outer(frame, packet, &new, change));
    if rewritten.is_none() {
        return Verdict::Drop(Reason::RewriteFailed);
    }
    count(Reason::IcmpTranslated);
    if effect & consequence::ENDED != 0 {
        F::end(number, generation);
    }
    match delivery {
        Delivery::UpStack => Verdict::Pass,
        Delivery::Out(route) => frame.send(route, packet.l3),
    }
}

/// The values that the IP header of the translated error depends on.
struct Outer<A> {
    src: A,
    dst: A,
    is_forwarded: bool,
}

/// Rewrites the IP header and the ICMP checksum. `change` is that of the quotation's sum.
#[inline(always)]
fn rewrite_outer<F: Kinds>(
    frame: &SkbFrame,
    packet: &Packet<F>,
    new: &Outer<F::Addr>,
    change: u64,
) -> Option<()> {
    let addresses = difference(
        F::sum(packet.key.src_addr) + F::sum(packet.key.dst_addr),
        F::sum(new.src) + F::sum(new.dst),
    );
    // Only the checksum of ICMPv6 covers the addresses (RFC 4443 2.3).
    let pseudo = if F::IS_V6 { addresses } else { 0 };
    frame.update_checksum::<F>(packet.l4 + ICMP_CHECKSUM, false, pseudo, change)?;
    let ttl = if new.is_forwarded { packet.ttl.wrapping_sub(1) } else { packet.ttl };
    F::finish(frame, packet, addresses, ttl)?;
    store_addresses(frame, packet, new.src, new.dst)
}

/// Rewrites the quoted packet to the tuple that replies to it leave with, with source and
/// destination exchanged. Returns by how much the sum of the quotation has changed.
#[inline(always)]
fn rewrite_quoted<F: Kinds>(
    frame: &SkbFrame,
    packet: &Packet<F>,
    quoted: &Packet<F>,
    flow: &Translation<F::Addr>,
) -> Option<u64> {
    let (addresses, ports) = (address_difference(quoted, flow), port_difference(quoted, flow));
    // The sum of an IPv4 header is always zero, because of its checksum.
    let mut change = ports + if F::IS_V6 { addresses } else { 0 };
    // The checksum of TCP is present only if the quotation has more than the required eight bytes.
    // The checksum of SCTP covers no addresses, and cannot be verified without the whole packet.
    let end = packet.l3 + packet.length;
    let offset = quoted.l4 + if quoted.key.protocol == TCP { TCP_CHECKSUM } else { UDP_CHECKSUM };
    if matches!(quoted.key.protocol, TCP | UDP)
        && offset + 2 <= end
        && let Some(old) = frame.load::<u16>(offset)
    {
        let new = match (quoted.key.protocol, old) {
            (TCP, _) => update(old, addresses + ports),
            (_, 0) => 0, // the sender computed none (RFC 768)
            _ => update_udp(old, addresses + ports),
        };
        frame.store::<u16>(offset, new)?;
        change += difference(old as u64, new as u64);
    }
    frame.store::<[u16; 2]>(quoted.l4, [flow.new_dst_port.to_be(), flow.new_src_port.to_be()])?;
    F::finish(frame, quoted, addresses, quoted.ttl)?;
    store_addresses(frame, quoted, flow.new_dst_addr, flow.new_src_addr)?;
    Some(change)
}
