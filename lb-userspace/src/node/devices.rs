//! On which devices programs attach, and why.
//!
//! `auto` takes every device a packet for this node can arrive on, each packet once:
//!
//! | device | |
//! |---|---|
//! | loopback | never: a local process is served at its socket |
//! | set down | not now; it is taken when it comes up (fallback tunnels like `tunl0` never do) |
//! | NIC (no kind) | taken |
//! | port of a bond, a team, a failover or accelerated NIC | its master is taken |
//! | port of a bridge | the bridge is taken: a port also sees frames between others, which are none of ours |
//! | port of Open vSwitch | taken itself: the switch has no device that sees everything |
//! | bond, team | taken |
//! | VLAN, macvlan, ipvlan above a device of this namespace | left: its frames pass that device first, and are handled there |
//! | the same above a device of another namespace | taken: it is this namespace's NIC |
//! | bridge with a NIC, bond, VLAN or tunnel among its ports | taken: packets for the host come up through it |
//! | bridge without (`docker0`, `cni0`, `virbr0`) | left: pods and containers are behind it |
//! | vxlan, geneve, ipip, ip6tnl, sit, gre, wireguard, xfrm, tun | taken: tunnels of overlay CNIs bring the replies of remote endpoints |
//! | tap | left: a virtual machine is behind it |
//! | veth, netkit | see below |
//! | dummy, ifb, VRF and the like | left: no packet arrives there from outside |
//!
//! **veth.** In kind, k3d and minikube the node's own NIC is a veth. It is told from the host side of a pod by three
//! signs: its other end is in another network namespace, it is no port of a bridge, and it carries either the address
//! this host speaks with by default, or a global address *with a subnet*. The host side of a pod carries no global
//! address (Calico, Cilium, AWS VPC, Azure), or one without a subnet, `/32` or `/128` (kindnet, kubenet, the ptp
//! plugin), and routes to the pod by a host route.
//!
//! **Devices of pods** are taken only by name (`--pod-interfaces`), with tc, for virtual machines and sandboxes whose sockets
//! this kernel does not own. What arrives there comes from a pod of this node; replies to it get the Service's address back
//! when they leave there. On a bridge these are its ports: what pods on it send each other does not come up to the bridge.
//!
//! **XDP** is chosen in mode `auto` only for drivers that have it natively and hand over complete checksums, see
//! [`XDP_DRIVERS`]. On a veth, and between virtual machines on some hypervisors, a packet carries only a partial checksum
//! that its receiver or the hardware was to complete; an XDP program cannot know, and what it rewrites and sends on is
//! corrupt. A tc program is told by the kernel.

use std::fmt;

use super::{DeviceInfo, LinkLayer, NodeState};

/// Drivers with native XDP (transmission and redirects included) whose packets reach it with complete checksums: they
/// come off a wire, and the driver gives checksum status aside instead of leaving work in the packet.
///
/// `virtio_net` is here because it turns the host's partial checksums off while an XDP program is attached
/// (`virtnet_clear_guest_offloads`, drivers/net/virtio_net.c), and refuses the program when it cannot.
///
/// Not here, although they have native XDP: `veth`, `tun`, `xen-netfront`, `hv_netvsc` and `vmxnet3`: packets between
/// two guests of one host may have partial checksums.
const XDP_DRIVERS: &[&str] = &[
    "atlantic",
    "bnxt_en",
    "ena",
    "fsl_dpaa2_eth",
    "fsl_enetc",
    "gve",
    "i40e",
    "ice",
    "igb",
    "igc",
    "ionic",
    "ixgbe",
    "ixgbevf",
    "mlx4_en",
    "mlx5_core",
    "mvneta",
    "mvpp2",
    "nfp",
    "nicvf",
    "qede",
    "rvu-nicpf",
    "rvu-nicvf",
    "sfc",
    "st_gmac",
    "thunder-nicvf",
    "virtio_net",
];

/// Kinds of virtual devices with native XDP, of use when it is forced.
const XDP_KINDS: &[&str] = &["bond", "tun", "veth"];

/// What the user chose.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceOptions {
    pub patterns: DevicePatterns,
    pub pods: PodInterfaces,
    pub mode: AttachMode,
}

