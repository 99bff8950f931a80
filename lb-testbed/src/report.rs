//! Reports that the client processes print as JSON and the tests read: requests, answers, failures.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The content of a server's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// Name of the pod that answers.
    pub pod: String,
    /// The client's address at the server's socket: the source address after all rewriting.
    pub client: SocketAddr,
    /// The request carried the bytes of [`crate::pattern`]. True for requests without a body.
    pub intact: bool,
}

impl Greeting {
    /// Returns the body of an answer, as JSON.
    pub fn json(pod: &str, client: SocketAddr, intact: bool) -> Vec<u8> {
        serde_json::to_vec(&Self { pod: pod.to_owned(), client, intact }).unwrap_or_default()
    }
}

/// A request that was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestAnswer {
    pub greeting: Greeting,
    /// The server's address at the client's socket: `getpeername` of a connected socket, or the
    /// source that `recvfrom` returned for an unconnected one. It must equal the requested address.
    pub peer: SocketAddr,
}

/// Why a request was not answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestFailure {
    pub kind: FailureKind,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// `ECONNREFUSED`: a TCP reset, an ICMP unreachable, or a cgroup program refused the call.
    Refused,
    /// `ECONNRESET`, or the server closed the connection early.
    Reset,
    /// `ECONNABORTED`: another process closed the socket (`SOCK_DESTROY`). A send that runs before
    /// the application has read that error fails with `EDESTADDRREQ`.
    Aborted,
    /// No answer within the time limit.
    TimedOut,
    /// `EMSGSIZE`: the datagram exceeds the path MTU that the kernel has learned.
    TooBig,
    /// `EHOSTUNREACH` or `ENETUNREACH`: no route, or the Service drops the client's packets.
    Unreachable,
    /// `EPERM`: a local firewall rule, or the Service's source ranges.
    NotPermitted,
    Other,
}

impl From<io::Error> for RequestFailure {
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
        // The system's text for a read time-out is "resource temporarily unavailable".
        let message = match kind {
            FailureKind::TimedOut => "no answer in time".to_owned(),
            _ => error.to_string(),
        };
        Self { kind, message }
    }
}

impl fmt::Display for RequestFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// One request and its result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exchange {
    /// The address that the request was sent to.
    pub target: SocketAddr,
    pub result: Result<RequestAnswer, RequestFailure>,
}

/// The result of binding one address, see [`crate::Host::bind`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    pub address: SocketAddr,
    /// `None`: the address was bound, and has been released again.
    pub errno: Option<i32>,
}

/// The results of ICMP echo requests, see [`crate::Host::ping`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PingReport {
    pub sent: u32,
    /// Replies that came from the requested address with the same content.
    pub answered: u32,
    /// One message for each request that was not answered.
    pub failures: Vec<String>,
}

/// The results of many requests over some time, see [`crate::Host::start_load`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadReport {
    pub requests: u64,
    pub failures: u64,
    /// Number of answers from each pod, by its name.
    pub by_pod: BTreeMap<String, u64>,
    /// The first few failures, each with the time since the start.
    pub examples: Vec<String>,
    pub slowest_milliseconds: u64,
}

/// The results of many new connections and flows, see [`crate::Host::open_connections`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ConnectionsReport {
    pub tcp: OpenedReport,
    pub udp: OpenedReport,
    /// The time until the last one was opened or failed.
    pub seconds: f64,
}

/// The results of one protocol.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenedReport {
    /// The number of connections whose first request was answered.
    pub opened: u64,
    pub failed: u64,
    /// The number of UDP flows whose first datagram was not answered, but a repeated one was.
    pub repeated: u64,
    pub slowest_milliseconds: u64,
    /// The first few failures.
    pub examples: Vec<String>,
}

/// What short connections cost their client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExchangeTimes {
    /// CPU time of the client's process for all connections.
    pub cpu: Duration,
    /// Median of the time from `connect` until the server has closed the connection.
    pub median: Duration,
}

/// The result of a transfer in both directions over one TCP connection. Every byte is compared with
/// [`crate::pattern`]. Counts are in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferReport {
    pub sent: u64,
    pub received: u64,
    /// `Err` has the problem and the end that found it.
    pub intact: Result<(), String>,
}
