//! Addresses as the keys of maps hold them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::plain::AddressBytes;
use lb_model::IpFamily;

/// An address in network byte order, as part of keys and values of maps.
pub trait MapAddress: AddressBytes {
    const FAMILY: IpFamily;
    fn to_ip(self) -> IpAddr;
}

impl MapAddress for [u8; 4] {
    const FAMILY: IpFamily = IpFamily::V4;
    fn to_ip(self) -> IpAddr {
        Ipv4Addr::from(self).into()
    }
}

impl MapAddress for [u8; 16] {
    const FAMILY: IpFamily = IpFamily::V6;
    fn to_ip(self) -> IpAddr {
        Ipv6Addr::from(self).into()
    }
}
