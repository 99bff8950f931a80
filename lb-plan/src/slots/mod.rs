//! Which endpoint stands in which slot. The data path selects a slot at random, in turn, or by a
//! hash; everything else about an algorithm is the arrangement of the slots.
//!
//! Everything here depends on the addresses and weights of the endpoints alone, so all nodes
//! arrange the slots alike, whatever happened before.

mod buckets;
mod eligible;
mod maglev;
mod weights;

use lb_model::Algorithm;

pub use eligible::EligibleEndpoint;

/// Returns the slots for an algorithm. The result is empty only if there are no endpoints.
/// `can_overload`: the endpoints have thresholds, so another one may have to replace the first.
pub fn arrange(algorithm: Algorithm, can_overload: bool, endpoints: &[EligibleEndpoint]) -> Vec<u32> {
    if endpoints.is_empty() {
        return Vec::new();
    }
    match algorithm {
        Algorithm::Random | Algorithm::TwoChoices => weights::repeated(endpoints),
        Algorithm::RoundRobin
        | Algorithm::LeastConnections
        | Algorithm::WeightedLeastConnections
        | Algorithm::ShortestExpectedDelay
        | Algorithm::NeverQueue
        | Algorithm::Overflow => endpoints.iter().map(|endpoint| endpoint.index).collect(),
        Algorithm::WeightedRoundRobin => weights::interleaved(endpoints),
        Algorithm::SourceHash => buckets::weighted(endpoints),
        Algorithm::DestinationHash => buckets::unweighted(endpoints),
        Algorithm::Maglev => maglev::table(endpoints),
        // The programs select the greatest weight among the endpoints that are not overloaded.
        Algorithm::Failover if can_overload => weights::greatest_first(endpoints),
        Algorithm::Failover => weights::greatest(endpoints),
    }
}

#[cfg(test)]
mod tests {
    use super::eligible::endpoints;
    use super::*;

    #[test]
    fn only_the_algorithms_with_weights_depend_on_them() {
        for algorithm in Algorithm::ALL {
            let same = arrange(algorithm, false, &endpoints(&[1, 1, 1]))
                == arrange(algorithm, false, &endpoints(&[1, 1, 2]));
            // The programs read the weights for algorithms that compare connections.
            let ignores_weights = matches!(
                algorithm,
                Algorithm::RoundRobin
                    | Algorithm::DestinationHash
                    | Algorithm::LeastConnections
                    | Algorithm::WeightedLeastConnections
                    | Algorithm::ShortestExpectedDelay
                    | Algorithm::NeverQueue
                    | Algorithm::Overflow
            );
            assert_eq!(same, ignores_weights, "{algorithm}");
            assert!(arrange(algorithm, false, &[]).is_empty());
        }
    }
}
