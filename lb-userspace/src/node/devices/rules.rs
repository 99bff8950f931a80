//! The rules by which devices are selected. `Ok` is the reason for attaching to a device, `Err` the
//! reason against it.

use super::glob::first_match;
use super::options::DevicePatterns;
use crate::node::{DeviceInfo, LinkLayer, NodeState};

type Selection = Result<String, String>;

/// Maximum number of devices above each other. The kernel allows 8. The limit ends the recursion if
/// the input contains a cycle.
const MAX_STACK: u32 = 8;

/// Rejects devices whose frames the programs cannot parse, and loopback.
pub fn parseable(device: &DeviceInfo) -> Result<(), String> {
    if device.loopback {
        return Err("loopback: socket programs serve local processes".into());
    }
    if let LinkLayer::Other(arphrd) = device.link_layer {
        return Err(format!("its frames are neither Ethernet nor bare IP (ARPHRD {arphrd})"));
    }
    Ok(())
}

/// Decides about a device whose name matches `glob` of `--pod-interfaces`. The reason contains a
/// warning if the option is probably a mistake.
pub fn select_pod(node: &NodeState, device: &DeviceInfo, glob: &str, patterns: &DevicePatterns) -> Selection {
    let mut reason = format!("matches {glob} of --pod-interfaces");
    if !device.up {
        return Err(format!("{reason}, but is down"));
    }
    if let DevicePatterns::Globs(globs) = patterns
        && let Some(other) = first_match(globs, &device.name)
    {
        reason.push_str(&format!(", which overrides {other} of --devices"));
    }
    match (device.kind.as_deref(), auto(node, device, MAX_STACK)) {
        (Some("bridge"), _) => reason.push_str(
            "; WARNING: replies between pods do not pass a bridge device, use the names of its ports",
        ),
        // A tun device is the tunnel of a process or the device of a virtual machine.
        (Some("tun"), _) | (_, Err(_)) => {}
        (_, Ok(role)) => reason.push_str(&format!(
            "; WARNING: other machines seem to be behind it ({role}), but all its packets are treated as \
             packets of pods of this node"
        )),
    }
    Ok(reason)
}

/// Decides about a device by `--devices`.
pub fn select(node: &NodeState, device: &DeviceInfo, patterns: &DevicePatterns) -> Selection {
    match patterns {
        DevicePatterns::Auto if device.up => auto(node, device, MAX_STACK),
        DevicePatterns::Auto => Err("down".into()),
        DevicePatterns::Globs(globs) => match first_match(globs, &device.name) {
            Some(glob) if device.up => Ok(format!("matches {glob}")),
            Some(glob) => Err(format!("matches {glob}, but is down")),
            None => Err("does not match --devices".into()),
        },
    }
}

/// Applies the rules of `auto` to a device that is up and parseable. `depth` limits the recursion.
fn auto(node: &NodeState, device: &DeviceInfo, depth: u32) -> Selection {
    let Some(depth) = depth.checked_sub(1) else { return Err("above itself".into()) };
    if is_tunnel(device) {
        let kind = device.kind.as_deref().unwrap_or_default();
        return Ok(format!("{kind} tunnel: packets of other nodes arrive there"));
    }
    let master = device.master.and_then(|index| node.device(index));
    if let Some(selection) = master.and_then(|master| port(device, master)) {
        return selection;
    }
    let lower = device.lower.and_then(|index| node.device(index));
    if let Some(selection) = lower.and_then(|lower| upper(node, device, lower, depth)) {
        return selection;
    }
    match device.kind.as_deref() {
        None => Ok("NIC".into()),
        Some(kind @ ("bond" | "team")) => Ok(kind.into()),
        Some(kind @ ("vlan" | "macvlan" | "ipvlan" | "macsec")) => {
            Ok(format!("{kind} of a device in another network namespace: NIC of this node"))
        }
        Some("bridge") => bridge(node, device),
        Some(kind @ ("veth" | "netkit")) => pair(node, device, kind),
        Some("tun" | "macvtap" | "ipvtap") => Err("tap: a virtual machine is behind it".into()),
        Some("openvswitch") => {
            Err("internal port of Open vSwitch: its packets are handled at the NIC".into())
        }
        Some(kind) => Err(format!("{kind}: no packets arrive there from outside")),
    }
}

/// Decides about a port of `master`. `None` if the master makes no difference.
fn port(device: &DeviceInfo, master: &DeviceInfo) -> Option<Selection> {
    match master.kind.as_deref() {
        // Packets pass this device before the VRF device.
        Some("vrf") => None,
        Some("openvswitch") if is_uplink(device) => Some(Ok("NIC below Open vSwitch".into())),
        Some("openvswitch") => Some(Err(format!("port of Open vSwitch {}", master.name))),
        _ => Some(Err(format!(
            "port of {}: its packets are handled there, or are for other hosts",
            master.name
        ))),
    }
}

