//! Decides which addresses of this host serve NodePorts, and the source address of packets that
//! leave by a device. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use lb_common::layout::{self, address_flags, device_flags};

use super::devices::{Behind, DeviceChoice};
use super::kube_proxy::IPVS_DEVICE;
use super::{DeviceAddress, DeviceInfo, NodeState, Scope};

impl DeviceAddress {
    /// Returns whether the address is global and its subnet has room for neighbours.
    pub fn is_in_a_subnet(&self) -> bool {
        let full = if self.ip.is_ipv4() { 32 } else { 128 };
        self.scope == Scope::Global && self.prefix_len < full
    }
}

/// Option `--nodeport-addresses`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum NodePortAddresses {
    /// Every local address, as kube-proxy in its iptables mode, except loopback and link-local
    /// addresses. Socket programs serve `localhost:nodePort`. Packets from link-local addresses
    /// must not be forwarded (RFC 3927 2.7, RFC 4291 2.5.6).
    #[default]
    All,
    /// The addresses of the Node object. Without a Node object, the main addresses of this host.
    Primary,
    /// Addresses inside these networks. A family without a network is served as with `All`.
    Within(Vec<IpNet>),
}

impl NodePortAddresses {
    fn contains(&self, ip: IpAddr, primary: &[IpAddr]) -> bool {
        let ordinary = !is_loopback(ip) && !is_link_local(ip);
        match self {
            Self::All => ordinary,
            Self::Primary => primary.contains(&ip),
            Self::Within(nets) => {
                let mut family = nets.iter().filter(|net| net.addr().is_ipv4() == ip.is_ipv4()).peekable();
                if family.peek().is_none() {
                    ordinary
                } else {
                    !is_loopback(ip) && family.any(|net| net.contains(&ip))
                }
            }
        }
    }
}

/// Returns the entries of the map `ADDRESSES` for this node: every address of this host, with a
/// flag on those that serve NodePorts.
///
/// `node_addresses` are the addresses of the Node object, or empty without one. Several devices may
/// have the same address (pod gateways do): it is listed once, with the first device.
pub fn node_addresses(
    node: &NodeState,
    options: &NodePortAddresses,
    node_addresses: &[IpAddr],
) -> Vec<(IpAddr, layout::KnownAddress)> {
    let main = [node.main_v4.map(IpAddr::V4), node.main_v6.map(IpAddr::V6)].into_iter().flatten();
    let mut primary = node_addresses.to_vec();
    for ip in main {
        if !node_addresses.iter().any(|known| known.is_ipv4() == ip.is_ipv4()) {
            primary.push(ip);
        }
    }
    let mut found = BTreeMap::new();
    // kube-proxy in IPVS mode gives its device the address of every Service.
    for device in node.devices.iter().filter(|device| device.name != IPVS_DEVICE) {
        for address in &device.addresses {
            let mut flags = address_flags::NODE;
            if options.contains(address.ip, &primary) {
                flags |= address_flags::NODE_PORTS;
            }
            found.entry(address.ip).or_insert(layout::KnownAddress { ifindex: device.index, flags });
        }
    }
    found.into_iter().collect()
}

/// Returns the addresses at which health check servers listen: those that serve NodePorts. It is
/// the unspecified address for a family in which every address serves NodePorts.
///
/// `known` is the result of [`node_addresses`].
pub fn listen_addresses(
    options: &NodePortAddresses,
    known: &BTreeMap<IpAddr, layout::KnownAddress>,
) -> BTreeSet<IpAddr> {
    let everywhere = |unspecified: IpAddr| match options {
        NodePortAddresses::All => true,
        NodePortAddresses::Primary => false,
        NodePortAddresses::Within(nets) => {
            !nets.iter().any(|net| net.addr().is_ipv4() == unspecified.is_ipv4())
        }
    };
    let mut addresses = BTreeSet::new();
    for unspecified in [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()] {
        if everywhere(unspecified) {
            addresses.insert(unspecified);
        } else {
            let taken = known.iter().filter(|(ip, value)| {
                ip.is_ipv4() == unspecified.is_ipv4()
                    && value.flags & address_flags::NODE_PORTS != 0
                    // A socket needs the device too to bind a link-local IPv6 address.
                    && !is_link_local(**ip)
            });
            addresses.extend(taken.map(|(ip, _)| *ip));
        }
    }
    addresses
}

