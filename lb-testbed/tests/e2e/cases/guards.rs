//! Who may use an address of a Service.

use std::net::SocketAddr;

use anyhow::Result;
use lb_testbed::Family;
use serde_json::json;

use crate::check::{answered_by, eventually, unanswered};
use crate::world::{To, World};

/// The ranges of a load balancer let in the clients in them and nobody else, as they change; its ClusterIP is open to all.
pub fn source_ranges(world: &mut World, family: Family) -> Result<()> {
    let service = world.publish(&[1, 3])?;
    let cluster_ip = service.cluster_ip(family, To::Http);
    // An address that the client has a route to: nobody's, beside those of other cases.
    let ip: std::net::IpAddr = match family {
        Family::V4 => [10, 96, 200, 1].into(),
        Family::V6 => [0xfd00, 0x96, 0, 0, 0, 0, 2, 1].into(),
    };
    let balancer = SocketAddr::new(ip, cluster_ip.port());
    let client = world.client().address(family);
    let allow = |world: &World, ranges: &[String]| {
        let mut object = service.service.object();
        object["spec"]["type"] = "LoadBalancer".into();
        object["spec"]["loadBalancerSourceRanges"] = json!(ranges);
        object["status"]["loadBalancer"]["ingress"] = json!([{ "ip": ip.to_string() }]);
        let pods = [world.pod(1), world.pod(3)];
        let objects: Vec<_> = [object].into_iter().chain(service.service.slices(&pods)).collect();
        world.topology.manifests.write(&format!("{}.yaml", service.service.name), &objects)
    };
    let only = |address: std::net::IpAddr| format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 });
    let elsewhere = match family {
        Family::V4 => "203.0.113.0/24".to_owned(),
        Family::V6 => "2001:db8:ffff::/48".to_owned(),
    };

    allow(world, &[])?;
    eventually(|| answered_by(&world.client().get(&[balancer], 3)?, &[1, 3]))?;
    allow(world, std::slice::from_ref(&elsewhere))?;
    eventually(|| unanswered(&world.client().get(&[balancer], 1)?))?;
    answered_by(&world.client().get(&[cluster_ip], 3)?, &[1, 3])?;
    allow(world, &[elsewhere, only(client)])?;
    eventually(|| answered_by(&world.client().get(&[balancer], 3)?, &[1, 3]))
}
