//! Computes the desired content of the host maps, and the devices to attach programs to. The input
//! is the state of this host, the settings and the API objects. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use lb_common::layout::{Device, KnownAddress, LinkAddress, NODE, address_flags, network_flags, node_flags};
use lb_plan::Planner;

use crate::config::{Config, ForwardMode};
use crate::node::NodeState;
use crate::node::addresses::{device_table, link_table, node_addresses};
use crate::node::devices::{DeviceChoice, DeviceOptions, Hooks, choose_devices};
use crate::node::ipsec;
use crate::node::namespaces::follow::NamespaceAddresses;

/// The desired state of attachments and host maps.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DesiredHost {
    /// Devices to attach to, by interface index.
    pub attachments: BTreeMap<u32, DeviceChoice>,
    /// By interface index. They lack the flag [`lb_common::layout::device_flags::XDP_TARGET`],
    /// which depends on whether attaching XDP succeeds.
    pub devices: BTreeMap<u32, Device>,
    /// MAC addresses, by interface index.
    pub links: BTreeMap<u32, LinkAddress>,
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
            devices: device_table(state, choices).into_iter().chain([node_entry(state)]).collect(),
            links: link_table(state).into_iter().collect(),
            addresses: known_addresses(config, state, planner),
            networks: known_networks(planner, &namespaces, &forwarded_by_kernel(config.forward, state)),
            namespaces,
        }
    }
}

