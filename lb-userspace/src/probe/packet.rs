//! The packet that `lb explain` explains: parses the arguments, builds the frame, and reads the
//! addresses from the frame that a program has changed.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use lb_common::checksum::{finish, sum_bytes};
use lb_common::family::{Family, V4, V6};
use lb_common::layout::tcp_flags;
use lb_common::wire::{
    ETHERNET_LEN, IPV4_CHECKSUM, SCTP_CHECKSUM, TCP_CHECKSUM, TCP_DATA_OFFSET, TCP_FLAGS, UDP_CHECKSUM,
};

/// The source port if SOURCE has no port.
const SOURCE_PORT: u16 = 40_000;
/// Large enough: no program decrements it to 0.
const TTL: u8 = 64;

/// Argument `PROTOCOL`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum PacketProtocol {
    /// A SYN, which opens a connection
    Tcp,
    /// A datagram
    Udp,
    /// An INIT, which opens an association
    Sctp,
    /// An echo request (ping); give addresses without ports
    Icmp,
}

impl PacketProtocol {
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
            Self::Icmp => "icmp",
        }
    }
}

/// Argument `SOURCE` or `DESTINATION`: an address with an optional port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressArg {
    pub ip: IpAddr,
    pub port: Option<u16>,
}

impl FromStr for AddressArg {
    type Err = PacketError;

    fn from_str(text: &str) -> Result<Self, PacketError> {
        let address = text.parse::<SocketAddr>();
        let parsed = address.map(|address| Self { ip: address.ip(), port: Some(address.port()) });
        let parsed = parsed.or_else(|_| {
            let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
            bare.parse().map(|ip| Self { ip, port: None })
        });
        match parsed {
            Ok(Self { port: Some(0), .. }) => Err(PacketError::PortZero(text.to_owned())),
            Ok(parsed) => Ok(parsed),
            Err(_) => Err(PacketError::NoAddress(text.to_owned())),
        }
    }
}

/// Arguments that do not describe a packet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    #[error("{0:?} is not an address and port; write 10.96.0.10:80 or [fd00:96::10]:80")]
    NoAddress(String),
    #[error("{0:?}: port 0 does not exist; ports are 1 to 65535")]
    PortZero(String),
    #[error(
        "the source {source_ip} and the destination {destination_ip} are of different families: \
         give two IPv4 or two IPv6 addresses"
    )]
    MixedFamilies { source_ip: IpAddr, destination_ip: IpAddr },
    #[error("the destination {ip} has no port: add the Service's port, {}", SocketAddr::new(*ip, 80))]
    NoPort { ip: IpAddr },
    #[error("icmp is an echo request, which has no ports: write {ip}")]
    PortOfEcho { ip: IpAddr },
}

/// The packet to explain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbePacket {
    pub protocol: PacketProtocol,
    /// The port is 0 if the protocol has no ports.
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

impl ProbePacket {
    pub fn new(
        protocol: PacketProtocol,
        source: AddressArg,
        destination: AddressArg,
    ) -> Result<Self, PacketError> {
        if source.ip.is_ipv4() != destination.ip.is_ipv4() {
            return Err(PacketError::MixedFamilies { source_ip: source.ip, destination_ip: destination.ip });
        }
        let (source_port, destination_port) = match (protocol, source.port, destination.port) {
            (PacketProtocol::Icmp, None, None) => (0, 0),
            (PacketProtocol::Icmp, Some(_), _) => return Err(PacketError::PortOfEcho { ip: source.ip }),
            (PacketProtocol::Icmp, _, Some(_)) => return Err(PacketError::PortOfEcho { ip: destination.ip }),
            (_, _, None) => return Err(PacketError::NoPort { ip: destination.ip }),
            (_, source, Some(destination)) => (source.unwrap_or(SOURCE_PORT), destination),
        };
        Ok(Self {
            protocol,
            source: SocketAddr::new(source.ip, source_port),
            destination: SocketAddr::new(destination.ip, destination_port),
        })
    }

