//! Packets of pods whose sockets are not translated: virtual machines, and pods of a service mesh.
//! A virtual machine is a process in the pod's network namespace, but outside the cgroups of the
//! agents. The packets are translated at the node's end of the pod's veth pair. The endpoint sees
//! the pod's address, also on another node.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use lb_testbed::host::{Datagrams, Host};
use lb_testbed::programs::features;
use lb_testbed::{Family, kernel};
use serde_json::json;

use crate::check::{answered, answered_by, eventually, refused, transferred, unanswered};
use crate::world::{Published, To, World};

const DATAGRAM: Datagrams = Datagrams { connected: true, count: 1, size: 32, dont_fragment: false };

/// Sends datagrams of several sizes from a connected and an unconnected socket. Those of 4000 bytes
/// are sent as fragments.
fn send_all_kinds(
    client: &Host,
    service: &Published,
    family: Family,
    pods: &[usize],
    seen: &[IpAddr],
) -> Result<()> {
    for (connected, size) in [(true, 32), (false, 32), (false, 1300), (false, 4000)] {
        let datagrams = Datagrams { connected, count: 4, size, dont_fragment: false };
        answered(&client.send_datagrams(service.cluster_ip(family, To::Udp), datagrams)?, pods, seen)?;
    }
    Ok(())
}

pub fn to_cluster_ip(world: &mut World, family: Family) -> Result<()> {
    let vm = world.topology.virtual_machine(2)?;
    for endpoint in [1, 3] {
        let service = world.publish(&[endpoint])?;
        let exchanges = vm.get(&[service.cluster_ip(family, To::Http)], 5)?;
        answered(&exchanges, &[endpoint], &[vm.address(family)])?;
        send_all_kinds(&vm, &service, family, &[endpoint], &[vm.address(family)])?;
    }
    Ok(())
}

/// Packets to a nodePort of the pod's own node are translated at the pod's device. Packets to a
/// nodePort of the other node are translated there.
pub fn to_node_port(world: &mut World, family: Family) -> Result<()> {
    let vm = world.topology.virtual_machine(2)?;
    for endpoint in [1, 3] {
        let service = world.publish(&[endpoint])?;
        let own = service.node_port(world.node(0), family, To::Http);
        answered(&vm.get(&[own], 5)?, &[endpoint], &[vm.address(family)])?;
        let remote = service.node_port(world.node(1), family, To::Http);
        let mut seen = vec![vm.address(family)];
        seen.extend(world.node(1).addresses());
        answered(&vm.get(&[remote], 5)?, &[endpoint], &seen)?;
    }
    Ok(())
}

pub fn to_load_balancer(world: &mut World, family: Family) -> Result<()> {
    let vm = world.topology.virtual_machine(2)?;
    for endpoint in [1, 3] {
        let service = world.publish(&[endpoint])?;
        let address = match family {
            Family::V4 => format!("203.0.113.{endpoint}"),
            Family::V6 => format!("2001:db8:113::{endpoint}"),
        };
        let mut objects = service.service.with_endpoints(&[world.pod(endpoint)]);
        objects[0]["spec"]["type"] = "LoadBalancer".into();
        objects[0]["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": address }] } });
        world.write(&service, &objects)?;
        let target = SocketAddr::new(address.parse()?, service.cluster_ip(family, To::Http).port());
        eventually(|| answered(&vm.get(&[target], 5)?, &[endpoint], &[vm.address(family)]))?;
    }
    Ok(())
}

/// A pod that is its own endpoint sees an address of the node. It would answer its own address
/// directly.
pub fn to_itself(world: &mut World, family: Family) -> Result<()> {
    let vm = world.topology.virtual_machine(1)?;
    let service = world.publish(&[1])?;
    let node = world.node(0);
    answered(&vm.get(&[service.cluster_ip(family, To::Http)], 5)?, &[1], &node.addresses())?;
    answered(&vm.get(&[service.node_port(node, family, To::Http)], 5)?, &[1], &node.addresses())?;
    send_all_kinds(&vm, &service, family, &[1], &node.addresses())
}

/// Transfers with segments larger than the MTU (GSO), in both directions.
pub fn transfers(world: &mut World, family: Family) -> Result<()> {
    const BYTES: u64 = 8 << 20;
    for (client, endpoint) in [(2, 1), (2, 3), (1, 1)] {
        let vm = world.topology.virtual_machine(client)?;
        let service = world.publish(&[endpoint])?;
        transferred(&vm.transfer(service.cluster_ip(family, To::Transfer), BYTES)?, BYTES)?;
    }
    Ok(())
}

pub fn refused_without_endpoint(world: &mut World, family: Family) -> Result<()> {
    let vm = world.topology.virtual_machine(2)?;
    let service = world.publish(&[1])?;
    answered_by(&vm.send_datagrams(service.cluster_ip(family, To::Udp), DATAGRAM)?, &[1])?;
    world.set_endpoints(&service, &[])?;
    eventually(|| refused(&vm.send_datagrams(service.cluster_ip(family, To::Udp), DATAGRAM)?))
}

/// The programs are also attached to the device of the endpoint. Its replies reach clients outside
/// and pods on the other node.
pub fn serves(world: &mut World, family: Family) -> Result<()> {
    let service = world.publish(&[1])?;
    let client = world.client();
    let exchanges = client.get(&[service.node_port(world.node(0), family, To::Http)], 5)?;
    answered(&exchanges, &[1], &[client.address(family)])?;
    let exchanges = client.get(&[service.node_port(world.node(1), family, To::Http)], 5)?;
    answered(&exchanges, &[1], &world.node(1).addresses())?;
    let vm = world.topology.virtual_machine(4)?;
    let exchanges = vm.get(&[service.cluster_ip(family, To::Http)], 5)?;
    answered(&exchanges, &[1], &[vm.address(family)])
}

