//! UDP: connected and unconnected sockets, fragments, and a path with a smaller MTU than the
//! client's link.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use lb_testbed::Family;
use lb_testbed::Underlay;
use lb_testbed::host::{Datagrams, Host, Listen, UDP_PORT};
use lb_testbed::kernel::lacks;
use lb_testbed::report::FailureKind;
use lb_testbed::topology::OVERLAY_MTU;

use crate::check::{answered, failed_as, transferred};
use crate::world::{To, World};

/// Sends datagrams of each size from a connected and from an unconnected socket. The first shows
/// its peer with `getpeername`, the second with `recvfrom`.
fn send_from_both_sockets(
    client: &Host,
    target: SocketAddr,
    sizes: &[usize],
    pods: &[usize],
    seen: &[IpAddr],
) -> Result<()> {
    for connected in [true, false] {
        for &size in sizes {
            let datagrams = Datagrams { connected, count: 5, size, dont_fragment: false };
            let what = || format!("{} from {}, {datagrams:?}", target, client.name);
            answered(&client.send_datagrams(target, datagrams)?, pods, seen).with_context(what)?;
        }
    }
    Ok(())
}

pub fn pod_to_cluster_ip(world: &mut World, family: Family) -> Result<()> {
    for endpoint in [1, 3] {
        let service = world.publish(&[endpoint])?;
        let pod = &world.pod(2).host;
        let target = service.cluster_ip(family, To::Udp);
        send_from_both_sockets(pod, target, &[32, 1300], &[endpoint], &[pod.address(family)])?;
    }
    Ok(())
}

pub fn host_to_cluster_ip(world: &mut World, family: Family) -> Result<()> {
    for endpoint in [1, 3] {
        let service = world.publish(&[endpoint])?;
        let node = world.node(0);
        let target = service.cluster_ip(family, To::Udp);
        send_from_both_sockets(&node.host, target, &[32, 1300], &[endpoint], &node.addresses())?;
    }
    Ok(())
}

pub fn outside_to_node_port(world: &mut World, family: Family) -> Result<()> {
    let client = world.client().clone();
    // Without an overlay, datagrams may fill the Ethernet MTU exactly.
    let full = match (world.topology.underlay, family) {
        (Underlay::Vxlan, _) => 1300,
        (_, Family::V4) => 1500 - 20 - 8,
        (_, Family::V6) => 1500 - 40 - 8,
    };
    let service = world.publish(&[1])?;
    let local = service.node_port(world.node(0), family, To::Udp);
    send_from_both_sockets(&client, local, &[32, full], &[1], &[client.address(family)])?;
    let remote = service.node_port(world.node(1), family, To::Udp);
    send_from_both_sockets(&client, remote, &[32, full], &[1], &world.node(1).addresses())
}

/// Only the first fragment has ports. The other fragments go to the same endpoint.
pub fn fragments(world: &mut World, family: Family) -> Result<()> {
    let client = world.client().clone();
    let service = world.publish(&[1])?;
    let local = service.node_port(world.node(0), family, To::Udp);
    send_from_both_sockets(&client, local, &[4000], &[1], &[client.address(family)])?;
    let remote = service.node_port(world.node(1), family, To::Udp);
    send_from_both_sockets(&client, remote, &[4000], &[1], &world.node(1).addresses())
}

/// The overlay has a smaller MTU than the client's link. A larger datagram that must not be
/// fragmented is answered with "fragmentation needed" or "packet too big", which the client's
/// kernel reports as EMSGSIZE. The largest allowed datagram passes.
pub fn path_mtu_is_reported(world: &mut World, family: Family) -> Result<()> {
    let service = world.publish(&[3])?;
    let target = service.node_port(world.node(0), family, To::Udp);
    let send = |size| {
        let datagrams = Datagrams { connected: true, count: 1, size, dont_fragment: true };
        world.client().send_datagrams(target, datagrams)
    };
    let headers = match family {
        Family::V4 => 20 + 8,
        Family::V6 => 40 + 8,
    };
    let overlay = OVERLAY_MTU as usize;
    failed_as(&send(overlay - headers + 1)?, FailureKind::TooBig)?;
    answered(&send(overlay - headers)?, &[3], &world.node(0).addresses())
}

/// The client sets no "don't fragment" in its packets, and they exceed the MTU of the path to the
/// endpoint: that of the overlay, or that of the node's route. The node fragments the packets:
/// single datagrams, fragments of a datagram, and segments of TCP that GRO has merged.
pub fn larger_than_the_path(world: &mut World) -> Result<()> {
    const LOCKED_MTU: u32 = 1290;
    const BYTES: u64 = 2 << 20;
    let service = world.publish(&[3])?;
    let (node, pod) = (&world.node(0).host.place, world.pod(3).host.v4);
    let is_routed = world.topology.underlay == Underlay::Routed;
    if is_routed {
        let other = world.node(1).host.v4;
        node.ip(&format!("route add {pod}/32 via {other} dev eth0 mtu lock {LOCKED_MTU}\n"))?;
    }
    world.client().place.sysctl(&["net/ipv4/ip_no_pmtu_disc=1"])?;
    let at = |to| service.node_port(world.node(0), Family::V4, to);
    let sent = send_from_both_sockets(
        world.client(),
        at(To::Udp),
        &[32, 1472, 4000],
        &[3],
        &world.node(0).addresses(),
    );
    let transfer = world.client().transfer(at(To::Transfer), BYTES);
    world.client().place.sysctl(&["net/ipv4/ip_no_pmtu_disc=0"])?;
    if is_routed {
        node.ip(&format!("route del {pod}/32 via {} dev eth0\n", world.node(1).host.v4))?;
    }
    sent?;
    transferred(&transfer?, BYTES)
}

/// The node masquerades the datagrams of a pod with a port that is a nodePort of UDP. The answers
/// reach the pod, and other clients reach the Service.
pub fn masqueraded_with_a_node_port(world: &mut World, family: Family) -> Result<()> {
    let service = world.publish(&[3])?;
    let target = service.node_port(world.node(0), family, To::Udp);
    let client = world.client().clone();
    let _server = client.serve_at("client", &Listen { udp: vec![UDP_PORT], ..Listen::default() })?;
    let (node, port) = (&world.node(0).host.place, target.port());
    let rules = format!(
        "add table inet cni
         add chain inet cni out {{ type nat hook postrouting priority srcnat; }}
         add rule inet cni out oifname eth0 udp dport {UDP_PORT} masquerade to :{port}"
    );
    node.run("nft", [rules]).map_err(|error| lacks(error, "masquerading (CONFIG_NFT_MASQ)"))?;
    let datagrams = Datagrams { connected: true, count: 3, size: 32, dont_fragment: false };
    let of_pod = world.pod(1).host.send_datagrams(client.at(family, UDP_PORT), datagrams);
    let of_client = client.send_datagrams(target, datagrams);
    node.run("nft", ["delete table inet cni"])?;
    for exchange in of_pod? {
        let Ok(answer) = exchange.result else { bail!("the pod got no answer: {:?}", exchange.result) };
        ensure!(answer.greeting.pod == "client", "{} answered the pod", answer.greeting.pod);
        ensure!(answer.greeting.client.port() == port, "the pod was not masqueraded with {port}");
    }
    answered(&of_client?, &[3], &world.node(0).addresses())
}
