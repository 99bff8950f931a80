//! The packet that is asked about: from words to bytes, and back from the bytes that a program leaves.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use lb_common::checksum::{finish, sum_bytes};
use lb_common::family::{Family, V4, V6};
use lb_common::layout::tcp_flags;
use lb_common::wire::{
    ETHERNET_LEN, IPV4_CHECKSUM, SCTP_CHECKSUM, TCP_CHECKSUM, TCP_DATA_OFFSET, TCP_FLAGS, UDP_CHECKSUM,
};

/// The source port of whoever does not name one.
const SOURCE_PORT: u16 = 40_000;
/// Far enough from anybody's last hop.
const TTL: u8 = 64;

/// `PROTOCOL`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Protocol {
    /// A SYN, which opens a connection
    Tcp,
    /// A datagram
    Udp,
    /// An INIT, which opens an association
    Sctp,
    /// An echo request (ping); addresses without ports
    Icmp,
}

impl Protocol {
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
            Self::Icmp => "icmp",
        }
    }
}

/// `SOURCE` or `DESTINATION`: an address, perhaps with a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    pub ip: IpAddr,
    pub port: Option<u16>,
}

impl FromStr for End {
    type Err = PacketError;

    fn from_str(text: &str) -> Result<Self, PacketError> {
        let address = text.parse::<SocketAddr>();
        let end = address.map(|address| Self { ip: address.ip(), port: Some(address.port()) });
        let end = end.or_else(|_| {
            let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
            bare.parse().map(|ip| Self { ip, port: None })
        });
        match end {
            Ok(Self { port: Some(0), .. }) => Err(PacketError::PortZero(text.to_owned())),
            Ok(end) => Ok(end),
            Err(_) => Err(PacketError::NoAddress(text.to_owned())),
        }
    }
}

/// Why there is no such packet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    #[error("{0:?} is not an address and port; write 10.96.0.10:80 or [fd00:96::10]:80")]
    NoAddress(String),
    #[error("{0:?}: port 0 does not exist; ports are 1 to 65535")]
    PortZero(String),
    #[error(
        "the source {source_ip} and the destination {destination_ip} are of different families: give two IPv4 or two IPv6 addresses"
    )]
    MixedFamilies { source_ip: IpAddr, destination_ip: IpAddr },
    #[error("the destination {ip} has no port: add the Service's port, {}", SocketAddr::new(*ip, 80))]
    NoPort { ip: IpAddr },
    #[error("icmp is an echo request, which has no ports: write {ip}")]
    PortOfEcho { ip: IpAddr },
}

/// The packet that is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    pub protocol: Protocol,
    /// With port 0 where the protocol has none.
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

impl Packet {
    pub fn new(protocol: Protocol, source: End, destination: End) -> Result<Self, PacketError> {
        if source.ip.is_ipv4() != destination.ip.is_ipv4() {
            return Err(PacketError::MixedFamilies { source_ip: source.ip, destination_ip: destination.ip });
        }
        let (source_port, destination_port) = match (protocol, source.port, destination.port) {
            (Protocol::Icmp, None, None) => (0, 0),
            (Protocol::Icmp, Some(_), _) => return Err(PacketError::PortOfEcho { ip: source.ip }),
            (Protocol::Icmp, _, Some(_)) => return Err(PacketError::PortOfEcho { ip: destination.ip }),
            (_, _, None) => return Err(PacketError::NoPort { ip: destination.ip }),
            (_, source, Some(destination)) => (source.unwrap_or(SOURCE_PORT), destination),
        };
        Ok(Self {
            protocol,
            source: SocketAddr::new(source.ip, source_port),
            destination: SocketAddr::new(destination.ip, destination_port),
        })
    }

    /// One of its ends as people write it: without a port where the protocol has none.
    pub fn end(&self, address: SocketAddr) -> String {
        match self.protocol {
            Protocol::Icmp => address.ip().to_string(),
            _ => address.to_string(),
        }
    }

