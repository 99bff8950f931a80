//! The state of this host as the kernel reports it: devices, addresses, network namespaces.
//!
//! * [`watch`]: reads devices and addresses by netlink, and reads them again after each change.
//! * [`devices`]: the devices to which programs are attached, with the reasons. Pure.
//! * [`addresses`]: the addresses that serve NodePorts, and the source address of packets that
//!   leave by a device. Pure.
//! * [`ipsec`]: the networks to which IPsec policies apply.
//! * [`namespaces`]: the network namespaces of pods, and the addresses in them.
//! * [`route`]: the device by which the kernel reaches an address.
//! * [`sockets`]: closes sockets that are connected to removed endpoints.
//! * [`sysctl`]: the kernel's forwarding switches.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

pub mod addresses;
pub mod devices;
mod driver;
mod dump;
pub mod ipsec;
pub mod kube_proxy;
pub mod namespaces;
mod read;
pub mod route;
pub mod sockets;
pub mod sysctl;
#[cfg(test)]
pub(crate) mod testing;
pub mod watch;

/// The state at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeState {
    /// Ordered by index.
    pub devices: Vec<DeviceInfo>,
    /// The main addresses: the source that the kernel chooses for destinations outside, or else the
    /// first address of global scope.
    pub main_v4: Option<Ipv4Addr>,
    pub main_v6: Option<Ipv6Addr>,
    /// Indices of the devices by which the kernel sends packets to destinations outside.
    pub default_route_devices: BTreeSet<u32>,
    /// The networks to which IPsec policies apply, see [`ipsec`]. `None` if the kernel does not
    /// allow to list them.
    pub ipsec: Option<BTreeSet<IpNet>>,
    /// kube-proxy has no rules here, and has had none since this process started. Its connections
    /// outlive its rules, in the kernel's connection tracking.
    pub without_kube_proxy: bool,
}

impl NodeState {
    pub fn device(&self, index: u32) -> Option<&DeviceInfo> {
        self.devices.iter().find(|device| device.index == index)
    }
}

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    pub index: u32,
    pub name: String,
    /// The kernel's name for the kind of a virtual device (`IFLA_INFO_KIND`): `veth`, `vxlan`,
    /// `bond` and so on. `None` for a NIC.
    pub kind: Option<String>,
    /// The driver of a NIC (`ETHTOOL_GDRVINFO`).
    pub driver: Option<String>,
    pub link_layer: LinkLayer,
    /// The MAC address of an Ethernet device.
    pub mac: Option<[u8; 6]>,
    pub loopback: bool,
    /// `IFF_UP`: the administrator has set the device up. It may have no carrier.
    pub up: bool,
    /// Index of the bond, bridge or VRF that this device is a port of.
    pub master: Option<u32>,
    /// Index of the lower device, or of the other end of a veth pair (`IFLA_LINK`), if it is in
    /// this network namespace.
    pub lower: Option<u32>,
    /// Whether the lower device, or the other end of a veth pair, is in another network namespace
    /// (`IFLA_LINK_NETNSID`).
    pub lower_elsewhere: bool,
    /// Preferred addresses first. Addresses that are tentative or duplicates are left out.
    pub addresses: Vec<DeviceAddress>,
}

/// The header before the IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkLayer {
    Ethernet,
    /// No header, as on ipip, wireguard and tun devices.
    None,
    /// A header that the programs cannot parse, by its `ARPHRD_` number.
    Other(u16),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceAddress {
    pub ip: IpAddr,
    pub prefix_len: u8,
    pub scope: Scope,
    /// Valid, but not to be used for new connections (RFC 4862 5.5.4).
    pub deprecated: bool,
    /// IPv4: another address of the same subnet. IPv6: a temporary address (RFC 8981).
    pub secondary: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    Global,
    Link,
    Host,
}

/// A reason why the state of this host cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("cannot open a netlink socket: {0}")]
    Socket(#[source] std::io::Error),
    #[error("cannot read {what} by netlink: {source}")]
    Read { what: &'static str, source: Box<rtnetlink::Error> },
    #[error(
        "cannot access {path}: {source}; run the agent as root, in a container mount the node's \
         /proc/sys/net writable and name it with --sysctl-dir, or set it by other means"
    )]
    Sysctl { path: std::path::PathBuf, source: std::io::Error },
}