/// Decides about a VLAN or a similar device above `lower`. `None` for devices of other kinds.
///
/// The programs at the lower device leave frames of VLANs and MACsec alone. The upper device
/// receives them without the tag, or decrypted. Frames of a macvlan or ipvlan device are complete
/// at the lower device already.
fn upper(node: &NodeState, device: &DeviceInfo, lower: &DeviceInfo, depth: u32) -> Option<Selection> {
    let kind = device.kind.as_deref()?;
    let below = auto(node, lower, depth);
    match kind {
        // A VLAN device receives its frames before the bridge or bond that the lower device is a
        // port of.
        "vlan" | "macsec" if below.is_ok() || is_uplink(lower) => {
            Some(Ok(format!("{kind} above {}", lower.name)))
        }
        "vlan" | "macsec" => Some(Err(format!("{kind} above {}, which leads to no other node", lower.name))),
        "macvlan" | "macvtap" | "ipvlan" | "ipvtap" => Some(match below {
            Ok(_) => Err(format!("above {}: its packets are handled there", lower.name)),
            Err(_) if lower.master.is_some() => {
                Err(format!("above {}, which is a port: its packets are for other hosts", lower.name))
            }
            Err(_) => Ok(format!("above {}, which is not attached to", lower.name)),
        }),
        _ => None,
    }
}

/// Decides about a bridge: by whether one of its ports leads to other machines.
fn bridge(node: &NodeState, device: &DeviceInfo) -> Selection {
    match node.devices.iter().find(|port| port.master == Some(device.index) && is_uplink(port)) {
        Some(port) => Ok(format!("bridge with {} as a port", port.name)),
        None => Err("bridge of pods, containers or virtual machines".into()),
    }
}

/// Decides about one end of a veth or netkit pair.
fn pair(node: &NodeState, device: &DeviceInfo, kind: &str) -> Selection {
    if !device.lower_elsewhere {
        return Err(format!("{kind} with both ends in this network namespace"));
    }
    if node.default_route_devices.contains(&device.index) {
        return Ok(format!("{kind} with the default route: NIC of this node"));
    }
    match device.addresses.iter().find(|address| address.is_in_a_subnet()) {
        Some(address) => Ok(format!("{kind} with {}/{}: NIC of this node", address.ip, address.prefix_len)),
        None => Err(format!("{kind} without an address in a subnet: a pod is behind it")),
    }
}

/// Returns whether only pods, containers or virtual machines of this node are behind a device.
///
/// The rule is strict: a CNI can reach other nodes by a device of its own. `cilium_host` is a veth
/// with both ends here, the bridge of Weave has such a veth as a port, and Antrea's gateway is a
/// port of Open vSwitch.
pub fn leads_to_local_pods(node: &NodeState, device: &DeviceInfo) -> bool {
    match device.kind.as_deref() {
        Some("bridge") => {
            let mut ports = node.devices.iter().filter(|port| port.master == Some(device.index)).peekable();
            ports.peek().is_some() && ports.all(is_end_of_pod)
        }
        _ => is_end_of_pod(device) && auto(node, device, MAX_STACK).is_err(),
    }
}

/// Returns whether a device is the host side of a pod or of a virtual machine.
fn is_end_of_pod(device: &DeviceInfo) -> bool {
    match device.kind.as_deref() {
        Some("veth" | "netkit") => device.lower_elsewhere,
        Some("tun") => device.link_layer == LinkLayer::Ethernet,
        _ => false,
    }
}

/// Returns whether packets of other nodes arrive on a device in encapsulated form.
fn is_tunnel(device: &DeviceInfo) -> bool {
    match device.kind.as_deref() {
        Some("vxlan" | "geneve" | "ipip" | "ip6tnl" | "sit" | "gre" | "gretap" | "ip6gre" | "ip6gretap") => {
            true
        }
        Some("wireguard" | "xfrm" | "vti" | "vti6") => true,
        // With layer 3 it is the tunnel of a process (flannel's UDP back end, a VPN), with layer 2
        // the device of a virtual machine.
        Some("tun") => device.link_layer == LinkLayer::None,
        _ => false,
    }
}

/// Returns whether a bridge or switch reaches other machines through this port.
fn is_uplink(device: &DeviceInfo) -> bool {
    matches!(device.kind.as_deref(), None | Some("bond" | "team" | "vlan")) || is_tunnel(device)
}