    /// Returns the source or destination as text, without a port if the protocol has no ports.
    pub fn format_address(&self, address: SocketAddr) -> String {
        match self.protocol {
            PacketProtocol::Icmp => address.ip().to_string(),
            _ => address.to_string(),
        }
    }

    /// Returns the Ethernet frame, with correct checksums. It has an Ethernet header for devices
    /// without such headers too: the programs differ in nothing else, and the kernel takes the
    /// protocol of the packet from this header (`bpf_prog_test_run_skb`, net/bpf/test_run.c).
    pub fn build(&self) -> Vec<u8> {
        let mut transport = self.transport();
        if let Some((offset, sum)) = self.checksum(&transport) {
            transport[offset..offset + 2].copy_from_slice(&sum.to_ne_bytes());
        }
        // Locally administered link addresses. No program decides by them.
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                frame.extend(V4::ETHERTYPE.to_be_bytes());
                let length = (V4::HEADER_LEN + transport.len()) as u16;
                // Version 4 and header length 20, the total length, then Don't Fragment.
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
            PacketProtocol::Tcp => lb_common::layout::TCP,
            PacketProtocol::Udp => lb_common::layout::UDP,
            PacketProtocol::Sctp => lb_common::layout::SCTP,
            PacketProtocol::Icmp if self.source.is_ipv4() => V4::ICMP,
            PacketProtocol::Icmp => V6::ICMP,
        }
    }

    /// Returns transport header and payload. The checksum is zero, except for SCTP.
    fn transport(&self) -> Vec<u8> {
        let ports = [self.source.port().to_be_bytes(), self.destination.port().to_be_bytes()].concat();
        match self.protocol {
            PacketProtocol::Tcp => {
                let mut header = ports;
                header.resize(lb_common::wire::TCP_LEN, 0);
                header[7] = 1; // Any sequence number.
                header[TCP_DATA_OFFSET] = (lb_common::wire::TCP_LEN as u8 / 4) << 4;
                header[TCP_FLAGS] = tcp_flags::SYN;
                header[14..16].copy_from_slice(&u16::MAX.to_be_bytes()); // The window.
                header
            }
            PacketProtocol::Udp => {
                let length = lb_common::wire::UDP_LEN as u16;
                [ports, length.to_be_bytes().to_vec(), vec![0, 0]].concat()
            }
            PacketProtocol::Sctp => {
                // An INIT chunk of 20 bytes (RFC 9260 3.3.2): initiate tag, window, numbers of
                // outbound and inbound streams, initial TSN.
                let mut bytes = [ports, vec![0; 8], vec![1, 0, 0, 20]].concat();
                bytes.extend([0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
                let sum = crc32c(&bytes);
                bytes[SCTP_CHECKSUM..SCTP_CHECKSUM + 4].copy_from_slice(&sum.to_le_bytes());
                bytes
            }
            PacketProtocol::Icmp => {
                // Code 0, checksum, identifier, sequence number.
                vec![self.echo_request(), 0, 0, 0, 0, 1, 0, 1]
            }
        }
    }

    /// Type of an echo request (RFC 792, RFC 4443).
    fn echo_request(&self) -> u8 {
        if self.source.is_ipv4() { 8 } else { 128 }
    }

    /// Returns offset and value of the Internet checksum in the transport header. The value is in
    /// memory order.
    fn checksum(&self, transport: &[u8]) -> Option<(usize, u16)> {
        let (offset, pseudo) = match (self.protocol, self.source.is_ipv4()) {
            (PacketProtocol::Tcp, _) => (TCP_CHECKSUM, true),
            (PacketProtocol::Udp, _) => (UDP_CHECKSUM, true),
            (PacketProtocol::Icmp, is_v4) => (2, !is_v4),
            (PacketProtocol::Sctp, _) => return None,
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

impl fmt::Display for ProbePacket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} to {}",
            self.protocol.name(),
            self.format_address(self.source),
            self.format_address(self.destination)
        )
    }
}

