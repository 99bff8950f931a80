//! The layers of a packet: one struct per header. Fields that a test may want to be wrong can be
//! wrong.
//!
//! A field of type `Option` or [`Checksum`] is normally derived from the rest of the packet
//! (`None`, `Correct`). A value in it is used as it is, even if it is wrong.
//!
//! Numbers are in host byte order.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IP protocol numbers (IANA) of the headers that the builder and the dissector support.
pub mod protocol {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const AUTHENTICATION: u8 = 51;
    pub const ICMP_V6: u8 = 58;
    pub const NO_NEXT: u8 = 59;
    pub const DESTINATION: u8 = 60;
    pub const SCTP: u8 = 132;
    /// A number for experiments (RFC 3692). It announces data without a transport header.
    pub const EXPERIMENT: u8 = 253;
}

/// EtherTypes (IEEE 802).
pub mod ethertype {
    pub const IPV4: u16 = 0x0800;
    pub const VLAN: u16 = 0x8100;
    pub const IPV6: u16 = 0x86dd;
    pub const QINQ: u16 = 0x88a8;
    /// IEEE 802 "local experimental 1". It announces data without an IP header.
    pub const EXPERIMENT: u16 = 0x88b5;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layer {
    Ethernet(Ethernet),
    Vlan(Vlan),
    Ipv4(Ipv4),
    Ipv6(Ipv6),
    Extension(Extension),
    Fragment(FragmentHeader),
    Tcp(Tcp),
    Udp(Udp),
    Sctp(Sctp),
    Icmp(Icmp),
    /// The ports of a transport header whose remaining part is truncated or invalid. Data follows.
    Ports(Ports),
    /// Payload.
    Data(Vec<u8>),
    /// Bytes after the end of the IP packet: the padding of a short frame.
    Trailer(Vec<u8>),
}

/// The first header of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    Ethernet,
    /// The packet starts with its IP header (ipip, wireguard, tun).
    None,
}

/// A correct checksum, or one that is wrong on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Checksum {
    #[default]
    Correct,
    /// The correct value plus [`Checksum::FAULT`] in ones' complement arithmetic (CRC32c: exclusive
    /// or). An incremental update keeps the fault. A full recomputation hides it.
    Faulty,
    /// This value. An IPv4 UDP checksum of zero means that the datagram has no checksum (RFC 768).
    Exactly(u32),
}

impl Checksum {
    pub const FAULT: u16 = 0x0101;
}