/// The calls of a process are translated only at the socket, although programs are attached to the
/// pod's device, too.
pub fn vm_and_process(world: &mut World, family: Family) -> Result<()> {
    let service = world.publish(&[1, 3])?;
    let target = service.cluster_ip(family, To::Http);
    let address = world.pod(2).host.address(family);
    let mut process = world.pod(2).host.hold_http(target)?;
    answered(&[process.request()?], &[1, 3], &[address])?;
    ensure!(world.flows(address, target)? == 0, "a connection of a socket was also translated as packets");
    let mut vm = world.topology.virtual_machine(2)?.hold_http(target)?;
    answered(&[vm.request()?], &[1, 3], &[address])?;
    ensure!(world.flows(address, target)? == 1, "the virtual machine has no flow");
    Ok(())
}

pub fn appears_later(world: &mut World, family: Family) -> Result<()> {
    let service = world.publish(&[1, 3])?;
    let vm = world.topology.virtual_machine(2)?;
    let target = service.cluster_ip(family, To::Http);
    answered_by(&vm.get(&[target], 2)?, &[1, 3])?;
    world.topology.unplug(2)?;
    unanswered(&vm.get(&[target], 1)?)?;
    world.topology.plug_in(2)?;
    eventually(|| answered(&vm.get(&[target], 5)?, &[1, 3], &[vm.address(family)]))
}

/// Two pods are ports of a bridge, as with most CNIs. The endpoint's reply passes the bridge, but
/// not the node's IP stack. It is translated where it leaves the bridge, at the client's port.
pub fn on_a_bridge(world: &mut World) -> Result<()> {
    let bridge = "link add cni0 type bridge mcast_snooping 0\n\
                  address add 10.244.1.1/24 dev cni0\n\
                  address add fd00:244:1::1/64 dev cni0 nodad\n\
                  link set cni0 up\n";
    world.node(0).host.place.ip(bridge)?;
    for number in [1, 2] {
        world.topology.unplug(number)?;
        let pod = world.pod(number);
        world.node(0).host.place.ip(&format!(
            "link add {device} master cni0 type veth peer name eth0 netns {}\nlink set {device} up\n",
            pod.host.place.netns(),
            device = pod.device()
        ))?;
        pod.host.place.ip(&format!(
            "link set eth0 up\n\
             address add {}/24 dev eth0\n\
             address add {}/64 dev eth0 nodad\n\
             route add default via 10.244.1.1\n\
             route add default via fd00:244:1::1\n",
            pod.host.v4, pod.host.v6
        ))?;
    }
    let vm = world.topology.virtual_machine(2)?;
    let neighbour = world.publish(&[1])?;
    let remote = world.publish(&[3])?;
    let itself = world.publish(&[2])?;
    for family in Family::BOTH {
        let own = [vm.address(family)];
        let http = |service: &Published| service.cluster_ip(family, To::Http);
        // The agent may not have attached to the new devices yet.
        eventually(|| answered(&vm.get(&[http(&neighbour)], 5)?, &[1], &own))?;
        answered(&vm.get(&[http(&remote)], 5)?, &[3], &own)?;
        answered(&vm.get(&[http(&itself)], 5)?, &[2], &world.node(0).addresses())?;
        send_all_kinds(&vm, &neighbour, family, &[1], &own)?;
        send_all_kinds(&vm, &remote, family, &[3], &own)?;
    }
    for number in [1, 2] {
        world.topology.unplug(number)?;
    }
    world.node(0).host.place.ip("link delete cni0\n")?;
    for number in [1, 2] {
        world.topology.plug_in(number)?;
    }
    Ok(())
}

/// The calls of a process in a pod are not translated, so the packets in its namespace have the
/// Service's address. A service mesh redirects by that address. Calls of the node's own processes
/// are translated at the socket: [`World::publish`] sends requests from them.
pub fn sockets_not_translated(world: &mut World, family: Family) -> Result<()> {
    let has_cookies = features()?.netns_cookie.is_some();
    kernel::needs(has_cookies, "no SO_NETNS_COOKIE (Linux 5.14): --socket-hooks=host serves no process")?;
    let service = world.publish(&[1, 3])?;
    let pod = &world.pod(2).host;
    let (target, address) = (service.cluster_ip(family, To::Http), pod.address(family));
    answered(&pod.get(&[target], 5)?, &[1, 3], &[address])?;
    send_all_kinds(pod, &service, family, &[1, 3], &[address])?;
    let mut held = pod.hold_http(target)?;
    answered(&[held.request()?], &[1, 3], &[address])?;
    ensure!(world.flows(address, target)? > 0, "the connection was translated at the socket");
    Ok(())
}

/// The cgroup programs of the previous agent are detached: the node's own processes reach no
/// Service.
pub fn no_sockets(world: &mut World, family: Family) -> Result<()> {
    let service = world.new_service();
    world.set_endpoints(&service, &[1, 3])?;
    let target = service.cluster_ip(family, To::Http);
    eventually(|| answered_by(&world.pod(2).host.get(&[target], 5)?, &[1, 3]))?;
    unanswered(&world.node(0).host.get(&[target], 1)?)
}
