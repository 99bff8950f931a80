//! Which hooks are used on a device: XDP and tc, or tc alone.
//!
//! A packet can have a partial checksum, which its receiver or the hardware was to complete: on a
//! veth, and between virtual machines on some hypervisors. An XDP program cannot detect that. What
//! it rewrites and transmits is corrupt. A tc program gets the checksum status from the kernel.

use super::choice::Hooks;
use super::options::AttachMode;
use crate::node::{DeviceInfo, LinkLayer, NodeState};

/// Drivers with native XDP, including transmission and redirects, that deliver complete checksums:
/// their packets come off a wire, and the driver reports the checksum status beside the packet.
///
/// `virtio_net` is listed because it disables partial checksums from the host while an XDP program
/// is attached (`virtnet_clear_guest_offloads`, drivers/net/virtio_net.c). If it cannot, it refuses
/// the program.
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
    "virtio_net",
];

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
        AttachMode::Xdp => forced_xdp(device),
        _ => auto(node, device),
    }
}

fn auto(node: &NodeState, device: &DeviceInfo) -> (Hooks, Option<String>) {
    let (hooks, reason) = match (device.kind.as_deref(), device.driver.as_deref()) {
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

fn ports_have_xdp(node: &NodeState, bond: &DeviceInfo) -> bool {
    let mut ports = node.devices.iter().filter(|port| port.master == Some(bond.index)).peekable();
    let has_xdp = |port: &DeviceInfo| port.driver.as_deref().is_some_and(|name| XDP_DRIVERS.contains(&name));
    ports.peek().is_some() && ports.all(has_xdp)
}

fn forced_xdp(device: &DeviceInfo) -> (Hooks, Option<String>) {
    match device.kind.as_deref() {
        Some("veth") => {
            let warning = "WARNING: XDP corrupts packets with partial checksums on a veth, unless its \
                           other end disables them (ethtool -K DEVICE tx off)";
            (Hooks::XdpAndTc, Some(warning.into()))
        }
        Some(kind) if !XDP_KINDS.contains(&kind) => {
            (Hooks::Tc, Some(format!("{kind} has no native XDP, so tc")))
        }
        _ => (Hooks::XdpAndTc, None),
    }
}
