//! The verdict about a packet. Every path of the pipeline ends in one [`Verdict`], and only an
//! entry point consumes it.

use lb_common::reason::Reason;

/// The result of the pipeline for one packet.
#[must_use = "a packet whose verdict is not consumed is lost without a trace"]
#[derive(Copy, Clone)]
pub enum Verdict {
    /// The packet continues on its path, untouched or rewritten.
    Pass,
    /// XDP cannot finish this packet: it continues, untouched, to the tc program of the same
    /// device.
    LeaveToTc,
    /// The maps of this generation cannot decide: the earlier program gets the packet, untouched.
    HandOver,
    /// The kernel sends the packet: the entry point returns this action.
    Sent(i32),
    /// The sender receives an error, for a counted reason.
    Answer(Answer),
    /// The packet is dropped, for a counted reason.
    Drop(Reason),
}

/// The error that the sender of a packet receives.
///
/// The variants carry no data: the verifier rejects payload bytes that the compiler leaves
/// undefined in other variants.
#[derive(Copy, Clone, PartialEq, Eq)]
#[repr(u32)] // as wide as the other payloads of a verdict: parts of words cannot be copied aligned
pub enum Answer {
    /// Fragmentation needed, or packet too big: the path's MTU is in the route lookup.
    TooBig,
    /// TTL or hop limit ran out.
    TimeExceeded,
    /// The service has no endpoint.
    NoEndpoint,
    /// The address belongs to a Service that does not have this port.
    UnknownPort,
    /// The TCP packet belongs to no connection.
    NoConnection,
}

impl Answer {
    /// Returns whether the port is refused. The other answers are about the path.
    #[inline(always)]
    pub fn is_refusal(self) -> bool {
        matches!(self, Answer::NoEndpoint | Answer::UnknownPort | Answer::NoConnection)
    }

    /// Returns the reason that is counted.
    #[inline(always)]
    pub fn reason(self) -> Reason {
        match self {
            Answer::TooBig => Reason::TooBig,
            Answer::TimeExceeded => Reason::TtlExpired,
            Answer::NoEndpoint => Reason::NoEndpointRejected,
            Answer::UnknownPort => Reason::UnknownPort,
            Answer::NoConnection => Reason::NoConnection,
        }
    }
}

/// The direction in which a packet crosses a device, as seen from this node.
#[derive(Copy, Clone, PartialEq, Eq)]
pub enum Direction {
    Ingress,
    Egress,
}
