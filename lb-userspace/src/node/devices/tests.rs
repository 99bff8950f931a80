//! Tests of the choice of devices, on machines with different network setups.

use super::super::testing::{device, node};
use super::super::{DeviceInfo, LinkLayer, NodeState};
use super::choice::{Behind, DeviceChoice, choose_devices};
use super::hooks::Hooks;
use super::options::{AttachMode, DeviceOptions, DevicePatterns, PodInterfaces};

/// Returns name, hooks and reason of each device.
fn decide(devices: Vec<DeviceInfo>, options: &DeviceOptions) -> Vec<String> {
    let text = |choice: DeviceChoice| format!("{}: {}: {}", choice.name, choice.hooks, choice.reason);
    choose_devices(&node(devices), options).into_iter().map(text).collect()
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
            "lo: nothing: loopback: socket programs serve local processes",
            "eth0: XDP and tc: NIC; driver ice",
            "eth1: tc: NIC; driver e1000 is not known for XDP with complete checksums, so tc",
            "eth2: nothing: down",
            "ib0: nothing: its frames are neither Ethernet nor bare IP (ARPHRD 32)",
            "kube-ipvs0: nothing: dummy: no packets arrive there from outside",
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
            "veth9a: nothing: veth without an address in a subnet: a pod is behind it",
            "veth9b: nothing: veth without an address in a subnet: a pod is behind it",
            "cali12: nothing: veth without an address in a subnet: a pod is behind it",
            "eth0: tc: veth with 172.18.0.2/16: NIC of this node",
        ]
    );
}

#[test]
fn a_veth_with_the_default_route_is_a_nic_also_without_a_subnet() {
    let devices =
        vec![DeviceInfo { lower_elsewhere: true, ..device(2, "eth0", Some("veth"), &["203.0.113.9/32"]) }];
    let node = NodeState { default_route_devices: [2].into(), ..node(devices) };
    let choices = choose_devices(&node, &DeviceOptions::default());
    assert_eq!(choices[0].reason, "veth with the default route: NIC of this node");
}

#[test]
fn while_the_nic_is_down_no_veth_of_a_pod_is_taken_for_it() {
    let elsewhere = |info| DeviceInfo { lower_elsewhere: true, ..info };
    let devices = vec![
        elsewhere(device(2, "veth9a", Some("veth"), &["10.244.0.1/32"])),
        elsewhere(DeviceInfo { up: false, ..device(9, "eth0", Some("veth"), &["172.18.0.2/16"]) }),
    ];
    // Without a default route the only usable address is the gateway of the pods.
    let node = NodeState { main_v4: Some("10.244.0.1".parse().expect("an address")), ..node(devices) };
    let choices = choose_devices(&node, &DeviceOptions::default());
    let hooks: Vec<_> = choices.iter().map(|choice| choice.hooks).collect();
    assert_eq!(hooks, [Hooks::None, Hooks::None]);
}

#[test]
fn vlans_and_macsec_get_programs_of_their_own() {
    let port_of = |bridge, info| DeviceInfo { master: Some(bridge), ..info };
    let above = |lower, info| DeviceInfo { lower: Some(lower), ..info };
    let nic = |index, name| DeviceInfo { driver: Some("ice".into()), ..device(index, name, None, &[]) };
    let devices = vec![
        nic(2, "eth0"),
        above(2, device(3, "eth0.100", Some("vlan"), &["192.0.2.7/24"])),
        port_of(10, nic(4, "eth1")),
        above(4, device(5, "eth1.200", Some("vlan"), &["198.51.100.7/24"])),
        nic(6, "eth2"),
        above(6, device(7, "macsec0", Some("macsec"), &["203.0.113.7/24"])),
        above(11, device(8, "docker0.3", Some("vlan"), &[])),
        above(3, device(9, "mac0", Some("macvlan"), &[])),
        device(10, "br0", Some("bridge"), &[]),
        device(11, "docker0", Some("bridge"), &["172.17.0.1/16"]),
    ];
    assert_eq!(
        auto(devices.clone()),
        [
            "eth0: tc: NIC; XDP cannot tell its packets from those of its VLANs, so tc",
            "eth0.100: tc: vlan above eth0",
            "eth1: nothing: port of br0: its packets are handled there, or are for other hosts",
            "eth1.200: tc: vlan above eth1",
            "eth2: XDP and tc: NIC; driver ice",
            "macsec0: tc: macsec above eth2",
            "docker0.3: nothing: vlan above docker0, which leads to no other node",
            "mac0: nothing: above eth0.100: its packets are handled there",
            "br0: tc: bridge with eth1 as a port",
            "docker0: nothing: bridge of pods, containers or virtual machines",
        ]
    );
    let forced = DeviceOptions { mode: AttachMode::Xdp, ..DeviceOptions::default() };
    assert!(decide(devices, &forced)[0].contains("rxvlan off"));
}

