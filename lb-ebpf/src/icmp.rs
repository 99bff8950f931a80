//! ICMP (RFC 792, RFC 4443): the errors that this node sends about packets it could not translate or forward, here, and what it
//! does with messages that arrive: [`echo`] answers, [`translate`] sends errors on.

mod echo;
mod translate;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{
    bpf_l4_csum_replace, bpf_redirect, bpf_skb_change_head, bpf_skb_change_tail,
};
use lb_common::checksum::{finish, sum4, sum16};
use lb_common::family::{Family, V4, V6};
use lb_common::layout::{SCTP, TCP, UDP};
use lb_common::reason::Reason;
use lb_common::wire::{ETHERNET_LEN, ICMP_CHECKSUM, ICMP_LEN, IPV4_CHECKSUM, TCP_CHECKSUM, UDP_CHECKSUM};

use crate::count::count;
use crate::frame::Frame;
use crate::maps::Scratch;
use crate::nat::Header;
use crate::packet::{Fragment, Packet, Parse};
use crate::reset::Reset;
#[cfg(doc)]
use crate::route::Route;
use crate::tc::Way;
use crate::verdict::Verdict;

/// What the sender is told. Carries no data: what the compiler leaves undefined in the other variants, the verifier rejects.
#[derive(Copy, Clone)]
#[repr(u32)] // as wide as the other payloads of a verdict: parts of words cannot be copied aligned
pub enum Error {
    /// Fragmentation needed, or packet too big: the path takes only IP packets up to [`Route::mtu`].
    TooBig,
    /// TTL or hop limit ran out.
    TimeExceeded,
    /// Nobody serves this port: no endpoint.
    PortUnreachable,
    /// The address is a Service's that does not have this port.
    UnknownPort,
}

impl Error {
    /// Nobody serves the port.
    #[inline(always)]
    fn is_refusal(self) -> bool {
        matches!(self, Error::PortUnreachable | Error::UnknownPort)
    }

    /// What is counted.
    #[inline(always)]
    pub fn reason(self) -> Reason {
        match self {
            Error::TooBig => Reason::TooBig,
            Error::TimeExceeded => Reason::TtlExpired,
            Error::PortUnreachable => Reason::NoEndpointRejected,
            Error::UnknownPort => Reason::UnknownPort,
        }
    }
}

/// An ICMP message that a device has sent or received.
#[inline(always)]
pub fn message<F: Header, K: Frame>(frame: &K, scratch: &mut Scratch<F>, way: Way) -> Verdict {
    let packet = &scratch.packet;
    // The checksum covers all fragments, and what stands in the later ones cannot be told.
    if packet.fragment != Fragment::Whole || packet.l4 + ICMP_LEN > packet.l3 + packet.length {
        return Verdict::Pass;
    }
    let Some([kind, code, ..]) = frame.load::<[u8; ICMP_LEN]>(packet.l4) else { return Verdict::Pass };
    if F::is_error(kind) {
        translate::error(frame, scratch, way)
    } else if (kind, code) == (F::ECHO.0, 0) {
        echo::request(frame, packet, way)
    } else {
        Verdict::Pass
    }
}

/// Bytes of the offending packet that are quoted at most: any IP header and the transport header.
const QUOTE_MAX: usize = 128;
/// TTL and hop limit of what this node sends itself.
pub const OWN_TTL: u8 = 64;

/// The parts in which the families' ICMP and the headers of what this node sends itself differ.
pub trait Report: Family {
    /// Types of an echo request and of the reply to it.
    const ECHO: (u8, u8);
    /// Whether messages of this type are errors that an endpoint or a client must hear of: unreachable, too big, time exceeded,
    /// parameter problem. (Not redirects: they are about this node's own link.)
    fn is_error(kind: u8) -> bool;
    /// Type, code, and the 32 bits that follow the checksum. `mtu` in bytes of IP, used by [`Error::TooBig`] alone.
    fn describe(error: Error, mtu: u16) -> (u8, u8, [u8; 4]);
    /// Writes an IP header at `l3`, from `src` to `dst`, followed by `payload` bytes of `protocol`.
    fn header<K: Frame>(
        frame: &K,
        l3: usize,
        src: Self::Addr,
        dst: Self::Addr,
        protocol: u8,
        payload: usize,
    ) -> Option<()>;
    /// Unfolded sum of the pseudo-header; zero where there is none.
    fn pseudo(src: Self::Addr, dst: Self::Addr, protocol: u8, payload: usize) -> u64;
}

