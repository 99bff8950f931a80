//! The packets of a plain connection.

use std::net::SocketAddr;

use anyhow::Result;
use lb_common::layout::TCP;

use crate::packet::{build, parse};

/// A segment of a TCP connection. `Ack` stands for the packets of an open connection too. With UDP
/// all are datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segment {
    Syn,
    SynAck,
    Ack,
    /// The client gives up a connection that only its SYN has opened.
    Rst,
}

impl Segment {
    /// Returns an Ethernet frame with this segment, or with a datagram of UDP, and with the largest
    /// hop count. With TCP over IPv4 the frame has 64 bytes, the size that packet rates are quoted
    /// for.
    pub fn frame(self, protocol: u8, source: SocketAddr, destination: SocketAddr) -> Result<Vec<u8>> {
        let ports = format!("{} > {}", source.port(), destination.port());
        let transport = match (protocol, self) {
            (TCP, Self::Syn) => format!("tcp {ports} S seq=0"),
            (TCP, Self::SynAck) => format!("tcp {ports} SA seq=0 ack=1"),
            (TCP, Self::Ack) => format!("tcp {ports} A seq=1 ack=1"),
            // The number after the SYN and its ten bytes.
            (TCP, Self::Rst) => format!("tcp {ports} R seq=11"),
            _ => format!("udp {ports}"),
        };
        let text = format!(
            "eth 02:00:00:00:00:09 > 02:00:00:00:00:01 / ip {} > {} ttl=255 / {transport} / zeros 10",
            source.ip(),
            destination.ip()
        );
        Ok(build(&parse(&text)?))
    }
}