/// Option `--devices`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum DevicePatterns {
    #[default]
    Auto,
    /// Names with `*` and `?`. A device that matches any of them is taken, whatever it is.
    Globs(Vec<String>),
}

/// Option `--pod-interfaces`: names with `*` and `?`. A device that matches any of them leads to a pod, whatever `--devices` says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodInterfaces(pub Vec<String>);

/// Option `--mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AttachMode {
    /// XDP where it is certain to be right, tc elsewhere.
    #[default]
    Auto,
    /// XDP wherever the device has it natively.
    Xdp,
    Tc,
}

/// What to attach to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Programs {
    /// XDP, and tc for what XDP leaves and for replies on their way out. Where attaching XDP fails, tc alone is right too.
    XdpAndTc,
    Tc,
    None,
}

impl fmt::Display for Programs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::XdpAndTc => "XDP and tc",
            Self::Tc => "tc",
            Self::None => "nothing",
        })
    }
}

/// The decision about one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub index: u32,
    pub name: String,
    pub programs: Programs,
    /// Frames begin with an Ethernet header; else with the IP header.
    pub ethernet: bool,
    /// It leads to a pod; else to other machines.
    pub pod: bool,
    /// For the log: a sentence without the name.
    pub reason: String,
}

/// Decides about every device, in their order.
pub fn choose(node: &NodeState, options: &DeviceOptions) -> Vec<Choice> {
    node.devices
        .iter()
        .map(|device| {
            let pod = matching(&options.pods.0, &device.name);
            let taken = readable(device).and_then(|()| match pod {
                Some(glob) => take_pod(node, device, glob, &options.patterns),
                None => take(node, device, &options.patterns),
            });
            let (programs, reason) = match taken {
                Ok(why) if pod.is_some() => (Programs::Tc, why),
                Ok(why) => match programs(node, device, options.mode) {
                    (programs, Some(how)) => (programs, format!("{why}; {how}")),
                    (programs, None) => (programs, why),
                },
                Err(why_not) => (Programs::None, why_not),
            };
            Choice {
                index: device.index,
                name: device.name.clone(),
                programs,
                ethernet: device.link_layer == LinkLayer::Ethernet,
                pod: pod.is_some(),
                reason,
            }
        })
        .collect()
}

/// Why (Err) programs can make nothing of the frames of a device.
fn readable(device: &DeviceInfo) -> Result<(), String> {
    if device.loopback {
        return Err("loopback: local processes are served at their sockets".into());
    }
    if let LinkLayer::Other(arphrd) = device.link_layer {
        return Err(format!("its frames are neither Ethernet nor bare IP (ARPHRD {arphrd})"));
    }
    Ok(())
}

/// As [`take`], for a device whose name matches `glob` of `--pod-interfaces`. What is probably a mistake is said.
fn take_pod(
    node: &NodeState,
    device: &DeviceInfo,
    glob: &str,
    others: &DevicePatterns,
) -> Result<String, String> {
    if !device.up {
        return Err(format!("matches {glob} of --pod-interfaces, but is down: taken when it comes up"));
    }
    let mut why = format!("matches {glob} of --pod-interfaces");
    if let DevicePatterns::Globs(globs) = others
        && let Some(other) = matching(globs, &device.name)
    {
        why.push_str(&format!(", which wins over {other} of --devices"));
    }
    match (device.kind.as_deref(), auto(node, device, MAX_STACK)) {
        (Some("bridge"), _) => why.push_str(
            "; WARNING: replies from pod to pod do not come up to a bridge, give the names of its ports",
        ),
        // A tun is a tunnel of a process as often as a virtual machine.
        (Some("tun"), _) | (_, Err(_)) => {}
        (_, Ok(looks_like)) => why.push_str(&format!(
            "; WARNING: it looks as if other machines were behind it ({looks_like}), but who comes by it counts as a pod of this node"
        )),
    }
    Ok(why)
}

