//! Floods of packets that only open connections. They block no other client.

use anyhow::{Result, ensure};
use lb_testbed::Family;
use lb_testbed::host::{Datagrams, FloodKind};

use crate::check::answered;
use crate::world::{To, World};

/// More datagrams than there are source ports (28,976) go to one endpoint on another node, each
/// from another port, and are not answered. Then every new flow to that endpoint is served. Before
/// the flow table had records, 4,536 of them blocked the endpoint for ever.
pub fn one_way_datagrams(world: &mut World, family: Family) -> Result<()> {
    let service = world.publish(&[3])?;
    let target = service.node_port(world.node(0), family, To::Udp);
    world.wait_until_served(&service, &[3])?;
    world.client().flood(FloodKind::Datagrams, target, 60_000)?;
    for _ in 0..20 {
        let datagrams = Datagrams { connected: true, count: 5, size: 32, dont_fragment: false };
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
