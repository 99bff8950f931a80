//! SCTP is translated as packets. Client and endpoints use raw sockets, and answer only packets
//! with a correct checksum.

use anyhow::Result;
use lb_testbed::Family;

use crate::check::answered;
use crate::world::{To, World};

/// An endpoint on the entry node sees the client, an endpoint on the other node sees the entry
/// node.
pub fn outside_to_node_port(world: &mut World, family: Family) -> Result<()> {
    for (node, pod, local) in [(0, 1, true), (0, 3, false), (1, 3, true), (1, 1, false)] {
        let service = world.publish(&[pod])?;
        let (client, node) = (world.client(), world.node(node));
        let exchanges = client.associate(service.node_port(node, family, To::Sctp), 3)?;
        let seen = if local { vec![client.address(family)] } else { node.addresses().to_vec() };
        answered(&exchanges, &[pod], &seen)?;
    }
    Ok(())
}

pub fn outside_to_cluster_ip(world: &mut World, family: Family) -> Result<()> {
    for pod in [1, 3] {
        let service = world.publish(&[pod])?;
        let client = world.client();
        let seen: Vec<_> = [client.address(family)].into_iter().chain(world.node(0).addresses()).collect();
        answered(&client.associate(service.cluster_ip(family, To::Sctp), 3)?, &[pod], &seen)?;
    }
    Ok(())
}
