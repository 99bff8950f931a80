//! The connections that each of ten endpoints gets, and the clients that change their endpoint when
//! one leaves. Connections stay open.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use lb_model::{Algorithm, HashInput};
use lb_testbed::spread::Spread;
use serde::Serialize;

use crate::bed::{Bed, Service};
use crate::clients::{client, endpoints, service_address};

const EQUAL: [u16; 10] = [1; 10];
const UNEQUAL: [u16; 10] = [1, 2, 3, 4, 1, 2, 3, 4, 1, 2];
/// The endpoint that leaves.
const LEAVES: usize = 4;
/// Addresses of the Service with `dh`, which selects by them. Other Services have one.
pub const DH_ADDRESSES: u32 = 250;

/// The figures of an algorithm.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Spreads {
    pub algorithm: &'static str,
    pub equal: Spread,
    pub unequal: Spread,
    /// The share of connections to the other endpoints that another endpoint gets when one leaves,
    /// with equal weights. Only algorithms by a hash have it.
    pub moved: Option<f64>,
}

pub fn measure(bed: &mut Bed, connections: u32) -> Result<Vec<Spreads>> {
    let mut all = Vec::new();
    for algorithm in Algorithm::ALL {
        eprintln!("spread: {algorithm}");
        let (equal, first) = spread(bed, algorithm, &EQUAL, connections)?;
        let (unequal, _) = spread(bed, algorithm, &UNEQUAL, connections)?;
        let moved =
            if algorithm.is_by_hash() { Some(moved(bed, algorithm, connections, &first)?) } else { None };
        all.push(Spreads { algorithm: algorithm.name(), equal, unequal, moved });
    }
    Ok(all)
}

/// Opens connections from different clients. Returns the spread, and the endpoint of each
/// connection.
fn spread(
    bed: &mut Bed,
    algorithm: Algorithm,
    weights: &[u16],
    connections: u32,
) -> Result<(Spread, Vec<SocketAddr>)> {
    let weights = scaled(algorithm, weights, connections);
    let service = service(algorithm, &weights);
    bed.serve(&service)?;
    let chosen = connect_all(bed, &service, connections)?;
    bed.remove(&service)?;
    let count = |address: SocketAddr| chosen.iter().filter(|chosen| **chosen == address).count() as u32;
    let seen: Vec<u32> = service.endpoints.iter().map(|endpoint| count(endpoint.address)).collect();
    ensure!(seen.iter().sum::<u32>() == connections, "{algorithm}: {seen:?}");
    let spread = Spread::in_proportion(&shares(algorithm, &weights, connections), seen);
    ensure!(spread.strays() == 0, "{algorithm}: connections at endpoints that are to get none: {spread:?}");
    Ok((spread, chosen))
}

/// Returns the share of the connections whose endpoint stays when one leaves, and that get another
/// endpoint nevertheless.
fn moved(bed: &mut Bed, algorithm: Algorithm, connections: u32, before: &[SocketAddr]) -> Result<f64> {
    let mut service = service(algorithm, &EQUAL);
    let left = service.endpoints.remove(LEAVES).address;
    bed.serve(&service)?;
    let after = connect_all(bed, &service, connections)?;
    bed.remove(&service)?;
    let stay: Vec<_> = before.iter().zip(&after).filter(|(before, _)| **before != left).collect();
    let moved = stay.iter().filter(|(before, after)| before != after).count();
    Ok(moved as f64 / stay.len() as f64)
}

fn connect_all(bed: &mut Bed, service: &Service, connections: u32) -> Result<Vec<SocketAddr>> {
    let mut chosen = Vec::new();
    for number in 0..connections {
        let address = service.addresses[number as usize % service.addresses.len()];
        let endpoint = bed.connect(client(number), address)?;
        chosen.push(endpoint.with_context(|| format!("connection {number} was refused"))?);
    }
    Ok(chosen)
}

fn service(algorithm: Algorithm, weights: &[u16]) -> Service {
    let addresses = if algorithm == Algorithm::DestinationHash {
        // Every third address, so that they are not the numbers 0, 1, 2, … of the hash.
        let address = |number: u32| IpAddr::from((0x0a60_1000 + 3 * number).to_be_bytes());
        (0..DH_ADDRESSES).map(|number| SocketAddr::new(address(number), 80)).collect()
    } else {
        vec![service_address()]
    };
    let hash = HashInput::Source;
    Service { name: "spread".to_owned(), algorithm, hash, addresses, endpoints: endpoints(weights) }
}

/// Returns the weights of the endpoints. `ovf` takes as many connections as the weight, so the
/// weights are greater: there is room for 15 % more connections.
fn scaled(algorithm: Algorithm, weights: &[u16], connections: u32) -> Vec<u16> {
    let sum: u32 = weights.iter().copied().map(u32::from).sum();
    let factor = if algorithm == Algorithm::Overflow { (connections * 23 / 20 / sum) as u16 } else { 1 };
    weights.iter().map(|weight| weight * factor).collect()
}

/// Returns the numbers that the connections are to be proportional to.
fn shares(algorithm: Algorithm, weights: &[u16], connections: u32) -> Vec<u32> {
    match algorithm {
        Algorithm::RoundRobin | Algorithm::DestinationHash | Algorithm::LeastConnections => {
            vec![1; weights.len()]
        }
        Algorithm::Failover => {
            let mut shares = vec![0; weights.len()];
            shares[by_weight(weights)[0]] = 1;
            shares
        }
        Algorithm::Overflow => {
            let (mut shares, mut left) = (vec![0; weights.len()], connections);
            for index in by_weight(weights) {
                shares[index] = left.min(u32::from(weights[index]) + 1);
                left -= shares[index];
            }
            shares
        }
        _ => weights.iter().copied().map(u32::from).collect(),
    }
}

/// Returns the indices of the endpoints, those with the greatest weights first.
fn by_weight(weights: &[u16]) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..weights.len()).collect();
    indices.sort_by_key(|index| std::cmp::Reverse(weights[*index]));
    indices
}