impl Report for V4 {
    const ECHO: (u8, u8) = (8, 0);

    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        matches!(kind, 3 | 11 | 12)
    }

    #[inline(always)]
    fn describe(error: Error, mtu: u16) -> (u8, u8, [u8; 4]) {
        match error {
            Error::TooBig => {
                let [high, low] = mtu.to_be_bytes();
                (3, 4, [0, 0, high, low]) // RFC 1191
            }
            Error::TimeExceeded => (11, 0, [0; 4]),
            Error::PortUnreachable | Error::UnknownPort => (3, 3, [0; 4]),
        }
    }

    #[inline(always)]
    fn header<K: Frame>(
        frame: &K,
        l3: usize,
        src: [u8; 4],
        dst: [u8; 4],
        protocol: u8,
        payload: usize,
    ) -> Option<()> {
        let [high, low] = ((V4::HEADER_LEN + payload) as u16).to_be_bytes();
        // ICMP errors have precedence "internetwork control" (RFC 1812 4.3.2.5).
        let precedence = if protocol == V4::ICMP { 0xc0 } else { 0 };
        // Version and length of the header, type of service, length.
        let start = [0x45, precedence, high, low];
        // Identification 0, don't fragment.
        let middle = [0, 0, 0x40, 0];
        let end = [OWN_TTL, protocol, 0, 0];
        frame.store(l3, start)?;
        frame.store(l3 + 4, middle)?;
        frame.store(l3 + 8, end)?;
        frame.store(l3 + 12, src)?;
        frame.store(l3 + 16, dst)?;
        let sum = sum4(start) + sum4(middle) + sum4(end) + sum4(src) + sum4(dst);
        frame.store(l3 + IPV4_CHECKSUM, finish(sum))
    }

    #[inline(always)]
    fn pseudo(src: [u8; 4], dst: [u8; 4], protocol: u8, payload: usize) -> u64 {
        if protocol == V4::ICMP {
            return 0;
        }
        let [high, low] = (payload as u16).to_be_bytes();
        sum4(src) + sum4(dst) + sum4([0, protocol, high, low])
    }
}

impl Report for V6 {
    const ECHO: (u8, u8) = (128, 129);

    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        matches!(kind, 1..=4)
    }

    #[inline(always)]
    fn describe(error: Error, mtu: u16) -> (u8, u8, [u8; 4]) {
        match error {
            Error::TooBig => (2, 0, (mtu as u32).to_be_bytes()),
            Error::TimeExceeded => (3, 0, [0; 4]),
            Error::PortUnreachable | Error::UnknownPort => (1, 4, [0; 4]),
        }
    }

    #[inline(always)]
    fn header<K: Frame>(
        frame: &K,
        l3: usize,
        src: [u8; 16],
        dst: [u8; 16],
        protocol: u8,
        payload: usize,
    ) -> Option<()> {
        let [high, low] = (payload as u16).to_be_bytes();
        frame.store(l3, [0x60u8, 0, 0, 0])?;
        frame.store(l3 + 4, [high, low, protocol, OWN_TTL])?;
        frame.store(l3 + 8, src)?;
        frame.store(l3 + 24, dst)
    }

    #[inline(always)]
    fn pseudo(src: [u8; 16], dst: [u8; 16], protocol: u8, payload: usize) -> u64 {
        sum16(src) + sum16(dst) + sum4((payload as u32).to_be_bytes()) + sum4([0, 0, 0, protocol])
    }
}

/// Turns the packet into its answer and sends that back where the packet came from: an error about it, or a TCP reset when
/// nobody serves the port (RFC 9293 3.10.7.1; unlike an ICMP error it ends the connection attempt at once).
#[inline(always)]
pub fn answer<F: Parse, K: Frame>(
    frame: &K,
    skb: *mut __sk_buff,
    packet: &Packet<F>,
    error: Error,
    mtu: u16,
) -> Verdict {
    // RFC 1122 3.2.2: no error about a fragment other than the first.
    if packet.fragment == Fragment::Later {
        return Verdict::Drop(error.reason());
    }
    let built = if packet.key.protocol == TCP && error.is_refusal() {
        match Reset::answering(frame, packet) {
            Some(reset) => reset.build(frame, skb, packet),
            None => return Verdict::Drop(error.reason()),
        }
    } else {
        build(frame, skb, packet, error, mtu)
    };
    match built {
        Some(()) => {
            count(error.reason());
            // SAFETY: no preconditions.
            Verdict::Sent(unsafe { bpf_redirect(frame.ifindex(), 0) } as i32)
        }
        None => Verdict::Drop(Reason::RewriteFailed),
    }
}

