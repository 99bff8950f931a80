//! Transfers of megabytes in both directions over one connection, with full-sized segments, and
//! with GSO and GRO where they are on. Every byte is compared.

use anyhow::Result;
use lb_testbed::Family;

use crate::check::transferred;
use crate::world::{To, World};

const BYTES: u64 = 16 << 20;

pub fn pod_to_cluster_ip(world: &mut World, family: Family) -> Result<()> {
    for endpoint in [1, 3] {
        let service = world.publish(&[endpoint])?;
        let target = service.cluster_ip(family, To::Transfer);
        transferred(&world.pod(2).host.transfer(target, BYTES)?, BYTES)?;
        transferred(&world.node(0).host.transfer(target, BYTES)?, BYTES)?;
    }
    Ok(())
}

pub fn outside_to_node_port(world: &mut World, family: Family) -> Result<()> {
    let service = world.publish(&[1])?;
    for node in &world.topology.nodes {
        let target = service.node_port(node, family, To::Transfer);
        transferred(&world.client().transfer(target, BYTES)?, BYTES)?;
    }
    Ok(())
}
