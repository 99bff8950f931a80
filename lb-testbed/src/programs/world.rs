//! The node that packet cases run on: a network namespace of this process with devices, routes and
//! neighbours.
//!
//! `BPF_PROG_TEST_RUN` runs a program on a packet without a network. But `bpf_fib_lookup` in the
//! program uses the routing tables of the caller's namespace. No packet is sent.
//!
//! ```text
//!  client, router, node2, silent ── nic     192.0.2.1/24      XDP; node2 routes to its pod: remote
//!                            far ── wan     198.51.100.1/24   XDP, MTU 1400
//!                (node3) overlay ── vxlan0  10.244.3.0/24     VXLAN, MTU 1450, not an XDP target
//!                          local ── pod0    10.244.1.0/24     a pod on this node
//!                                   tun0                      no Ethernet header
//! ```

use std::collections::HashMap;
use std::net::IpAddr;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::output;
use crate::packet::layer::Mac;

/// The namespace with its devices. It exists as long as the process.
pub struct World {
    indices: HashMap<&'static str, u32>,
}

/// A device of the node.
#[derive(Debug, Clone, Copy)]
pub struct NodeDevice {
    pub name: &'static str,
    pub mac: Mac,
    pub mtu: u32,
    /// IPv4 and IPv6.
    pub addresses: [&'static str; 2],
    /// XDP programs may send frames out of it.
    pub xdp_target: bool,
    pub ethernet: bool,
    /// The device leads to pods.
    pub pod: bool,
}

/// A host that packets come from or go to.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    pub name: &'static str,
    /// IPv4 and IPv6.
    pub addresses: [&'static str; 2],
    /// The device that leads to it.
    pub device: &'static str,
    /// MAC address of the neighbour on the way to it. `None`: the neighbour entry is never
    /// resolved.
    pub mac: Option<Mac>,
}

const fn mac(last: u8) -> Mac {
    [2, 0, 0, 0, 0, last]
}

/// Name of the device that packets arrive on if a case names no other device.
pub const NIC: &str = "nic";

/// All devices of the node.
pub const DEVICES: [NodeDevice; 5] = [
    NodeDevice {
        name: NIC,
        mac: mac(1),
        mtu: 1500,
        addresses: ["192.0.2.1", "2001:db8:2::1"],
        xdp_target: true,
        ethernet: true,
        pod: false,
    },
    NodeDevice {
        name: "wan",
        mac: mac(0x11),
        mtu: 1400,
        addresses: ["198.51.100.1", "2001:db8:51::1"],
        xdp_target: true,
        ethernet: true,
        pod: false,
    },
    NodeDevice {
        name: "vxlan0",
        mac: mac(0x31),
        mtu: 1450,
        addresses: ["10.244.1.0", "fd00:10:244:1::"],
        xdp_target: false,
        ethernet: true,
        pod: false,
    },
    NodeDevice {
        name: "pod0",
        mac: mac(0x21),
        mtu: 1500,
        addresses: ["10.244.1.1", "fd00:10:244:1::1"],
        xdp_target: false,
        ethernet: true,
        pod: true,
    },
    NodeDevice {
        name: "tun0",
        mac: mac(0x41),
        mtu: 1500,
        addresses: ["8.0.0.1", "2001:db8:86dd::1"],
        xdp_target: false,
        ethernet: false,
        pod: false,
    },
];

/// All peers of the node.
pub const PEERS: [Peer; 12] = [
    // A client on the node's Ethernet segment.
    Peer { name: "client", addresses: ["192.0.2.9", "2001:db8:2::9"], device: NIC, mac: Some(mac(9)) },
    // A second client on the node's Ethernet segment.
    Peer { name: "client2", addresses: ["192.0.2.10", "2001:db8:2::10"], device: NIC, mac: Some(mac(10)) },
    // A client behind a router.
    Peer {
        name: "stranger",
        addresses: ["203.0.113.7", "2001:db8:113::7"],
        device: NIC,
        mac: Some(mac(0xfe)),
    },
    // An endpoint on another node.
    Peer { name: "remote", addresses: ["10.244.2.5", "fd00:10:244:2::5"], device: NIC, mac: Some(mac(2)) },
    Peer { name: "remote2", addresses: ["10.244.2.6", "fd00:10:244:2::6"], device: NIC, mac: Some(mac(2)) },
    // An endpoint behind the second NIC, which has a smaller MTU.
    Peer { name: "far", addresses: ["198.51.100.5", "2001:db8:51::5"], device: "wan", mac: Some(mac(0x15)) },
    // An endpoint in an overlay network.
    Peer {
        name: "overlay",
        addresses: ["10.244.3.5", "fd00:10:244:3::5"],
        device: "vxlan0",
        mac: Some(mac(0x33)),
    },
    // An endpoint whose neighbour entry was never resolved.
    Peer { name: "silent", addresses: ["192.0.2.77", "2001:db8:2::77"], device: NIC, mac: None },
    // An endpoint on this node.
    Peer {
        name: "local",
        addresses: ["10.244.1.5", "fd00:10:244:1::5"],
        device: "pod0",
        mac: Some(mac(0x25)),
    },
    // Two ends of traffic through tun0. `BPF_PROG_TEST_RUN` reads the EtherType from bytes 12 and
    // 13 of its input (`eth_type_trans`). Without an Ethernet header these are part of the source
    // address. These source addresses contain the EtherTypes of IPv4 (0800) and IPv6 (86dd) there.
    Peer { name: "tunnel", addresses: ["8.0.0.9", "2001:db8:86dd::9"], device: "tun0", mac: None },
    Peer { name: "pod", addresses: ["8.0.1.5", "2001:db8:86dd:1::5"], device: "pod0", mac: Some(mac(0x27)) },
    Peer {
        name: "local2",
        addresses: ["10.244.1.6", "fd00:10:244:1::6"],
        device: "pod0",
        mac: Some(mac(0x26)),
    },
];

/// Addresses without a host: Service addresses, and one without a route.
const ADDRESSES: [(&str, [&str; 2]); 4] = [
    ("vip", ["10.96.0.10", "fd00:10:96::a"]),
    ("vip2", ["10.96.0.11", "fd00:10:96::b"]),
    ("nowhere", ["10.99.0.5", "fd00:10:99::5"]),
    ("unspecified", ["0.0.0.0", "::"]),
];

impl World {
    /// Moves the calling thread to a new network namespace and sets it up. Threads that it starts
    /// later are in that namespace, too. Threads that already run are not moved.
    pub fn enter() -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            bail!(
                "packet cases load programs into the kernel and create a network namespace: run them as root"
            );
        }
        // SAFETY: unshare(2) of a network namespace changes no memory, and open descriptors stay
        // valid.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        if result != 0 {
            return Err(std::io::Error::last_os_error())
                .context("cannot create a network namespace (unshare)");
        }
        set_up()?;
        let mut indices = HashMap::new();
        for device in DEVICES {
            let text = std::fs::read_to_string(format!("/proc/self/net/dev_snmp6/{}", device.name))
                .with_context(|| format!("device {} did not come up", device.name))?;
            let index = text.split_whitespace().nth(1).and_then(|index| index.parse().ok());
            indices.insert(device.name, index.context("dev_snmp6 without ifIndex")?);
        }
        Ok(Self { indices })
    }

    /// Gives the next hop to a peer the MAC address of the device that leads to it: a frame that is
    /// forwarded to the peer is then addressed to this node again.
    pub fn turn_back(&self, name: &str) -> Result<()> {
        let peer = peer(name).context("no such peer")?;
        let mac = mac_text(device(peer.device).context("no such device")?.mac);
        for address in peer.addresses {
            let next_hop = next_hop(peer.name, address.contains(':')).unwrap_or(address);
            ip(&format!("neighbour replace {next_hop} lladdr {mac} dev {} nud permanent", peer.device))?;
        }
        Ok(())
    }

    /// Returns the interface index of a device.
    pub fn ifindex(&self, device: &str) -> Option<u32> {
        self.indices.get(device).copied()
    }
}

