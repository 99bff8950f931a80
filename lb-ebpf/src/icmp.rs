//! ICMP errors that this node sends about packets it could not translate or forward (RFC 792, RFC 4443).

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{bpf_redirect, bpf_skb_change_head, bpf_skb_change_tail};
use lb_common::checksum::{finish, sum4, sum16};
use lb_common::family::{Family, V4, V6};
use lb_common::layout::{SCTP, TCP};
use lb_common::reason::Reason;
use lb_common::wire::{ETHERNET_LEN, IPV4_CHECKSUM};

use crate::count::count;
use crate::frame::Frame;
use crate::packet::{Fragment, Packet, Parse};
#[cfg(doc)]
use crate::route::Route;
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

/// Length of the ICMP header of an error, both families.
const ICMP_LEN: usize = 8;
/// Bytes of the offending packet that are quoted at most: any IP header and the transport header.
const QUOTE_MAX: usize = 128;
/// TTL and hop limit of what this node sends itself.
const OWN_TTL: u8 = 64;

/// The parts in which the families' errors differ.
pub trait Report: Family {
    /// Type, code, and the 32 bits that follow the checksum. `mtu` in bytes of IP, used by [`Error::TooBig`] alone.
    fn describe(error: Error, mtu: u16) -> (u8, u8, [u8; 4]);
    /// Writes the IP header of the error at `l3`, from `src` to `dst`, followed by `payload` bytes.
    fn header<K: Frame>(frame: &K, l3: usize, src: Self::Addr, dst: Self::Addr, payload: usize)
    -> Option<()>;
    /// Unfolded sum of the pseudo-header; zero where there is none.
    fn pseudo(src: Self::Addr, dst: Self::Addr, payload: usize) -> u64;
}

impl Report for V4 {
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
    fn header<K: Frame>(frame: &K, l3: usize, src: [u8; 4], dst: [u8; 4], payload: usize) -> Option<()> {
        let [high, low] = ((V4::HEADER_LEN + payload) as u16).to_be_bytes();
        // Version and length, precedence "internetwork control" (RFC 1812 4.3.2.5), length.
        let start = [0x45, 0xc0, high, low];
        // Identification 0, don't fragment.
        let middle = [0, 0, 0x40, 0];
        let end = [OWN_TTL, V4::ICMP, 0, 0];
        frame.store(l3, start)?;
        frame.store(l3 + 4, middle)?;
        frame.store(l3 + 8, end)?;
        frame.store(l3 + 12, src)?;
        frame.store(l3 + 16, dst)?;
        let sum = sum4(start) + sum4(middle) + sum4(end) + sum4(src) + sum4(dst);
        frame.store(l3 + IPV4_CHECKSUM, finish(sum))
    }

    #[inline(always)]
    fn pseudo(_src: [u8; 4], _dst: [u8; 4], _payload: usize) -> u64 {
        0
    }
}

impl Report for V6 {
    #[inline(always)]
    fn describe(error: Error, mtu: u16) -> (u8, u8, [u8; 4]) {
        match error {
            Error::TooBig => (2, 0, (mtu as u32).to_be_bytes()),
            Error::TimeExceeded => (3, 0, [0; 4]),
            Error::PortUnreachable | Error::UnknownPort => (1, 4, [0; 4]),
        }
    }

    #[inline(always)]
    fn header<K: Frame>(frame: &K, l3: usize, src: [u8; 16], dst: [u8; 16], payload: usize) -> Option<()> {
        let [high, low] = (payload as u16).to_be_bytes();
        frame.store(l3, [0x60u8, 0, 0, 0])?;
        frame.store(l3 + 4, [high, low, V6::ICMP, OWN_TTL])?;
        frame.store(l3 + 8, src)?;
        frame.store(l3 + 24, dst)
    }

    #[inline(always)]
    fn pseudo(src: [u8; 16], dst: [u8; 16], payload: usize) -> u64 {
        sum16(src) + sum16(dst) + sum4((payload as u32).to_be_bytes()) + sum4([0, 0, 0, V6::ICMP])
    }
}

/// Turns the packet into an error about itself and sends it back where it came from.
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
    match build(frame, skb, packet, error, mtu) {
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
    F::header(frame, l3, packet.key.dst_addr, packet.key.src_addr, payload)?;
    let icmp = l3 + F::HEADER_LEN;
    let (kind, code, rest) = F::describe(error, mtu);
    let first = [kind, code, 0, 0];
    frame.store(icmp, first)?;
    frame.store(icmp + 4, rest)?;
    let mut sum = F::pseudo(packet.key.dst_addr, packet.key.src_addr, payload) + sum4(first) + sum4(rest);
    for i in 0..QUOTE_MAX / 4 {
        if i * 4 >= quoted {
            break;
        }
        sum += sum4(frame.load::<[u8; 4]>(icmp + ICMP_LEN + i * 4)?);
    }
    frame.store(icmp + 2, finish(sum))
}
