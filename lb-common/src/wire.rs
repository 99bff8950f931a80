//! Header constants: offsets, lengths and protocol numbers.

/// Length of an Ethernet header without VLAN tags.
pub const ETHERNET_LEN: usize = 14;

/// Length of a TCP header without options (RFC 9293).
pub const TCP_LEN: usize = 20;
/// Length of a UDP header (RFC 768).
pub const UDP_LEN: usize = 8;
/// Offset of the checksum in a TCP header (RFC 9293).
pub const TCP_CHECKSUM: usize = 16;
/// Offset of the byte whose upper half is the length of the TCP header in 32-bit words.
pub const TCP_DATA_OFFSET: usize = 12;
/// Offset of the flags byte in a TCP header.
pub const TCP_FLAGS: usize = 13;
/// Offset of the length in a UDP header (RFC 768).
pub const UDP_LENGTH: usize = 4;
/// Offset of the checksum in a UDP header (RFC 768).
pub const UDP_CHECKSUM: usize = 6;
/// Length of an SCTP common header (RFC 9260).
pub const SCTP_LEN: usize = 12;
/// Length of the header of an SCTP chunk, whose first byte is the type. At least one chunk follows
/// the common header.
pub const SCTP_CHUNK_LEN: usize = 4;
/// Length of the initiate tag, with which an INIT or INIT ACK chunk begins behind its header.
pub const SCTP_TAG_LEN: usize = 4;
/// Offset of the checksum in an SCTP common header (RFC 9260); a CRC32c, little endian.
pub const SCTP_CHECKSUM: usize = 8;
/// Offset of the checksum in an IPv4 header (RFC 791).
pub const IPV4_CHECKSUM: usize = 10;

/// Length of the header of ICMP errors and echoes (RFC 792, RFC 4443). The quoted packet of an
/// error follows it.
pub const ICMP_LEN: usize = 8;
/// Offset of the checksum in an ICMP message, both families.
pub const ICMP_CHECKSUM: usize = 2;

/// IPv6 extension headers between the fixed header and the transport header (RFC 8200, RFC 6275,
/// RFC 4302).
pub mod ipv6_next {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const AUTHENTICATION: u8 = 51;
    pub const NO_NEXT: u8 = 59;
    pub const DESTINATION: u8 = 60;
    pub const MOBILITY: u8 = 135;
}