fn set_up() -> Result<()> {
    ip("link set lo up")?;
    sysctl("net/ipv4/ip_forward", "1")?;
    sysctl("net/ipv6/conf/all/forwarding", "1")?;
    sysctl("net/ipv6/conf/default/accept_dad", "0")?;
    for device in DEVICES {
        let NodeDevice { name, mac, mtu, .. } = device;
        let mac = mac_text(mac);
        match name {
            "tun0" => ip(&format!("tuntap add dev {name} mode tun"))?,
            "vxlan0" => ip(&format!(
                "link add {name} address {mac} type vxlan id 7 dstport 4789 local 192.0.2.1 dev nic nolearning"
            ))?,
            _ => ip(&format!("link add {name} address {mac} type veth peer name {name}-peer"))?,
        }
        ip(&format!("link set {name} mtu {mtu} up"))?;
        if !matches!(name, "tun0" | "vxlan0") {
            ip(&format!("link set {name}-peer up"))?;
        }
        for address in device.addresses {
            let prefix = match (name, address.contains(':')) {
                ("vxlan0", false) => 32,
                ("vxlan0", true) => 128,
                (_, false) => 24,
                (_, true) => 64,
            };
            let nodad = if address.contains(':') { "nodad" } else { "" };
            ip(&format!("address add {address}/{prefix} dev {name} {nodad}"))?;
        }
    }
    for peer in PEERS {
        let Some(mac) = peer.mac else { continue };
        let mac = mac_text(mac);
        for address in peer.addresses {
            let next_hop = next_hop(peer.name, address.contains(':')).unwrap_or(address);
            ip(&format!("neighbour replace {next_hop} lladdr {mac} dev {} nud permanent", peer.device))?;
        }
    }
    for (destination, via) in [
        ("203.0.113.0/24", "via 192.0.2.254 dev nic"),
        ("2001:db8:113::/64", "via 2001:db8:2::fe dev nic"),
        ("10.244.2.0/24", "via 192.0.2.2 dev nic"),
        ("fd00:10:244:2::/64", "via 2001:db8:2::2 dev nic"),
        ("8.0.1.0/24", "dev pod0"),
        ("2001:db8:86dd:1::/64", "dev pod0"),
        ("10.244.3.0/24", "via 10.244.3.0 dev vxlan0 onlink"),
        ("fd00:10:244:3::/64", "via fd00:10:244:3:: dev vxlan0 onlink"),
    ] {
        ip(&format!("route add {destination} {via}"))?;
    }
    for destination in ["10.99.0.0/16", "fd00:10:99::/48"] {
        ip(&format!("route add blackhole {destination}"))?;
    }
    Ok(())
}