/// Returns the entries of the map `DEVICES`: every device by which packets can leave. That includes
/// devices without programs, such as a pod's veth. The flag `XDP_TARGET` is set later, after XDP
/// has been attached.
pub fn device_table(node: &NodeState, choices: &[DeviceChoice]) -> Vec<(u32, layout::Device)> {
    let flags: BTreeMap<u32, u32> =
        choices.iter().map(|choice| (choice.index, choice_flags(choice))).collect();
    let entry = |device: &DeviceInfo| {
        let main = [node.main_v4.map(IpAddr::V4), node.main_v6.map(IpAddr::V6)];
        let [v4, v6] = [true, false].map(|is_v4| source(device, is_v4).or(main[usize::from(!is_v4)]));
        let flags = flags.get(&device.index).copied().unwrap_or_default();
        let addr_v4 = if let Some(IpAddr::V4(ip)) = v4 { ip.octets() } else { [0; 4] };
        let addr_v6 = if let Some(IpAddr::V6(ip)) = v6 { ip.octets() } else { [0; 16] };
        (device.index, layout::Device { addr_v4, addr_v6, flags })
    };
    node.devices.iter().filter(|device| device.up && !device.loopback).map(entry).collect()
}

/// Returns the entries of the map `LINK_ADDRESSES`: the MAC address of every device that has one.
pub fn link_table(node: &NodeState) -> Vec<(u32, layout::LinkAddress)> {
    let entry =
        |device: &DeviceInfo| Some((device.index, layout::LinkAddress { addr: device.mac?, pad: [0; 2] }));
    node.devices.iter().filter_map(entry).collect()
}

/// Returns the flags that follow from the decision about a device.
fn choice_flags(choice: &DeviceChoice) -> u32 {
    let pod = if choice.pod { device_flags::POD } else { 0 };
    pod | match choice.behind {
        Behind::LocalPods => device_flags::ONLY_LOCAL_PODS,
        Behind::OtherNodes => device_flags::OTHER_NODES,
        Behind::Unknown => 0,
    }
}

