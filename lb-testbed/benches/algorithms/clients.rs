//! Clients and endpoints of the measurements of spread and balance, the same in each run.

use std::net::{IpAddr, SocketAddr};

use lb_testbed::programs::world;

use crate::bed::Endpoint;

/// Returns the address and port of a client. Addresses are scattered over 100.64.0.0/10, and no two
/// of the first four million are equal.
pub fn client(number: u32) -> SocketAddr {
    const FIRST: u32 = 0x6440_0000;
    /// It is odd, so the addresses do not repeat.
    const SCATTER: u32 = 0x9e37_79b9;
    let host = number.wrapping_mul(SCATTER) & 0x003f_ffff;
    SocketAddr::new(IpAddr::from((FIRST + host).to_be_bytes()), 1024 + (number % 60_000) as u16)
}

/// Returns endpoints on this node with these weights.
pub fn endpoints(weights: &[u16]) -> Vec<Endpoint> {
    let endpoint = |(number, weight): (u16, &u16)| {
        let address = SocketAddr::from(([10, 244, 1, 10 + (number / 5) as u8], 8080 + number % 5));
        Endpoint { address, weight: *weight, local: true }
    };
    (0..).zip(weights).map(endpoint).collect()
}

/// Returns the address of the Service.
pub fn service_address() -> SocketAddr {
    SocketAddr::new(world::address("vip2", false).expect("a name of the world"), 80)
}

/// A sequence of numbers that is the same in each run (Knuth's linear congruential generator).
pub struct Sequence(u64);

impl Sequence {
    pub fn new() -> Self {
        Self(1)
    }

    pub fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }
}