    /// The frame, all checksums right. Devices without Ethernet headers are explained with one too: the programs differ in nothing
    /// else, and a test run takes the packet's type from there (`bpf_prog_test_run_skb`, net/bpf/test_run.c).
    pub fn build(&self) -> Vec<u8> {
        let mut transport = self.transport();
        if let Some((offset, sum)) = self.checksum(&transport) {
            transport[offset..offset + 2].copy_from_slice(&sum.to_ne_bytes());
        }
        // Made-up link addresses, locally administered: nothing is decided by them.
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                frame.extend(V4::ETHERTYPE.to_be_bytes());
                let length = (V4::HEADER_LEN + transport.len()) as u16;
                // Version and header length; don't fragment.
                let mut header = vec![0x45, 0];
                header.extend(length.to_be_bytes());
                header.extend([0, 0, 0x40, 0, TTL, self.protocol_number(), 0, 0]);
                header.extend(source.octets());
                header.extend(destination.octets());
                let sum = finish(sum_bytes(&header));
                header[IPV4_CHECKSUM..IPV4_CHECKSUM + 2].copy_from_slice(&sum.to_ne_bytes());
                frame.extend(header);
            }
            (source, destination) => {
                frame.extend(V6::ETHERTYPE.to_be_bytes());
                frame.extend([0x60, 0, 0, 0]);
                frame.extend((transport.len() as u16).to_be_bytes());
                frame.extend([self.protocol_number(), TTL]);
                frame.extend(octets(source));
                frame.extend(octets(destination));
            }
        }
        frame.extend(transport);
        frame
    }

    fn protocol_number(&self) -> u8 {
        match self.protocol {
            Protocol::Tcp => lb_common::layout::TCP,
            Protocol::Udp => lb_common::layout::UDP,
            Protocol::Sctp => lb_common::layout::SCTP,
            Protocol::Icmp if self.source.is_ipv4() => V4::ICMP,
            Protocol::Icmp => V6::ICMP,
        }
    }

    /// Header and payload, the checksum zero, except for that of SCTP.
    fn transport(&self) -> Vec<u8> {
        let ports = [self.source.port().to_be_bytes(), self.destination.port().to_be_bytes()].concat();
        match self.protocol {
            Protocol::Tcp => {
                let mut header = ports;
                header.resize(lb_common::wire::TCP_LEN, 0);
                header[7] = 1; // The sequence number: any.
                header[TCP_DATA_OFFSET] = (lb_common::wire::TCP_LEN as u8 / 4) << 4;
                header[TCP_FLAGS] = tcp_flags::SYN;
                header[14..16].copy_from_slice(&u16::MAX.to_be_bytes()); // The window.
                header
            }
            Protocol::Udp => {
                let length = lb_common::wire::UDP_LEN as u16;
                [ports, length.to_be_bytes().to_vec(), vec![0, 0]].concat()
            }
            Protocol::Sctp => {
                // RFC 9260 3.3.2: an INIT chunk of 20 bytes: its tag, window, streams out and in, first TSN.
                let mut bytes = [ports, vec![0; 8], vec![1, 0, 0, 20]].concat();
                bytes.extend([0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
                let sum = crc32c(&bytes);
                bytes[SCTP_CHECKSUM..SCTP_CHECKSUM + 4].copy_from_slice(&sum.to_le_bytes());
                bytes
            }
            Protocol::Icmp => {
                // Code 0, checksum, identifier, sequence number.
                vec![self.echo_request(), 0, 0, 0, 0, 1, 0, 1]
            }
        }
    }

    /// Type of an echo request (RFC 792, RFC 4443).
    fn echo_request(&self) -> u8 {
        if self.source.is_ipv4() { 8 } else { 128 }
    }

    /// Offset and value of the Internet checksum of the transport header, as it is stored.
    fn checksum(&self, transport: &[u8]) -> Option<(usize, u16)> {
        let (offset, pseudo) = match (self.protocol, self.source.is_ipv4()) {
            (Protocol::Tcp, _) => (TCP_CHECKSUM, true),
            (Protocol::Udp, _) => (UDP_CHECKSUM, true),
            (Protocol::Icmp, is_v4) => (2, !is_v4),
            (Protocol::Sctp, _) => return None,
        };
        let mut sum = sum_bytes(transport);
        if pseudo {
            sum += sum_bytes(&octets(self.source.ip())) + sum_bytes(&octets(self.destination.ip()));
            sum += sum_bytes(&(transport.len() as u16).to_be_bytes());
            sum += sum_bytes(&[0, self.protocol_number()]);
        }
        Some((offset, finish(sum)))
    }
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} to {}", self.protocol.name(), self.end(self.source), self.end(self.destination))
    }
}

