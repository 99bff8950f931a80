//! The balance of algorithms that compare connections, while connections end: the programs compare
//! at most 16 endpoints. Beside them, a model in this process compares all.
//!
//! The same connections are opened and ended with both. After the first ones, each one that ends is
//! replaced by a new one, so the number of open connections stays.

use std::collections::HashMap;
use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use lb_common::load::{Candidate, Connections, sampled};
use lb_model::{Algorithm, HashInput};
use lb_testbed::spread::above_share;
use serde::Serialize;

use crate::bed::{Bed, Service};
use crate::clients::{Sequence, client, endpoints, service_address};

/// The numbers of endpoints.
pub const SIZES: [usize; 3] = [10, 100, 1000];
/// The numbers of endpoints that the model compares, for the plot. `None`: all of them.
pub const LOOKS: [Option<u32>; 8] = [Some(1), Some(2), Some(4), Some(8), Some(16), Some(32), Some(64), None];

/// The connections that the busiest endpoint has above its share.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Above {
    /// The mean over the time in which connections end.
    pub mean: f64,
    pub most: f64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Balance {
    pub algorithm: &'static str,
    pub has_weights: bool,
    pub endpoints: usize,
    pub measured: Above,
    /// All endpoints are compared.
    pub exact: Above,
}

/// The balance of a model of `lc` that compares so many endpoints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sampled {
    pub endpoints: usize,
    /// `None`: all of them.
    pub looks: Option<u32>,
    pub above: Above,
}

/// The algorithms, and whether endpoints have weights from 1 to 4.
const CASES: [(Algorithm, bool); 6] = [
    (Algorithm::LeastConnections, false),
    (Algorithm::TwoChoices, false),
    (Algorithm::WeightedLeastConnections, true),
    (Algorithm::ShortestExpectedDelay, true),
    (Algorithm::NeverQueue, true),
    (Algorithm::TwoChoices, true),
];

fn weights(endpoints: usize, has_weights: bool) -> Vec<u16> {
    (0..endpoints).map(|index| if has_weights { index as u16 % 4 + 1 } else { 1 }).collect()
}

/// Measures the programs. `each` is the number of open connections for each endpoint.
pub fn measure(bed: &mut Bed, each: usize) -> Result<Vec<Balance>> {
    let mut all = Vec::new();
    for (algorithm, has_weights) in CASES {
        for size in SIZES {
            eprintln!("balance: {algorithm}, {size} endpoints");
            let weights = weights(size, has_weights);
            let mut programs = Programs::new(bed, algorithm, &weights)?;
            let (measured, choices) = drive(&mut programs, &weights, each)?;
            programs.end()?;
            let (exact, of_model) = drive(&mut Model::new(algorithm, &weights, None), &weights, each)?;
            // Up to 16 endpoints are compared completely, in the same order.
            let is_exact = size <= 16 && algorithm != Algorithm::TwoChoices;
            let differs = choices.iter().zip(&of_model).position(|(seen, expected)| seen != expected);
            ensure!(!is_exact || differs.is_none(), "{algorithm}: choice {differs:?} is not the least");
            let algorithm = algorithm.name();
            all.push(Balance { algorithm, has_weights, endpoints: size, measured, exact });
        }
    }
    Ok(all)
}

/// Returns the balance of models that compare different numbers of endpoints.
pub fn model(each: usize) -> Result<Vec<Sampled>> {
    let mut all = Vec::new();
    for endpoints in SIZES.into_iter().filter(|size| *size > 16) {
        for looks in LOOKS {
            eprintln!("balance: a model with {endpoints} endpoints");
            let weights = weights(endpoints, false);
            let mut model = Model::new(Algorithm::LeastConnections, &weights, looks);
            let (above, _) = drive(&mut model, &weights, each)?;
            all.push(Sampled { endpoints, looks, above });
        }
    }
    Ok(all)
}

/// Selects endpoints. Connections have numbers.
trait Balancer {
    /// Opens a connection. Returns the number of its endpoint.
    fn open(&mut self, connection: u32) -> Result<usize>;
    fn end(&mut self, connection: u32) -> Result<()>;
    /// Closed connections count no longer.
    fn sweep(&mut self) -> Result<()>;
}

