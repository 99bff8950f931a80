//! Decides which hooks are used on a device: XDP and tc, or tc alone.
//!
//! A packet can have a partial checksum, which its receiver or the hardware was to complete: on a
//! veth, and between virtual machines on some hypervisors. An XDP program cannot detect this. The
//! packets that it rewrites and transmits are corrupt. A tc program gets the checksum status from
//! the kernel.

use super::hooks::Hooks;
use super::options::AttachMode;
use crate::node::{DeviceInfo, LinkLayer, NodeState};

/// Drivers with native XDP, including transmission and redirects, that deliver complete checksums:
/// their packets come off a wire, and the driver reports the checksum status beside the packet.
///
/// These drivers have native XDP, but are not listed: `veth`, `tun`, `xen-netfront`, `hv_netvsc`
/// and `vmxnet3`. Packets between two guests of one host may have partial checksums.
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
];

/// Drivers with native XDP where XDP costs all other traffic of the node more than it saves. `auto`
/// uses tc there.
///
/// While an XDP program is attached to `virtio_net`, the driver disables GRO in hardware and
/// checksum offload (`virtnet_clear_guest_offloads`, drivers/net/virtio_net.c): every packet to a
/// pod, and from one node to another, arrives unmerged, and its checksum is computed in software.
const COSTLY_XDP_DRIVERS: &[&str] = &["virtio_net"];

/// Kinds of virtual devices with native XDP. XDP is used on them only with `--mode xdp`.
const XDP_KINDS: &[&str] = &["bond", "tun", "veth"];

/// Returns the hooks for a device that is attached to. A text explains them where it is not
/// obvious.
pub fn hooks(node: &NodeState, device: &DeviceInfo, mode: AttachMode) -> (Hooks, Option<String>) {
    if mode == AttachMode::Tc {
        return (Hooks::Tc, None);
    }
    if device.link_layer != LinkLayer::Ethernet {
        return (Hooks::Tc, Some("no Ethernet header, so tc".into()));
    }
    match mode {
        AttachMode::Xdp => forced_xdp(node, device),
        _ => auto(node, device),
    }
}

fn auto(node: &NodeState, device: &DeviceInfo) -> (Hooks, Option<String>) {
    let (hooks, reason) = match (device.kind.as_deref(), device.driver.as_deref()) {
        (None | Some("bond"), _) if has_vlans(node, device) => {
            (Hooks::Tc, "XDP cannot tell its packets from those of its VLANs, so tc".into())
        }
        (None, Some(driver)) if COSTLY_XDP_DRIVERS.contains(&driver) => {
            (Hooks::Tc, format!("XDP slows down all other traffic with driver {driver}, so tc"))
        }
        (None, Some(driver)) if XDP_DRIVERS.contains(&driver) => {
            (Hooks::XdpAndTc, format!("driver {driver}"))
        }
        (None, Some(driver)) => {
            (Hooks::Tc, format!("driver {driver} is not known for XDP with complete checksums, so tc"))
        }
        (None, None) => (Hooks::Tc, "unknown driver, so tc".into()),
        (Some("bond"), _) if ports_have_xdp(node, device) => {
            (Hooks::XdpAndTc, "all ports have native XDP".into())
        }
        (Some("bond"), _) => {
            (Hooks::Tc, "not all ports are known for XDP with complete checksums, so tc".into())
        }
        (Some(_), _) => return (Hooks::Tc, None),
    };
    (hooks, Some(reason))
}

/// Returns whether there are VLAN devices above a device. Most NICs remove the tag from the frame.
/// An XDP program would treat packets of a VLAN as packets of the device itself. tc gets the tag
/// from the kernel.
fn has_vlans(node: &NodeState, device: &DeviceInfo) -> bool {
    let is_vlan =
        |upper: &DeviceInfo| upper.kind.as_deref() == Some("vlan") && upper.lower == Some(device.index);
    node.devices.iter().any(is_vlan)
}

fn ports_have_xdp(node: &NodeState, bond: &DeviceInfo) -> bool {
    let mut ports = node.devices.iter().filter(|port| port.master == Some(bond.index)).peekable();
    let has_xdp = |port: &DeviceInfo| port.driver.as_deref().is_some_and(|name| XDP_DRIVERS.contains(&name));
    ports.peek().is_some() && ports.all(has_xdp)
}

fn forced_xdp(node: &NodeState, device: &DeviceInfo) -> (Hooks, Option<String>) {
    let warning = match device.kind.as_deref() {
        Some("veth") => Some(
            "WARNING: XDP corrupts packets with partial checksums on a veth, unless its other end \
             disables them (ethtool -K DEVICE tx off)",
        ),
        Some(kind) if !XDP_KINDS.contains(&kind) => {
            return (Hooks::Tc, Some(format!("{kind} has no native XDP, so tc")));
        }
        _ if has_vlans(node, device) => Some(
            "WARNING: XDP treats packets of its VLANs as its own, unless the NIC leaves the tags in \
             the frames (ethtool -K DEVICE rxvlan off)",
        ),
        _ => None,
    };
    (Hooks::XdpAndTc, warning.map(Into::into))
}
