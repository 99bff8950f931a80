//! What the host maps shall contain, and which devices programs shall be attached to: from the
//! state of this host, the settings and the API objects. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use lb_common::layout::{Device, KnownAddress, address_flags, network_flags};
use lb_plan::Planner;

use crate::config::Config;
use crate::node::NodeState;
use crate::node::addresses::{device_table, node_addresses};
use crate::node::devices::{DeviceChoice, DeviceOptions, Hooks, choose_devices};
use crate::node::namespaces::follow::NamespaceAddresses;

/// The desired state of attachments and host maps.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DesiredHost {
    /// Devices to attach to, by interface index.
    pub attachments: BTreeMap<u32, DeviceChoice>,
    /// By interface index. The flag [`lb_common::layout::device_flags::XDP_TARGET`] is missing: it
    /// depends on whether attaching XDP succeeds.
    pub devices: BTreeMap<u32, Device>,
    pub addresses: BTreeMap<IpAddr, KnownAddress>,
    /// Flags by network. `None` before the initial sync: the entries of an earlier agent stay.
    pub networks: Option<BTreeMap<IpNet, u32>>,
    /// By the cookie of the network namespace.
    pub namespaces: Arc<NamespaceAddresses>,
}

impl DesiredHost {
    /// Derives the desired state. `choices` is the result of [`device_choices`].
    pub fn new(
        config: &Config,
        state: &NodeState,
        choices: &[DeviceChoice],
        planner: &Planner,
        namespaces: Arc<NamespaceAddresses>,
    ) -> Self {
        let selected = choices.iter().filter(|choice| choice.hooks != Hooks::None);
        Self {
            attachments: selected.map(|choice| (choice.index, choice.clone())).collect(),
            devices: device_table(state, choices).into_iter().collect(),
            addresses: known_addresses(config, state, planner),
            networks: known_networks(config, planner),
            namespaces,
        }
    }
}

/// Returns every device with the hooks to attach to.
pub fn device_choices(config: &Config, state: &NodeState) -> Vec<DeviceChoice> {
    let options = DeviceOptions {
        patterns: config.devices.clone(),
        pods: config.pod_interfaces.clone(),
        mode: config.mode,
    };
    choose_devices(state, &options)
}

/// Returns the addresses of this node, and those of Services that other proxies serve.
fn known_addresses(config: &Config, state: &NodeState, planner: &Planner) -> BTreeMap<IpAddr, KnownAddress> {
    let of_node = planner.node().map(|node| &*node.addresses).unwrap_or_default();
    let mut known: BTreeMap<_, _> =
        node_addresses(state, &config.nodeport_addresses, of_node).into_iter().collect();
    for address in planner.addresses_of_other_proxies() {
        known.entry(address).or_insert(KnownAddress { ifindex: 0, flags: 0 }).flags |=
            address_flags::OTHER_PROXY;
    }
    known
}

/// Returns the networks whose addresses belong to pods: `--cluster-cidr`, else the podCIDRs of the
/// Node object.
pub fn pod_networks<'a>(config: &'a Config, planner: &'a Planner) -> &'a [IpNet] {
    let configured = &config.cluster_cidr.0;
    let of_node = planner.node().map(|node| &*node.pod_cidrs).unwrap_or_default();
    if configured.is_empty() { of_node } else { configured }
}

/// Returns the networks of pods and the ServiceCIDRs, with their flags.
///
/// Returns `None` before the initial sync. The programs drop packets to addresses of ServiceCIDRs
/// that no Service has, so all Services must be in the maps before these networks are.
fn known_networks(config: &Config, planner: &Planner) -> Option<BTreeMap<IpNet, u32>> {
    planner.is_synced().then(|| network_table(pod_networks(config, planner), &planner.service_cidrs()))
}

/// Returns the content of the map `NETWORKS`.
///
/// The programs find only the entry with the longest prefix. So the flags of a network include the
/// flags of every network that contains it.
fn network_table(pods: &[IpNet], services: &[IpNet]) -> BTreeMap<IpNet, u32> {
    let all: Vec<(IpNet, u32)> = [(pods, network_flags::PODS), (services, network_flags::SERVICES)]
        .into_iter()
        .flat_map(|(networks, flag)| networks.iter().map(move |network| (network.trunc(), flag)))
        .collect();
    let flags_of = |network: &IpNet| {
        all.iter().filter(|(other, _)| other.contains(network)).fold(0, |flags, (_, flag)| flags | flag)
    };
    all.iter().map(|(network, _)| (*network, flags_of(network))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PODS: u32 = network_flags::PODS;
    const SERVICES: u32 = network_flags::SERVICES;

    fn table(pods: &[&str], services: &[&str]) -> Vec<(String, u32)> {
        let [pods, services] = [pods, services]
            .map(|texts| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNet>>());
        network_table(&pods, &services).into_iter().map(|(net, flags)| (net.to_string(), flags)).collect()
    }

    #[test]
    fn each_network_has_its_own_meaning() {
        assert_eq!(
            table(&["10.244.1.7/24", "fd00:10:244:1::/64"], &["10.96.0.0/12", "fd00:10:96::/112"]),
            [
                ("10.96.0.0/12".into(), SERVICES),
                ("10.244.1.0/24".into(), PODS),
                ("fd00:10:96::/112".into(), SERVICES),
                ("fd00:10:244:1::/64".into(), PODS),
            ]
        );
        assert_eq!(table(&[], &[]), []);
    }

    #[test]
    fn a_network_inside_another_has_the_meaning_of_both() {
        let expected = [
            ("10.0.0.0/8".into(), PODS),
            ("10.96.0.0/12".into(), PODS | SERVICES),
            ("10.96.1.0/24".into(), PODS | SERVICES),
        ];
        assert_eq!(table(&["10.0.0.0/8", "10.96.1.0/24"], &["10.96.0.0/12"]), expected);
        let expected = [("10.0.0.0/8".into(), SERVICES), ("10.244.0.0/16".into(), PODS | SERVICES)];
        assert_eq!(table(&["10.244.0.0/16"], &["10.0.0.0/8"]), expected);
        assert_eq!(table(&["10.0.0.0/8"], &["10.0.0.0/8"]), [("10.0.0.0/8".into(), PODS | SERVICES)]);
        assert_eq!(table(&["0.0.0.0/0"], &["::/0"]), [("0.0.0.0/0".into(), PODS), ("::/0".into(), SERVICES)]);
    }
}
