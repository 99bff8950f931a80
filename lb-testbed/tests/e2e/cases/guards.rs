//! Refused requests: sources outside the ranges of a load balancer, ports that a Service does not
//! define, and addresses without a Service.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use lb_testbed::Family;
use lb_testbed::topology::{SERVICE_CIDR_V4, SERVICE_CIDR_V6};
use serde_json::{Value, json};

use crate::check::eventually;
use crate::exposed::{Exposed, Requester, route_external_addresses};
use crate::world::{To, World};

/// `loadBalancerSourceRanges` allows only its sources at the load-balancer address, for pods and
/// for outside clients. The other addresses allow all clients.
pub fn source_ranges(world: &mut World, family: Family) -> Result<()> {
    route_external_addresses(world)?;
    let service = Exposed::publish(world, "Cluster", &[1, 3], |_| {})?;
    let empty = Exposed::publish(world, "Cluster", &[], |object| allow(object, "192.0.2.1".parse().ok()))?;
    empty.wait_until_programmed(world, &[])?;
    let from_client = [("outside", "1 3'"), ("pod here", "forbidden"), ("pod there", "forbidden")];
    let from_pod = [("outside", "drop"), ("pod here", "1 3"), ("pod there", "forbidden")];
    let sources =
        [(world.client().address(family), from_client), (world.pod(2).host.address(family), from_pod)];
    for (allowed, expected) in sources {
        service.write(world, "Cluster", &[1, 3], |object| allow(object, Some(allowed)))?;
        for to in [To::Http, To::Udp] {
            let target = |kind| service.address(kind, world, family, to);
            for (source, cell) in expected {
                let requester = Requester::new(world, source, target("LoadBalancer"), to);
                eventually(|| requester.expect(cell))
                    .with_context(|| format!("range {allowed}, requests from {source}"))?;
            }
            for kind in ["ClusterIP", "NodePort", "ExternalIP"] {
                for (source, cell) in [("outside", "1 3'"), ("pod here", "1 3")] {
                    let requester = Requester::new(world, source, target(kind), to);
                    eventually(|| requester.expect(cell)).with_context(|| kind.to_owned())?;
                }
            }
        }
    }
    // Packets of other sources are dropped even if there is no endpoint. A refusal would show them
    // that there is none.
    let target = empty.address("LoadBalancer", world, family, To::Http);
    Requester::new(world, "outside", target, To::Http).expect("drop")?;
    Requester::new(world, "pod here", target, To::Http).expect("forbidden")
}

/// Sets source ranges that contain `source` and no other host of the testbed.
fn allow(object: &mut Value, source: Option<IpAddr>) {
    let length = |ip: &IpAddr| if ip.is_ipv4() { 32 } else { 128 };
    // Both families need a range: a family without one allows all sources.
    let ranges: Vec<_> = source.iter().map(|ip| format!("{ip}/{}", length(ip))).collect();
    object["spec"]["loadBalancerSourceRanges"] =
        json!([ranges, vec!["2001:db8:ffff::/64".to_owned(), "192.0.2.0/24".to_owned()]].concat());
}

/// A port that the Service of a ClusterIP does not define is refused. Packets to an address of a
/// ServiceCIDR without a Service are dropped.
pub fn unknown_addresses(world: &mut World, family: Family) -> Result<()> {
    let cidrs = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": [SERVICE_CIDR_V4, SERVICE_CIDR_V6]},
    });
    world.topology.manifests.write("cidrs.yaml", &[cidrs])?;
    let service = world.publish(&[1])?;
    let unknown_port = SocketAddr::new(service.cluster_ip(family, To::Http).ip(), 7);
    // A Service of another proxy, with an address in the same range. The programs pass its packets.
    let foreign = world.new_service();
    let mut object = foreign.service.object();
    object["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "other"});
    world.write(&foreign, &[object])?;
    let unassigned = match family {
        Family::V4 => "10.96.250.250:80".parse()?,
        Family::V6 => "[fd00:96::fafa]:80".parse()?,
    };
    let client = world.client().address(family).to_string();
    for (target, verdict) in [(unassigned, "drop"), (foreign.cluster_ip(family, To::Http), "pass")] {
        eventually(|| {
            let arguments =
                ["explain", "tcp", &client, &target.to_string(), "--in", "external", "-o", "json"];
            let explanation = world.agent(0)?.lb(&arguments)?;
            let expected = format!("\"verdict\": \"{verdict}\"");
            ensure!(explanation.contains(&expected), "{target}: {explanation}");
            Ok(())
        })?;
    }
    for to in [To::Http, To::Udp] {
        for source in ["pod here", "node", "outside"] {
            let requester = Requester::new(world, source, unknown_port, to);
            eventually(|| requester.expect("refused")).with_context(|| format!("port 7, {source}"))?;
        }
        // The node has an unreachable route for the range. So the programs, not the kernel, drop
        // this.
        let requester = Requester::new(world, "outside", unassigned, to);
        eventually(|| requester.expect("drop")).context("an address without a Service, from outside")?;
        // Without that route the pod would wait for an answer. So the programs, not the kernel,
        // return this error.
        let node = &world.node(0).host.place;
        let routes = |verb: &str| {
            node.ip(&format!(
                "route {verb} unreachable {SERVICE_CIDR_V4}\nroute {verb} unreachable {SERVICE_CIDR_V6}\n"
            ))
        };
        routes("del")?;
        let result = Requester::new(world, "pod here", unassigned, to).expect("unreachable");
        routes("add")?;
        result.context("an address without a Service, from pod here")?;
    }
    world.topology.manifests.remove("cidrs.yaml")
}
