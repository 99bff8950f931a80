//! Parses the addresses and CIDRs of API objects.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

/// Parses an IP address as Kubernetes does (`ParseIPSloppy` in k8s.io/utils/net): IPv4 octets with
/// leading zeros are decimal, and an IPv4-mapped IPv6 address is converted to IPv4.
pub(super) fn parse_ip(text: &str) -> Option<IpAddr> {
    text.parse().ok().or_else(|| parse_padded_v4(text).map(IpAddr::V4)).map(|ip: IpAddr| ip.to_canonical())
}

fn parse_padded_v4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *octet = part.parse().ok()?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

/// Parses a CIDR. Ignores surrounding whitespace and clears the host bits.
pub(super) fn parse_cidr(text: &str) -> Option<IpNet> {
    let (address, length) = text.trim().split_once('/')?;
    let length: u8 = length.parse().ok()?;
    let mapped = address.contains(':');
    match parse_ip(address)? {
        IpAddr::V4(v4) if mapped => {
            Ipv4Net::new(v4, length.checked_sub(96)?).ok().map(|net| net.trunc().into())
        }
        ip => IpNet::new(ip, length).ok().map(|net| net.trunc()),
    }
}

/// Returns the reason why neither a Service nor an endpoint can have this address
/// (`ValidateNonSpecialIP` in pkg/apis/core/validation), or `None` if it can. In the maps the
/// unspecified address moreover means "every address of the node".
pub(super) fn special_address(ip: &IpAddr) -> Option<&'static str> {
    if ip.is_unspecified() {
        Some("is the unspecified address")
    } else if ip.is_loopback() {
        Some("is a loopback address")
    } else if ip.is_multicast() {
        Some("is a multicast address")
    } else if match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    } {
        Some("is a link-local address")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed_as_kubernetes_parses_them() {
        let ip = |text| parse_ip(text).map(|ip| ip.to_string());
        assert_eq!(ip("10.0.0.1").as_deref(), Some("10.0.0.1"));
        assert_eq!(ip("010.000.0.08").as_deref(), Some("10.0.0.8"));
        assert_eq!(ip("::ffff:10.0.0.1").as_deref(), Some("10.0.0.1"));
        assert_eq!(ip("fd00:0::0001").as_deref(), Some("fd00::1"));
        for wrong in ["", "10.0.0", "10.0.0.256", "10.0.0.1.2", "10.0.0.+1", "fe80::1%eth0", "web"] {
            assert_eq!(ip(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn cidrs_lose_host_bits_and_mapping() {
        let cidr = |text| parse_cidr(text).map(|net| net.to_string());
        assert_eq!(cidr(" 10.1.2.3/8 ").as_deref(), Some("10.0.0.0/8"));
        assert_eq!(cidr("fd00::1/64").as_deref(), Some("fd00::/64"));
        assert_eq!(cidr("::ffff:10.0.0.0/104").as_deref(), Some("10.0.0.0/8"));
        for wrong in ["10.0.0.0", "10.0.0.0/33", "::ffff:10.0.0.0/64", "/8", "10.0.0.0/-1"] {
            assert_eq!(cidr(wrong), None, "{wrong}");
        }
    }
}