/// Opens and ends connections. Returns the balance, and the choices.
fn drive(balancer: &mut impl Balancer, weights: &[u16], each: usize) -> Result<(Above, Vec<usize>)> {
    let shares: Vec<u32> = weights.iter().copied().map(u32::from).collect();
    let total = each * weights.len();
    let mut sequence = Sequence::new();
    let (mut open, mut choices): (Vec<(u32, usize)>, Vec<usize>) = (Vec::new(), Vec::new());
    let (mut active, mut samples) = (vec![0_u32; weights.len()], Vec::new());
    for number in 0..2 * total as u32 {
        if open.len() == total {
            let (ended, endpoint) = open.swap_remove(sequence.next() as usize % total);
            balancer.end(ended)?;
            active[endpoint] -= 1;
        }
        let endpoint = balancer.open(number)?;
        active[endpoint] += 1;
        open.push((number, endpoint));
        choices.push(endpoint);
        let done = number as usize + 1;
        if done > total && done.is_multiple_of((total / 50).max(1)) {
            samples.push(above_share(&shares, &active));
        }
        if done > total && done.is_multiple_of((total / 10).max(1)) {
            balancer.sweep()?;
        }
    }
    let mean = samples.iter().sum::<f64>() / samples.len() as f64;
    Ok((Above { mean, most: samples.into_iter().fold(0.0, f64::max) }, choices))
}

/// The kernel programs.
struct Programs<'a> {
    bed: &'a mut Bed,
    service: Service,
    numbers: HashMap<SocketAddr, usize>,
}

impl<'a> Programs<'a> {
    fn new(bed: &'a mut Bed, algorithm: Algorithm, weights: &[u16]) -> Result<Self> {
        let service = Service {
            name: "balance".to_owned(),
            algorithm,
            hash: HashInput::Source,
            addresses: vec![service_address()],
            endpoints: endpoints(weights),
        };
        bed.serve(&service)?;
        let numbers =
            service.endpoints.iter().enumerate().map(|(number, endpoint)| (endpoint.address, number));
        Ok(Self { numbers: numbers.collect(), bed, service })
    }

    fn end(self) -> Result<()> {
        self.bed.remove(&self.service)
    }
}

impl Balancer for Programs<'_> {
    fn open(&mut self, connection: u32) -> Result<usize> {
        let endpoint = self.bed.connect(client(connection), service_address())?;
        let endpoint = endpoint.with_context(|| format!("connection {connection} was refused"))?;
        self.numbers.get(&endpoint).copied().with_context(|| format!("{endpoint} is no endpoint"))
    }

    fn end(&mut self, connection: u32) -> Result<()> {
        self.bed.disconnect(client(connection), service_address())
    }

    fn sweep(&mut self) -> Result<()> {
        self.bed.sweep()
    }
}

/// A model of the comparison.
struct Model {
    algorithm: u8,
    weights: Vec<u16>,
    loads: Vec<Connections>,
    endpoints: Vec<usize>,
    /// The number of endpoints that are compared. `None`: all.
    looks: Option<u32>,
    random: Sequence,
}

impl Model {
    fn new(algorithm: Algorithm, weights: &[u16], looks: Option<u32>) -> Self {
        use lb_common::layout::algorithm as number;
        let algorithm = match algorithm {
            Algorithm::LeastConnections => number::LEAST,
            Algorithm::ShortestExpectedDelay => number::SHORTEST_DELAY,
            Algorithm::NeverQueue => number::NEVER_QUEUE,
            // The exact form of two choices compares all.
            _ => number::LEAST_WEIGHTED,
        };
        let loads = vec![Connections::default(); weights.len()];
        let random = Sequence::new();
        Self { algorithm, weights: weights.to_vec(), loads, endpoints: Vec::new(), looks, random }
    }
}

impl Balancer for Model {
    fn open(&mut self, connection: u32) -> Result<usize> {
        let count = self.weights.len() as u32;
        let start = self.random.next();
        let mut best: Option<(Candidate, usize)> = None;
        for n in 0..self.looks.unwrap_or(count).min(count) {
            let index = if self.looks.is_some() { sampled(start, n, count) } else { n } as usize;
            let candidate = Candidate::new(self.algorithm, self.loads[index], self.weights[index].into());
            let candidate = candidate.context("an endpoint without weight")?;
            if best.is_none_or(|(best, _)| candidate.is_less(&best)) {
                best = Some((candidate, index));
            }
        }
        let (_, index) = best.context("no endpoint")?;
        self.loads[index].active += 1;
        ensure!(self.endpoints.len() == connection as usize, "connections are opened in their order");
        self.endpoints.push(index);
        Ok(index)
    }

    fn end(&mut self, connection: u32) -> Result<()> {
        let load = &mut self.loads[self.endpoints[connection as usize]];
        load.active -= 1;
        load.inactive += 1;
        Ok(())
    }

    fn sweep(&mut self) -> Result<()> {
        self.loads.iter_mut().for_each(|load| load.inactive = 0);
        Ok(())
    }
}