/// Returns the router on the way to a peer, according to the routes above.
fn next_hop(peer: &str, v6: bool) -> Option<&'static str> {
    let [over_v4, over_v6] = match peer {
        "stranger" => ["192.0.2.254", "2001:db8:2::fe"],
        "remote" | "remote2" => ["192.0.2.2", "2001:db8:2::2"],
        "overlay" => ["10.244.3.0", "fd00:10:244:3::"],
        _ => return None,
    };
    Some(if v6 { over_v6 } else { over_v4 })
}

/// Returns the peer with this name.
pub fn peer(name: &str) -> Option<&'static Peer> {
    PEERS.iter().find(|peer| peer.name == name)
}

/// Returns the peer with this address.
pub fn peer_at(address: IpAddr) -> Option<&'static Peer> {
    PEERS.iter().find(|peer| peer.addresses.iter().any(|text| text.parse() == Ok(address)))
}

/// Returns the device with this name.
pub fn device(name: &str) -> Option<&'static NodeDevice> {
    DEVICES.iter().find(|device| device.name == name)
}

/// Returns the address of a name in packet texts: the name of a peer, of a Service address, or of a
/// device (`nic`, `wan`, …).
pub fn address(name: &str, v6: bool) -> Option<IpAddr> {
    let addresses = peer(name)
        .map(|peer| peer.addresses)
        .or_else(|| device(name).map(|device| device.addresses))
        .or_else(|| ADDRESSES.iter().find(|(known, _)| *known == name).map(|(_, addresses)| *addresses))?;
    addresses[usize::from(v6)].parse().ok()
}

fn mac_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn ip(arguments: &str) -> Result<()> {
    let output = output(Command::new("ip").args(arguments.split_whitespace()))
        .context("cannot run ip (install iproute2)")?;
    if !output.status.success() {
        bail!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn sysctl(path: &str, value: &str) -> Result<()> {
    std::fs::write(format!("/proc/sys/{path}"), value).with_context(|| format!("cannot set {path}"))
}
