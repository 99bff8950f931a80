//! Floods of packets that only open connections. They block no other client.

use anyhow::{Result, ensure};
use lb_testbed::Family;
use lb_testbed::host::{Connections, Datagrams, FloodKind, UDP_PORT};

use crate::check::{answered, eventually};
use crate::world::{To, World};

/// More datagrams than there are source ports (28,976) go to one endpoint on another node, each
/// from another port, and are not answered. Then every new flow to that endpoint is served. Before
/// the flow table had records, 4,536 of them blocked the endpoint for ever.
pub fn one_way_datagrams(world: &mut World, family: Family) -> Result<()> {
    let service = world.publish(&[3])?;
    let target = service.node_port(world.node(0), family, To::Udp);
    world.wait_until_served(&service, &[3])?;
    world.client().flood(FloodKind::Datagrams, target, 60_000)?;
    let datagrams = Datagrams { connected: true, count: 5, size: 32, dont_fragment: false };
    // The server's queue may still be full of the flood. It drops what arrives then.
    let (node, server) = (&world.node(1).host, world.pod(3).host.at(family, UDP_PORT));
    eventually(|| answered(&node.send_datagrams(server, datagrams)?, &[3], &world.node(1).addresses()))?;
    for _ in 0..20 {
        answered(&world.client().send_datagrams(target, datagrams)?, &[3], &world.node(0).addresses())?;
    }
    Ok(())
}

/// SYNs with forged sources go to one endpoint on another node. An open connection stays
/// open, and new ones are opened at once.
pub fn forged_syns(world: &mut World) -> Result<()> {
    let service = world.publish(&[3])?;
    let target = service.node_port(world.node(0), Family::V4, To::Http);
    world.wait_until_served(&service, &[3])?;
    let mut held = world.client().hold_http(target)?;
    answered(&[held.request()?], &[3], &world.node(0).addresses())?;
    world.client().flood(FloodKind::Syns, target, 60_000)?;
    let exchanges = world.client().get(&[target], 25)?;
    ensure!(exchanges.len() == 25, "{exchanges:?}");
    answered(&exchanges, &[3], &world.node(0).addresses())?;
    answered(&[held.request()?], &[3], &world.node(0).addresses())
}

/// One endpoint on another node gets three times as many connections as there are source ports
/// (--snat-ports). None fails: closed ones give their ports to new ones. The load of five minutes
/// with default settings is `cargo xtask bench connections`.
pub fn many_connections_to_one_endpoint(world: &mut World, family: Family) -> Result<()> {
    const RATE: u32 = 1000;
    const SECONDS: u32 = 6;
    let service = world.publish(&[3])?;
    let load = Connections {
        tcp: service.node_port(world.node(0), family, To::Http),
        udp: service.node_port(world.node(0), family, To::Udp),
        tcp_rate: RATE,
        // Answered UDP keeps its port for five seconds at the least, so fewer flows than ports.
        udp_rate: RATE / 10,
        seconds: SECONDS,
        sources: Vec::new(),
    };
    world.wait_until_served(&service, &[3])?;
    let report = world.client().open_connections(&load)?;
    ensure!(report.tcp.failed == 0 && report.udp.failed == 0, "{report:?}");
    ensure!(report.tcp.opened == u64::from(RATE * SECONDS), "{report:?}");
    ensure!(report.udp.opened == u64::from(RATE / 10 * SECONDS), "{report:?}");
    Ok(())
}