/// Returns the source address that the kernel chooses for packets that leave by a device: the first
/// of global scope (`inet_select_addr`, net/ipv4/devinet.c). Deprecated and secondary addresses are
/// last in the list.
fn source(device: &DeviceInfo, is_v4: bool) -> Option<IpAddr> {
    let global = |address: &&DeviceAddress| address.scope == Scope::Global && address.ip.is_ipv4() == is_v4;
    device.addresses.iter().find(global).map(|address| address.ip)
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.is_loopback()
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::LinkLayer;
    use super::super::devices::{DeviceOptions, PodInterfaces, choose_devices};
    use super::super::testing::{device, node};
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn example() -> NodeState {
        let mut state = node(vec![
            DeviceInfo { loopback: true, ..device(1, "lo", None, &["127.0.0.1/8", "::1/128"]) },
            device(2, "eth0", None, &["192.0.2.7/24", "192.0.2.8/24", "2001:db8::7/64", "fe80::1/64"]),
            device(3, "flannel.1", Some("vxlan"), &["10.244.1.0/32", "fe80::1/64"]),
            device(4, "dns", Some("dummy"), &["169.254.20.10/32"]),
            device(5, "vetha", Some("veth"), &["10.244.1.1/32"]),
            device(6, "vethb", Some("veth"), &["10.244.1.1/32"]),
        ]);
        state.main_v4 = Some("192.0.2.7".parse().expect("valid"));
        state.main_v6 = Some("2001:db8::7".parse().expect("valid"));
        state
    }

    /// Returns the addresses that serve NodePorts.
    fn with_node_ports(options: &NodePortAddresses, of_node: &[IpAddr]) -> Vec<String> {
        let all = node_addresses(&example(), options, of_node);
        assert_eq!(all.len(), 9, "every address is listed once");
        let serves = |value: &layout::KnownAddress| value.flags & address_flags::NODE_PORTS != 0;
        all.into_iter().filter(|(_, value)| serves(value)).map(|(ip, _)| ip.to_string()).collect()
    }

    #[test]
    fn node_port_addresses() {
        use NodePortAddresses::{All, Primary, Within};
        let nets = |texts: &[&str]| Within(texts.iter().map(|text| text.parse().expect("a CIDR")).collect());
        let all = ["10.244.1.0", "10.244.1.1", "192.0.2.7", "192.0.2.8", "2001:db8::7"];
        for (options, of_node, expected) in [
            (All, vec![], all.to_vec()),
            (Primary, vec![], vec!["192.0.2.7", "2001:db8::7"]),
            (Primary, vec![ip("192.0.2.8")], vec!["192.0.2.8", "2001:db8::7"]),
            (nets(&["192.0.2.0/24"]), vec![], vec!["192.0.2.7", "192.0.2.8", "2001:db8::7"]),
            (nets(&["192.0.2.8/32", "::/0"]), vec![], vec!["192.0.2.8", "2001:db8::7", "fe80::1"]),
            (nets(&["127.0.0.0/8", "fc00::/7"]), vec![], vec![]),
            (nets(&[]), vec![], all.to_vec()),
        ] {
            assert_eq!(with_node_ports(&options, &of_node), expected, "{options:?}");
        }
    }

    #[test]
    fn servers_listen_where_node_ports_are() {
        use NodePortAddresses::{All, Primary, Within};
        let listen = |options: NodePortAddresses| {
            let known = node_addresses(&example(), &options, &[]).into_iter().collect();
            listen_addresses(&options, &known).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(listen(All), ["0.0.0.0", "::"]);
        assert_eq!(listen(Primary), ["192.0.2.7", "2001:db8::7"]);
        let v4 = Within(vec!["192.0.2.0/24".parse().expect("a CIDR")]);
        assert_eq!(listen(v4), ["192.0.2.7", "192.0.2.8", "::"]);
        let v6 = Within(vec!["::/0".parse().expect("a CIDR")]);
        assert_eq!(listen(v6), ["0.0.0.0", "2001:db8::7"]);
    }

    #[test]
    fn an_address_on_several_devices_is_listed_with_the_first() {
        let all: BTreeMap<_, _> =
            node_addresses(&example(), &NodePortAddresses::All, &[]).into_iter().collect();
        assert_eq!(all[&ip("10.244.1.1")].ifindex, 5);
        assert_eq!(all[&ip("fe80::1")].ifindex, 2);
    }

    #[test]
    fn packets_leave_with_the_address_of_the_device_or_the_main_address() {
        let mut state = example();
        state
            .devices
            .push(DeviceInfo { link_layer: LinkLayer::None, ..device(7, "wg0", Some("wireguard"), &[]) });
        state.devices.push(DeviceInfo { up: false, ..device(8, "eth1", None, &["198.51.100.1/24"]) });
        let options = DeviceOptions { pods: PodInterfaces(vec!["vetha".into()]), ..DeviceOptions::default() };
        let choices = choose_devices(&state, &options);
        let table: BTreeMap<_, _> = device_table(&state, &choices).into_iter().collect();
        let of = |index: u32| {
            (IpAddr::from(table[&index].addr_v4).to_string(), IpAddr::from(table[&index].addr_v6).to_string())
        };
        assert_eq!(of(2), ("192.0.2.7".into(), "2001:db8::7".into()));
        assert_eq!(of(3), ("10.244.1.0".into(), "2001:db8::7".into()));
        assert_eq!(of(7), ("192.0.2.7".into(), "2001:db8::7".into()));
        let flags = [2, 4, 5, 6, 7].map(|index| table[&index].flags);
        let other_nodes = device_flags::OTHER_NODES;
        assert_eq!(flags, [other_nodes, 0, device_flags::POD, 0, other_nodes]);
        assert!(
            !table.contains_key(&1) && !table.contains_key(&8),
            "neither loopback nor a device that is down"
        );
    }
}