#[test]
fn xdp_is_left_off_where_it_costs_other_traffic() {
    let devices = vec![DeviceInfo { driver: Some("virtio_net".into()), ..device(2, "eth0", None, &[]) }];
    assert_eq!(
        auto(devices.clone()),
        ["eth0: tc: NIC; XDP slows down all other traffic with driver virtio_net, so tc"]
    );
    let forced = DeviceOptions { mode: AttachMode::Xdp, ..DeviceOptions::default() };
    assert_eq!(decide(devices, &forced), ["eth0: XDP and tc: NIC"]);
}

#[test]
fn devices_show_where_a_route_leads() {
    let elsewhere = |info| DeviceInfo { lower_elsewhere: true, ..info };
    let port_of = |bridge, info| DeviceInfo { master: Some(bridge), ..info };
    let pod = |index, name| elsewhere(device(index, name, Some("veth"), &["10.244.0.1/32"]));
    let devices = vec![
        elsewhere(device(2, "eth0", Some("veth"), &["172.18.0.2/16"])),
        pod(3, "veth1"),
        device(4, "cni0", Some("bridge"), &["10.244.1.1/24"]),
        port_of(4, pod(5, "veth2")),
        device(6, "weave", Some("bridge"), &["10.32.0.1/12"]),
        port_of(6, pod(7, "veth3")),
        port_of(6, DeviceInfo { lower: Some(9), ..device(8, "vethwe-bridge", Some("veth"), &[]) }),
        device(10, "cilium_host", Some("veth"), &["10.0.1.7/32"]),
        device(11, "antrea-gw0", Some("openvswitch"), &["10.10.0.1/24"]),
        device(12, "tap0", Some("tun"), &[]),
        device(13, "docker0", Some("bridge"), &["172.17.0.1/16"]),
        device(14, "flannel.1", Some("vxlan"), &[]),
    ];
    let choices = choose_devices(&node(devices), &DeviceOptions::default());
    let of = |behind| {
        let choices = choices.iter().filter(|choice| choice.behind == behind);
        choices.map(|choice| choice.name.as_str()).collect::<Vec<_>>()
    };
    assert_eq!(of(Behind::OtherNodes), ["eth0", "flannel.1"]);
    assert_eq!(of(Behind::LocalPods), ["veth1", "cni0", "veth2", "veth3", "tap0"]);
    assert_eq!(
        of(Behind::Unknown),
        ["weave", "vethwe-bridge", "cilium_host", "antrea-gw0", "docker0"],
        "a device of a CNI, and a bridge without ports"
    );
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
            "cilium_net: nothing: veth with both ends in this network namespace",
            "cilium_host: nothing: veth with both ends in this network namespace",
            "cilium_vxlan: tc: vxlan tunnel: packets of other nodes arrive there",
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
            "eth0: nothing: port of bond0: its packets are handled there, or are for other hosts",
            "eth1: nothing: port of bond0: its packets are handled there, or are for other hosts",
            "bond0: tc: bond; XDP cannot tell its packets from those of its VLANs, so tc",
            "bond0.7: tc: vlan above bond0",
            "mac0: nothing: above bond0: its packets are handled there",
        ]
    );
    let without_vlan = |second| {
        let devices = devices(second).into_iter().filter(|device| device.name != "bond0.7");
        auto(devices.collect()).swap_remove(2)
    };
    assert_eq!(without_vlan("mlx5_core"), "bond0: XDP and tc: bond; all ports have native XDP");
    assert_eq!(
        without_vlan("e1000"),
        "bond0: tc: bond; not all ports are known for XDP with complete checksums, so tc"
    );
}

