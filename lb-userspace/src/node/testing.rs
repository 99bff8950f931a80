//! Devices as the tests of this folder write them.

use ipnet::IpNet;

use super::{DeviceAddress, DeviceInfo, LinkLayer, NodeState, Scope};

/// An Ethernet device that is up. Addresses are `IP/PREFIX`; their scope follows from what they are.
pub fn device(index: u32, name: &str, kind: Option<&str>, addresses: &[&str]) -> DeviceInfo {
    let address = |text: &&str| {
        let net: IpNet = text.parse().expect("IP/PREFIX");
        let ip = net.addr();
        let scope = match ip {
            _ if ip.is_loopback() => Scope::Host,
            std::net::IpAddr::V6(ip) if ip.is_unicast_link_local() => Scope::Link,
            _ => Scope::Global,
        };
        DeviceAddress { ip, prefix_len: net.prefix_len(), scope, deprecated: false, secondary: false }
    };
    DeviceInfo {
        index,
        name: name.into(),
        kind: kind.map(Into::into),
        driver: None,
        link_layer: LinkLayer::Ethernet,
        loopback: false,
        up: true,
        master: None,
        lower: None,
        lower_elsewhere: false,
        mtu: 1500,
        addresses: addresses.iter().map(address).collect(),
    }
}

pub fn node(devices: Vec<DeviceInfo>) -> NodeState {
    NodeState { devices, ..NodeState::default() }
}
