//! TCP to a ClusterIP from pods and nodes (translated at the socket) and from outside (translated
//! as packets).

use std::net::IpAddr;

use anyhow::Result;
use lb_testbed::Family;
use lb_testbed::host::{HTTP_PORT, Listen};
use lb_testbed::report::FailureKind;

use crate::check::{answered, answered_by, evenly_over, eventually, failed_as};
use crate::world::{To, World};

pub fn plain_traffic_is_untouched(world: &mut World, family: Family) -> Result<()> {
    let (here, there) = (&world.pod(1).host, &world.pod(3).host);
    let exchanges = here.get(&[there.at(family, HTTP_PORT)], 5)?;
    answered(&exchanges, &[3], &[here.address(family)])
}

pub fn pod_same_node(world: &mut World, family: Family) -> Result<()> {
    let service = world.publish(&[1])?;
    let pod = &world.pod(2).host;
    let exchanges = pod.get(&[service.cluster_ip(family, To::Http)], 5)?;
    answered(&exchanges, &[1], &[pod.address(family)])
}

pub fn pod_other_node(world: &mut World, family: Family) -> Result<()> {
    let service = world.publish(&[3])?;
    let pod = &world.pod(2).host;
    let exchanges = pod.get(&[service.cluster_ip(family, To::Http)], 5)?;
    answered(&exchanges, &[3], &[pod.address(family)])
}

pub fn pod_to_itself(world: &mut World, family: Family) -> Result<()> {
    let service = world.publish(&[1])?;
    let pod = &world.pod(1).host;
    let exchanges = pod.get(&[service.cluster_ip(family, To::Http)], 5)?;
    answered(&exchanges, &[1], &[pod.address(family)])
}

/// A program with an IPv6 socket connects to the IPv4-mapped address `::ffff:10.96.…`. Its socket
/// shows that address as the peer.
pub fn mapped_address(world: &mut World) -> Result<()> {
    let service = world.publish(&[1, 3])?;
    let mut target = service.cluster_ip(Family::V4, To::Http);
    if let std::net::IpAddr::V4(ip) = target.ip() {
        target.set_ip(ip.to_ipv6_mapped().into());
    }
    let pod = &world.pod(2).host;
    answered(&pod.get(&[target], 10)?, &[1, 3], &[pod.v4.into()])
}

pub fn host(world: &mut World, family: Family) -> Result<()> {
    for pod in [1, 3] {
        let service = world.publish(&[pod])?;
        let node = world.node(0);
        let exchanges = node.host.get(&[service.cluster_ip(family, To::Http)], 5)?;
        answered(&exchanges, &[pod], &node.addresses())?;
    }
    Ok(())
}

/// The client has a route to the Service network through the first node.
pub fn outside(world: &mut World, family: Family) -> Result<()> {
    let local = world.publish(&[1])?;
    let remote = world.publish(&[3])?;
    let client = world.client();
    let exchanges = client.get(&[local.cluster_ip(family, To::Http)], 5)?;
    answered(&exchanges, &[1], &[client.address(family)])?;
    let exchanges = client.get(&[remote.cluster_ip(family, To::Http)], 5)?;
    answered(&exchanges, &[3], &world.node(0).addresses())
}

/// The route to a Service moves to a node that does not know the connection. The client gets
/// a reset at once (calico#8882, kubernetes#113203).
pub fn a_moved_connection_is_reset(world: &mut World, family: Family) -> Result<()> {
    let target = world.publish(&[3])?.cluster_ip(family, To::Http);
    let mut held = world.client().hold_http(target)?;
    answered_by(&[held.request()?], &[3])?;
    let other = world.node(1).host.address(family);
    let place = &world.client().place;
    let prefix = if family == Family::V4 { 32 } else { 128 };
    place.ip(&format!("route add {}/{prefix} via {other}", target.ip()))?;
    let exchange = held.request()?;
    place.ip(&format!("route delete {}/{prefix}", target.ip()))?;
    failed_as(&[exchange], FailureKind::Reset)
}

/// A device of the node has the ClusterIP, and a process of the node serves it for the node and its
/// pods, as NodeLocal DNSCache does (calico#4689).
pub fn of_a_local_process(world: &mut World, family: Family) -> Result<()> {
    let service = world.publish(&[3])?;
    let target = service.cluster_ip(family, To::Http);
    let (pod, node) = (world.pod(2).host.clone(), world.node(0).host.clone());
    answered_by(&pod.get(&[target], 2)?, &[3])?;
    let mut local = node.clone();
    for family in Family::BOTH {
        let ip = service.cluster_ip(family, To::Http).ip();
        match ip {
            IpAddr::V4(ip) => local.v4 = ip,
            IpAddr::V6(ip) => local.v6 = ip,
        }
        // Without this the kernel hands the address to no server for a moment.
        let at_once = if ip.is_ipv6() { "nodad" } else { "" };
        node.place.ip(&format!("address add {ip} dev lo {at_once}"))?;
    }
    let server = local.serve_at("pod1", &Listen { http: vec![target.port()], ..Listen::default() });
    let served = [&pod, &node].map(|host| eventually(|| answered_by(&host.get(&[target], 2)?, &[1])));
    let started = server.map(drop);
    for family in Family::BOTH {
        node.place.ip(&format!("address delete {} dev lo", service.cluster_ip(family, To::Http).ip()))?;
    }
    started?;
    served.into_iter().collect::<Result<()>>()?;
    eventually(|| answered_by(&pod.get(&[target], 2)?, &[3]))
}

/// Each of three endpoints gets about 100 of 300 requests, with a standard deviation of 8. A
/// deviation of 60 occurs in one of ten million million runs. One endpoint is on the entry node and
/// two are on the other node: none is preferred.
pub fn requests_are_spread(world: &mut World, family: Family) -> Result<()> {
    let service = world.publish(&[1, 3, 4])?;
    let inside = service.cluster_ip(family, To::Http);
    evenly_over(&world.pod(2).host.get(&[inside], 300)?, &[1, 3, 4], 40..=160)?;
    let outside = service.node_port(world.node(0), family, To::Http);
    evenly_over(&world.client().get(&[outside], 300)?, &[1, 3, 4], 40..=160)
}
