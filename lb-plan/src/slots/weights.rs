//! Slots in proportion to weights.

use std::collections::BTreeSet;

use lb_common::load::SAMPLE;

use super::eligible::EligibleEndpoint;

/// The greatest number of slots for one list, unless the list has more endpoints. Greater weights
/// are scaled down: an endpoint then gets its share of the slots, rounded down, and at least one.
const MOST_SLOTS: u64 = 16_384;

/// Returns the weights divided by their greatest common divisor, and scaled down if their sum
/// exceeds `limit`.
pub fn scaled(endpoints: &[EligibleEndpoint], limit: u64) -> Vec<u32> {
    let weights = || endpoints.iter().map(|endpoint| u64::from(endpoint.weight));
    let divisor = weights().fold(0, greatest_common_divisor).max(1);
    let sum = weights().sum::<u64>() / divisor;
    let scale = |weight: u64| match sum <= limit {
        true => weight / divisor,
        false => (weight / divisor * limit / sum).max(1),
    };
    weights().map(|weight| u32::try_from(scale(weight)).unwrap_or(u32::MAX)).collect()
}

fn greatest_common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// Returns each endpoint as often as its weight. (For a choice at random the order does not
/// matter.)
pub fn repeated(endpoints: &[EligibleEndpoint]) -> Vec<u32> {
    let weights = scaled(endpoints, MOST_SLOTS);
    endpoints
        .iter()
        .zip(weights)
        .flat_map(|(endpoint, weight)| std::iter::repeat_n(endpoint.index, weight as usize))
        .collect()
}

/// Returns the endpoints with the greatest weights, the greatest first: as many as the programs
/// compare. Of a longer list they would compare others.
pub fn greatest_first(endpoints: &[EligibleEndpoint]) -> Vec<u32> {
    let mut sorted: Vec<_> = endpoints.iter().collect();
    sorted.sort_by_key(|endpoint| std::cmp::Reverse(endpoint.weight));
    sorted.into_iter().map(|endpoint| endpoint.index).take(SAMPLE as usize).collect()
}

/// Returns the sequence of `wrr`: weights 4, 3, 2 give A A B A B C A B C
/// (`net/netfilter/ipvs/ip_vs_wrr.c`). A threshold falls from the greatest weight to 1; for each
/// threshold the endpoints follow whose weight is at least as great.
pub fn interleaved(endpoints: &[EligibleEndpoint]) -> Vec<u32> {
    let weights = scaled(endpoints, MOST_SLOTS);
    let mut heaviest_first: Vec<_> = (0..weights.len()).collect();
    heaviest_first.sort_by_key(|position| std::cmp::Reverse(weights[*position]));
    let mut heaviest_first = heaviest_first.into_iter().peekable();
    let greatest = weights.iter().copied().max().unwrap_or(0);
    let mut reached = BTreeSet::new();
    let mut sequence = Vec::new();
    for threshold in (1..=greatest).rev() {
        while let Some(position) = heaviest_first.next_if(|position| weights[*position] >= threshold) {
            reached.insert(position);
        }
        sequence.extend(reached.iter().map(|position| endpoints[*position].index));
    }
    sequence
}

/// Returns the endpoint with the greatest weight: the first of several.
pub fn greatest(endpoints: &[EligibleEndpoint]) -> Vec<u32> {
    let first = endpoints.iter().rev().max_by_key(|endpoint| endpoint.weight);
    first.map(|endpoint| endpoint.index).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::eligible::endpoints;
    use super::*;

    #[test]
    fn weights_are_interleaved_as_ipvs_does() {
        assert_eq!(interleaved(&endpoints(&[4, 3, 2])), [0, 0, 1, 0, 1, 2, 0, 1, 2]);
        assert_eq!(interleaved(&endpoints(&[40, 30, 20])), [0, 0, 1, 0, 1, 2, 0, 1, 2]);
        assert_eq!(interleaved(&endpoints(&[1, 1, 1])), [0, 1, 2]);
        assert_eq!(interleaved(&endpoints(&[1, 3])), [1, 1, 0, 1]);
    }

    #[test]
    fn failover_takes_the_first_of_the_greatest() {
        assert_eq!(greatest(&endpoints(&[1, 5, 5, 2])), [1]);
        assert_eq!(greatest(&endpoints(&[1])), [0]);
    }

    #[test]
    fn the_endpoints_of_the_greatest_weights_come_first() {
        assert_eq!(greatest_first(&endpoints(&[1, 5, 5, 2])), [1, 2, 3, 0]);
        let mut weights = [1; 40];
        (weights[7], weights[39]) = (2, 3);
        let first = greatest_first(&endpoints(&weights));
        assert_eq!((first.len(), &first[..3]), (SAMPLE as usize, &[39, 7, 0][..]));
    }

    #[test]
    fn weights_without_a_common_divisor_are_scaled_down() {
        assert_eq!(scaled(&endpoints(&[u16::MAX, 1, u16::MAX - 1]), 1000), [500, 1, 499]);
        assert_eq!(scaled(&endpoints(&[60_000, 30_000]), 1000), [2, 1]);
    }

    // Miri needs minutes for the slots of sixty endpoints.
    const ENDPOINTS: usize = if cfg!(miri) { 5 } else { 60 };

    proptest! {
        /// Every endpoint has at least one slot. If the weights need no scaling, the shares of the
        /// slots are exactly the shares of the weights.
        #[test]
        fn shares_of_the_slots_are_shares_of_the_weights(weights in proptest::collection::vec(1u16..300, 1..ENDPOINTS)) {
            let endpoints = endpoints(&weights);
            let sum: u32 = weights.iter().map(|weight| u32::from(*weight)).sum();
            for slots in [repeated(&endpoints), interleaved(&endpoints)] {
                for endpoint in &endpoints {
                    let count = slots.iter().filter(|index| **index == endpoint.index).count() as u64;
                    prop_assert!(count > 0);
                    if u64::from(sum) <= MOST_SLOTS {
                        prop_assert_eq!(count * u64::from(sum), u64::from(endpoint.weight) * slots.len() as u64);
                    }
                }
                prop_assert!(slots.len() as u64 <= MOST_SLOTS + weights.len() as u64);
            }
        }
    }
}
