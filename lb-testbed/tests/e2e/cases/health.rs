//! HTTP endpoints of the agent: health checks for load balancers, metrics, and settings.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use lb_testbed::Family;
use lb_testbed::agent::METRICS;
use lb_testbed::host::Listen;
use lb_testbed::http;
use serde_json::{Value, json};

use crate::check::{eventually, unanswered};
use crate::world::{Published, To, World};

/// Returns a port that no other case uses as a nodePort.
fn health_check_port(service: &Published, world: &World) -> u16 {
    service.node_port(world.node(0), Family::V4, To::Http).port() + 2000
}

/// Writes a LoadBalancer Service with policy Local and these pods as endpoints.
fn write(world: &World, service: &Published, pods: &[usize]) -> Result<()> {
    let pods: Vec<_> = pods.iter().map(|number| world.pod(*number)).collect();
    let mut objects = service.service.with_endpoints(&pods);
    objects[0]["spec"]["type"] = "LoadBalancer".into();
    objects[0]["spec"]["externalTrafficPolicy"] = "Local".into();
    objects[0]["spec"]["healthCheckNodePort"] = health_check_port(service, world).into();
    world.topology.manifests.write("local.yaml", &objects)
}

/// Checks that the health-check port of a node reports this number of local endpoints.
fn check_health_answer(
    world: &World,
    node: usize,
    address: SocketAddr,
    service: &str,
    endpoints: usize,
) -> Result<()> {
    let answer = http::get(&world.client().place, address, "/any")?;
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
    let addresses = [0, 1].map(|node| world.node(node).host.at(family, port));
    for (pods, expected) in [(&[1][..], [1, 0]), (&[1, 2, 3], [2, 1]), (&[4], [0, 1]), (&[], [0, 0])] {
        write(world, &service, pods)?;
        for node in [0, 1] {
            let name = &service.service.name;
            eventually(|| check_health_answer(world, node, addresses[node], name, expected[node]))?;
        }
    }
    // With policy Cluster the port is closed.
    world.set_endpoints(&service, &[1])?;
    world.topology.manifests.remove("local.yaml")?;
    for address in addresses {
        eventually(|| {
            let answer = http::get(&world.client().place, address, "/");
            ensure!(answer.is_err(), "still open: {answer:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// A health-check port in use is logged. The agent opens it as soon as it is free.
pub fn health_check_port_in_use(world: &mut World) -> Result<()> {
    let service = world.new_service();
    let port = health_check_port(&service, world);
    let node = &world.node(0).host;
    let occupant = node.serve_at("occupant", &Listen { http: vec![port], ..Listen::default() })?;
    write(world, &service, &[1])?;
    eventually(|| {
        let log = world.agent(0)?.log()?;
        let line = format!("its healthCheckNodePort cannot be opened at 0.0.0.0:{port}");
        ensure!(log.contains(&line), "the log does not contain {line:?}");
        Ok(())
    })?;
    drop(occupant);
    for family in Family::BOTH {
        let name = &service.service.name;
        eventually(|| check_health_answer(world, 0, node.at(family, port), name, 1))?;
    }
    world.topology.manifests.remove("local.yaml")
}

pub fn metrics_and_settings_are_served(world: &mut World) -> Result<()> {
    let value = |world: &World, sample: &str| -> Result<f64> {
        let answer = http::get(&world.node(0).host.place, METRICS, "/metrics")?;
        ensure!(answer.status == 200 && answer.body.ends_with("# EOF\n"), "{answer:?}");
        let line = answer.body.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        // A sample appears only after its first event.
        Ok(line.map_or(Ok(0.0), str::parse)?)
    };
    let dropped = "sluice_packets_total{outcome=\"dropped\",reason=\"no_endpoint_dropped\"}";
    let service = world.new_service();
    let before = value(world, dropped)?;
    write(world, &service, &[1])?;
    let outside = service.node_port(world.node(0), Family::V4, To::Http);
    eventually(|| {
        ensure!(world.client().get(&[outside], 1)?[0].result.is_ok(), "the nodePort does not answer");
        Ok(())
    })?;
    // Now the only endpoint is on the other node.
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
        ensure!(value(world, &synced)? >= 3.0, "syncs are not counted");
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
        ensure!(
            after.0 > before.0 && after.1 > before.1,
            "invalid input is not counted: {before:?} {after:?}"
        );
        Ok(())
    })?;
    world.topology.manifests.remove("bad.yaml")?;
    eventually(|| {
        ensure!(value(world, now)? == before.1, "a resolved problem is still counted");
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