/// Why a device is taken, or (Err) why not.
fn take(node: &NodeState, device: &DeviceInfo, patterns: &DevicePatterns) -> Result<String, String> {
    if let DevicePatterns::Globs(globs) = patterns {
        let Some(glob) = matching(globs, &device.name) else {
            return Err("does not match --devices".into());
        };
        return if device.up {
            Ok(format!("matches {glob}"))
        } else {
            Err(format!("matches {glob}, but is down: taken when it comes up"))
        };
    }
    if !device.up {
        return Err("down: taken when it comes up, if packets can arrive on it".into());
    }
    auto(node, device, MAX_STACK)
}

/// Devices stand on each other only so deep (the kernel's limit is 8); guards against a loop in what was read.
const MAX_STACK: u32 = 8;

/// The rules of `auto` for a device that is up and readable.
fn auto(node: &NodeState, device: &DeviceInfo, depth: u32) -> Result<String, String> {
    let Some(depth) = depth.checked_sub(1) else { return Err("stands on itself".into()) };
    let kind = device.kind.as_deref();
    if is_tunnel(device) {
        return Ok(format!("{} tunnel: brings packets of other nodes", kind.unwrap_or_default()));
    }
    if let Some(master) = device.master.and_then(|index| node.device(index)) {
        match master.kind.as_deref() {
            Some("vrf") => {} // Packets pass this device before the VRF.
            Some("openvswitch") => {
                return if is_wire(device) {
                    Ok("NIC below Open vSwitch".into())
                } else {
                    Err(format!("port of Open vSwitch {}", master.name))
                };
            }
            _ => {
                return Err(format!(
                    "port of {}: its packets are handled there, or are not for this node",
                    master.name
                ));
            }
        }
    }
    if let Some(lower) = device.lower.and_then(|index| node.device(index))
        && matches!(kind, Some("vlan" | "macvlan" | "macvtap" | "ipvlan" | "ipvtap" | "macsec"))
    {
        return match auto(node, lower, depth) {
            Ok(_) => Err(format!("above {}: its packets are handled there", lower.name)),
            Err(_) if lower.master.is_some() => {
                Err(format!("above {}, a port: no packets for this node", lower.name))
            }
            Err(_) => Ok(format!("above {}, which is left", lower.name)),
        };
    }
    match kind {
        None => Ok("NIC".into()),
        Some(kind @ ("bond" | "team")) => Ok(kind.into()),
        Some(kind @ ("vlan" | "macvlan" | "ipvlan" | "macsec")) => {
            Ok(format!("{kind} of a device in another network namespace: this node's NIC"))
        }
        Some("bridge") => {
            match node.devices.iter().find(|port| port.master == Some(device.index) && is_wire(port)) {
                Some(port) if port.kind.as_deref() == Some("vlan") && covered(node, port, depth) => {
                    Err(format!("bridge above {}, whose packets are handled below", port.name))
                }
                Some(port) => Ok(format!("bridge with {} as a port", port.name)),
                None => Err("bridge of pods, containers or virtual machines".into()),
            }
        }
        Some(kind @ ("veth" | "netkit")) => {
            let subnet = device.addresses.iter().find(|address| address.is_in_a_subnet());
            match subnet {
                _ if !device.lower_elsewhere => Err(format!("{kind}, both ends in this network namespace")),
                _ if node.is_main_device(device) => {
                    Ok(format!("{kind} with the main address: this node's NIC"))
                }
                Some(address) => {
                    Ok(format!("{kind} with {}/{}: this node's NIC", address.ip, address.prefix_len))
                }
                None => Err(format!("{kind} without a subnet of its own: a pod is behind it")),
            }
        }
        Some("tun" | "macvtap" | "ipvtap") => Err("tap: a virtual machine is behind it".into()),
        Some("openvswitch") => {
            Err("internal port of Open vSwitch: its packets are handled at the NIC".into())
        }
        Some(kind) => Err(format!("{kind}: no packet arrives there from outside")),
    }
}

/// Whether the frames of a VLAN device were seen on a device below that is taken.
fn covered(node: &NodeState, device: &DeviceInfo, depth: u32) -> bool {
    device
        .lower
        .and_then(|index| node.device(index))
        .is_some_and(|lower| lower.up && auto(node, lower, depth).is_ok())
}

