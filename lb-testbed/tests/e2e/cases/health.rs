//! What load balancers, Prometheus and people ask an agent.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use lb_testbed::Family;
use lb_testbed::agent::METRICS;
use lb_testbed::host::Listen;
use lb_testbed::http;
use serde_json::{Value, json};

use crate::check::{eventually, unanswered};
use crate::world::{Published, To, World};

/// Beyond the nodePorts of other cases.
fn health_check_port(service: &Published, world: &World) -> u16 {
    service.node_port(world.node(0), Family::V4, To::Http).port() + 2000
}

/// A load balancer Service with a Local policy, with these pods as endpoints. Replaces what was
/// written of it before.
fn write(world: &World, service: &Published, pods: &[usize]) -> Result<()> {
    let pods: Vec<_> = pods.iter().map(|number| world.pod(*number)).collect();
    let mut objects = service.service.with_endpoints(&pods);
    objects[0]["spec"]["type"] = "LoadBalancer".into();
    objects[0]["spec"]["externalTrafficPolicy"] = "Local".into();
    objects[0]["spec"]["healthCheckNodePort"] = health_check_port(service, world).into();
    world.topology.manifests.write("local.yaml", &objects)
}

/// A load balancer outside the cluster is told how many endpoints this node has.
fn says(world: &World, node: usize, at: SocketAddr, service: &str, endpoints: usize) -> Result<()> {
    let answer = http::get(&world.client().place, at, "/any")?;
    let status = if endpoints == 0 { 503 } else { 200 };
    ensure!(answer.status == status, "node{}: {answer:?}", node + 1);
    for header in [
        "content-type: application/json".to_owned(),
        "x-content-type-options: nosniff".to_owned(),
        format!("x-load-balancing-endpoint-weight: {endpoints}"),
    ] {
        ensure!(answer.headers.contains(&header), "no {header:?}: {answer:?}");
    }
    let expected = json!({
        "service": { "namespace": "default", "name": service },
        "localEndpoints": endpoints,
        "serviceProxyHealthy": true,
    });
    ensure!(serde_json::from_str::<Value>(&answer.body)? == expected, "{answer:?}");
    Ok(())
}

/// Pods 1 and 2 are on the first node, 3 and 4 on the second.
pub fn health_check_follows_endpoints(world: &mut World, family: Family) -> Result<()> {
    let service = world.new_service();
    let port = health_check_port(&service, world);
    let at = [0, 1].map(|node| world.node(node).host.at(family, port));
    for (pods, expected) in [(&[1][..], [1, 0]), (&[1, 2, 3], [2, 1]), (&[4], [0, 1]), (&[], [0, 0])] {
        write(world, &service, pods)?;
        for node in [0, 1] {
            eventually(|| says(world, node, at[node], &service.service.name, expected[node]))?;
        }
    }
    // A policy that is not Local any more needs no such port.
    world.set_endpoints(&service, &[1])?;
    world.topology.manifests.remove("local.yaml")?;
    for at in at {
        eventually(|| {
            let answer = http::get(&world.client().place, at, "/");
            ensure!(answer.is_err(), "still open: {answer:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// It is reported, and opened as soon as that is possible.
pub fn health_check_port_in_use(world: &mut World) -> Result<()> {
    let service = world.new_service();
    let port = health_check_port(&service, world);
    let node = &world.node(0).host;
    let occupant = node.serve_at("occupant", &Listen { http: vec![port], ..Listen::default() })?;
    write(world, &service, &[1])?;
    eventually(|| {
        let log = std::fs::read_to_string(world.agent(0)?.log())?;
        let line = format!("its healthCheckNodePort cannot be opened at 0.0.0.0:{port}");
        ensure!(log.contains(&line), "the log does not say {line:?}");
        Ok(())
    })?;
    drop(occupant);
    for family in Family::BOTH {
        eventually(|| says(world, 0, node.at(family, port), &service.service.name, 1))?;
    }
    world.topology.manifests.remove("local.yaml")
}

pub fn metrics_and_settings_are_served(world: &mut World) -> Result<()> {
    let value = |world: &World, sample: &str| -> Result<f64> {
        let answer = http::get(&world.node(0).host.place, METRICS, "/metrics")?;
        ensure!(answer.status == 200 && answer.body.ends_with("# EOF\n"), "{answer:?}");
        let line = answer.body.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        // A sample appears with its first event.
        Ok(line.map_or(Ok(0.0), str::parse)?)
    };
    let dropped = "sluice_packets_total{outcome=\"dropped\",reason=\"no_endpoint_dropped\"}";
    let service = world.new_service();
    let before = value(world, dropped)?;
    write(world, &service, &[1])?;
    let outside = service.node_port(world.node(0), Family::V4, To::Http);
    eventually(|| {
        ensure!(world.client().get(&[outside], 1)?[0].result.is_ok(), "not served");
        Ok(())
    })?;
    // The only endpoint is on the other node now.
    write(world, &service, &[3])?;
    eventually(|| unanswered(&world.client().get(&[outside], 1)?))?;
    ensure!(value(world, dropped)? > before, "the drop is not counted");
    eventually(|| {
        ensure!(value(world, "sluice_services")? >= 1.0, "no Service is counted");
        ensure!(value(world, "sluice_map_entries{map=\"SERVICES_V6\"}")? >= 3.0, "no entry is counted");
        Ok(())
    })?;
    for family in ["IPv4", "IPv6"] {
        let synced = format!("kubeproxy_sync_proxy_rules_duration_seconds_count{{ip_family=\"{family}\"}}");
        ensure!(value(world, &synced)? >= 3.0, "rounds are not counted");
    }

    let raised =
        "sluice_problems_raised_total{kind=\"Service\",reason=\"invalid_address\",severity=\"error\"}";
    let now = "sluice_problems{severity=\"error\"}";
    let before = (value(world, raised)?, value(world, now)?);
    let mut bad = service.service.object();
    bad["metadata"]["name"] = "bad".into();
    bad["spec"]["clusterIPs"] = json!(["10.96.1.300"]);
    world.topology.manifests.write("bad.yaml", &[bad])?;
    eventually(|| {
        let after = (value(world, raised)?, value(world, now)?);
        ensure!(after.0 > before.0 && after.1 > before.1, "bad input is not counted: {before:?} {after:?}");
        Ok(())
    })?;
    world.topology.manifests.remove("bad.yaml")?;
    eventually(|| {
        ensure!(value(world, now)? == before.1, "a problem that is gone is still counted");
        Ok(())
    })?;
    world.topology.manifests.remove("local.yaml")?;

    let place = &world.node(0).host.place;
    let settings: Value = serde_json::from_str(&http::get(place, METRICS, "/configz")?.body)?;
    let name = settings.pointer("/sluice/nodeName").context("no nodeName in /configz")?;
    ensure!(*name == world.node(0).host.name.as_str(), "/configz: {settings}");
    ensure!(http::get(place, METRICS, "/proxyMode")?.body == "sluice");
    Ok(())
}
