//! What the client processes print as JSON and the tests read: requests, their answers and their failures.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// What a server says in its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// Name of the pod that answers.
    pub pod: String,
    /// The client's address as the server's socket shows it: the source address after all rewriting.
    pub client: SocketAddr,
    /// The request carried the bytes of [`crate::pattern`] (true for requests without a body).
    pub intact: bool,
}

/// A request that was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub greeting: Greeting,
    /// With whom the client believes it speaks: `getpeername` of a connected socket, the source that `recvfrom` gave
    /// for an unconnected one. Must be the address that was asked.
    pub peer: SocketAddr,
}

/// Why a request was not answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub kind: FailureKind,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// `ECONNREFUSED`: an endpoint's RST, an ICMP unreachable, or the socket hook.
    Refused,
    /// `ECONNRESET`, or the server closed the connection early.
    Reset,
    /// Somebody else closed the socket (`SOCK_DESTROY`): `ECONNABORTED`, and `EDESTADDRREQ` of a send before that is read.
    Aborted,
    /// No answer within the time limit.
    TimedOut,
    /// `EMSGSIZE`: the path's MTU is smaller than the datagram, and the kernel was told so.
    TooBig,
    /// `EHOSTUNREACH` or `ENETUNREACH`: no way there, or a packet to this Service would be dropped.
    Unreachable,
    /// `EPERM`: a local rule, or the Service's source ranges.
    NotPermitted,
    Other,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::ConnectionRefused => FailureKind::Refused,
            io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe => {
                FailureKind::Reset
            }
            io::ErrorKind::ConnectionAborted => FailureKind::Aborted,
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => FailureKind::TimedOut,
            _ if error.raw_os_error() == Some(libc::EMSGSIZE) => FailureKind::TooBig,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => FailureKind::Unreachable,
            io::ErrorKind::PermissionDenied if error.raw_os_error() == Some(libc::EPERM) => {
                FailureKind::NotPermitted
            }
            _ if error.raw_os_error() == Some(libc::EDESTADDRREQ) => FailureKind::Aborted,
            _ => FailureKind::Other,
        };
        // The system's own words for a read time-out are "resource temporarily unavailable".
        let message = match kind {
            FailureKind::TimedOut => "no answer in time".to_owned(),
            _ => error.to_string(),
        };
        Self { kind, message }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// One request and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exchange {
    /// The address that was asked.
    pub target: SocketAddr,
    pub result: Result<Answer, Failure>,
}

/// What came of binding an address, see [`crate::Host::bind`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    pub address: SocketAddr,
    /// None: it was bound, and is free again.
    pub errno: Option<i32>,
}

/// ICMP echo requests, see [`crate::Host::ping`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PingReport {
    pub sent: u32,
    /// By the address that was asked, with the same content.
    pub answered: u32,
    /// What happened to the others.
    pub failures: Vec<String>,
}

/// Many requests over some time, see [`crate::Host::start_load`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadReport {
    pub requests: u64,
    pub failures: u64,
    /// Answers by pod.
    pub by_pod: BTreeMap<String, u64>,
    /// The first few failures, each with the time since the start.
    pub examples: Vec<String>,
    pub slowest_milliseconds: u64,
}

/// A large transfer both ways over one TCP connection; every byte is compared with [`crate::pattern`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferReport {
    pub sent: u64,
    pub received: u64,
    /// `Err` says which end found what.
    pub intact: Result<(), String>,
}
