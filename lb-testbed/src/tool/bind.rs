//! Binds addresses, one after the other, and releases each at once.

use std::net::{SocketAddr, TcpListener, UdpSocket};

use clap::Args;
use lb_testbed::report::Bound;

#[derive(Args)]
pub struct Options {
    /// Bind UDP sockets instead of TCP listeners
    #[arg(long)]
    udp: bool,
    #[arg(required = true)]
    addresses: Vec<SocketAddr>,
}

/// Binds and releases each address. Returns one result for each, in the same order.
pub fn run(options: &Options) -> Vec<Bound> {
    let bind = |address: SocketAddr| {
        let bound = if options.udp {
            UdpSocket::bind(address).map(drop)
        } else {
            TcpListener::bind(address).map(drop)
        };
        Bound { address, errno: bound.err().and_then(|error| error.raw_os_error()) }
    };
    options.addresses.iter().copied().map(bind).collect()
}
