//! What the maps shall say of this host: of its state, of the settings and of the Node. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use lb_common::layout::{KnownAddress, address_flags};
use lb_plan::Planner;

use super::networks::network_table;
use crate::config::Config;
use crate::node::NodeState;
use crate::node::addresses::node_addresses;
use crate::node::devices::{Choice, DeviceOptions, choose};

/// Every device, with what is to be attached to it.
pub fn choices(config: &Config, state: &NodeState) -> Vec<Choice> {
    let options = DeviceOptions {
        patterns: config.devices.clone(),
        pods: config.pod_interfaces.clone(),
        mode: config.mode,
    };
    choose(state, &options)
}

/// Addresses of this node, and those of Services that other proxies serve.
pub fn addresses(config: &Config, state: &NodeState, planner: &Planner) -> Vec<(IpAddr, KnownAddress)> {
    let of_node = planner.node().map(|node| &*node.addresses).unwrap_or_default();
    let mut known: BTreeMap<_, _> =
        node_addresses(state, &config.nodeport_addresses, of_node).into_iter().collect();
    for address in planner.addresses_of_other_proxies() {
        known.entry(address).or_insert(KnownAddress { ifindex: 0, flags: 0 }).flags |=
            address_flags::OTHER_PROXY;
    }
    known.into_iter().collect()
}

/// Networks whose addresses are pods.
pub fn pod_networks<'a>(config: &'a Config, planner: &'a Planner) -> &'a [IpNet] {
    let configured = &config.cluster_cidr.0;
    let of_node = planner.node().map(|node| &*node.pod_cidrs).unwrap_or_default();
    if configured.is_empty() { of_node } else { configured }
}

/// Networks with their flags. What is sent to an address of a ServiceCIDR that no Service has is dropped: first all Services must be
/// in the maps.
pub fn networks(config: &Config, planner: &Planner) -> Option<BTreeMap<IpNet, u32>> {
    planner.is_synced().then(|| network_table(pod_networks(config, planner), &planner.service_cidrs()))
}
