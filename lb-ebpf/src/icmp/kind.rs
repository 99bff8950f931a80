//! Types and codes of ICMP messages.

use lb_common::family::{V4, V6};

use crate::compose::Compose;
use crate::verdict::Answer;

/// The meaning of an error for the connection that it is about.
#[derive(Copy, Clone, PartialEq, Eq)]
pub enum Unreachable {
    /// A router has no route to the endpoint, or the endpoint does not answer its router.
    Host,
    /// The endpoint, or a firewall, refuses.
    Port,
    /// Another error.
    No,
}

/// The types of an address family's ICMP.
pub trait Kinds: Compose {
    const ECHO_REQUEST: u8;
    const ECHO_REPLY: u8;
    /// Returns whether messages of this type are errors that the sender of the quoted packet must
    /// receive: unreachable, too big, time exceeded, parameter problem. Redirects are not: they are
    /// about this node's own link.
    fn is_error(kind: u8) -> bool;
    /// Returns what an error of this type and code reports about the way to the endpoint.
    fn unreachable(kind: u8, code: u8) -> Unreachable;
    /// Returns type, code, and the 32 bits that follow the checksum. `mtu`, in bytes of IP, is used
    /// by [`Answer::TooBig`] alone.
    fn describe(answer: Answer, mtu: u16) -> (u8, u8, [u8; 4]);
}

impl Kinds for V4 {
    const ECHO_REQUEST: u8 = 8;
    const ECHO_REPLY: u8 = 0;

    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        matches!(kind, 3 | 11 | 12)
    }

    #[inline(always)]
    fn unreachable(kind: u8, code: u8) -> Unreachable {
        match (kind, code) {
            (3, 0 | 1) => Unreachable::Host,
            (3, 2 | 3) => Unreachable::Port,
            _ => Unreachable::No,
        }
    }

    #[inline(always)]
    fn describe(answer: Answer, mtu: u16) -> (u8, u8, [u8; 4]) {
        match answer {
            Answer::TooBig => {
                let [high, low] = mtu.to_be_bytes();
                (3, 4, [0, 0, high, low]) // RFC 1191
            }
            Answer::TimeExceeded => (11, 0, [0; 4]),
            Answer::NoEndpoint | Answer::UnknownPort | Answer::NoConnection => (3, 3, [0; 4]),
        }
    }
}

impl Kinds for V6 {
    const ECHO_REQUEST: u8 = 128;
    const ECHO_REPLY: u8 = 129;

    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        matches!(kind, 1..=4)
    }

    #[inline(always)]
    fn unreachable(kind: u8, code: u8) -> Unreachable {
        match (kind, code) {
            (1, 0 | 3) => Unreachable::Host,
            (1, 4) => Unreachable::Port,
            _ => Unreachable::No,
        }
    }

    #[inline(always)]
    fn describe(answer: Answer, mtu: u16) -> (u8, u8, [u8; 4]) {
        match answer {
            Answer::TooBig => (2, 0, (mtu as u32).to_be_bytes()),
            Answer::TimeExceeded => (3, 0, [0; 4]),
            Answer::NoEndpoint | Answer::UnknownPort | Answer::NoConnection => (1, 4, [0; 4]),
        }
    }
}
