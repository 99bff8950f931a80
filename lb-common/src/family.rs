//! IPv4 and IPv6 behind one trait: the pipeline, the planner and the maps are written once, generic
//! over [`Family`].

use core::fmt::Debug;

use crate::plain::Plain;

/// An address family: [`V4`] or [`V6`].
pub trait Family: Copy + Clone + Debug + PartialEq + Eq + 'static {
    /// An address in network byte order: `[u8; 4]` or `[u8; 16]`.
    type Addr: Plain + Debug + PartialEq + Eq + PartialOrd + Ord + AsRef<[u8]>;

    /// `AF_INET` or `AF_INET6`.
    const AF: u8;
    /// EtherType in host order.
    const ETHERTYPE: u16;
    /// The protocol number of this family's ICMP.
    const ICMP: u8;
    /// Length of the IP header without options or extension headers, in bytes.
    const HEADER_LEN: usize;
    /// Offset of the source address in the IP header; the destination address follows it.
    const SOURCE_OFFSET: usize;
    /// The unspecified address. As the address of a service key it stands for "any address of this
    /// node" (NodePorts).
    const UNSPECIFIED: Self::Addr;
    /// `127.0.0.1`, one address of the loopback network, or `::1`.
    const LOOPBACK: Self::Addr;
    /// True for IPv6. The compiler removes the other branch of generic code.
    const IS_V6: bool;
}

/// IPv4.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct V4;

/// IPv6.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct V6;

impl Family for V4 {
    type Addr = [u8; 4];
    const AF: u8 = 2;
    const ETHERTYPE: u16 = 0x0800;
    const ICMP: u8 = 1;
    const HEADER_LEN: usize = 20;
    const SOURCE_OFFSET: usize = 12;
    const UNSPECIFIED: [u8; 4] = [0; 4];
    const LOOPBACK: [u8; 4] = [127, 0, 0, 1];
    const IS_V6: bool = false;
}

impl Family for V6 {
    type Addr = [u8; 16];
    const AF: u8 = 10;
    const ETHERTYPE: u16 = 0x86dd;
    const ICMP: u8 = 58;
    const HEADER_LEN: usize = 40;
    const SOURCE_OFFSET: usize = 8;
    const UNSPECIFIED: [u8; 16] = [0; 16];
    const LOOPBACK: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    const IS_V6: bool = true;
}
