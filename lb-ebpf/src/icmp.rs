//! ICMP (RFC 792, RFC 4443). [`echo`] answers pings, [`translate`] translates errors that arrive or
//! leave, and [`answer`] creates the errors that this node sends itself.

pub mod answer;
mod echo;
pub mod effect;
pub mod kind;
mod translate;

use lb_common::wire::ICMP_LEN;

use self::effect::Effects;
use self::kind::Kinds;
use crate::frame::Frame as _;
use crate::frame::skb::SkbFrame;
use crate::packet::Fragment;
use crate::scratch::Scratch;
use crate::verdict::{Direction, Verdict};

/// Decides about an ICMP message whose IP header is parsed into `scratch`.
#[inline(always)]
pub fn message<F: Kinds + Effects>(
    frame: &SkbFrame,
    scratch: &mut Scratch<F>,
    direction: Direction,
) -> Verdict {
    let packet = &scratch.packet;
    // The checksum covers all fragments, and the content of the later ones is unknown.
    let end = packet.l3 + packet.length;
    if packet.fragment != Fragment::Whole || packet.l4 + ICMP_LEN > end || !frame.reaches(end) {
        return Verdict::Pass;
    }
    let Some([kind, code, ..]) = frame.load::<[u8; ICMP_LEN]>(packet.l4) else { return Verdict::Pass };
    if F::is_error(kind) {
        translate::error(frame, scratch, direction)
    } else if (kind, code) == (F::ECHO_REQUEST, 0) {
        echo::request(frame, packet, direction)
    } else {
        Verdict::Pass
    }
}
