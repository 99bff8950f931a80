//! Turns a packet into the error that its sender receives: an ICMP error, or a TCP reset if the
//! port is refused (RFC 9293 3.10.7.1; unlike an ICMP error, a reset ends the connection attempt at
//! once).

use lb_common::checksum::sum4;
use lb_common::layout::{SCTP, TCP, UDP};
use lb_common::reason::Reason;
use lb_common::wire::{ETHERNET_LEN, ICMP_CHECKSUM, ICMP_LEN, TCP_CHECKSUM, UDP_CHECKSUM};

use super::kind::Kinds;
use crate::compose::{OwnPacket, finish_apart};
use crate::count::count;
use crate::frame::skb::SkbFrame;
use crate::frame::{Frame as _, below_16};
use crate::limit::{self, Own};
use crate::packet::{Fragment, Packet};
use crate::reset::Reset;
use crate::seam::unknown;
use crate::verdict::{Answer, Verdict};

/// Bytes of the offending packet that an error quotes at most: any IP header and the transport
/// header.
const QUOTE_MAX: usize = 128;

/// Turns the packet into its answer, and sends that out of the device that the packet arrived by.
#[inline(always)]
pub fn send<F: Kinds>(frame: &SkbFrame, packet: &Packet<F>, answer: Answer, mtu: u16) -> Verdict {
    // RFC 1122 3.2.2: no error about a fragment other than the first.
    if packet.fragment == Fragment::Later {
        return Verdict::Drop(answer.reason());
    }
    let built = if packet.key.protocol == TCP && answer.is_refusal() {
        let Some(reset) = Reset::answering(frame, packet) else { return Verdict::Drop(answer.reason()) };
        if !limit::may_send(Own::Reset) {
            return Verdict::Drop(Reason::AnswerLimited);
        }
        reset.build(frame, packet)
    } else {
        if !limit::may_send(Own::Error) {
            return Verdict::Drop(Reason::AnswerLimited);
        }
        build(frame, packet, answer, mtu)
    };
    match built {
        Some(()) => {
            count(answer.reason());
            Verdict::Sent(frame.send_out())
        }
        None => Verdict::Drop(Reason::RewriteFailed),
    }
}

/// Turns the packet into an ICMP error that quotes it. Returns `None` if the packet cannot be
/// changed.
#[inline(always)]
fn build<F: Kinds>(frame: &SkbFrame, packet: &Packet<F>, answer: Answer, mtu: u16) -> Option<()> {
    let quoted = packet.l4 - packet.l3
        + match packet.key.protocol {
            // The whole TCP header is quoted, because an skb with a partial checksum cannot be cut
            // before the end of its checksum field.
            TCP => 20,
            // An INIT has no verification tag yet: the sender recognizes the error by the tag in
            // the chunk (RFC 9260 10).
            SCTP => core::cmp::min(packet.transport_length(), 20) & !3,
            _ => 8,
        };
    if quoted > QUOTE_MAX || (packet.l3 != 0 && packet.l3 != ETHERNET_LEN) {
        return None;
    }
    let l3 = below_16(packet.l3);
    let partial = partial_checksum(frame, packet)?;
    frame.set_length(l3 + quoted)?;
    let grown = F::HEADER_LEN + ICMP_LEN;
    frame.grow_head(grown)?;
    // The byte at 0 is at `grown` now. The new headers overwrite the old link header.
    if l3 == ETHERNET_LEN {
        let destination = frame.load::<[u8; 6]>(grown)?;
        let source = frame.load::<[u8; 6]>(grown + 6)?;
        frame.store(0, source)?;
        frame.store(6, destination)?;
        frame.store(12, F::ETHERTYPE.to_be())?;
    }
    let own = OwnPacket::answering(packet, F::ICMP, ICMP_LEN + quoted);
    F::header(frame, l3, &own)?;
    let icmp = l3 + F::HEADER_LEN;
    let (kind, code, rest) = F::describe(answer, mtu);
    let first = [kind, code, 0, 0];
    frame.store(icmp, first)?;
    frame.store(icmp + 4, rest)?;
    let mut sum = F::pseudo(&own) + sum4(first) + sum4(rest);
    // With a partial checksum the sum of the quoted transport header is known already, see
    // `partial_checksum`.
    let (summed, rest) = match partial {
        Some(pseudo) => (packet.l4 - packet.l3, !pseudo),
        None => (quoted, 0),
    };
    // The verifier would follow the loop once for each kind of answer.
    let summed = unknown(summed as u64) as usize;
    sum = unknown(sum + rest as u64);
    for i in 0..QUOTE_MAX / 4 {
        if i * 4 >= summed {
            break;
        }
        sum += sum4(frame.load::<[u8; 4]>(icmp + ICMP_LEN + i * 4)?);
    }
    frame.store(icmp + ICMP_CHECKSUM, finish_apart(sum))
}

/// Returns the transport checksum field of an skb whose sender left the checksum to the device
/// (`CHECKSUM_PARTIAL`): p, the folded sum of the pseudo-header. Returns `Some(None)` when the
/// checksum is complete, and `None` when the packet cannot be written.
///
/// An error that quotes such a packet depends on it, because the device will fill in the checksum
/// in the middle of the quotation. The device sums up everything from the transport header to the
/// end of the packet: o + p, with o for all but the checksum field. It writes the complement in the
/// place of p, so that these bytes sum up to o - (o + p) = -p. (Where no device fills it in,
/// nothing checks the ICMP checksum either: the packet never left this machine. Linux 6.17,
/// `skb_csum_unnecessary`.)
#[inline(always)]
fn partial_checksum<F: Kinds>(frame: &SkbFrame, packet: &Packet<F>) -> Option<Option<u16>> {
    let field = match packet.key.protocol {
        TCP => TCP_CHECKSUM,
        UDP => UDP_CHECKSUM,
        _ => return Some(None),
    };
    frame.partial_checksum(packet.l4 + field)
}
