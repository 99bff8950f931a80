//! Eligible endpoints, from which slots are filled.

use std::net::SocketAddr;

/// An eligible endpoint. Lists of these are sorted by address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EligibleEndpoint {
    /// The number of the endpoint in the slots.
    pub index: u32,
    pub address: SocketAddr,
    /// Not 0.
    pub weight: u16,
}

/// Returns endpoints with the indices 0, 1, … and these weights.
#[cfg(test)]
pub fn endpoints(weights: &[u16]) -> Vec<EligibleEndpoint> {
    (0..)
        .zip(weights)
        .map(|(index, &weight)| {
            let [.., high, low] = u32::to_be_bytes(index);
            EligibleEndpoint { index, address: SocketAddr::from(([10, 0, high, low], 8080)), weight }
        })
        .collect()
}