/// A MAC address, in the order on the wire.
pub type Mac = [u8; 6];

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ethernet {
    pub source: Mac,
    pub destination: Mac,
    pub ethertype: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vlan {
    /// True: an 802.1ad service tag. False: an 802.1Q customer tag.
    pub service: bool,
    /// Priority (3 bits), drop eligible indicator (1 bit) and VLAN id (12 bits).
    pub tci: u16,
    pub ethertype: Option<u16>,
}

/// The part of a datagram that a packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatagramPart {
    /// The whole datagram.
    Whole,
    /// The layers that follow describe the whole datagram. This packet carries bytes `from..to` of
    /// them, and the builder sets offset and "more fragments" accordingly. The dissector never
    /// returns this.
    Piece { from: usize, to: usize },
    /// The layers that follow describe only this packet. `offset` is in bytes.
    Raw { offset: u16, more: bool },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ipv4 {
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub ttl: u8,
    pub tos: u8,
    pub id: u16,
    pub dont_fragment: bool,
    /// The reserved bit of the flags (RFC 3514).
    pub evil: bool,
    pub part: DatagramPart,
    /// At most 40 bytes. Their number is a multiple of four.
    pub options: Vec<u8>,
    pub protocol: Option<u8>,
    pub length: Option<u16>,
    pub checksum: Checksum,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ipv6 {
    pub source: Ipv6Addr,
    pub destination: Ipv6Addr,
    pub hop_limit: u8,
    pub traffic_class: u8,
    /// Only the lower 20 bits are used.
    pub flow_label: u32,
    pub next: Option<u8>,
    pub length: Option<u16>,
}

/// An IPv6 extension header of the common form (RFC 6564), or an authentication header (RFC 4302).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extension {
    /// The protocol number of this header.
    pub kind: u8,
    pub next: Option<u8>,
    /// The bytes after the length field. Their number is a multiple of 8 plus 6. In an
    /// authentication header it is a multiple of 4 plus 2.
    pub body: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FragmentHeader {
    pub next: Option<u8>,
    pub id: u32,
    pub part: DatagramPart,
    /// The reserved byte (bits 2 to 9) and the two reserved bits (bits 0 and 1).
    pub reserved: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tcp {
    pub source: u16,
    pub destination: u16,
    pub seq: u32,
    pub ack: u32,
    /// The eight flags (bits 0 to 7) and the four reserved bits (bits 8 to 11).
    pub flags: u16,
    pub window: u16,
    pub urgent: u16,
    /// At most 40 bytes. Their number is a multiple of four.
    pub options: Vec<u8>,
    pub checksum: Checksum,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Udp {
    pub source: u16,
    pub destination: u16,
    pub length: Option<u16>,
    pub checksum: Checksum,
}

/// The common header of SCTP. Chunks follow as data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sctp {
    pub source: u16,
    pub destination: u16,
    pub tag: u32,
    pub checksum: Checksum,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Icmp {
    pub v6: bool,
    pub kind: u8,
    pub code: u8,
    /// The four bytes after the checksum: identifier and sequence number of an echo, or the MTU.
    pub rest: [u8; 4],
    pub checksum: Checksum,
    /// Number of bytes of the quoted packet that the message carries. The dissector always returns
    /// `None`.
    pub quote: Option<usize>,
}

impl Icmp {
    /// Returns whether messages of this type quote the packet that caused them (RFC 792, RFC 4443).
    pub fn quotes(v6: bool, kind: u8) -> bool {
        if v6 { (1..=4).contains(&kind) } else { matches!(kind, 3 | 4 | 5 | 11 | 12) }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ports {
    pub protocol: u8,
    pub source: u16,
    pub destination: u16,
}

impl Layer {
    /// Returns the IP protocol number that announces this layer. Returns `None` if the layer cannot
    /// follow an IP header.
    pub fn protocol(&self) -> Option<u8> {
        match self {
            Layer::Extension(header) => Some(header.kind),
            Layer::Fragment(_) => Some(protocol::FRAGMENT),
            Layer::Tcp(_) => Some(protocol::TCP),
            Layer::Udp(_) => Some(protocol::UDP),
            Layer::Sctp(_) => Some(protocol::SCTP),
            Layer::Icmp(icmp) => Some(if icmp.v6 { protocol::ICMP_V6 } else { protocol::ICMP }),
            Layer::Ports(ports) => Some(ports.protocol),
            Layer::Data(_) => Some(protocol::EXPERIMENT),
            Layer::Ipv4(_) => Some(4),
            Layer::Ipv6(_) => Some(41),
            Layer::Ethernet(_) | Layer::Vlan(_) | Layer::Trailer(_) => None,
        }
    }

    /// Returns the EtherType that announces this layer.
    pub fn ethertype(&self) -> u16 {
        match self {
            Layer::Vlan(vlan) => {
                if vlan.service {
                    ethertype::QINQ
                } else {
                    ethertype::VLAN
                }
            }
            Layer::Ipv4(_) => ethertype::IPV4,
            Layer::Ipv6(_) => ethertype::IPV6,
            _ => ethertype::EXPERIMENT,
        }
    }

    /// Returns source and destination address of an IP header, or `None` for other layers.
    pub fn addresses(&self) -> Option<(IpAddr, IpAddr)> {
        match self {
            Layer::Ipv4(ip) => Some((ip.source.into(), ip.destination.into())),
            Layer::Ipv6(ip) => Some((ip.source.into(), ip.destination.into())),
            _ => None,
        }
    }
}
