//! Tables of all algorithms (`docs/algorithms.md`), with connections that stay open.

use std::collections::BTreeSet;
use std::{iter, slice};

use anyhow::{Context, Result, ensure};
use lb_testbed::Family;
use serde_json::Value;

use super::affinity::sticky;
use super::algorithms::{annotate, weighted_slice};
use crate::check::{answered_by, eventually, refused};
use crate::world::{Published, To, World};

/// What the connections of a client that stay open show of an algorithm.
#[derive(Clone, Copy, Debug)]
enum Rule {
    /// The endpoint of each connection. Then, with `ovf`, all are full.
    Exactly([usize; 9]),
    /// All connections have one endpoint.
    One,
    /// Each endpoint has some of them.
    All,
}

/// Algorithms with the parameter of their hash, the weights of three endpoints, and what is seen.
const RULES: [(&str, &str, [u32; 3], Rule); 16] = [
    ("random", "", [1, 1, 1], Rule::All),
    ("rr", "", [3, 1, 2], Rule::Exactly([1, 2, 3, 1, 2, 3, 1, 2, 3])),
    ("wrr", "", [4, 3, 2], Rule::Exactly([1, 1, 2, 1, 2, 3, 1, 2, 3])),
    ("sh", "source", [1, 1, 1], Rule::One),
    ("sh", "source-port", [1, 1, 1], Rule::All),
    ("dh", "", [1, 1, 1], Rule::One),
    ("mh", "source", [1, 1, 1], Rule::One),
    ("mh", "source-port", [1, 1, 1], Rule::All),
    ("mh", "destination", [1, 1, 1], Rule::One),
    ("fo", "", [1, 3, 2], Rule::Exactly([2; 9])),
    ("lc", "", [1, 5, 1], Rule::Exactly([1, 2, 3, 1, 2, 3, 1, 2, 3])),
    ("wlc", "", [3, 1, 2], Rule::Exactly([1, 2, 3, 1, 3, 1, 1, 2, 3])),
    ("sed", "", [1, 3, 2], Rule::Exactly([2, 3, 2, 1, 2, 3, 2, 3, 2])),
    ("nq", "", [5, 1, 4], Rule::Exactly([1, 2, 3, 1, 3, 1, 3, 1, 1])),
    ("ovf", "", [2, 1, 3], Rule::Exactly([3, 3, 3, 3, 1, 1, 1, 2, 2])),
    ("twos", "", [1, 1, 1], Rule::All),
];

/// Each algorithm selects by its definition, for packets and at sockets. By chance, an endpoint
/// gets none of 48 connections at random in one of 90 million runs.
pub fn selects_by_its_rule(world: &mut World, family: Family) -> Result<()> {
    let pods = [1, 3, 4];
    let mut services = Vec::new();
    for (algorithm, hash, weights, rule) in RULES {
        for of_sockets in [false, true] {
            let (published, object) = new_service(world, algorithm, hash);
            let slices = pods.into_iter().zip(weights);
            let slices = slices
                .map(|(pod, weight)| weighted_slice(&published.service, family, world.pod(pod), pod, weight));
            let objects: Vec<_> = iter::once(object).chain(slices).collect();
            world.write(&published, &objects)?;
            services.push((format!("{algorithm} {hash}"), rule, of_sockets, published));
        }
    }
    for (name, rule, of_sockets, published) in &services {
        let listed = if name.starts_with("fo") { 1 } else { pods.len() };
        eventually(|| has_endpoints(world, published, listed))?;
        let (host, target) = if *of_sockets {
            (&world.pod(2).host, published.cluster_ip(family, To::Http))
        } else {
            (world.client(), published.node_port(world.node(0), family, To::Http))
        };
        let mut held = host.hold_many(0, target)?;
        let count = if matches!(rule, Rule::All) { 48 } else { 9 };
        let mut endpoints = Vec::new();
        for _ in 0..count {
            let exchange = held.open(host.address(family), target)?;
            answered_by(slice::from_ref(&exchange), &pods)?;
            let pod = exchange.result.map_err(|failure| anyhow::anyhow!("{failure}"))?.greeting.pod;
            let position = pods.iter().position(|number| pod == format!("pod{number}"));
            endpoints.push(position.context("an endpoint")? + 1);
        }
        let distinct = endpoints.iter().collect::<BTreeSet<_>>().len();
        let follows = match rule {
            Rule::Exactly(expected) => endpoints == expected,
            Rule::One => distinct == 1,
            Rule::All => distinct == pods.len(),
        };
        ensure!(follows, "{name}, at sockets: {of_sockets}: {endpoints:?}, not {rule:?}");
        if name.starts_with("ovf") {
            refused(&[held.open(host.address(family), target)?])?;
        }
    }
    Ok(())
}

