//! Which endpoint stands in which slot. The data path selects a slot at random, in turn, or by a
//! hash; everything else about an algorithm is the arrangement of the slots.
//!
//! Everything here depends on the addresses and weights of the endpoints alone, so all nodes
//! arrange the slots alike, whatever happened before.

mod buckets;
mod candidate;
mod maglev;
mod weights;

use lb_model::Algorithm;

pub use candidate::Candidate;

/// Returns the slots for an algorithm. The result is empty only if there is no candidate.
pub fn arrange(algorithm: Algorithm, candidates: &[Candidate]) -> Vec<u32> {
    if candidates.is_empty() {
        return Vec::new();
    }
    match algorithm {
        Algorithm::Random => weights::repeated(candidates),
        Algorithm::RoundRobin => candidates.iter().map(|candidate| candidate.index).collect(),
        Algorithm::WeightedRoundRobin => weights::interleaved(candidates),
        Algorithm::SourceHash => buckets::weighted(candidates),
        Algorithm::DestinationHash => buckets::unweighted(candidates),
        Algorithm::Maglev => maglev::table(candidates),
        Algorithm::Failover => weights::greatest(candidates),
    }
}

#[cfg(test)]
mod tests {
    use super::candidate::candidates;
    use super::*;

    #[test]
    fn only_the_algorithms_with_weights_depend_on_them() {
        for algorithm in Algorithm::ALL {
            let same =
                arrange(algorithm, &candidates(&[1, 1, 1])) == arrange(algorithm, &candidates(&[1, 1, 2]));
            let ignores_weights = [Algorithm::RoundRobin, Algorithm::DestinationHash].contains(&algorithm);
            assert_eq!(same, ignores_weights, "{algorithm}");
            assert!(arrange(algorithm, &[]).is_empty());
        }
    }
}