/// Packets of other nodes arrive on it, encapsulated.
fn is_tunnel(device: &DeviceInfo) -> bool {
    match device.kind.as_deref() {
        Some("vxlan" | "geneve" | "ipip" | "ip6tnl" | "sit" | "gre" | "gretap" | "ip6gre" | "ip6gretap") => {
            true
        }
        Some("wireguard" | "xfrm" | "vti" | "vti6") => true,
        // Layer 3 is a tunnel of a process (flannel's UDP back end, a VPN), layer 2 a tap of a virtual machine.
        Some("tun") => device.link_layer == LinkLayer::None,
        _ => false,
    }
}

/// A port through which a bridge or switch reaches other machines.
fn is_wire(device: &DeviceInfo) -> bool {
    matches!(device.kind.as_deref(), None | Some("bond" | "team" | "vlan")) || is_tunnel(device)
}

/// What to attach to a device that is taken, and why, where that is not the rule.
fn programs(node: &NodeState, device: &DeviceInfo, mode: AttachMode) -> (Programs, Option<String>) {
    let kind = device.kind.as_deref();
    match mode {
        AttachMode::Tc => (Programs::Tc, None),
        _ if device.link_layer != LinkLayer::Ethernet => (Programs::Tc, Some("no Ethernet header, so tc".into())),
        AttachMode::Auto => match (kind, device.driver.as_deref()) {
            (None, Some(driver)) if XDP_DRIVERS.contains(&driver) => (Programs::XdpAndTc, Some(format!("driver {driver}"))),
            (None, Some(driver)) => {
                (Programs::Tc, Some(format!("driver {driver} is not known for XDP with complete checksums, so tc")))
            }
            (None, None) => (Programs::Tc, Some("unknown driver, so tc".into())),
            (Some("bond"), _) => {
                let mut ports = node.devices.iter().filter(|port| port.master == Some(device.index)).peekable();
                let native = |port: &DeviceInfo| port.driver.as_deref().is_some_and(|name| XDP_DRIVERS.contains(&name));
                if ports.peek().is_some() && ports.all(native) {
                    (Programs::XdpAndTc, Some("all ports have native XDP".into()))
                } else {
                    (Programs::Tc, Some("not all ports are known for XDP with complete checksums, so tc".into()))
                }
            }
            (Some(_), _) => (Programs::Tc, None),
        },
        AttachMode::Xdp => match kind {
            None => (Programs::XdpAndTc, None),
            Some("veth") => (
                Programs::XdpAndTc,
                Some(
                    "WARNING: XDP forced on a veth corrupts packets with partial checksums, unless its other end has them off (ethtool -K DEVICE tx off)".into(),
                ),
            ),
            Some(kind) if XDP_KINDS.contains(&kind) => (Programs::XdpAndTc, None),
            Some(kind) => (Programs::Tc, Some(format!("{kind} has no native XDP, so tc"))),
        },
    }
}

/// The first pattern that a name matches.
fn matching<'a>(globs: &'a [String], name: &str) -> Option<&'a String> {
    globs.iter().find(|glob| matches(glob, name))
}

