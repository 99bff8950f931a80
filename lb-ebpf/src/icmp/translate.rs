//! ICMP errors about packets of translated connections: without them a client never learns that its packets are too big for the
//! path to the endpoint, nor an endpoint that its replies are too big for the path to the client.
//!
//! An error quotes the packet that caused it as that packet was where the error arose: translated. Whoever sent the packet
//! knows it as it was before. The flow entry that translates replies to the quoted packet says how to get back there:
//!
//! ```text
//! connection    client > service   became   source > endpoint      (source: the client, or this node's address)
//! an error about the request       quotes   source > endpoint  ─► client > service,   and goes to the client
//! an error about the reply         quotes   service > client   ─► endpoint > source,  and goes to the endpoint
//! ```
//!
//! The new destination is whom the entry sends replies to. The source becomes what the entry makes of the source of replies, if it
//! changes that at all, whoever on the path sent the error: the sides must not depend on routers that they know no way to. RFC
//! 5508 (REQ-5, errors from behind a NAT) and netfilter do the same (Linux 6.17, `nf_nat_icmp_reply_translation`: the outer
//! source changes if the connection's status has the bit for this direction).

use lb_common::checksum::{difference, update, update_udp};
use lb_common::layout::{Flow, TCP, UDP, deliver};
use lb_common::reason::Reason;
use lb_common::wire::{ICMP_CHECKSUM, TCP_CHECKSUM, UDP_CHECKSUM};

use crate::count::count;
use crate::flow;
use crate::frame::Frame;
use crate::log;
use crate::maps::Scratch;
use crate::nat::{Header, address_difference, port_difference, store_addresses};
use crate::packet::{Packet, parse_quoted};
use crate::route::Next;
use crate::tc::Way;
use crate::verdict::Verdict;

/// An ICMP error. One about a packet of no known connection passes untouched.
#[inline(always)]
pub fn error<F: Header, K: Frame>(frame: &K, scratch: &mut Scratch<F>, way: Way) -> Verdict {
    let Scratch { packet, quoted, route, reply_key, .. } = scratch;
    let packet = &*packet;
    if parse_quoted(frame, packet, quoted).is_none() {
        return Verdict::Pass;
    }
    let quoted = &*quoted;
    reply_key.src_addr = quoted.key.dst_addr;
    reply_key.dst_addr = quoted.key.src_addr;
    reply_key.src_port = quoted.key.dst_port;
    reply_key.dst_port = quoted.key.src_port;
    reply_key.protocol = quoted.key.protocol;
    reply_key.pad = 0;
    reply_key.reserved = 0;
    let Some(found) = flow::lookup::<F>(reply_key) else { return Verdict::Pass };
    let flow = found.flow;
    // An error goes to the sender of the packet it is about, or is none.
    if packet.key.dst_addr != quoted.key.src_addr {
        return Verdict::Pass;
    }
    // As the reply itself would be: where it leaves, when it goes on along its path; else where it arrives.
    if (way == Way::Out) != found.is_passing_reply() {
        return Verdict::Pass;
    }
    let source_stays = flow.new_src_addr == reply_key.src_addr;
    let src = if source_stays { packet.key.src_addr } else { flow.new_src_addr };
    let forwarded = flow.deliver == deliver::ROUTE;
    if forwarded {
        // No error is sent about an error (RFC 1122 3.2.2): what cannot go on is dropped.
        match route.find::<F, K>(frame, src, flow.new_dst_addr, F::ICMP, packet.length) {
            Next::Resolved | Next::Unresolved => {}
            Next::TooBig | Next::None => return Verdict::Drop(Reason::NoRoute),
        }
        if packet.ttl <= 1 {
            return Verdict::Drop(Reason::TtlExpired);
        }
    }
    log::translated::<F>(&quoted.key, flow);
    if rewrite(frame, packet, quoted, flow, src, forwarded).is_none() {
        return Verdict::Drop(Reason::RewriteFailed);
    }
    count(Reason::IcmpTranslated);
    if forwarded { frame.send(packet, route) } else { Verdict::Pass }
}

#[inline(always)]
fn rewrite<F: Header, K: Frame>(
    frame: &K,
    packet: &Packet<F>,
    quoted: &Packet<F>,
    flow: &Flow<F::Addr>,
    src: F::Addr,
    forwarded: bool,
) -> Option<()> {
    let change = rewrite_quoted(frame, packet, quoted, flow)?;
    let addresses = difference(
        F::sum(packet.key.src_addr) + F::sum(packet.key.dst_addr),
        F::sum(src) + F::sum(flow.new_dst_addr),
    );
    // Only the checksum of ICMPv6 covers the addresses (RFC 4443 2.3).
    let pseudo = if F::IS_V6 { addresses } else { 0 };
    frame.update_checksum(packet, packet.l4 + ICMP_CHECKSUM, pseudo, change)?;
    let ttl = if forwarded { packet.ttl.wrapping_sub(1) } else { packet.ttl };
    F::finish(frame, packet, addresses, ttl)?;
    store_addresses(frame, packet, src, flow.new_dst_addr)
}

/// Gives the quoted packet the tuple that replies to it leave with, ends exchanged. Returns by how much the sum of the quotation
/// has changed.
#[inline(always)]
fn rewrite_quoted<F: Header, K: Frame>(
    frame: &K,
    packet: &Packet<F>,
    quoted: &Packet<F>,
    flow: &Flow<F::Addr>,
) -> Option<u64> {
    let (addresses, ports) = (address_difference(quoted, flow), port_difference(quoted, flow));
    // An IPv4 header always sums up to zero, its checksum sees to that.
    let mut change = ports + if F::IS_V6 { addresses } else { 0 };
    // The checksum of TCP is there only if more than the eight bytes that must be are quoted. SCTP's covers no addresses,
    // and cannot be checked by who does not have the whole packet.
    let end = packet.l3 + packet.length;
    let offset = quoted.l4 + if quoted.key.protocol == TCP { TCP_CHECKSUM } else { UDP_CHECKSUM };
    if matches!(quoted.key.protocol, TCP | UDP)
        && offset + 2 <= end
        && let Some(old) = frame.load::<u16>(offset)
    {
        let new = match (quoted.key.protocol, old) {
            (TCP, _) => update(old, addresses + ports),
            (_, 0) => 0, // none was computed (RFC 768)
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
