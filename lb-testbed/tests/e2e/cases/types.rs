//! A Service changes from each type to each other type.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use lb_testbed::Family;
use lb_testbed::host::LoadKind;
use serde_json::Value;

use crate::check::{eventually, without_failure};
use crate::exposed::{Exposed, Requester, route_external_addresses};
use crate::world::{To, World};

/// In this sequence each type follows each other type once.
const TYPES: [&str; 21] = [
    "ExternalName",
    "headless",
    "ClusterIP",
    "NodePort",
    "LoadBalancer",
    "ExternalName",
    "ClusterIP",
    "LoadBalancer",
    "headless",
    "NodePort",
    "ExternalName",
    "NodePort",
    "headless",
    "LoadBalancer",
    "NodePort",
    "ClusterIP",
    "ExternalName",
    "LoadBalancer",
    "ClusterIP",
    "headless",
    "ExternalName",
];

/// Exactly the addresses of each type are served. Connections of another Service continue.
pub fn changes(world: &mut World) -> Result<()> {
    route_external_addresses(world)?;
    let unchanged = world.publish(&[1, 3])?;
    let outside = world.client().start_load(
        LoadKind::OneConnection,
        unchanged.node_port(world.node(0), Family::V4, To::Http),
        50,
    )?;
    let inside = world.pod(2).host.start_load(
        LoadKind::OneConnection,
        unchanged.cluster_ip(Family::V6, To::Http),
        50,
    )?;
    let new = world.pod(4).host.start_load(
        LoadKind::NewConnections,
        unchanged.cluster_ip(Family::V4, To::Http),
        20,
    )?;

    let service = Exposed::publish(world, "Cluster", &[1, 3], |object| become_type(object, TYPES[0]))?;
    for (kind, family) in TYPES.into_iter().zip(Family::BOTH.into_iter().cycle()) {
        service.write(world, "Cluster", &[1, 3], |object| become_type(object, kind))?;
        let addresses: &[&str] = match kind {
            "ClusterIP" => &["ClusterIP", "ExternalIP"],
            "NodePort" => &["ClusterIP", "ExternalIP", "NodePort"],
            "LoadBalancer" => &["ClusterIP", "ExternalIP", "LoadBalancer", "NodePort"],
            _ => &[],
        };
        for node in [0, 1] {
            eventually(|| {
                let served = served(world, node, &service)?;
                let expected: BTreeSet<_> = addresses.iter().map(|address| (*address).to_owned()).collect();
                ensure!(served == expected, "type {kind}: node{} serves {served:?}", node + 1);
                Ok(())
            })?;
        }
        for address in addresses {
            let target = service.address(address, world, family, To::Http);
            for (source, cell) in [("pod here", "1 3"), ("outside", "1 3'")] {
                let requester = Requester::new(world, source, target, To::Http);
                eventually(|| requester.expect(cell)).with_context(|| format!("{address} as {kind}"))?;
            }
        }
    }
    without_failure("outside, one connection", &outside.finish()?)?;
    without_failure("pod, one connection", &inside.finish()?)?;
    without_failure("pod, new connections", &new.finish()?)
}

/// Changes the type, and the other fields as an API server would.
fn become_type(object: &mut Value, kind: &str) {
    let spec = &mut object["spec"];
    match kind {
        "ExternalName" => {
            *spec = serde_json::json!({"type": kind, "externalName": "www.example.org"});
        }
        "headless" => {
            spec["type"] = "ClusterIP".into();
            spec["clusterIP"] = "None".into();
            spec["clusterIPs"] = serde_json::json!(["None"]);
            spec["externalIPs"] = Value::Null;
        }
        _ => spec["type"] = kind.into(),
    }
    if kind != "LoadBalancer" {
        object["status"] = Value::Null;
    }
    if !matches!(kind, "LoadBalancer" | "NodePort") {
        for port in object["spec"]["ports"].as_array_mut().into_iter().flatten() {
            port["nodePort"] = Value::Null;
        }
    }
}

/// Returns the kinds of address that the maps of a node have for a Service.
fn served(world: &World, node: usize, service: &Exposed) -> Result<BTreeSet<String>> {
    let rows = world.rows(node, &["services"])?;
    let own = rows.iter().filter(|row| row["name"] == service.published.service.name.as_str());
    own.map(|row| Ok(row["type"].as_str().context("a row has no type")?.to_owned())).collect()
}