/// Computes CRC-32C (RFC 9260 appendix A) bit by bit. This is fast enough for one short packet.
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

/// Returns source and destination of a frame that [`ProbePacket::build`] made for `packet` and that
/// a program changed. Returns `None` if the program replaced the packet, for example by an ICMP
/// error.
pub fn rewritten_addresses(packet: &ProbePacket, frame: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
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
        PacketProtocol::Icmp if *ip.get(header)? != packet.echo_request() => return None,
        PacketProtocol::Icmp => [0; 4],
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

    fn packet(protocol: PacketProtocol, source: &str, destination: &str) -> Result<ProbePacket, String> {
        let argument = |text: &str| text.parse::<AddressArg>().map_err(|error| error.to_string());
        ProbePacket::new(protocol, argument(source)?, argument(destination)?)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn errors_name_the_remedy() {
        let error = |protocol, source, destination| packet(protocol, source, destination).unwrap_err();
        assert_eq!(
            error(PacketProtocol::Tcp, "10.1.2.3", "10.96.0.10"),
            "the destination 10.96.0.10 has no port: add the Service's port, 10.96.0.10:80"
        );
        assert_eq!(
            error(PacketProtocol::Udp, "fd00::1", "[fd00:96::10]"),
            "the destination fd00:96::10 has no port: add the Service's port, [fd00:96::10]:80"
        );
        assert!(error(PacketProtocol::Tcp, "10.1.2.3", "[fd00::1]:80").contains("different families"));
        assert!(
            error(PacketProtocol::Tcp, "10.1.2.3", "web:80")
                .starts_with("\"web:80\" is not an address and port")
        );
        assert!(error(PacketProtocol::Tcp, "10.1.2.3:0", "10.96.0.10:80").contains("port 0"));
        assert_eq!(
            error(PacketProtocol::Icmp, "10.1.2.3", "10.96.0.10:80"),
            "icmp is an echo request, which has no ports: write 10.96.0.10"
        );
    }

    #[test]
    fn the_source_port_is_optional() {
        let short = packet(PacketProtocol::Tcp, "10.1.2.3", "10.96.0.10:80").unwrap();
        assert_eq!(short.to_string(), "tcp 10.1.2.3:40000 to 10.96.0.10:80");
        assert_eq!(
            packet(PacketProtocol::Icmp, "fd00::1", "fd00:96::10").unwrap().to_string(),
            "icmp fd00::1 to fd00:96::10"
        );
    }

    #[test]
    fn addresses_are_read_from_frames_of_the_same_protocol_only() {
        for protocol in [PacketProtocol::Tcp, PacketProtocol::Udp, PacketProtocol::Sctp, PacketProtocol::Icmp]
        {
            for (source, destination) in [("10.1.2.3", "10.96.0.10"), ("fd00::1", "fd00:96::10")] {
                let argument = |ip: &str, port| AddressArg { ip: ip.parse().unwrap(), port };
                let ports = if protocol == PacketProtocol::Icmp { [None; 2] } else { [Some(1000), Some(80)] };
                let (source, destination) = (argument(source, ports[0]), argument(destination, ports[1]));
                let packet = ProbePacket::new(protocol, source, destination).unwrap();
                let frame = packet.build();
                assert_eq!(rewritten_addresses(&packet, &frame), Some((packet.source, packet.destination)));
                assert_eq!(rewritten_addresses(&packet, &frame[..30]), None);
                let other =
                    if protocol == PacketProtocol::Udp { PacketProtocol::Tcp } else { PacketProtocol::Udp };
                assert_eq!(rewritten_addresses(&ProbePacket { protocol: other, ..packet }, &frame), None);
            }
        }
    }
}
