//! IP addresses in the form of map keys.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::plain::AddressBytes;
use lb_model::IpFamily;

/// An IP address in network byte order, as part of map keys and values.
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
