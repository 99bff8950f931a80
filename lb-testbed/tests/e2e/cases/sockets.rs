//! Sockets: the agent closes sockets of removed endpoints, NodePorts cannot be bound, and a map has
//! the addresses of each network namespace.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use lb_testbed::Family;
use lb_testbed::host::{HTTP_PORT, Host, PreparedSocket, UDP_PORT};
use lb_testbed::report::FailureKind;

use crate::check::{answered_by, eventually, failed_as, unanswered};
use crate::world::{To, World};

/// A connected UDP socket does not notice that its endpoint was removed. The agent closes it, in
/// pods and on the node, so that the application connects again. Other sockets with the same peer
/// address stay open.
pub fn udp_sockets_of_a_removed_endpoint_are_closed(world: &mut World, family: Family) -> Result<()> {
    let service = world.publish(&[3])?;
    let unchanged = world.publish(&[3])?;
    let target = service.cluster_ip(family, To::Udp);
    let mut affected = vec![world.pod(2).host.hold_udp(target)?, world.node(0).host.hold_udp(target)?];
    if let IpAddr::V4(ip) = target.ip() {
        // An IPv4 connection of an IPv6 socket.
        affected.push(world.pod(2).host.hold_udp((ip.to_ipv6_mapped(), target.port()).into())?);
    }
    let mut unaffected = [
        world.pod(2).host.hold_udp(world.pod(3).host.at(family, UDP_PORT))?,
        world.pod(2).host.hold_udp(unchanged.cluster_ip(family, To::Udp))?,
        world.pod(1).host.hold_http(service.cluster_ip(family, To::Http))?,
    ];
    for held in affected.iter_mut().chain(&mut unaffected) {
        answered_by(&[held.request()?], &[3])?;
    }

    world.set_endpoints(&service, &[1])?;
    for held in &mut affected {
        eventually(|| failed_as(&[held.request()?], FailureKind::Aborted))?;
        answered_by(&[held.reconnect()?], &[1])?;
        answered_by(&[held.request()?], &[1])?;
    }
    for held in &mut unaffected {
        answered_by(&[held.request()?], &[3])?;
    }

    world.delete(&service)?;
    for held in &mut affected {
        eventually(|| failed_as(&[held.request()?], FailureKind::Aborted))?;
    }
    for held in &mut unaffected[..2] {
        answered_by(&[held.request()?], &[3])?;
    }
    Ok(())
}

/// The endpoint is removed while no agent runs. With `--terminate-sockets=all`, the next agent also
/// closes TCP sockets.
pub fn sockets_are_closed_by_the_next_agent(world: &mut World) -> Result<()> {
    let service = world.publish(&[3])?;
    let host = world.pod(2).host.clone();
    let mut udp = host.hold_udp(service.cluster_ip(Family::V4, To::Udp))?;
    let mut tcp = host.hold_http(service.cluster_ip(Family::V6, To::Http))?;
    let mut direct = host.hold_http(world.pod(3).host.at(Family::V6, HTTP_PORT))?;
    world.take_agent(0)?.stop()?;
    world.set_endpoints(&service, &[1])?;
    for held in [&mut udp, &mut tcp, &mut direct] {
        answered_by(&[held.request()?], &[3])?;
    }
    world.start_agent_with(0, &["--terminate-sockets=all"])?;
    eventually(|| failed_as(&[udp.request()?], FailureKind::Aborted))?;
    eventually(|| unanswered(&[tcp.request()?]))?;
    answered_by(&[direct.request()?], &[3])?;
    answered_by(&[udp.reconnect()?], &[1])?;
    world.take_agent(0)?.stop()?;
    world.start_agent(0)
}

/// Returns which of these addresses cannot be bound on a host. Returns an error if the reason is
/// not EADDRINUSE.
fn refused(host: &Host, udp: bool, addresses: &[SocketAddr]) -> Result<BTreeSet<SocketAddr>> {
    let mut refused = BTreeSet::new();
    for bound in host.bind(udp, addresses)? {
        ensure!([None, Some(libc::EADDRINUSE)].contains(&bound.errno), "on {}: {bound:?}", host.name);
        refused.extend(bound.errno.map(|_| bound.address));
    }
    Ok(refused)
}

