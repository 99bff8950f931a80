//! ICMP echo requests, one after the other.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use lb_testbed::patience::patient;
use lb_testbed::pattern;
use lb_testbed::report::{PingReport, RequestFailure};
use rustix::net::{AddressFamily, SocketType, ipproto, socket};

/// How long to wait for a reply.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// Bytes of type, code, checksum, identifier and sequence number (RFC 792, RFC 4443 4.1).
const HEADER: usize = 8;

#[derive(Args)]
pub struct Options {
    #[arg(long, default_value_t = 1)]
    count: u16,
    /// Bytes of payload
    #[arg(long, default_value_t = 56)]
    size: usize,
    target: IpAddr,
}

/// Sends the echo requests, each after the reply to the one before or its time-out.
pub fn run(options: &Options) -> Result<PingReport> {
    // A ping socket of the kernel fills in identifier and checksum, and checks those of the reply.
    let (family, protocol, request, reply) = match options.target {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, 8, 0),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, 128, 129),
    };
    let socket = UdpSocket::from(socket(family, SocketType::DGRAM, Some(protocol))?);
    socket.set_read_timeout(Some(patient(ANSWER_LIMIT)))?;
    let mut report = PingReport { sent: 0, answered: 0, failures: Vec::new() };
    for sequence in 1..=options.count {
        let mut message = vec![0; HEADER + options.size];
        message[0] = request;
        message[6..HEADER].copy_from_slice(&sequence.to_be_bytes());
        pattern::fill(&mut message[HEADER..], sequence.into());
        report.sent += 1;
        let exchange = || -> io::Result<bool> {
            socket.send_to(&message, (options.target, 0))?;
            let mut answer = vec![0; 65536];
            let (length, peer): (_, SocketAddr) = socket.recv_from(&mut answer)?;
            let same = answer.get(6..length) == message.get(6..);
            Ok(same && answer[0] == reply && peer.ip() == options.target)
        };
        match exchange() {
            Ok(true) => report.answered += 1,
            Ok(false) => report.failures.push("the reply does not match the request".to_owned()),
            Err(error) => report.failures.push(RequestFailure::from(error).to_string()),
        }
    }
    Ok(report)
}
