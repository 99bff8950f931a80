//! What becomes of a packet. Every path of the pipeline ends in one [`Verdict`], and only an entry point consumes it.

use lb_common::reason::Reason;

use crate::icmp;

/// The end of a packet's way through the pipeline.
#[must_use = "a verdict that is not consumed is a packet silently eaten"]
#[derive(Copy, Clone)]
pub enum Verdict {
    /// On along the path it was on, untouched or rewritten.
    Pass,
    /// XDP cannot finish this: on, untouched, to the tc program of the same device.
    LeaveToTc,
    /// Given to the kernel to send: the action to return.
    Sent(i32),
    /// Answered with an error to its sender, for a counted reason.
    Answer(icmp::Error),
    /// Dropped for a counted reason.
    Drop(Reason),
}
