use std::net::SocketAddr;

/// An eligible endpoint. Candidates are sorted by address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// What stands for the endpoint in the slots.
    pub index: u32,
    pub address: SocketAddr,
    /// Not 0.
    pub weight: u16,
}

/// Returns candidates with the indices 0, 1, … and these weights.
#[cfg(test)]
pub fn candidates(weights: &[u16]) -> Vec<Candidate> {
    (0..)
        .zip(weights)
        .map(|(index, &weight)| {
            let [.., high, low] = u32::to_be_bytes(index);
            Candidate { index, address: SocketAddr::from(([10, 0, high, low], 8080)), weight }
        })
        .collect()
}
