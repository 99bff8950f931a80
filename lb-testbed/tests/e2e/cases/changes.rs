//! Services and endpoints are added, changed and removed while traffic flows.

use anyhow::{Result, ensure};
use lb_testbed::Family;
use lb_testbed::host::{Datagrams, HTTP_PORT, LoadKind, UDP_PORT};
use lb_testbed::manifests::ServicePort;
use lb_testbed::programs::features;
use lb_testbed::report::FailureKind;

use crate::check::{answered_by, eventually, failed_as, refused, spread_over, unanswered, without_failure};
use crate::world::{To, World};

const DATAGRAM: Datagrams = Datagrams { connected: true, count: 1, size: 32, dont_fragment: false };

/// Two Services share an address, a port number and a nodePort number: one with TCP, one with UDP.
pub fn one_address_two_protocols(world: &mut World, family: Family) -> Result<()> {
    let mut tcp = world.new_service();
    let mut udp = world.new_service();
    udp.service.cluster_ips = tcp.service.cluster_ips.clone();
    let target = tcp.cluster_ip(family, To::Http);
    let outside = tcp.node_port(world.node(0), family, To::Http);
    tcp.service.ports = vec![ServicePort::tcp("tcp", target.port(), HTTP_PORT).node_port(outside.port())];
    udp.service.ports = vec![ServicePort::udp("udp", target.port(), UDP_PORT).node_port(outside.port())];
    world.set_endpoints(&tcp, &[1])?;
    world.set_endpoints(&udp, &[3])?;
    for (client, address) in [(&world.pod(2).host, target), (world.client(), outside)] {
        eventually(|| answered_by(&client.get(&[address], 5)?, &[1]))?;
        eventually(|| answered_by(&client.send_datagrams(address, DATAGRAM)?, &[3]))?;
    }
    Ok(())
}

pub fn no_endpoint_is_refused(world: &mut World, family: Family) -> Result<()> {
    let service = world.publish(&[1])?;
    world.set_endpoints(&service, &[])?;
    let chosen = features()?.set_retval;
    let refusal = if chosen { FailureKind::Refused } else { FailureKind::NotPermitted };
    for client in [&world.pod(2).host, &world.node(0).host] {
        let http = service.cluster_ip(family, To::Http);
        eventually(|| failed_as(&client.get(&[http], 1)?, refusal))?;
        let udp = service.cluster_ip(family, To::Udp);
        eventually(|| failed_as(&client.send_datagrams(udp, DATAGRAM)?, refusal))?;
    }
    Ok(())
}

pub fn endpoint_added(world: &mut World, family: Family) -> Result<()> {
    let service = world.publish(&[1])?;
    let (inside, outside) =
        (service.cluster_ip(family, To::Http), service.node_port(world.node(0), family, To::Http));
    answered_by(&world.client().get(&[outside], 10)?, &[1])?;
    world.set_endpoints(&service, &[1, 3])?;
    eventually(|| spread_over(&world.pod(2).host.get(&[inside], 40)?, &[1, 3]))?;
    eventually(|| spread_over(&world.client().get(&[outside], 40)?, &[1, 3]))
}

/// New requests go to the remaining endpoints. Open connections keep the removed endpoint. A UDP
/// socket moves to another endpoint.
pub fn endpoint_removed_under_load(world: &mut World, family: Family) -> Result<()> {
    let service = world.publish(&[1, 3, 4])?;
    let inside = |to| service.cluster_ip(family, to);
    let outside = |to| service.node_port(world.node(0), family, to);
    let (pod, client) = (&world.pod(2).host, world.client());
    let loads = [
        ("pod, new connections", pod.start_load(LoadKind::NewConnections, inside(To::Http), 100)?),
        ("pod, one connection", pod.start_load(LoadKind::OneConnection, inside(To::Http), 100)?),
        ("outside, new connections", client.start_load(LoadKind::NewConnections, outside(To::Http), 100)?),
        ("outside, one connection", client.start_load(LoadKind::OneConnection, outside(To::Http), 100)?),
        ("outside, new sockets", client.start_load(LoadKind::NewSockets, outside(To::Udp), 100)?),
        ("outside, one socket", client.start_load(LoadKind::OneSocket, outside(To::Udp), 100)?),
    ];
    let (service, inside, outside) = (service.clone(), inside(To::Http), outside(To::Http));
    world.set_endpoints(&service, &[1, 4])?;
    let (pod, client) = (&world.pod(2).host, world.client());
    // The removed endpoint would get about a third of the requests. By chance it gets none of 40 in
    // one of ten million runs.
    eventually(|| spread_over(&pod.get(&[inside], 40)?, &[1, 4]))?;
    eventually(|| spread_over(&client.get(&[outside], 40)?, &[1, 4]))?;
    for (what, load) in loads {
        without_failure(what, &load.finish()?)?;
    }
    Ok(())
}

pub fn service_deleted(world: &mut World, family: Family) -> Result<()> {
    let gone = world.publish(&[1, 3])?;
    let stays = world.publish(&[1, 3])?;
    let outside = gone.node_port(world.node(0), family, To::Http);
    answered_by(&world.client().get(&[outside], 3)?, &[1, 3])?;
    world.delete(&gone)?;
    // No process listens on the port, so the kernel of the node refuses the connection.
    eventually(|| refused(&world.client().get(&[outside], 1)?))?;
    for client in [&world.pod(2).host, &world.node(0).host] {
        eventually(|| unanswered(&client.get(&[gone.cluster_ip(family, To::Http)], 1)?))?;
        let udp = gone.cluster_ip(family, To::Udp);
        eventually(|| unanswered(&client.send_datagrams(udp, DATAGRAM)?))?;
    }
    answered_by(&world.client().get(&[stays.node_port(world.node(0), family, To::Http)], 5)?, &[1, 3])?;
    answered_by(&world.pod(2).host.get(&[stays.cluster_ip(family, To::Http)], 5)?, &[1, 3])
}

/// A file that does not parse and an object with an invalid address are logged. All other objects
/// are served.
pub fn bad_manifest_affects_nothing_else(world: &mut World) -> Result<()> {
    let before = world.publish(&[1])?;
    world.topology.manifests.write_text("broken.yaml", "kind: Service\nspec: [}\n")?;
    let mut impossible = world.new_service().service.object();
    impossible["spec"]["clusterIPs"] = serde_json::json!(["10.96.1.300"]);
    world.topology.manifests.write("impossible.yaml", &[impossible])?;
    let after = world.publish(&[3])?;
    let targets = [before.cluster_ip(Family::V4, To::Http), after.cluster_ip(Family::V6, To::Http)];
    answered_by(&world.pod(2).host.get(&targets, 3)?, &[1, 3])?;
    let logged = |text: &str| -> Result<()> {
        let log = world.agent(0)?.log()?;
        ensure!(log.contains(text), "the log does not contain {text}");
        Ok(())
    };
    eventually(|| logged("broken.yaml"))?;
    eventually(|| logged("10.96.1.300"))?;
    world.topology.manifests.remove("broken.yaml")?;
    world.topology.manifests.remove("impossible.yaml")
}