/// Algorithms with the parameter of their hash. All of them would spread the connections of a
/// client that stay open, or do not need session affinity to keep a client at its endpoint.
const ALGORITHMS: [(&str, &str); 17] = [
    ("random", ""),
    ("rr", ""),
    ("wrr", ""),
    ("lc", ""),
    ("wlc", ""),
    ("sed", ""),
    ("nq", ""),
    ("ovf", ""),
    ("fo", ""),
    ("twos", ""),
    ("lblc", ""),
    ("lblcr", ""),
    ("sh", "source"),
    ("sh", "source-port"),
    ("dh", ""),
    ("mh", "source"),
    ("mh", "source-port"),
];

/// With session affinity, all connections of a client have one endpoint, whatever the algorithm.
pub fn affinity_precedes(world: &mut World, family: Family) -> Result<()> {
    let pods = [1, 3, 4];
    let mut services = Vec::new();
    for (algorithm, hash) in ALGORITHMS {
        let (published, mut object) = new_service(world, algorithm, hash);
        sticky(&mut object, 10_800);
        let slice = published.service.slice(family, &pods.map(|pod| world.pod(pod)));
        world.write(&published, &[object, slice])?;
        services.push((algorithm, hash, published));
    }
    for (algorithm, hash, published) in &services {
        let name = &published.service.name;
        let counts = |world: &World| -> Result<Vec<u64>> {
            let rows = world.rows(0, &["backends", name])?;
            Ok(rows.iter().filter_map(|row| row["activeConnections"].as_u64()).collect())
        };
        let listed = if *algorithm == "fo" { 1 } else { pods.len() };
        eventually(|| has_endpoints(world, published, listed))?;
        let clients = [
            (world.client(), published.node_port(world.node(0), family, To::Http)),
            (&world.pod(2).host, published.cluster_ip(family, To::Http)),
        ];
        for (client, target) in clients {
            let held = client.hold_many(6, target)?;
            eventually(|| {
                let mut found = counts(world)?;
                found.sort_unstable();
                ensure!(found == [0, 0, 6], "{algorithm} {hash}, {}: {found:?}", client.name);
                Ok(())
            })?;
            drop(held);
            eventually(|| {
                let found = counts(world)?;
                ensure!(found == [0, 0, 0], "{algorithm} {hash}, {}: {found:?}", client.name);
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// Returns a new Service with one port and an algorithm, and its object.
fn new_service(world: &mut World, algorithm: &str, hash: &str) -> (Published, Value) {
    let mut published = world.new_service();
    published.service.ports.truncate(1);
    let mut object = published.service.object();
    annotate(&mut object, "algorithm", algorithm);
    if !hash.is_empty() {
        annotate(&mut object, "hash", hash);
    }
    (published, object)
}

/// Checks that the first node has so many endpoints in the list of a Service for clients outside.
fn has_endpoints(world: &World, published: &Published, count: usize) -> Result<()> {
    let rows = world.rows(0, &["services", &published.service.name])?;
    let list = rows.iter().filter_map(|row| row["outsideEndpoints"].as_array()).map(Vec::len).max();
    ensure!(list == Some(count), "not {count} endpoints: {rows:#?}");
    Ok(())
}