pub fn node_ports_cannot_be_bound(world: &mut World) -> Result<()> {
    let service = world.publish(&[1, 3])?;
    let node = world.node(0).host.clone();
    let port = service.node_port(world.node(0), Family::V4, To::Http).port();
    let at = |ip: IpAddr| SocketAddr::new(ip, port);
    let everywhere = [
        at(Ipv4Addr::UNSPECIFIED.into()),
        at(Ipv6Addr::UNSPECIFIED.into()),
        at(Ipv4Addr::LOCALHOST.into()),
        at(Ipv6Addr::LOCALHOST.into()),
        at(node.v4.into()),
        at(node.v6.into()),
        at(node.v4.to_ipv6_mapped().into()),
    ];
    let all = BTreeSet::from(everywhere);
    let none = BTreeSet::new();
    ensure!(refused(&node, false, &everywhere)? == all, "the nodePort can be bound on the node");
    ensure!(refused(&node, true, &everywhere)? == none, "another protocol is refused");
    let (pod, any) = (world.pod(1).host.clone(), everywhere[0]);
    ensure!(refused(&pod, false, &[any, at(pod.v4.into())])? == none, "a pod is refused");
    let free = (Ipv4Addr::UNSPECIFIED, 0).into();
    ensure!(refused(&node, false, &[free])? == none, "a port that the kernel chooses is refused");
    let udp = service.node_port(world.node(0), Family::V4, To::Udp).port();
    ensure!(
        refused(&node, true, &[(Ipv4Addr::UNSPECIFIED, udp).into()])?.len() == 1,
        "the nodePort can be bound with UDP"
    );

    world.take_agent(0)?.stop()?;
    ensure!(refused(&node, false, &everywhere)? == all, "the nodePort can be bound while no agent runs");
    world.start_agent_with(0, &["--protect-node-ports=false"])?;
    ensure!(refused(&node, false, &everywhere)? == none, "refused although the protection is off");
    world.take_agent(0)?.stop()?;
    world.start_agent(0)?;
    ensure!(
        refused(&node, false, &everywhere)? == all,
        "the nodePort can be bound after the protection is on again"
    );
    world.delete(&service)?;
    eventually(|| {
        ensure!(refused(&node, false, &everywhere)? == none, "still refused after the Service was deleted");
        Ok(())
    })
}

/// The programs need the source address of a call, which its socket does not have yet. So a map has
/// the addresses of each network namespace.
pub fn namespace_addresses_are_in_the_map(world: &mut World) -> Result<()> {
    let expected: BTreeSet<_> =
        [&world.pod(1).host, &world.pod(2).host, &world.node(0).host].map(|host| (host.v4, host.v6)).into();
    eventually(|| {
        let entries = world.dump(0, "NAMESPACES")?;
        let known: BTreeSet<_> = entries
            .iter()
            .map(|entry| {
                let bytes = |field: &str| -> Result<Vec<u8>> {
                    serde_json::from_value(entry["value"][field].clone()).with_context(|| format!("{entry}"))
                };
                let v4: [u8; 4] =
                    bytes("addr_v4")?.try_into().ok().context("addr_v4 does not have four bytes")?;
                let v6: [u8; 16] =
                    bytes("addr_v6")?.try_into().ok().context("addr_v6 does not have sixteen bytes")?;
                Ok((Ipv4Addr::from(v4), Ipv6Addr::from(v6)))
            })
            .collect::<Result<_>>()?;
        ensure!(known.is_superset(&expected), "the map has {known:?}, expected {expected:?}");
        Ok(())
    })
}

/// One unconnected socket sends requests to two Services that share an endpoint. Each answer shows
/// the Service of its request (kubernetes#90042).
pub fn one_socket_sends_to_two_services(world: &mut World, family: Family) -> Result<()> {
    let [first, second] =
        [world.publish(&[3])?, world.publish(&[3])?].map(|it| it.cluster_ip(family, To::Udp));
    let mut socket = world.pod(2).host.hold_unconnected(first)?;
    for target in [first, second, first, first, second, second, first] {
        let answer = socket.request_to(target)?;
        answered_by(std::slice::from_ref(&answer), &[3])?;
        let peer = answer.result.map(|answer| answer.peer);
        ensure!(peer.as_ref().is_ok_and(|peer| *peer == target), "asked {target}, answered by {peer:?}");
    }
    Ok(())
}