#[test]
fn a_vlan_or_macvlan_with_its_lower_device_in_another_namespace_is_a_nic() {
    let devices = vec![
        DeviceInfo { lower_elsewhere: true, ..device(2, "eth0", Some("macvlan"), &["192.0.2.7/24"]) },
        DeviceInfo { lower_elsewhere: true, ..device(3, "eth1", Some("vlan"), &["192.0.2.8/24"]) },
    ];
    assert_eq!(
        auto(devices),
        [
            "eth0: tc: macvlan of a device in another network namespace: NIC of this node",
            "eth1: tc: vlan of a device in another network namespace: NIC of this node",
        ]
    );
}

#[test]
fn a_bridge_with_an_uplink_is_attached_to() {
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
            "eth0: nothing: port of br0: its packets are handled there, or are for other hosts",
            "eth1: tc: NIC; XDP cannot tell its packets from those of its VLANs, so tc",
            "eth1.5: nothing: port of br5: its packets are handled there, or are for other hosts",
            "vethab: nothing: port of docker0: its packets are handled there, or are for other hosts",
            "flannel.1: tc: vxlan tunnel: packets of other nodes arrive there",
            "br0: tc: bridge with eth0 as a port",
            "docker0: nothing: bridge of pods, containers or virtual machines",
            "br5: tc: bridge with eth1.5 as a port",
            "br-overlay: tc: bridge with flannel.1 as a port",
            "br0.9: tc: vlan above br0",
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
            "tunl0: tc: ipip tunnel: packets of other nodes arrive there; no Ethernet header, so tc",
            "wg0: tc: wireguard tunnel: packets of other nodes arrive there; no Ethernet header, so tc",
            "flannel0: tc: tun tunnel: packets of other nodes arrive there; no Ethernet header, so tc",
            "tap0: nothing: tap: a virtual machine is behind it",
            "ppp0: tc: NIC; no Ethernet header, so tc",
        ]
    );
    let ethernet: Vec<_> = choose_devices(&node(devices), &DeviceOptions::default())
        .iter()
        .map(|choice| choice.ethernet)
        .collect();
    assert_eq!(ethernet, [false, false, false, true, false]);
}

#[test]
fn ports_of_devices_that_are_no_bonds() {
    let devices = vec![
        // Azure accelerated networking: the virtual function is a port of the synthetic device.
        DeviceInfo { driver: Some("hv_netvsc".into()), ..device(2, "eth0", None, &["10.0.0.4/24"]) },
        DeviceInfo { master: Some(2), driver: Some("mlx5_core".into()), ..device(3, "enP1s1", None, &[]) },
        device(4, "blue", Some("vrf"), &[]),
        DeviceInfo {
            master: Some(4),
            driver: Some("i40e".into()),
            ..device(5, "eth1", None, &["10.2.0.4/24"])
        },
        device(6, "ovs-system", Some("openvswitch"), &[]),
        DeviceInfo { master: Some(6), driver: Some("i40e".into()), ..device(7, "eth2", None, &[]) },
        DeviceInfo { master: Some(6), lower_elsewhere: true, ..device(8, "antrea-pod", Some("veth"), &[]) },
        device(9, "br-ex", Some("openvswitch"), &["192.0.2.7/24"]),
    ];
    assert_eq!(
        auto(devices),
        [
            "eth0: tc: NIC; driver hv_netvsc is not known for XDP with complete checksums, so tc",
            "enP1s1: nothing: port of eth0: its packets are handled there, or are for other hosts",
            "blue: nothing: vrf: no packets arrive there from outside",
            "eth1: XDP and tc: NIC; driver i40e",
            "ovs-system: nothing: internal port of Open vSwitch: its packets are handled at the NIC",
            "eth2: XDP and tc: NIC below Open vSwitch; driver i40e",
            "antrea-pod: nothing: port of Open vSwitch ovs-system",
            "br-ex: nothing: internal port of Open vSwitch: its packets are handled at the NIC",
        ]
    );
}