/// Returns the entry of the map `DEVICES` that is about the node.
fn node_entry(state: &NodeState) -> (u32, Device) {
    let flags = if state.without_kube_proxy { node_flags::NO_KUBE_PROXY } else { 0 };
    (NODE, Device { addr_v4: [0; 4], addr_v6: [0; 16], flags })
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

/// Returns the networks to which the kernel forwards translated packets.
pub fn forwarded_by_kernel(mode: ForwardMode, state: &NodeState) -> BTreeSet<IpNet> {
    match mode {
        ForwardMode::Stack => ipsec::EVERYWHERE.into(),
        ForwardMode::Auto => state.ipsec.clone().unwrap_or_default(),
        ForwardMode::Fast => BTreeSet::new(),
    }
}

/// Returns the networks of pods of this node, the ServiceCIDRs, and the networks to which the
/// kernel forwards, with their flags.
///
/// Pods of this node have addresses in the podCIDRs of its Node object, or in its network
/// namespaces. The programs use them only if the route to an address does not show where it is.
///
/// Returns `None` before the initial sync. The programs drop packets to addresses of ServiceCIDRs
/// that no Service has, so all Services must be in the maps before these networks are.
pub fn known_networks(
    planner: &Planner,
    namespaces: &NamespaceAddresses,
    by_kernel: &BTreeSet<IpNet>,
) -> Option<BTreeMap<IpNet, u32>> {
    let mut pods = pod_addresses(namespaces);
    pods.extend(planner.node().map(|node| &*node.pod_cidrs).unwrap_or_default());
    planner.is_synced().then(|| network_table(&pods, &planner.service_cidrs(), by_kernel))
}

/// Returns the addresses in network namespaces, as networks of one address.
fn pod_addresses(namespaces: &NamespaceAddresses) -> Vec<IpNet> {
    let addresses = namespaces
        .values()
        .flat_map(|addresses| [IpAddr::from(addresses.addr_v4), IpAddr::from(addresses.addr_v6)]);
    addresses.filter(|ip| !ip.is_unspecified()).map(IpNet::from).collect()
}

/// Returns the content of the map `NETWORKS`.
///
/// The programs find only the entry with the longest prefix. So the flags of a network include the
/// flags of every network that contains it.
fn network_table(pods: &[IpNet], services: &[IpNet], by_kernel: &BTreeSet<IpNet>) -> BTreeMap<IpNet, u32> {
    let pods = pods.iter().map(|network| (network.trunc(), network_flags::PODS));
    let services = services.iter().map(|network| (network.trunc(), network_flags::SERVICES));
    let by_kernel = by_kernel.iter().map(|network| (*network, network_flags::BY_KERNEL));
    let all: Vec<(IpNet, u32)> = pods.chain(services).chain(by_kernel).collect();
    let flags_of = |network: &IpNet| {
        all.iter().filter(|(other, _)| other.contains(network)).fold(0, |flags, (_, flag)| flags | flag)
    };
    all.iter().map(|(network, _)| (*network, flags_of(network))).collect()
}

#[cfg(test)]
mod tests {
    use lb_common::layout::NamespaceAddrs;

    use super::*;

    const PODS: u32 = network_flags::PODS;
    const SERVICES: u32 = network_flags::SERVICES;
    const BY_KERNEL: u32 = network_flags::BY_KERNEL;

    fn table(pods: &[&str], services: &[&str], by_kernel: &[&str]) -> Vec<(String, u32)> {
        let [pods, services, by_kernel] = [pods, services, by_kernel]
            .map(|texts| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNet>>());
        network_table(&pods, &services, &by_kernel.into_iter().collect())
            .into_iter()
            .map(|(net, flags)| (net.to_string(), flags))
            .collect()
    }

    #[test]
    fn each_network_has_its_own_meaning() {
        assert_eq!(
            table(&["10.244.1.7/24", "fd00:10:244:1::/64"], &["10.96.0.0/12", "fd00:10:96::/112"], &[]),
            [
                ("10.96.0.0/12".into(), SERVICES),
                ("10.244.1.0/24".into(), PODS),
                ("fd00:10:96::/112".into(), SERVICES),
                ("fd00:10:244:1::/64".into(), PODS),
            ]
        );
        assert_eq!(table(&[], &[], &[]), []);
    }

    #[test]
    fn addresses_in_network_namespaces_are_pods() {
        let of_pod = NamespaceAddrs { addr_v4: [10, 9, 0, 7], addr_v6: [0; 16] };
        let v6 = "fd00:10:9::7".parse::<std::net::Ipv6Addr>().unwrap().octets();
        let dual_stack = NamespaceAddrs { addr_v4: [10, 9, 0, 8], addr_v6: v6 };
        let networks = pod_addresses(&NamespaceAddresses::from([(1, of_pod), (2, dual_stack)]));
        let text: Vec<_> = networks.iter().map(ToString::to_string).collect();
        assert_eq!(text, ["10.9.0.7/32", "10.9.0.8/32", "fd00:10:9::7/128"]);
    }

    #[test]
    fn the_kernel_forwards_to_networks_with_ipsec_policies() {
        let ipsec: BTreeSet<IpNet> = ["10.244.2.0/24".parse().unwrap()].into();
        let state = NodeState { ipsec: Some(ipsec.clone()), ..NodeState::default() };
        assert_eq!(forwarded_by_kernel(ForwardMode::Auto, &state), ipsec);
        assert_eq!(forwarded_by_kernel(ForwardMode::Auto, &NodeState::default()), BTreeSet::new());
        assert_eq!(forwarded_by_kernel(ForwardMode::Fast, &state), BTreeSet::new());
        assert_eq!(forwarded_by_kernel(ForwardMode::Stack, &state), ipsec::EVERYWHERE.into());
        let expected = [("10.244.0.0/16".into(), PODS), ("10.244.2.0/24".into(), PODS | BY_KERNEL)];
        assert_eq!(table(&["10.244.0.0/16"], &[], &["10.244.2.0/24"]), expected);
    }

    #[test]
    fn a_network_inside_another_has_the_meaning_of_both() {
        let expected = [
            ("10.0.0.0/8".into(), PODS),
            ("10.96.0.0/12".into(), PODS | SERVICES),
            ("10.96.1.0/24".into(), PODS | SERVICES),
        ];
        assert_eq!(table(&["10.0.0.0/8", "10.96.1.0/24"], &["10.96.0.0/12"], &[]), expected);
        let expected = [("10.0.0.0/8".into(), SERVICES), ("10.244.0.0/16".into(), PODS | SERVICES)];
        assert_eq!(table(&["10.244.0.0/16"], &["10.0.0.0/8"], &[]), expected);
        assert_eq!(table(&["10.0.0.0/8"], &["10.0.0.0/8"], &[]), [("10.0.0.0/8".into(), PODS | SERVICES)]);
        assert_eq!(
            table(&["0.0.0.0/0"], &["::/0"], &[]),
            [("0.0.0.0/0".into(), PODS), ("::/0".into(), SERVICES)]
        );
    }
}