/// The entry by which an answer shows the Service is evicted. The next datagram makes it again.
pub fn an_evicted_reply_entry_is_made_again(world: &mut World, family: Family) -> Result<()> {
    let target = world.publish(&[3])?.cluster_ip(family, To::Udp);
    let mut socket = world.pod(2).host.hold_unconnected(target)?;
    answered_by(&[socket.request()?], &[3])?;
    let (map, addr) = match target.ip() {
        IpAddr::V4(ip) => ("SOCKET_PEERS_V4", ip.octets().to_vec()),
        IpAddr::V6(ip) => ("SOCKET_PEERS_V6", ip.octets().to_vec()),
    };
    ensure!(world.remove_entries(0, map, "addr", &addr)? > 0, "no entry shows the Service");
    let answer = socket.request()?;
    let peer = answer.result.map(|answer| answer.peer);
    ensure!(peer.as_ref().is_ok_and(|peer| *peer == target), "asked {target}, answered by {peer:?}");
    Ok(())
}

/// A socket that is not connected stays with an endpoint that terminates and still serves, as other
/// UDP flows do. New sockets get another endpoint.
pub fn udp_sockets_stay_with_a_terminating_endpoint(world: &mut World, family: Family) -> Result<()> {
    let published = world.publish(&[3])?;
    let target = published.cluster_ip(family, To::Udp);
    let mut socket = world.pod(2).host.hold_unconnected(target)?;
    answered_by(&[socket.request()?], &[3])?;
    let mut objects = published.service.with_endpoints(&[world.pod(3), world.pod(1)]);
    for slice in &mut objects[1..] {
        slice["endpoints"][0]["conditions"] =
            serde_json::json!({ "ready": false, "serving": true, "terminating": true });
    }
    world.write(&published, &objects)?;
    world.wait_until_served(&published, &[1])?;
    for _ in 0..10 {
        answered_by(&[socket.request()?], &[3])?;
    }
    // It does not serve any more.
    world.set_endpoints(&published, &[1])?;
    eventually(|| answered_by(&[socket.request()?], &[1]))
}

/// Sockets that an application sets up before it connects, in a pod and on the node. Each but
/// Multipath TCP is connected to the Service's address for the application: `getpeername` returns
/// it, and a second `connect` fails as it does without a load balancer.
pub fn prepared_sockets(world: &mut World, family: Family) -> Result<()> {
    let service = world.publish(&[1, 3])?;
    let other = world.publish(&[3])?;
    let targets = [
        service.cluster_ip(family, To::Http),
        service.node_port(world.node(0), family, To::Http),
        service.node_port(world.node(1), family, To::Http),
    ];
    let mut privileged = 900..1024;
    for host in [&world.pod(2).host, &world.node(0).host] {
        for target in targets {
            let source = |port| Some(host.at(family, port));
            let again = other.cluster_ip(family, To::Http);
            let sockets = [
                PreparedSocket { v6_only: family == Family::V6, ..Default::default() },
                PreparedSocket { source: source(0), ..Default::default() },
                PreparedSocket { source: source(privileged.next().context("a port")?), ..Default::default() },
                PreparedSocket { again: Some(again), ..Default::default() },
                PreparedSocket { again: Some(target), ..Default::default() },
            ];
            for socket in sockets {
                let mut held = host.hold_prepared(socket, target)?;
                answered_by(&[held.request()?, held.request()?], &[1, 3])
                    .with_context(|| format!("{} with {socket:?} to {target}", host.name))?;
            }
            let multipath = PreparedSocket { mptcp: true, ..Default::default() };
            let exchange = host.hold_prepared(multipath, target)?.request()?;
            // `connect` of a Multipath TCP socket is translated at its first subflow, a socket with
            // another cookie. `getpeername` therefore returns the endpoint's address. A nodePort of
            // another node is translated there.
            let endpoints = [1, 3].map(|pod| world.pod(pod).host.at(family, HTTP_PORT));
            let expected = if target == targets[2] { &[target][..] } else { &endpoints };
            let peer = exchange.result.as_ref().map(|answer| answer.peer);
            ensure!(peer.is_ok_and(|peer| expected.contains(&peer)), "{exchange:?}");
        }
    }
    Ok(())
}
