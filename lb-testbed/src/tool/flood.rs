//! Sends many packets that each open a connection, and nothing more on these connections.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use lb_testbed::packet::{build, parse};
use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, sendto, socket};

#[derive(Args)]
pub struct Options {
    #[arg(value_enum)]
    kind: FloodKind,
    /// Number of packets
    #[arg(long)]
    count: u32,
    target: SocketAddr,
}

#[derive(Clone, Copy, ValueEnum)]
enum FloodKind {
    /// Empty datagrams, each from another port of this host; the testbed's servers do not answer
    /// them
    Datagrams,
    /// TCP SYNs with forged sources in 192.0.2.0/24
    Syns,
}

/// Sends the packets as fast as this host can, and prints "sent".
pub fn run(options: &Options) -> Result<()> {
    match options.kind {
        FloodKind::Datagrams => datagrams(options)?,
        FloodKind::Syns => syns(options)?,
    }
    println!("\"sent\"");
    Ok(())
}

fn datagrams(options: &Options) -> Result<()> {
    const FIRST_PORT: u16 = 1024;
    let any = match options.target {
        SocketAddr::V4(_) => "0.0.0.0",
        SocketAddr::V6(_) => "::",
    };
    let ports = (FIRST_PORT..=u16::MAX).take(options.count as usize);
    if ports.len() < options.count as usize {
        bail!("there are only {} ports to send from", ports.len());
    }
    for port in ports {
        // A port that a program of this host uses is left out.
        let Ok(socket) = UdpSocket::bind((any, port)) else { continue };
        patiently(|| socket.send_to(&[], options.target)).context("send a datagram")?;
    }
    Ok(())
}

fn syns(options: &Options) -> Result<()> {
    let SocketAddr::V4(target) = options.target else {
        bail!("SYNs with forged sources are sent over IPv4 only")
    };
    // The packets have their own IP header (raw(7)).
    let raw =
        socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::RAW)).context("open a raw socket")?;
    for number in 0..options.count {
        let source = Ipv4Addr::new(192, 0, 2, 1 + (number % 250) as u8);
        let port = 1024 + number / 250 % 64_000;
        let text = format!("ip {source} > {} / tcp {port} > {} S seq={number}", target.ip(), target.port());
        let packet = build(&parse(&text)?);
        let to = SocketAddrV4::new(*target.ip(), 0);
        patiently(|| Ok(sendto(&raw, &packet, SendFlags::empty(), &to)?)).context("send a SYN")?;
    }
    Ok(())
}

/// Repeats a send while the device's queue is full.
fn patiently(send: impl Fn() -> io::Result<usize>) -> io::Result<()> {
    loop {
        match send() {
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => std::thread::yield_now(),
            result => return result.map(drop),
        }
    }
}