/// CRC-32C (RFC 9260 appendix A), bit by bit: for one short packet.
fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let shift = |crc: u32| (crc >> 1) ^ if crc & 1 == 1 { POLYNOMIAL } else { 0 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| shift(crc)))
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// Source and destination of a frame that was [built](Packet::build) for `packet` and changed by a program. `None`: it is another
/// packet now, an answer perhaps.
pub fn ends(packet: &Packet, frame: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let ip = frame.get(ETHERNET_LEN..)?;
    let header = if packet.source.is_ipv4() { V4::HEADER_LEN } else { V6::HEADER_LEN };
    let addresses =
        ip.get(if packet.source.is_ipv4() { V4::SOURCE_OFFSET } else { V6::SOURCE_OFFSET }..header)?;
    let protocol = *ip.get(if packet.source.is_ipv4() { 9 } else { 6 })?;
    if protocol != packet.protocol_number() {
        return None;
    }
    let (source, destination) = addresses.split_at(addresses.len() / 2);
    let ports = match packet.protocol {
        Protocol::Icmp if *ip.get(header)? != packet.echo_request() => return None,
        Protocol::Icmp => [0; 4],
        _ => ip.get(header..header + 4)?.try_into().ok()?,
    };
    let [a, b, c, d] = ports;
    let source = SocketAddr::new(address(source)?, u16::from_be_bytes([a, b]));
    let destination = SocketAddr::new(address(destination)?, u16::from_be_bytes([c, d]));
    Some((source, destination))
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    match octets.len() {
        4 => <[u8; 4]>::try_from(octets).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(octets).ok().map(IpAddr::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(protocol: Protocol, source: &str, destination: &str) -> Result<Packet, String> {
        let end = |text: &str| text.parse::<End>().map_err(|error| error.to_string());
        Packet::new(protocol, end(source)?, end(destination)?).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_missing_or_wrong_is_said_with_the_remedy() {
        let error = |protocol, source, destination| packet(protocol, source, destination).unwrap_err();
        assert_eq!(
            error(Protocol::Tcp, "10.1.2.3", "10.96.0.10"),
            "the destination 10.96.0.10 has no port: add the Service's port, 10.96.0.10:80"
        );
        assert_eq!(
            error(Protocol::Udp, "fd00::1", "[fd00:96::10]"),
            "the destination fd00:96::10 has no port: add the Service's port, [fd00:96::10]:80"
        );
        assert!(error(Protocol::Tcp, "10.1.2.3", "[fd00::1]:80").contains("different families"));
        assert!(
            error(Protocol::Tcp, "10.1.2.3", "web:80").starts_with("\"web:80\" is not an address and port")
        );
        assert!(error(Protocol::Tcp, "10.1.2.3:0", "10.96.0.10:80").contains("port 0"));
        assert_eq!(
            error(Protocol::Icmp, "10.1.2.3", "10.96.0.10:80"),
            "icmp is an echo request, which has no ports: write 10.96.0.10"
        );
    }

    #[test]
    fn the_source_port_can_be_left_out() {
        let short = packet(Protocol::Tcp, "10.1.2.3", "10.96.0.10:80").unwrap();
        assert_eq!(short.to_string(), "tcp 10.1.2.3:40000 to 10.96.0.10:80");
        assert_eq!(
            packet(Protocol::Icmp, "fd00::1", "fd00:96::10").unwrap().to_string(),
            "icmp fd00::1 to fd00:96::10"
        );
    }

    #[test]
    fn the_ends_of_a_frame_are_read_back_and_an_answer_has_none() {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp, Protocol::Icmp] {
            for (source, destination) in [("10.1.2.3", "10.96.0.10"), ("fd00::1", "fd00:96::10")] {
                let end = |ip: &str, port| End { ip: ip.parse().unwrap(), port };
                let ports = if protocol == Protocol::Icmp { [None; 2] } else { [Some(1000), Some(80)] };
                let packet =
                    Packet::new(protocol, end(source, ports[0]), end(destination, ports[1])).unwrap();
                let frame = packet.build();
                assert_eq!(ends(&packet, &frame), Some((packet.source, packet.destination)));
                assert_eq!(ends(&packet, &frame[..30]), None);
                let other = if protocol == Protocol::Udp { Protocol::Tcp } else { Protocol::Udp };
                assert_eq!(ends(&Packet { protocol: other, ..packet }, &frame), None);
            }
        }
    }
}
