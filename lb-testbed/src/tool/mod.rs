//! The servers and clients, one file each.

pub mod bind;
pub mod connections;
pub mod datagrams;
pub mod echo;
pub mod exchange;
pub mod flood;
pub mod get;
pub mod hold;
pub mod load;
pub mod ping;
pub mod sctp;
pub mod serve;
pub mod transfer;

use std::time::Duration;

/// How long a request may take. The limit exceeds two retransmissions of a SYN (after 1 s and 3 s),
/// so a packet that is lost on a busy machine does not count as a failure.
pub const REQUEST_LIMIT: Duration = Duration::from_secs(5);
