//! Tests the endpoints that new connections get. A case cannot state a random result.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use lb_testbed::packet::layer::{Layer, Link};
use lb_testbed::packet::{build, dissect, parse};
use lb_testbed::programs::world::{self, World};
use lb_testbed::programs::{BackendEndpoint, Limits, ServiceAddressEntry, Subject};

use crate::case::{Hook, Mode};
use crate::run::send;
use crate::uptime::wait_until_after;

const TCP: u8 = 6;
/// The endpoints differ by their ports: all have one address.
const PORTS: [u16; 4] = [8080, 8081, 8082, 8083];
/// Session affinity of the Services, in seconds.
const AFFINITY: u32 = 100;

type Run = fn(&mut Client<'_>) -> Result<()>;

/// The tests, by name. Each runs for both families.
pub const TESTS: [(&str, u32, Run); 4] = [
    ("every endpoint gets its share of new connections", 4096, shares),
    ("affinity lasts while the client uses it, and no longer", 4096, affinity),
    ("affinities to two Services do not replace each other", 4096, affinity_to_two_services),
    // No other test uses this size: the programs stay under pressure for a minute.
    ("while connections give way, a repeated SYN reaches the same endpoint", 24, pressure),
];

/// Returns the limits of a test.
pub fn limits(flows: u32) -> Limits {
    Limits { flows, ..Limits::default() }
}

pub fn run(test: Run, world: &World, subject: &mut Subject) -> Result<()> {
    for v6 in [false, true] {
        subject.clear()?;
        let family = if v6 { "IPv6" } else { "IPv4" };
        test(&mut Client { world, subject, v6 }).context(family)?;
    }
    Ok(())
}

/// A client of the Services at `vip`.
pub struct Client<'a> {
    world: &'a World,
    subject: &'a mut Subject,
    v6: bool,
}

impl Client<'_> {
    /// Publishes Services at these ports of `vip`, each with all endpoints.
    fn publish(&mut self, ports: &[u16], affinity_seconds: u32) -> Result<()> {
        let entries = ports.iter().map(|port| {
            let endpoints = PORTS.map(|port| BackendEndpoint::new(self.socket("remote", port), false));
            let entry = ServiceAddressEntry::new(self.socket("vip", *port), TCP, endpoints.to_vec());
            ServiceAddressEntry { affinity_seconds, ..entry }
        });
        let entries: Vec<_> = entries.collect();
        self.subject.serve(&entries)
    }

    fn socket(&self, name: &str, port: u16) -> SocketAddr {
        SocketAddr::new(world::address(name, self.v6).expect("a name of the world"), port)
    }

    /// Sends a SYN. Returns the port of the endpoint that gets it.
    fn connect(&mut self, from: u16, to: u16) -> Result<u16> {
        let address = |name| world::address(name, self.v6).expect("a name of the world");
        let text = format!(
            "eth 02:00:00:00:00:09 > 02:00:00:00:00:01 / ip {} > {} / tcp {from} > {to} S",
            address("client"),
            address("vip")
        );
        let found =
            send(self.subject, self.world, Mode::Tc, Hook::Ingress, world::NIC, &build(&parse(&text)?))?;
        for layer in dissect(&found.packet, Link::Ethernet) {
            if let Layer::Tcp(tcp) = layer
                && PORTS.contains(&tcp.destination)
            {
                return Ok(tcp.destination);
            }
        }
        bail!("{text}: no endpoint got it: {:?}", found.action)
    }
}

fn shares(client: &mut Client<'_>) -> Result<()> {
    client.publish(&[80], 0)?;
    let mut shares: BTreeMap<u16, u32> = BTreeMap::new();
    for from in 10_000..10_800 {
        *shares.entry(client.connect(from, 80)?).or_default() += 1;
    }
    // 200 are expected for each. The limits are six standard deviations away.
    ensure!(
        PORTS.iter().all(|port| (126..=274).contains(shares.get(port).unwrap_or(&0))),
        "of 800 connections the endpoints got {shares:?}"
    );
    Ok(())
}

fn affinity(client: &mut Client<'_>) -> Result<()> {
    wait_until_after(u64::from(AFFINITY) + 1);
    client.publish(&[80], AFFINITY)?;
    let first = client.connect(20_000, 80)?;
    for from in 20_001..20_020 {
        // Twenty times the affinity's duration in all.
        client.subject.wait(u64::from(AFFINITY) - 1)?;
        let next = client.connect(from, 80)?;
        ensure!(next == first, "the client moved from {first} to {next} before its affinity timed out");
    }
    let mut endpoints = BTreeSet::new();
    for from in 21_000..21_030 {
        client.subject.wait(u64::from(AFFINITY) + 1)?;
        endpoints.insert(client.connect(from, 80)?);
    }
    ensure!(endpoints.len() > 1, "after its affinity timed out, the client always got {endpoints:?}");
    Ok(())
}

fn affinity_to_two_services(client: &mut Client<'_>) -> Result<()> {
    client.publish(&[80, 81], AFFINITY)?;
    for service in [80, 81] {
        let other = if service == 80 { 81 } else { 80 };
        let first = client.connect(30_000, service)?;
        for from in 30_001..30_020 {
            client.connect(from, other)?;
            let next = client.connect(from, service)?;
            ensure!(next == first, "a connection to port {other} moved the client from {first} to {next}");
        }
    }
    Ok(())
}

fn pressure(client: &mut Client<'_>) -> Result<()> {
    client.publish(&[80], 0)?;
    for from in 40_000..40_100 {
        client.connect(from, 80)?;
    }
    let evicted = client.subject.counters()?["evicted_half_open"];
    ensure!(evicted > 0, "no connection gave way");
    let mut endpoints = BTreeSet::new();
    for from in 41_000..41_030 {
        client.subject.forget_flows()?;
        let first = client.connect(from, 80)?;
        client.subject.forget_flows()?;
        let again = client.connect(from, 80)?;
        ensure!(again == first, "the SYN from port {from} reached {first}, and then {again}");
        endpoints.insert(first);
    }
    ensure!(endpoints.len() > 1, "every client got {endpoints:?}");
    Ok(())
}
