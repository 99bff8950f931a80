//! A thousand Services are added and removed in one step.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use lb_testbed::Family;
use lb_testbed::host::HTTP_PORT;
use lb_testbed::manifests::{ServiceManifest, ServicePort};
use lb_testbed::report::Exchange;

use crate::check::{answered_by, eventually_within};
use crate::world::World;

const COUNT: u16 = 1000;
/// An agent may have to make its maps larger several times, and loads its programs each time.
const LIMIT: Duration = Duration::from_secs(300);
const FILE: &str = "a-thousand.yaml";

/// Returns the number of the pod that is the only endpoint of Service `n`.
fn endpoint(n: u16) -> usize {
    usize::from(n) % 4 + 1
}

fn address(family: Family, n: u16) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 96, 100 + (n >> 8) as u8, n as u8).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 100, n).into(),
    }
}

fn node_port(n: u16) -> u16 {
    31500 + n
}

/// A thousand published Services with one port and one endpoint each.
pub struct Thousand {
    /// The ClusterIPs.
    inside: Vec<SocketAddr>,
    /// The nodePorts at the first node.
    outside: Vec<SocketAddr>,
}

impl Thousand {
    /// Writes the Services and their EndpointSlices in one step. Does not wait.
    pub fn publish(world: &World, family: Family) -> Result<Self> {
        let mut objects = Vec::new();
        for n in 0..COUNT {
            let service = ServiceManifest {
                namespace: "default".to_owned(),
                name: format!("number-{n}"),
                cluster_ips: vec![address(family, n)],
                ports: vec![ServicePort::tcp("http", 80, HTTP_PORT).node_port(node_port(n))],
            };
            objects.extend(service.with_endpoints(&[world.pod(endpoint(n))]));
        }
        world.topology.manifests.write(FILE, &objects)?;
        Ok(Self {
            inside: (0..COUNT).map(|n| SocketAddr::new(address(family, n), 80)).collect(),
            outside: (0..COUNT).map(|n| world.node(0).host.at(family, node_port(n))).collect(),
        })
    }

    /// Waits until all are served.
    pub fn wait_until_served(&self, world: &World) -> Result<()> {
        let inside = || answered_by_own_endpoints(&world.pod(2).host.get(&self.inside, 1)?);
        eventually_within(LIMIT, inside)?;
        eventually_within(LIMIT, || answered_by_own_endpoints(&world.client().get(&self.outside, 1)?))
    }

    /// Removes them, and waits until none is served.
    pub fn remove(self, world: &World) -> Result<()> {
        world.topology.manifests.remove(FILE)?;
        eventually_within(LIMIT, || {
            let exchanges = world.client().get(&self.outside, 1)?;
            let answered = exchanges.iter().filter(|one| one.result.is_ok()).count();
            ensure!(answered == 0, "{answered} of the deleted Services still answer");
            Ok(())
        })
    }
}

pub fn a_thousand_services(world: &mut World, family: Family) -> Result<()> {
    let services = Thousand::publish(world, family)?;
    services.wait_until_served(world)?;
    services.remove(world)
}

/// Each Service was answered by its own endpoint.
fn answered_by_own_endpoints(exchanges: &[Exchange]) -> Result<()> {
    ensure!(exchanges.len() == usize::from(COUNT), "only {} requests were sent", exchanges.len());
    for (n, exchange) in (0..COUNT).zip(exchanges) {
        answered_by(std::slice::from_ref(exchange), &[endpoint(n)])?;
    }
    Ok(())
}
