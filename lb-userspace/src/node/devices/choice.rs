//! The decision about each device.

use super::glob::first_match;
use super::hooks::Hooks;
use super::options::DeviceOptions;
use super::{rules, xdp};
use crate::node::{DeviceInfo, LinkLayer, NodeState};

/// The decision about one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceChoice {
    pub index: u32,
    pub name: String,
    pub hooks: Hooks,
    /// Whether frames begin with an Ethernet header. Otherwise they begin with the IP header.
    pub ethernet: bool,
    /// Whether the device leads to a pod by `--pod-interfaces`.
    pub pod: bool,
    /// The machines behind the device.
    pub behind: Behind,
    /// The reason of the decision, for the log. It does not contain the name.
    pub reason: String,
}

/// The destinations of the routes of this host by a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behind {
    /// Pods, containers and virtual machines of this node, and nothing else.
    LocalPods,
    /// Other nodes.
    OtherNodes,
    /// One or the other, for instance behind the device of a CNI that decides itself.
    Unknown,
}

/// Decides about every device, in the order of `node.devices`.
pub fn choose_devices(node: &NodeState, options: &DeviceOptions) -> Vec<DeviceChoice> {
    node.devices.iter().map(|device| choose(node, device, options)).collect()
}

fn choose(node: &NodeState, device: &DeviceInfo, options: &DeviceOptions) -> DeviceChoice {
    let pod = first_match(&options.pods.0, &device.name);
    let selected = rules::parseable(device).and_then(|()| match pod {
        Some(glob) => rules::select_pod(node, device, glob, &options.patterns),
        None => rules::select(node, device, &options.patterns),
    });
    let (hooks, reason) = match selected {
        Ok(reason) if pod.is_some() => (Hooks::Tc, reason),
        Ok(reason) => match xdp::hooks(node, device, options.mode) {
            (hooks, Some(detail)) => (hooks, format!("{reason}; {detail}")),
            (hooks, None) => (hooks, reason),
        },
        Err(reason) => (Hooks::None, reason),
    };
    let behind = match hooks {
        Hooks::XdpAndTc | Hooks::Tc if pod.is_none() => Behind::OtherNodes,
        _ if rules::leads_to_local_pods(node, device) => Behind::LocalPods,
        _ => Behind::Unknown,
    };
    DeviceChoice {
        index: device.index,
        name: device.name.clone(),
        hooks,
        ethernet: device.link_layer == LinkLayer::Ethernet,
        pod: pod.is_some(),
        behind,
        reason,
    }
}
