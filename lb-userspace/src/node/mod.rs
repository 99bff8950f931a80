//! What the kernel knows of this host: devices, addresses, forwarding.
//!
//! * [`watch`]: reads it by netlink, and again whenever it changes.
//! * [`devices`]: on which devices programs attach, and why. Pure.
//! * [`addresses`]: which addresses take NodePorts, and what is the source of packets that leave through a device. Pure.
//! * [`namespaces`]: the network namespaces of pods, and the addresses in them.
//! * [`sockets`]: closes sockets whose endpoint is gone.
//! * [`sysctl`]: the kernel's forwarding switches.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub mod addresses;
pub mod devices;
mod driver;
pub mod namespaces;
mod read;
pub mod route;
pub mod sockets;
pub mod sysctl;
#[cfg(test)]
mod testing;
pub mod watch;

/// Everything at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeState {
    /// In the order of their index.
    pub devices: Vec<DeviceInfo>,
    /// The addresses this host speaks with by default: what the kernel chooses for a destination far away, else the
    /// first address of global scope.
    pub main_v4: Option<Ipv4Addr>,
    pub main_v6: Option<Ipv6Addr>,
}

impl NodeState {
    pub fn device(&self, index: u32) -> Option<&DeviceInfo> {
        self.devices.iter().find(|device| device.index == index)
    }

    /// Whether a device carries an address this host speaks with by default.
    pub fn is_main_device(&self, device: &DeviceInfo) -> bool {
        let main = [self.main_v4.map(IpAddr::V4), self.main_v6.map(IpAddr::V6)];
        device.addresses.iter().any(|address| main.contains(&Some(address.ip)))
    }
}

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    pub index: u32,
    pub name: String,
    /// The kernel's word for a virtual device (`IFLA_INFO_KIND`): `veth`, `vxlan`, `bond` … None: a NIC.
    pub kind: Option<String>,
    /// The driver of a NIC (`ETHTOOL_GDRVINFO`).
    pub driver: Option<String>,
    pub link_layer: LinkLayer,
    pub loopback: bool,
    /// Set up by the administrator (`IFF_UP`), whether there is a carrier or not.
    pub up: bool,
    /// The device this one is a port of: bond, bridge, VRF.
    pub master: Option<u32>,
    /// The device below, or the other end of a pair (`IFLA_LINK`), in the same network namespace.
    pub lower: Option<u32>,
    /// The device below, or the other end of a pair, is in another network namespace (`IFLA_LINK_NETNSID`).
    pub lower_elsewhere: bool,
    /// In bytes, of the IP packet.
    pub mtu: u32,
    /// The preferred ones first; none that is not usable yet (tentative) or is a duplicate.
    pub addresses: Vec<DeviceAddress>,
}

/// What stands before the IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkLayer {
    Ethernet,
    /// Nothing: ipip, wireguard, tun and their like.
    None,
    /// Something the programs cannot read: the `ARPHRD_` number.
    Other(u16),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceAddress {
    pub ip: IpAddr,
    pub prefix_len: u8,
    pub scope: Scope,
    /// Still valid, not to be used for new connections (RFC 4862 5.5.4).
    pub deprecated: bool,
    /// A further address of the same subnet (IPv4), or a temporary one (IPv6, RFC 8981).
    pub secondary: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    Global,
    Link,
    Host,
}

/// Why the state of this host cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("netlink socket: {0}: the agent needs a network namespace with NETLINK_ROUTE")]
    Socket(#[source] std::io::Error),
    #[error("netlink, reading {what}: {source}")]
    Read { what: &'static str, source: Box<rtnetlink::Error> },
    #[error("{path}: {source}: run the agent as root, with /proc/sys writable, or set it by other means")]
    Sysctl { path: std::path::PathBuf, source: std::io::Error },
}
