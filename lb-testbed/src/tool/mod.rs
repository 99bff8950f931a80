//! One file per server or client.

pub mod ask;
pub mod bind;
pub mod get;
pub mod hold;
pub mod load;
pub mod ping;
pub mod sctp;
pub mod serve;
pub mod transfer;

use std::time::Duration;

/// How long a request may take. Longer than two retransmissions of a SYN (1 s, then 2 s), so that a lost packet on a
/// busy machine is no failure, and a connection to nowhere is one.
pub const REQUEST_LIMIT: Duration = Duration::from_secs(5);