/// Shell-like match of a whole name: `*` is any characters, `?` is one.
fn matches(pattern: &str, name: &str) -> bool {
    let mut pattern_chars = pattern.chars();
    match pattern_chars.next() {
        None => name.is_empty(),
        Some('*') => {
            let rest = pattern_chars.as_str();
            name.char_indices().map(|(at, _)| at).chain([name.len()]).any(|at| matches(rest, &name[at..]))
        }
        Some(expected) => {
            let mut name_chars = name.chars();
            name_chars.next().is_some_and(|c| {
                (expected == '?' || c == expected) && matches(pattern_chars.as_str(), name_chars.as_str())
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{device, node};
    use super::*;

    /// Name, programs and reason of each device.
    fn decide(devices: Vec<DeviceInfo>, options: &DeviceOptions) -> Vec<String> {
        let choices = choose(&node(devices), options);
        choices.into_iter().map(|c| format!("{}: {}: {}", c.name, c.programs, c.reason)).collect()
    }

    fn auto(devices: Vec<DeviceInfo>) -> Vec<String> {
        decide(devices, &DeviceOptions::default())
    }

    #[test]
    fn a_plain_machine() {
        let devices = vec![
            DeviceInfo { loopback: true, ..device(1, "lo", None, &["127.0.0.1/8"]) },
            DeviceInfo { driver: Some("ice".into()), ..device(2, "eth0", None, &["192.0.2.7/24"]) },
            DeviceInfo { driver: Some("e1000".into()), ..device(3, "eth1", None, &[]) },
            DeviceInfo { up: false, ..device(4, "eth2", None, &[]) },
            DeviceInfo { link_layer: LinkLayer::Other(32), ..device(5, "ib0", None, &["10.9.0.1/24"]) },
            device(6, "kube-ipvs0", Some("dummy"), &["10.96.0.1/32"]),
        ];
        assert_eq!(
            auto(devices),
            [
                "lo: nothing: loopback: local processes are served at their sockets",
                "eth0: XDP and tc: NIC; driver ice",
                "eth1: tc: NIC; driver e1000 is not known for XDP with complete checksums, so tc",
                "eth2: nothing: down: taken when it comes up, if packets can arrive on it",
                "ib0: nothing: its frames are neither Ethernet nor bare IP (ARPHRD 32)",
                "kube-ipvs0: nothing: dummy: no packet arrives there from outside",
            ]
        );
    }

    #[test]
    fn a_kind_node_with_kindnet_pods() {
        let elsewhere = |info| DeviceInfo { lower_elsewhere: true, ..info };
        let devices = vec![
            elsewhere(device(2, "veth9a", Some("veth"), &["10.244.0.1/32"])),
            elsewhere(device(3, "veth9b", Some("veth"), &["10.244.0.1/32", "fd00:10:244::1/128"])),
            elsewhere(device(4, "cali12", Some("veth"), &[])),
            elsewhere(device(9, "eth0", Some("veth"), &["172.18.0.2/16", "fc00:f853:ccd:e793::2/64"])),
        ];
        assert_eq!(
            auto(devices),
            [
                "veth9a: nothing: veth without a subnet of its own: a pod is behind it",
                "veth9b: nothing: veth without a subnet of its own: a pod is behind it",
                "cali12: nothing: veth without a subnet of its own: a pod is behind it",
                "eth0: tc: veth with 172.18.0.2/16: this node's NIC",
            ]
        );
    }

    #[test]
    fn the_main_address_makes_a_veth_the_nic_also_without_a_subnet() {
        let devices = vec![DeviceInfo {
            lower_elsewhere: true,
            ..device(2, "eth0", Some("veth"), &["203.0.113.9/32"])
        }];
        let node = NodeState { main_v4: Some("203.0.113.9".parse().expect("valid")), ..node(devices) };
        let choices = choose(&node, &DeviceOptions::default());
        assert_eq!(choices[0].reason, "veth with the main address: this node's NIC");
    }

    #[test]
    fn cilium_host_and_its_peer_are_no_nics() {
        let devices = vec![
            DeviceInfo { lower: Some(3), ..device(2, "cilium_net", Some("veth"), &[]) },
            DeviceInfo { lower: Some(2), ..device(3, "cilium_host", Some("veth"), &["10.0.1.7/32"]) },
            device(4, "cilium_vxlan", Some("vxlan"), &[]),
        ];
        assert_eq!(
            auto(devices),
            [
                "cilium_net: nothing: veth, both ends in this network namespace",
                "cilium_host: nothing: veth, both ends in this network namespace",
                "cilium_vxlan: tc: vxlan tunnel: brings packets of other nodes",
            ]
        );
    }

    #[test]
    fn bonds_and_vlans_are_handled_once() {
        let port = |index, name, driver: &str| DeviceInfo {
            master: Some(4),
            driver: Some(driver.into()),
            ..device(index, name, None, &[])
        };
        let devices = |second| {
            vec![
                port(2, "eth0", "mlx5_core"),
                port(3, "eth1", second),
                device(4, "bond0", Some("bond"), &["192.0.2.7/24"]),
                DeviceInfo { lower: Some(4), ..device(5, "bond0.7", Some("vlan"), &["198.51.100.7/24"]) },
                DeviceInfo { lower: Some(4), ..device(6, "mac0", Some("macvlan"), &["198.51.100.8/24"]) },
            ]
        };
        assert_eq!(
            auto(devices("mlx5_core")),
            [
                "eth0: nothing: port of bond0: its packets are handled there, or are not for this node",
                "eth1: nothing: port of bond0: its packets are handled there, or are not for this node",
                "bond0: XDP and tc: bond; all ports have native XDP",
                "bond0.7: nothing: above bond0: its packets are handled there",
                "mac0: nothing: above bond0: its packets are handled there",
            ]
        );
        assert_eq!(
            auto(devices("e1000"))[2],
            "bond0: tc: bond; not all ports are known for XDP with complete checksums, so tc"
        );
    }

    #[test]
    fn a_vlan_or_macvlan_whose_parent_is_elsewhere_is_the_nic() {
        let devices = vec![
            DeviceInfo { lower_elsewhere: true, ..device(2, "eth0", Some("macvlan"), &["192.0.2.7/24"]) },
            DeviceInfo { lower_elsewhere: true, ..device(3, "eth1", Some("vlan"), &["192.0.2.8/24"]) },
        ];
        assert_eq!(
            auto(devices),
            [
                "eth0: tc: macvlan of a device in another network namespace: this node's NIC",
                "eth1: tc: vlan of a device in another network namespace: this node's NIC",
            ]
        );
    }

    #[test]
    fn a_bridge_counts_when_a_wire_is_plugged_in() {
        let port_of = |bridge, info| DeviceInfo { master: Some(bridge), ..info };
        let devices = vec![
            port_of(10, device(2, "eth0", None, &[])),
            device(3, "eth1", None, &[]),
            port_of(12, DeviceInfo { lower: Some(3), ..device(4, "eth1.5", Some("vlan"), &[]) }),
            port_of(11, DeviceInfo { lower_elsewhere: true, ..device(5, "vethab", Some("veth"), &[]) }),
            port_of(13, device(6, "flannel.1", Some("vxlan"), &[])),
            device(10, "br0", Some("bridge"), &["192.0.2.7/24"]),
            device(11, "docker0", Some("bridge"), &["172.17.0.1/16"]),
            device(12, "br5", Some("bridge"), &["198.51.100.7/24"]),
            device(13, "br-overlay", Some("bridge"), &["10.1.0.1/24"]),
            DeviceInfo { lower: Some(10), ..device(14, "br0.9", Some("vlan"), &["203.0.113.7/24"]) },
        ];
        assert_eq!(
            auto(devices),
            [
                "eth0: nothing: port of br0: its packets are handled there, or are not for this node",
                "eth1: tc: NIC; unknown driver, so tc",
                "eth1.5: nothing: port of br5: its packets are handled there, or are not for this node",
                "vethab: nothing: port of docker0: its packets are handled there, or are not for this node",
                "flannel.1: tc: vxlan tunnel: brings packets of other nodes",
                "br0: tc: bridge with eth0 as a port",
                "docker0: nothing: bridge of pods, containers or virtual machines",
                "br5: nothing: bridge above eth1.5, whose packets are handled below",
                "br-overlay: tc: bridge with flannel.1 as a port",
                "br0.9: nothing: above br0: its packets are handled there",
            ]
        );
    }

    #[test]
    fn tunnels_have_no_ethernet_header() {
        let bare = |info| DeviceInfo { link_layer: LinkLayer::None, ..info };
        let devices = vec![
            bare(device(2, "tunl0", Some("ipip"), &["10.1.0.1/32"])),
            bare(device(3, "wg0", Some("wireguard"), &[])),
            bare(device(4, "flannel0", Some("tun"), &["10.244.0.0/32"])),
            device(5, "tap0", Some("tun"), &[]),
            bare(device(6, "ppp0", None, &["192.0.2.7/32"])),
        ];
        assert_eq!(
            auto(devices.clone()),
            [
                "tunl0: tc: ipip tunnel: brings packets of other nodes; no Ethernet header, so tc",
                "wg0: tc: wireguard tunnel: brings packets of other nodes; no Ethernet header, so tc",
                "flannel0: tc: tun tunnel: brings packets of other nodes; no Ethernet header, so tc",
                "tap0: nothing: tap: a virtual machine is behind it",
                "ppp0: tc: NIC; no Ethernet header, so tc",
            ]
        );
        let ethernet: Vec<_> =
            choose(&node(devices), &DeviceOptions::default()).iter().map(|choice| choice.ethernet).collect();
        assert_eq!(ethernet, [false, false, false, true, false]);
    }

    #[test]
    fn masters_that_are_no_bonds() {
        let devices = vec![
            // Azure accelerated networking: the virtual function is a port of the synthetic device.
            DeviceInfo { driver: Some("hv_netvsc".into()), ..device(2, "eth0", None, &["10.0.0.4/24"]) },
            DeviceInfo {
                master: Some(2),
                driver: Some("mlx5_core".into()),
                ..device(3, "enP1s1", None, &[])
            },
            device(4, "blue", Some("vrf"), &[]),
            DeviceInfo {
                master: Some(4),
                driver: Some("i40e".into()),
                ..device(5, "eth1", None, &["10.2.0.4/24"])
            },
            device(6, "ovs-system", Some("openvswitch"), &[]),
            DeviceInfo { master: Some(6), driver: Some("i40e".into()), ..device(7, "eth2", None, &[]) },
            DeviceInfo {
                master: Some(6),
                lower_elsewhere: true,
                ..device(8, "antrea-pod", Some("veth"), &[])
            },
            device(9, "br-ex", Some("openvswitch"), &["192.0.2.7/24"]),
        ];
        assert_eq!(
            auto(devices),
            [
                "eth0: tc: NIC; driver hv_netvsc is not known for XDP with complete checksums, so tc",
                "enP1s1: nothing: port of eth0: its packets are handled there, or are not for this node",
                "blue: nothing: vrf: no packet arrives there from outside",
                "eth1: XDP and tc: NIC; driver i40e",
                "ovs-system: nothing: internal port of Open vSwitch: its packets are handled at the NIC",
                "eth2: XDP and tc: NIC below Open vSwitch; driver i40e",
                "antrea-pod: nothing: port of Open vSwitch ovs-system",
                "br-ex: nothing: internal port of Open vSwitch: its packets are handled at the NIC",
            ]
        );
    }

    #[test]
    fn patterns_take_what_they_name_and_nothing_else() {
        let options = DeviceOptions {
            patterns: DevicePatterns::Globs(vec!["eth?".into(), "docker*".into(), "lo".into()]),
            ..DeviceOptions::default()
        };
        let devices = vec![
            DeviceInfo { loopback: true, ..device(1, "lo", None, &["127.0.0.1/8"]) },
            device(2, "eth0", None, &[]),
            device(3, "eth10", None, &[]),
            DeviceInfo { up: false, ..device(4, "eth1", None, &[]) },
            device(5, "docker0", Some("bridge"), &[]),
        ];
        assert_eq!(
            decide(devices, &options),
            [
                "lo: nothing: loopback: local processes are served at their sockets",
                "eth0: tc: matches eth?; unknown driver, so tc",
                "eth10: nothing: does not match --devices",
                "eth1: nothing: matches eth?, but is down: taken when it comes up",
                "docker0: tc: matches docker*",
            ]
        );
    }

    #[test]
    fn devices_of_pods_are_taken_by_name() {
        let devices = vec![
            DeviceInfo { loopback: true, ..device(1, "lo", None, &["127.0.0.1/8"]) },
            DeviceInfo { driver: Some("ice".into()), ..device(2, "eth0", None, &["192.0.2.7/24"]) },
            DeviceInfo { lower_elsewhere: true, ..device(3, "veth1", Some("veth"), &[]) },
            DeviceInfo { lower_elsewhere: true, up: false, ..device(4, "veth2", Some("veth"), &[]) },
            device(5, "cni0", Some("bridge"), &["10.244.1.1/24"]),
            DeviceInfo { master: Some(5), lower_elsewhere: true, ..device(6, "veth3", Some("veth"), &[]) },
            device(7, "tap0", Some("tun"), &[]),
            DeviceInfo { link_layer: LinkLayer::None, ..device(8, "tun0", Some("tun"), &[]) },
            DeviceInfo { lower_elsewhere: true, ..device(9, "other", Some("veth"), &[]) },
        ];
        let pods = |globs: &[&str]| PodInterfaces(globs.iter().map(|glob| (*glob).into()).collect());
        let mut options = DeviceOptions { pods: pods(&["veth*", "t*"]), ..DeviceOptions::default() };
        options.mode = AttachMode::Xdp;
        assert_eq!(
            decide(devices.clone(), &options),
            [
                "lo: nothing: loopback: local processes are served at their sockets",
                "eth0: XDP and tc: NIC",
                "veth1: tc: matches veth* of --pod-interfaces",
                "veth2: nothing: matches veth* of --pod-interfaces, but is down: taken when it comes up",
                "cni0: nothing: bridge of pods, containers or virtual machines",
                "veth3: tc: matches veth* of --pod-interfaces",
                "tap0: tc: matches t* of --pod-interfaces",
                "tun0: tc: matches t* of --pod-interfaces",
                "other: nothing: veth without a subnet of its own: a pod is behind it",
            ]
        );
        let of_pods: Vec<_> = choose(&node(devices.clone()), &options)
            .into_iter()
            .filter(|choice| choice.pod && choice.programs != Programs::None)
            .map(|choice| (choice.index, choice.ethernet))
            .collect();
        assert_eq!(of_pods, [(3, true), (6, true), (7, true), (8, false)]);

        options.pods = pods(&["*"]);
        options.patterns = DevicePatterns::Globs(vec!["eth*".into()]);
        let decided = decide(devices, &options);
        assert_eq!(decided[0], "lo: nothing: loopback: local processes are served at their sockets");
        assert_eq!(
            decided[1],
            "eth0: tc: matches * of --pod-interfaces, which wins over eth* of --devices; WARNING: it looks as if other \
             machines were behind it (NIC), but who comes by it counts as a pod of this node"
        );
        assert_eq!(
            decided[4],
            "cni0: tc: matches * of --pod-interfaces; WARNING: replies from pod to pod do not come up to a bridge, give the \
             names of its ports"
        );
    }

    #[test]
    fn modes() {
        let devices = vec![
            DeviceInfo { driver: Some("ice".into()), ..device(2, "eth0", None, &[]) },
            DeviceInfo { lower_elsewhere: true, ..device(3, "eth1", Some("veth"), &["192.0.2.7/24"]) },
            device(4, "flannel.1", Some("vxlan"), &[]),
            DeviceInfo { link_layer: LinkLayer::None, ..device(5, "wg0", Some("wireguard"), &[]) },
        ];
        let programs = |mode| {
            let options = DeviceOptions { mode, ..DeviceOptions::default() };
            choose(&node(devices.clone()), &options)
                .into_iter()
                .map(|choice| choice.programs)
                .collect::<Vec<_>>()
        };
        use Programs::{Tc, XdpAndTc};
        assert_eq!(programs(AttachMode::Auto), [XdpAndTc, Tc, Tc, Tc]);
        assert_eq!(programs(AttachMode::Xdp), [XdpAndTc, XdpAndTc, Tc, Tc]);
        assert_eq!(programs(AttachMode::Tc), [Tc, Tc, Tc, Tc]);
        let options = DeviceOptions { mode: AttachMode::Xdp, ..DeviceOptions::default() };
        assert!(decide(devices, &options)[1].contains("WARNING"));
    }

    #[test]
    fn a_loop_in_what_was_read_ends() {
        let devices = vec![
            DeviceInfo { lower: Some(3), ..device(2, "a", Some("vlan"), &[]) },
            DeviceInfo { lower: Some(2), ..device(3, "b", Some("vlan"), &[]) },
        ];
        assert_eq!(auto(devices).len(), 2);
    }

    #[test]
    fn globs() {
        for (pattern, name, expected) in [
            ("eth0", "eth0", true),
            ("eth0", "eth01", false),
            ("eth*", "eth", true),
            ("*.7", "bond0.7", true),
            ("e?h*", "eth12", true),
            ("?", "", false),
            ("*", "", true),
            ("**a", "bca", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
