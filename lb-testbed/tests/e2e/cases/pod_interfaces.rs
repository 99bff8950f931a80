//! Packets of pods whose sockets are not served: virtual machines (here a process of the pod's
//! network outside every agent's cgroup), and pods that are left to a service mesh. They are
//! translated at the node's end of the pod's device; the endpoint sees the pod's own address
//! wherever it is.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use lb_testbed::Family;
use lb_testbed::host::{Datagrams, Host};
use serde_json::{Value, json};

use crate::check::{answered, answered_by, eventually, refused, transferred, unanswered};
use crate::world::{Published, To, World};

const DATAGRAM: Datagrams = Datagrams { connected: true, count: 1, size: 32, dont_fragment: false };

/// Datagrams of one socket, connected or not; those of 4000 bytes are fragments.
fn ask_in_all_ways(
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
        ask_in_all_ways(&vm, &service, family, &[endpoint], &[vm.address(family)])?;
    }
    Ok(())
}

/// Its own node's nodePort is served at its device; another node's when the packet arrives there.
pub fn to_node_port(world: &mut World, family: Family) -> Result<()> {
    let vm = world.topology.virtual_machine(2)?;
    for endpoint in [1, 3] {
        let service = world.publish(&[endpoint])?;
        let own = service.node_port(world.node(0), family, To::Http);
        answered(&vm.get(&[own], 5)?, &[endpoint], &[vm.address(family)])?;
        let other = service.node_port(world.node(1), family, To::Http);
        let mut seen = vec![vm.address(family)];
        seen.extend(world.node(1).addresses());
        answered(&vm.get(&[other], 5)?, &[endpoint], &seen)?;
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

/// The endpoint sees an address of the node: it would answer its own one directly.
pub fn to_itself(world: &mut World, family: Family) -> Result<()> {
    let vm = world.topology.virtual_machine(1)?;
    let service = world.publish(&[1])?;
    let node = world.node(0);
    answered(&vm.get(&[service.cluster_ip(family, To::Http)], 5)?, &[1], &node.addresses())?;
    answered(&vm.get(&[service.node_port(node, family, To::Http)], 5)?, &[1], &node.addresses())?;
    ask_in_all_ways(&vm, &service, family, &[1], &node.addresses())
}

/// Segments larger than the MTU, in both directions.
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

/// The endpoint's device is one of pods: what it answers to clients outside and to pods elsewhere
/// finds its way.
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

/// The rows of `lb get flows` on the first node that are this client's.
fn flows_of(world: &World, client: IpAddr) -> Result<usize> {
    let rows: Vec<Value> = serde_json::from_str(&world.agent(0)?.lb(&["get", "flows", "-o", "json"])?)?;
    let of_client = |row: &&Value| {
        row["client"].as_str().and_then(|text| text.parse::<SocketAddr>().ok()).map(|at| at.ip())
            == Some(client)
    };
    Ok(rows.iter().filter(of_client).count())
}

/// A process whose socket is served is translated there, and only there, although its device is one
/// of pods.
pub fn beside_processes(world: &mut World, family: Family) -> Result<()> {
    let service = world.publish(&[1, 3])?;
    let target = service.cluster_ip(family, To::Http);
    let address = world.pod(2).host.address(family);
    let before = flows_of(world, address)?;
    answered(&world.pod(2).host.get(&[target], 5)?, &[1, 3], &[address])?;
    ensure!(flows_of(world, address)? <= before, "a socket's connection was translated by packets too");
    let vm = world.topology.virtual_machine(2)?;
    answered(&vm.get(&[target], 5)?, &[1, 3], &[address])?;
    ensure!(flows_of(world, address)? > before, "no flow of the virtual machine");
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

/// Two pods behind a bridge, as most CNIs have them: the endpoint answers on the bridge, not by way
/// of the node, and its answer is translated as it leaves the bridge by the client's port.
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
        // The agent may not have seen the ports yet.
        eventually(|| answered(&vm.get(&[http(&neighbour)], 5)?, &[1], &own))?;
        answered(&vm.get(&[http(&remote)], 5)?, &[3], &own)?;
        answered(&vm.get(&[http(&itself)], 5)?, &[2], &world.node(0).addresses())?;
        ask_in_all_ways(&vm, &neighbour, family, &[1], &own)?;
        ask_in_all_ways(&vm, &remote, family, &[3], &own)?;
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

/// A process in a pod sees the Service's address, in its own stack too: that is what a mesh
/// redirects by. The node's own processes are still served at their sockets (which is how
/// [`World::publish`] asks).
pub fn sockets_left_alone(world: &mut World, family: Family) -> Result<()> {
    let service = world.publish(&[1, 3])?;
    let pod = &world.pod(2).host;
    let (target, address) = (service.cluster_ip(family, To::Http), pod.address(family));
    let before = flows_of(world, address)?;
    answered(&pod.get(&[target], 5)?, &[1, 3], &[address])?;
    ask_in_all_ways(pod, &service, family, &[1, 3], &[address])?;
    ensure!(flows_of(world, address)? > before, "the connection was translated at the socket");
    Ok(())
}

/// The socket programs of the agent before are detached: the node's own processes reach no Service.
pub fn no_sockets(world: &mut World, family: Family) -> Result<()> {
    let service = world.new_service();
    world.set_endpoints(&service, &[1, 3])?;
    let target = service.cluster_ip(family, To::Http);
    eventually(|| answered_by(&world.pod(2).host.get(&[target], 5)?, &[1, 3]))?;
    unanswered(&world.node(0).host.get(&[target], 1)?)
}
