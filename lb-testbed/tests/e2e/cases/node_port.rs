//! TCP to NodePorts. A local endpoint sees the client's address. An endpoint on another node sees
//! an address of the entry node, so that its reply returns there.

use anyhow::Result;
use lb_testbed::Family;

use crate::check::answered;
use crate::world::{To, World};

pub fn outside_local(world: &mut World, family: Family) -> Result<()> {
    for (node, pod) in [(0, 1), (1, 3)] {
        let service = world.publish(&[pod])?;
        let client = world.client();
        let exchanges = client.get(&[service.node_port(world.node(node), family, To::Http)], 5)?;
        answered(&exchanges, &[pod], &[client.address(family)])?;
    }
    Ok(())
}

pub fn outside_remote(world: &mut World, family: Family) -> Result<()> {
    for (node, pod) in [(0, 3), (1, 1)] {
        let service = world.publish(&[pod])?;
        let node = world.node(node);
        let exchanges = world.client().get(&[service.node_port(node, family, To::Http)], 5)?;
        answered(&exchanges, &[pod], &node.addresses())?;
    }
    Ok(())
}

/// An endpoint without nodeName that runs on the node is delivered as a local one: it sees the
/// client's address, and its reply is translated.
pub fn outside_local_without_node_name(world: &mut World, family: Family) -> Result<()> {
    for (node, pod) in [(0, 1), (1, 3)] {
        let service = world.new_service();
        let mut objects = service.service.with_endpoints(&[world.pod(pod)]);
        for endpoint in objects.iter_mut().filter_map(|object| object["endpoints"].as_array_mut()).flatten() {
            endpoint.as_object_mut().and_then(|endpoint| endpoint.remove("nodeName"));
        }
        world.write(&service, &objects)?;
        world.wait_until_served(&service, &[pod])?;
        let client = world.client();
        let exchanges = client.get(&[service.node_port(world.node(node), family, To::Http)], 5)?;
        answered(&exchanges, &[pod], &[client.address(family)])?;
    }
    Ok(())
}

/// A pod's request to its own node is translated at the socket, a request to the other node as
/// packets. In both cases endpoints on both nodes answer. The reply arrives even if the endpoint
/// could send it to the pod directly.
pub fn pod(world: &mut World, family: Family) -> Result<()> {
    let client = 2;
    for endpoint in [1, 3] {
        let service = world.publish(&[endpoint])?;
        let pod = &world.pod(client).host;
        for node in &world.topology.nodes {
            let mut seen = vec![pod.address(family)];
            seen.extend(node.addresses());
            let exchanges = pod.get(&[service.node_port(node, family, To::Http)], 5)?;
            answered(&exchanges, &[endpoint], &seen)?;
        }
    }
    Ok(())
}

/// A process of a node sends requests to its own node and to the other node.
pub fn host(world: &mut World, family: Family) -> Result<()> {
    for endpoint in [1, 3] {
        let service = world.publish(&[endpoint])?;
        let client = world.node(0);
        for node in &world.topology.nodes {
            let seen: Vec<_> = client.addresses().into_iter().chain(node.addresses()).collect();
            let exchanges = client.host.get(&[service.node_port(node, family, To::Http)], 5)?;
            answered(&exchanges, &[endpoint], &seen)?;
        }
    }
    Ok(())
}
