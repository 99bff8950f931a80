//! Nanoseconds that the first packet of a connection takes, by algorithm and number of endpoints.
//!
//! `BPF_PROG_TEST_RUN` with a repeat count gives the program the same buffer in each repetition, so
//! the second repetition starts with the packet that the first one rewrote. Here each endpoint is
//! an address of its own Service, and is on another node: each repetition opens a connection with a
//! new source port. The hop count limits the length of such a chain.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use lb_model::{Algorithm, HashInput, IpFamily};
use lb_testbed::measure::median;
use lb_testbed::programs::world;
use lb_testbed::programs::{Action, Hook, Segment};
use serde::Serialize;

use crate::bed::{Bed, Endpoint, Service, frame};

/// The numbers of endpoints that are compared.
pub const SIZES: [usize; 3] = [3, 100, 1000];
/// The number of endpoints of the Services whose open connections are measured.
const OPEN_SIZE: usize = 100;
/// Connections in a chain, and repetitions of a call.
const CHAIN: u32 = 200;
/// Calls of each algorithm in a round. The calls of all algorithms alternate.
const CALLS: usize = 5;
/// First port of the Services.
const PORT: u16 = 9000;
/// First port of the endpoints. No two endpoints have the same port.
const ENDPOINT_PORT: u16 = 10_000;

/// Nanoseconds of a packet in each round.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cost {
    pub algorithm: &'static str,
    pub family: &'static str,
    pub endpoints: usize,
    /// The packet opens a connection. Otherwise it belongs to an open one.
    pub opens: bool,
    pub rounds: Vec<f64>,
}

/// Returns the Services of all algorithms, by size. All endpoints have the same address: the
/// programs look up a route once in 100 ms for each address, which is no cost of an algorithm.
fn services() -> Vec<Vec<Service>> {
    let mut ports = ENDPOINT_PORT..;
    let mut of_size = |size| {
        let mut service = |algorithm| {
            let ports: Vec<u16> = ports.by_ref().take(size).collect();
            service(algorithm, size, &ports)
        };
        Algorithm::ALL.into_iter().map(&mut service).collect()
    };
    SIZES.into_iter().map(&mut of_size).collect()
}

/// Returns the Service of an algorithm with endpoints at these ports, for both families.
fn service(algorithm: Algorithm, size: usize, ports: &[u16]) -> Service {
    let mut addresses = Vec::new();
    let mut endpoints = Vec::new();
    for v6 in [false, true] {
        addresses.push(service_address(algorithm, size, v6));
        for port in ports {
            let address = known("remote", *port, v6);
            addresses.push(address);
            // `ovf` takes as many connections as the weight.
            let weight = if algorithm == Algorithm::Overflow { u16::MAX } else { 1 };
            endpoints.push(Endpoint { address, weight, local: false });
        }
    }
    let name = format!("{algorithm}-{size}");
    // A chain has one client, so a hash of its address alone would select one endpoint.
    Service { name, algorithm, hash: HashInput::SourcePort, addresses, endpoints }
}

/// Returns the address of a Service. The Services differ by their ports.
fn service_address(algorithm: Algorithm, size: usize, v6: bool) -> SocketAddr {
    let position = SIZES.iter().position(|known| *known == size).unwrap_or_default();
    known("vip", PORT + (algorithm as usize * SIZES.len() + position) as u16, v6)
}

fn known(name: &str, port: u16, v6: bool) -> SocketAddr {
    SocketAddr::new(world::address(name, v6).expect("a name of the world"), port)
}

/// Measures all algorithms.
pub fn measure(bed: &mut Bed, rounds: usize) -> Result<Vec<Cost>> {
    let services = services();
    for service in services.iter().flatten() {
        bed.serve(service)?;
    }
    bed.subject.tidy_filter()?;
    let mut costs = Vec::new();
    for round in 1..=rounds {
        eprintln!("cost: round {round} of {rounds}");
        let mut measured = Vec::new();
        for (size, services) in SIZES.into_iter().zip(&services) {
            for family in IpFamily::BOTH {
                measured.extend(one_round(bed, services, family, size)?);
            }
        }
        if costs.is_empty() {
            costs = measured;
        } else {
            for (cost, next) in costs.iter_mut().zip(measured) {
                cost.rounds.extend(next.rounds);
            }
        }
    }
    for service in services.iter().flatten() {
        bed.remove(service)?;
    }
    Ok(costs)
}

/// Measures one round of Services of one size. The calls of the algorithms alternate, so that noise
/// affects all of them.
fn one_round(bed: &mut Bed, services: &[Service], family: IpFamily, size: usize) -> Result<Vec<Cost>> {
    bed.subject.forget_flows()?;
    let mut first = vec![Vec::new(); services.len()];
    let mut open = vec![Vec::new(); services.len()];
    let v6 = family == IpFamily::V6;
    for call in 0..CALLS {
        // Each call begins with another algorithm: none follows the same one each time.
        for step in 0..services.len() {
            let index = (step + call * 5) % services.len();
            let client = known("client", 20_000 + call as u16, v6);
            let address = service_address(services[index].algorithm, size, v6);
            let counts = [("flow_opened", CHAIN), ("forwarded", CHAIN)];
            let nanoseconds = chain(bed, &frame(client, address, Segment::Syn)?, &counts)?;
            first[index].push(nanoseconds);
            if size == OPEN_SIZE {
                let ack = frame(client, address, Segment::Ack)?;
                open[index].push(chain(bed, &ack, &[("forwarded", CHAIN)])?);
            }
        }
    }
    let cost = |(service, samples): (&Service, Vec<f64>), opens| Cost {
        algorithm: service.algorithm.name(),
        family: if v6 { "IPv6" } else { "IPv4" },
        endpoints: size,
        opens,
        rounds: vec![median(samples)],
    };
    let mut costs: Vec<_> = services.iter().zip(first).map(|pair| cost(pair, true)).collect();
    if size == OPEN_SIZE {
        costs.extend(services.iter().zip(open).map(|pair| cost(pair, false)));
    }
    Ok(costs)
}

/// Runs a chain. The figure is valid only if every repetition took the same path: then each counter
/// has increased by the number of repetitions.
fn chain(bed: &mut Bed, packet: &[u8], expected: &[(&'static str, u32)]) -> Result<f64> {
    let before = bed.subject.counters()?;
    let run = bed.run(Hook::Xdp, packet, CHAIN)?;
    ensure!(matches!(run.action, Action::Tx | Action::Redirect), "not forwarded: {:?}", run.action);
    let after = bed.subject.counters()?;
    let counted: Vec<(&str, u64)> = after
        .iter()
        .map(|(label, count)| (*label, count - before[label]))
        .filter(|(_, count)| *count > 0)
        .collect();
    let expected: Vec<_> = expected.iter().map(|(label, count)| (*label, u64::from(*count))).collect();
    ensure!(
        counted == expected,
        "not all packets took this path: counted {counted:?}, expected {expected:?}"
    );
    Ok(f64::from(run.nanoseconds))
}
