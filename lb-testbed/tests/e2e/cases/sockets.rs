//! What the agent does to sockets: those whose endpoint is gone are closed, NodePorts cannot be
//! bound, and the programs know the addresses of the network namespace a socket is in.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use lb_testbed::Family;
use lb_testbed::host::{HTTP_PORT, Host, UDP_PORT};
use lb_testbed::report::FailureKind;

use crate::check::{answered_by, eventually, failed_as, unanswered};
use crate::world::{To, World};

/// A connected UDP socket does not notice that its endpoint is gone: the agent closes it, in pods
/// and on the node, and the application connects again. Other sockets at the same endpoint's
/// address are not touched.
pub fn udp_sockets_leave_an_endpoint_that_is_gone(world: &mut World, family: Family) -> Result<()> {
    let service = world.publish(&[3])?;
    let other = world.publish(&[3])?;
    let target = service.cluster_ip(family, To::Udp);
    let mut concerned = vec![world.pod(2).host.hold_udp(target)?, world.node(0).host.hold_udp(target)?];
    if let IpAddr::V4(ip) = target.ip() {
        // An IPv4 connection of an IPv6 socket.
        concerned.push(world.pod(2).host.hold_udp((ip.to_ipv6_mapped(), target.port()).into())?);
    }
    let mut unconcerned = [
        world.pod(2).host.hold_udp(world.pod(3).host.at(family, UDP_PORT))?,
        world.pod(2).host.hold_udp(other.cluster_ip(family, To::Udp))?,
        world.pod(1).host.hold_http(service.cluster_ip(family, To::Http))?,
    ];
    for held in concerned.iter_mut().chain(&mut unconcerned) {
        answered_by(&[held.request()?], &[3])?;
    }

    world.set_endpoints(&service, &[1])?;
    for held in &mut concerned {
        eventually(|| failed_as(&[held.request()?], FailureKind::Aborted))?;
        answered_by(&[held.reconnect()?], &[1])?;
        answered_by(&[held.request()?], &[1])?;
    }
    for held in &mut unconcerned {
        answered_by(&[held.request()?], &[3])?;
    }

    world.delete(&service)?;
    for held in &mut concerned {
        eventually(|| failed_as(&[held.request()?], FailureKind::Aborted))?;
    }
    for held in &mut unconcerned[..2] {
        answered_by(&[held.request()?], &[3])?;
    }
    Ok(())
}

/// An endpoint that went while no agent ran; and TCP, when that is asked for.
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

/// Which of these addresses cannot be bound on a host, and that they are refused for the right
/// reason.
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
    ensure!(refused(&node, false, &everywhere)? == all, "on the node");
    ensure!(refused(&node, true, &everywhere)? == none, "another protocol");
    let (pod, any) = (world.pod(1).host.clone(), everywhere[0]);
    ensure!(refused(&pod, false, &[any, at(pod.v4.into())])? == none, "in a pod");
    let free = (Ipv4Addr::UNSPECIFIED, 0).into();
    ensure!(refused(&node, false, &[free])? == none, "a port that the kernel chooses");
    let udp = service.node_port(world.node(0), Family::V4, To::Udp).port();
    ensure!(refused(&node, true, &[(Ipv4Addr::UNSPECIFIED, udp).into()])?.len() == 1, "UDP");

    world.take_agent(0)?.stop()?;
    ensure!(refused(&node, false, &everywhere)? == all, "while no agent runs");
    world.start_agent_with(0, &["--protect-node-ports=false"])?;
    ensure!(refused(&node, false, &everywhere)? == none, "protection is off");
    world.take_agent(0)?.stop()?;
    world.start_agent(0)?;
    ensure!(refused(&node, false, &everywhere)? == all, "protection is on again");
    world.delete(&service)?;
    eventually(|| {
        ensure!(refused(&node, false, &everywhere)? == none, "the Service is gone");
        Ok(())
    })
}

/// The programs decide by the source address, which a socket does not have yet: they know that of
/// its namespace.
pub fn namespaces_are_known(world: &mut World) -> Result<()> {
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
                let v4: [u8; 4] = bytes("addr_v4")?.try_into().ok().context("four bytes")?;
                let v6: [u8; 16] = bytes("addr_v6")?.try_into().ok().context("sixteen bytes")?;
                Ok((Ipv4Addr::from(v4), Ipv6Addr::from(v6)))
            })
            .collect::<Result<_>>()?;
        ensure!(known.is_superset(&expected), "{known:?} lacks some of {expected:?}");
        Ok(())
    })
}