#[inline(always)]
fn build<F: Parse, K: Frame>(
    frame: &K,
    skb: *mut __sk_buff,
    packet: &Packet<F>,
    error: Error,
    mtu: u16,
) -> Option<()> {
    let l3 = packet.l3;
    let quoted = packet.l4 - l3
        + match packet.key.protocol {
            // All of a TCP header, because an skb with a partial checksum cannot be cut before the end of its checksum field.
            TCP => 20,
            // An INIT has no verification tag yet: the sender knows the error as its own by the tag in the chunk (RFC 9260 10).
            SCTP => core::cmp::min(packet.transport_length(), 20) & !3,
            _ => 8,
        };
    if quoted > QUOTE_MAX || (l3 != 0 && l3 != ETHERNET_LEN) {
        return None;
    }
    let partial = partial_checksum(frame, skb, packet)?;
    let grown = F::HEADER_LEN + ICMP_LEN;
    // SAFETY: the helpers check the lengths; packet pointers are read anew after them.
    let cut = unsafe { bpf_skb_change_tail(skb, (l3 + quoted) as u32, 0) };
    if cut != 0 {
        return None;
    }
    // SAFETY: as above.
    let shifted = unsafe { bpf_skb_change_head(skb, grown as u32, 0) };
    if shifted != 0 {
        return None;
    }
    // What was at 0 is at `grown` now; the new headers overwrite the old link header.
    if l3 == ETHERNET_LEN {
        let destination = frame.load::<[u8; 6]>(grown)?;
        let source = frame.load::<[u8; 6]>(grown + 6)?;
        frame.store(0, source)?;
        frame.store(6, destination)?;
        frame.store(12, F::ETHERTYPE.to_be())?;
    }
    let payload = ICMP_LEN + quoted;
    F::header(frame, l3, packet.key.dst_addr, packet.key.src_addr, F::ICMP, payload)?;
    let icmp = l3 + F::HEADER_LEN;
    let (kind, code, rest) = F::describe(error, mtu);
    let first = [kind, code, 0, 0];
    frame.store(icmp, first)?;
    frame.store(icmp + 4, rest)?;
    let mut sum =
        F::pseudo(packet.key.dst_addr, packet.key.src_addr, F::ICMP, payload) + sum4(first) + sum4(rest);
    // With a partial checksum, what the quoted transport header will sum up to is known already, see there.
    let (summed, rest) = match partial {
        Some(pseudo) => (packet.l4 - l3, !pseudo),
        None => (quoted, 0),
    };
    sum += rest as u64;
    for i in 0..QUOTE_MAX / 4 {
        if i * 4 >= summed {
            break;
        }
        sum += sum4(frame.load::<[u8; 4]>(icmp + ICMP_LEN + i * 4)?);
    }
    frame.store(icmp + ICMP_CHECKSUM, finish(sum))
}

/// What stands in the transport checksum of an skb whose sender left it to the device that sends the packet
/// (`CHECKSUM_PARTIAL`): the folded sum of the pseudo-header, p. Nothing in it when the checksum is complete; nothing at all
/// when the packet cannot be written.
///
/// It matters to who quotes such a packet: the device will fill the checksum in, in the middle of the quotation. It takes the sum
/// of all from the transport header to the end of the packet, o + p with o for all but the checksum itself, and puts the
/// complement in the place of p: then these bytes sum up to o - (o + p) = -p. (Where no device fills it in, nobody checks the
/// ICMP checksum either: the packet never left this machine. Linux 6.17, `skb_csum_unnecessary`.)
///
/// A program cannot see which it is, but `bpf_l4_csum_replace` knows: it leaves a partial checksum as it is when
/// something outside the pseudo-header changes.
#[inline(always)]
fn partial_checksum<F: Parse, K: Frame>(
    frame: &K,
    skb: *mut __sk_buff,
    packet: &Packet<F>,
) -> Option<Option<u16>> {
    let offset = packet.l4
        + match packet.key.protocol {
            TCP => TCP_CHECKSUM,
            UDP => UDP_CHECKSUM,
            _ => return Some(None),
        };
    let before = frame.load::<u16>(offset)?;
    // SAFETY: the helper checks the offset; packet pointers are read anew after it.
    if unsafe { bpf_l4_csum_replace(skb, offset as u32, 0, 1, 0) } != 0 {
        return None;
    }
    let after = frame.load::<u16>(offset)?;
    frame.store(offset, before)?;
    Some(if before == after { Some(before) } else { None })
}
