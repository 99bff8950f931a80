//! Passive health together with Local policies, session affinity and Maglev tables
//! (`docs/algorithms.md`). An endpoint refuses clients because no server listens on its port.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::slice;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use lb_testbed::Family;
use lb_testbed::host::{Listen, PreparedSocket, Process};
use lb_testbed::report::FailureKind;
use serde_json::Value;

use super::affinity::sticky;
use super::algorithms::annotate;
use crate::check::{answered_by, eventually, eventually_within, refused};
use crate::world::{Published, To, World};

/// The port of the endpoint that refuses, until a server starts there.
const REFUSING_PORT: u16 = 8099;
/// The pod with this endpoint. It is on the first node.
const REFUSING_POD: usize = 2;

/// Writes a Service with passive health. Its endpoints are these pods, and the one that refuses.
/// Waits until the first node has `eligible` of them for clients outside.
fn write(
    world: &mut World,
    published: &Published,
    family: Family,
    pods: &[usize],
    eligible: usize,
    change: impl FnOnce(&mut Value),
) -> Result<()> {
    let mut object = published.service.object();
    annotate(&mut object, "passive-health", "on");
    change(&mut object);
    let mut refusing = published.service.slice(family, &[world.pod(REFUSING_POD)]);
    refusing["metadata"]["name"] = format!("{}-refusing", published.service.name).into();
    refusing["ports"][0]["port"] = REFUSING_PORT.into();
    let mut objects = vec![object, refusing];
    if !pods.is_empty() {
        let pods: Vec<_> = pods.iter().map(|pod| world.pod(*pod)).collect();
        objects.push(published.service.slice(family, &pods));
    }
    world.write(published, &objects)?;
    let any = if family == Family::V4 { "0.0.0.0" } else { "[::]" };
    let address = format!("{any}:{}", published.node_port(world.node(0), family, To::Http).port());
    eventually(|| {
        let rows = world.rows(0, &["services", &published.service.name])?;
        let row = rows.iter().find(|row| row["address"] == address && row["portName"] == "http");
        let endpoints = row.and_then(|row| row["outsideEndpoints"].as_array()).map(Vec::len);
        ensure!(endpoints == Some(eligible), "not {eligible} endpoints: {rows:#?}");
        Ok(())
    })
}

/// Returns the row of the endpoint that refuses.
fn refusing(world: &World, published: &Published) -> Result<Value> {
    let port = format!(":{REFUSING_PORT}");
    let is_refusing = |row: &&Value| row["address"].as_str().is_some_and(|address| address.ends_with(&port));
    let rows = world.rows(0, &["backends", &published.service.name])?;
    rows.iter().find(is_refusing).cloned().with_context(|| format!("no endpoint refuses: {rows:#?}"))
}

/// Returns whether the first node leaves out the endpoint that refuses.
fn is_left_out(world: &World, published: &Published) -> Result<bool> {
    Ok(refusing(world, published)?["state"] == "left-out")
}

/// With a Local policy, clients of the endpoint that is left out get the other one of the node, and
/// none on another node. The only endpoint of a node is not left out.
pub fn with_a_local_policy(world: &mut World, family: Family) -> Result<()> {
    let local = |object: &mut Value| object["spec"]["externalTrafficPolicy"] = "Local".into();
    let both = world.new_service();
    write(world, &both, family, &[1, 3], 2, |object| {
        local(object);
        annotate(object, "algorithm", "rr");
    })?;
    let target = both.node_port(world.node(0), family, To::Http);
    eventually(|| {
        answered_by(&world.client().get(&[target], 4)?, &[1])?;
        ensure!(is_left_out(world, &both)?, "no endpoint is left out");
        Ok(())
    })?;
    for exchange in world.client().get(&[target], 8)? {
        // A connection may try the endpoint again.
        let exchange = slice::from_ref(&exchange);
        refused(exchange).or_else(|_| answered_by(exchange, &[1]))?;
    }

    let only = world.new_service();
    write(world, &only, family, &[3], 1, local)?;
    let target = only.node_port(world.node(0), family, To::Http);
    refused(&world.client().get(&[target], 8)?)
}

