//! UDP requests from one connected or unconnected socket.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use lb_testbed::patience::patient;
use lb_testbed::pattern;
use lb_testbed::report::{Exchange, RequestAnswer, RequestFailure};
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
};

/// How long to wait for an answer. Datagrams are not retransmitted: a later answer counts as lost.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(2);

#[derive(Args)]
pub struct Options {
    #[arg(long, default_value_t = 1)]
    count: u32,
    /// Bytes of payload
    #[arg(long, default_value_t = 32)]
    size: usize,
    /// Use connect and send instead of sendto
    #[arg(long)]
    connected: bool,
    /// Never fragment: fail if a datagram exceeds the path MTU
    #[arg(long)]
    dont_fragment: bool,
    target: SocketAddr,
}

/// Sends the datagrams and returns one exchange for each. Stops early if the server does not
/// answer.
pub fn run(options: &Options) -> Result<Vec<Exchange>> {
    let target = options.target;
    let socket = UdpSocket::bind(any_address(target))?;
    socket.set_read_timeout(Some(patient(ANSWER_LIMIT)))?;
    if options.dont_fragment {
        match target {
            SocketAddr::V4(_) => set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::DO)?,
            SocketAddr::V6(_) => set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::DO)?,
        }
    }
    if options.connected
        && let Err(error) = socket.connect(target)
    {
        return Ok(vec![Exchange { target, result: Err(error.into()) }]);
    }
    let mut payload = vec![0; options.size];
    pattern::fill(&mut payload, 0);
    let request = || -> Result<RequestAnswer, RequestFailure> {
        let mut answer = vec![0; 65536];
        let (length, peer) = if options.connected {
            socket.send(&payload)?;
            (socket.recv(&mut answer)?, socket.peer_addr()?)
        } else {
            socket.send_to(&payload, target)?;
            socket.recv_from(&mut answer)?
        };
        parse(&answer[..length], peer)
    };
    let mut exchanges = Vec::new();
    let mut lost = 0;
    // After three lost datagrams in a row no server answers. Stop here to save the waiting time.
    while exchanges.len() < options.count as usize && lost < 3 {
        let result = request();
        lost = if result.is_ok() { 0 } else { lost + 1 };
        exchanges.push(Exchange { target, result });
    }
    Ok(exchanges)
}

/// Returns the unspecified address of the target's family, with port 0 (any port).
pub fn any_address(target: SocketAddr) -> SocketAddr {
    match target {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

/// Parses an answer of the UDP server.
pub fn parse(answer: &[u8], peer: SocketAddr) -> Result<RequestAnswer, RequestFailure> {
    let greeting =
        serde_json::from_slice(answer).map_err(|error| RequestFailure::from(io::Error::other(error)))?;
    Ok(RequestAnswer { greeting, peer })
}
