//! Who may use an address: source ranges of load balancers, ports that a Service does not have,
//! addresses that belong to none.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use lb_testbed::Family;
use lb_testbed::topology::{SERVICE_CIDR_V4, SERVICE_CIDR_V6};
use serde_json::{Value, json};

use crate::check::eventually;
use crate::exposed::{Ask, Exposed, route_external_addresses};
use crate::world::{To, World};

/// `loadBalancerSourceRanges` lets its sources in at the load-balancer address, a pod as well as a
/// client outside, and nobody else; at the other addresses everybody is welcome.
pub fn source_ranges(world: &mut World, family: Family) -> Result<()> {
    route_external_addresses(world)?;
    let service = Exposed::publish(world, "Cluster", &[1, 3], |_| {})?;
    let empty = Exposed::publish(world, "Cluster", &[], |object| allow(object, "192.0.2.1".parse().ok()))?;
    empty.wait_until_known(world)?;
    let from_client = [("outside", "1 3'"), ("pod here", "forbidden"), ("pod there", "forbidden")];
    let from_pod = [("outside", "drop"), ("pod here", "1 3"), ("pod there", "forbidden")];
    let sources =
        [(world.client().address(family), from_client), (world.pod(2).host.address(family), from_pod)];
    for (allowed, expected) in sources {
        service.write(world, "Cluster", &[1, 3], |object| allow(object, Some(allowed)))?;
        for to in [To::Http, To::Udp] {
            let target = |kind| service.address(kind, world, family, to);
            for (source, cell) in expected {
                let ask = Ask::new(world, source, target("LoadBalancer"), to);
                eventually(|| ask.expect(cell))
                    .with_context(|| format!("{allowed} is allowed, {source} asks"))?;
            }
            for kind in ["ClusterIP", "NodePort", "ExternalIP"] {
                Ask::new(world, "outside", target(kind), to)
                    .expect("1 3'")
                    .with_context(|| kind.to_owned())?;
                Ask::new(world, "pod here", target(kind), to)
                    .expect("1 3")
                    .with_context(|| kind.to_owned())?;
            }
        }
    }
    // Without endpoints too: who is not allowed shall not learn that.
    let target = empty.address("LoadBalancer", world, family, To::Http);
    Ask::new(world, "outside", target, To::Http).expect("drop")?;
    Ask::new(world, "pod here", target, To::Http).expect("forbidden")
}

fn allow(object: &mut Value, source: Option<IpAddr>) {
    let length = |ip: &IpAddr| if ip.is_ipv4() { 32 } else { 128 };
    // A family without a range of its own is open.
    let ranges: Vec<_> = source.iter().map(|ip| format!("{ip}/{}", length(ip))).collect();
    object["spec"]["loadBalancerSourceRanges"] =
        json!([ranges, vec!["2001:db8:ffff::/64".to_owned(), "192.0.2.0/24".to_owned()]].concat());
}

/// A port that the Service of a ClusterIP does not have is refused; an address of a ServiceCIDR
/// that no Service has is silent.
pub fn unknown_addresses(world: &mut World, family: Family) -> Result<()> {
    let cidrs = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": [SERVICE_CIDR_V4, SERVICE_CIDR_V6]},
    });
    world.topology.manifests.write("cidrs.yaml", &[cidrs])?;
    let service = world.publish(&[1])?;
    let unknown_port = SocketAddr::new(service.cluster_ip(family, To::Http).ip(), 7);
    // In the same range, but somebody else's business: nothing here answers it, and nothing drops
    // it.
    let theirs = world.new_service();
    let mut object = theirs.service.object();
    object["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "other"});
    world.write(&theirs, &[object])?;
    let nobody = match family {
        Family::V4 => "10.96.250.250:80".parse()?,
        Family::V6 => "[fd00:96::fafa]:80".parse()?,
    };
    let client = world.client().address(family).to_string();
    for (target, verdict) in [(nobody, "drop"), (theirs.cluster_ip(family, To::Http), "pass")] {
        eventually(|| {
            let ask = ["explain", "tcp", &client, &target.to_string(), "--in", "external", "-o", "json"];
            let said = world.agent(0)?.lb(&ask)?;
            ensure!(said.contains(&format!("\"verdict\": \"{verdict}\"")), "{target}: {said}");
            Ok(())
        })?;
    }
    for to in [To::Http, To::Udp] {
        for source in ["pod here", "node", "outside"] {
            let ask = Ask::new(world, source, unknown_port, to);
            eventually(|| ask.expect("refused")).with_context(|| format!("port 7, {source}"))?;
        }
        // The node has a route that says unreachable: this silence is of the programs' making.
        let ask = Ask::new(world, "outside", nobody, to);
        eventually(|| ask.expect("drop")).context("an address of no Service, outside")?;
        // Without that route a pod would wait for an answer: this error is of the programs' making.
        let node = &world.node(0).host.place;
        let routes = |verb: &str| {
            node.ip(&format!(
                "route {verb} unreachable {SERVICE_CIDR_V4}\nroute {verb} unreachable {SERVICE_CIDR_V6}\n"
            ))
        };
        routes("del")?;
        let told = Ask::new(world, "pod here", nobody, to).expect("unreachable");
        routes("add")?;
        told.context("an address of no Service, pod here")?;
    }
    world.topology.manifests.remove("cidrs.yaml")
}