/// A client with session affinity leaves an endpoint that is left out, and does not return to it.
pub fn with_affinity(world: &mut World, family: Family) -> Result<()> {
    let service = world.new_service();
    let change = |object: &mut Value| {
        sticky(object, 10_800);
        annotate(object, "algorithm", "rr");
    };
    write(world, &service, family, &[], 1, change)?;
    let target = service.node_port(world.node(0), family, To::Http);
    // A list with one endpoint keeps it, although three of these connections fail.
    refused(&world.client().get(&[target], 8)?)?;
    write(world, &service, family, &[1], 2, change)?;
    eventually(|| answered_by(&world.client().get(&[target], 1)?, &[1]))?;
    let _server = serve_refusing(world)?;
    answered_by(&world.client().get(&[target], 8)?, &[1])?;
    eventually_within(Duration::from_secs(60), || {
        let row = refusing(world, &service)?;
        ensure!(row["leftOutSeconds"] == 0, "not tried yet: {row}");
        Ok(())
    })?;
    // Clients without an affinity try it again: every other one, and that one stays there.
    from_addresses(world, family, 20, |sources| {
        for source in sources {
            if answer(world, *source, target)?.as_deref() == Some("pod2") {
                return Ok(());
            }
        }
        bail!("no client tries the endpoint")
    })?;
    ensure!(!is_left_out(world, &service)?, "the endpoint is left out");
    answered_by(&world.client().get(&[target], 8)?, &[1])
}

/// Only the clients of the endpoint that is left out get other endpoints of a Maglev table. They
/// return to it when it answers.
pub fn with_maglev(world: &mut World, family: Family) -> Result<()> {
    let service = world.new_service();
    write(world, &service, family, &[1, 3, 4], 4, |object| annotate(object, "algorithm", "mh"))?;
    let target = service.node_port(world.node(0), family, To::Http);
    from_addresses(world, family, 12, |sources| clients_return(world, &service, target, sources))
}

/// Gives the client so many addresses while `work` runs.
pub(super) fn from_addresses(
    world: &World,
    family: Family,
    count: u16,
    work: impl FnOnce(&[IpAddr]) -> Result<()>,
) -> Result<()> {
    let sources: Vec<IpAddr> = (0..count).map(|number| source(family, number)).collect();
    let length = if family == Family::V4 { "24" } else { "64" };
    let script = |command: &str, options: &str| -> String {
        let line = |source| format!("address {command} {source}/{length} dev eth0{options}\n");
        sources.iter().map(line).collect()
    };
    let options = if family == Family::V4 { "" } else { " nodad" };
    world.client().place.ip(&script("replace", options))?;
    let done = work(&sources);
    world.client().place.ip(&script("delete", ""))?;
    done
}

fn clients_return(world: &World, service: &Published, target: SocketAddr, sources: &[IpAddr]) -> Result<()> {
    let answers = || sources.iter().map(|source| answer(world, *source, target)).collect::<Result<Vec<_>>>();
    let refusing = Some(format!("pod{REFUSING_POD}"));
    let server = serve_refusing(world)?;
    let before = answers()?;
    ensure!(before.iter().all(Option::is_some), "a client is refused: {before:?}");
    let distinct: BTreeSet<_> = before.iter().collect();
    ensure!(distinct.len() > 1 && distinct.contains(&refusing), "all clients reach {before:?}");
    drop(server);
    // Each round of clients may try the endpoint again, until it is left out for longer than that.
    eventually_within(Duration::from_secs(120), || {
        let found = answers()?;
        for (before, found) in before.iter().zip(&found) {
            // A connection may try the endpoint again.
            let is_right = if *before == refusing { *found != refusing } else { found == before };
            if !is_right {
                bail!("the clients reached {before:?}, and now {found:?}");
            }
        }
        ensure!(is_left_out(world, service)?, "no endpoint is left out");
        ensure!(found.iter().all(Option::is_some), "a client is refused: {found:?}");
        Ok(())
    })?;
    let _server = serve_refusing(world)?;
    // The endpoint is left out for 30 seconds at most.
    eventually_within(Duration::from_secs(60), || {
        let found = answers()?;
        ensure!(found == before, "the clients reached {before:?}, and now {found:?}");
        Ok(())
    })
}

/// Starts a server at the endpoint that refuses. It ends when the result is dropped.
fn serve_refusing(world: &World) -> Result<Process> {
    let host = &world.pod(REFUSING_POD).host;
    host.serve_at(&host.name, &Listen { http: vec![REFUSING_PORT], ..Listen::default() })
}

/// Returns an address for the client.
fn source(family: Family, number: u16) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 10, 0, 100 + number as u8).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 1, number).into(),
    }
}

/// Connects from an address of the client. Returns the pod that answers, or `None` if the
/// connection is refused.
fn answer(world: &World, source: IpAddr, target: SocketAddr) -> Result<Option<String>> {
    let socket = PreparedSocket { source: Some((source, 0).into()), ..PreparedSocket::default() };
    match world.client().hold_prepared(socket, target)?.request()?.result {
        Ok(answer) => Ok(Some(answer.greeting.pod)),
        Err(failure) if failure.kind == FailureKind::Refused => Ok(None),
        Err(failure) => bail!("{source}: {failure}"),
    }
}