#[test]
fn patterns_select_exactly_the_devices_that_match() {
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
            "lo: nothing: loopback: socket programs serve local processes",
            "eth0: tc: matches eth?; unknown driver, so tc",
            "eth10: nothing: does not match --devices",
            "eth1: nothing: matches eth?, but is down",
            "docker0: tc: matches docker*",
        ]
    );
}

#[test]
fn devices_of_pods_are_selected_by_name() {
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
            "lo: nothing: loopback: socket programs serve local processes",
            "eth0: XDP and tc: NIC",
            "veth1: tc: matches veth* of --pod-interfaces",
            "veth2: nothing: matches veth* of --pod-interfaces, but is down",
            "cni0: nothing: bridge of pods, containers or virtual machines",
            "veth3: tc: matches veth* of --pod-interfaces",
            "tap0: tc: matches t* of --pod-interfaces",
            "tun0: tc: matches t* of --pod-interfaces",
            "other: nothing: veth without an address in a subnet: a pod is behind it",
        ]
    );
    let of_pods: Vec<_> = choose_devices(&node(devices.clone()), &options)
        .into_iter()
        .filter(|choice| choice.pod && choice.hooks != Hooks::None)
        .map(|choice| (choice.index, choice.ethernet))
        .collect();
    assert_eq!(of_pods, [(3, true), (6, true), (7, true), (8, false)]);

    options.pods = pods(&["*"]);
    options.patterns = DevicePatterns::Globs(vec!["eth*".into()]);
    let decided = decide(devices, &options);
    assert_eq!(decided[0], "lo: nothing: loopback: socket programs serve local processes");
    assert_eq!(
        decided[1],
        "eth0: tc: matches * of --pod-interfaces, which overrides eth* of --devices; WARNING: other machines \
         seem to be behind it (NIC), but all its packets are treated as packets of pods of this node"
    );
    assert_eq!(
        decided[4],
        "cni0: tc: matches * of --pod-interfaces; WARNING: replies between pods do not pass a bridge \
         device, use the names of its ports"
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
        choose_devices(&node(devices.clone()), &options)
            .into_iter()
            .map(|choice| choice.hooks)
            .collect::<Vec<_>>()
    };
    use Hooks::{Tc, XdpAndTc};
    assert_eq!(programs(AttachMode::Auto), [XdpAndTc, Tc, Tc, Tc]);
    assert_eq!(programs(AttachMode::Xdp), [XdpAndTc, XdpAndTc, Tc, Tc]);
    assert_eq!(programs(AttachMode::Tc), [Tc, Tc, Tc, Tc]);
    let options = DeviceOptions { mode: AttachMode::Xdp, ..DeviceOptions::default() };
    assert!(decide(devices, &options)[1].contains("WARNING"));
}

#[test]
fn a_cycle_of_lower_devices_ends_the_recursion() {
    let devices = vec![
        DeviceInfo { lower: Some(3), ..device(2, "a", Some("vlan"), &[]) },
        DeviceInfo { lower: Some(2), ..device(3, "b", Some("vlan"), &[]) },
    ];
    assert_eq!(auto(devices).len(), 2);
}
