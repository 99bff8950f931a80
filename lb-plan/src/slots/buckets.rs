//! Buckets for a hash (`net/netfilter/ipvs/ip_vs_sh.c`, `ip_vs_dh.c`).

use super::eligible::EligibleEndpoint;
use super::weights::scaled;

/// The number of buckets in IPVS (`IP_VS_SH_TAB_SIZE`). IPVS has no bucket for the endpoints after
/// the first 256; here the number is the next power of two.
const BUCKETS: usize = 256;
/// The greatest number of buckets for weights, unless there are more endpoints.
const MOST_BUCKETS: u64 = 4_096;

/// Fills the buckets with one endpoint after the other, each as often as its weight, and starts
/// again from the first one.
pub fn weighted(endpoints: &[EligibleEndpoint]) -> Vec<u32> {
    let turns = scaled(endpoints, MOST_BUCKETS);
    let sum: usize = turns.iter().map(|turns| *turns as usize).sum();
    let round = endpoints
        .iter()
        .zip(turns)
        .flat_map(|(endpoint, turns)| std::iter::repeat_n(endpoint.index, turns as usize));
    round.cycle().take(bucket_count(sum)).collect()
}

/// Fills the buckets with one endpoint after the other.
pub fn unweighted(endpoints: &[EligibleEndpoint]) -> Vec<u32> {
    let indices = endpoints.iter().map(|endpoint| endpoint.index);
    indices.cycle().take(bucket_count(endpoints.len())).collect()
}

fn bucket_count(least: usize) -> usize {
    least.next_power_of_two().max(BUCKETS)
}

#[cfg(test)]
mod tests {
    use super::super::eligible::endpoints;
    use super::*;

    #[test]
    fn buckets_are_filled_by_weight_as_ipvs_does() {
        let buckets = weighted(&endpoints(&[2, 1]));
        assert_eq!(buckets.len(), 256);
        assert_eq!(buckets[..6], [0, 0, 1, 0, 0, 1]);
        assert_eq!(unweighted(&endpoints(&[2, 1]))[..4], [0, 1, 0, 1]);
    }

    const ENDPOINTS: &[usize] = if cfg!(miri) { &[1, 257] } else { &[1, 255, 256, 257, 1000, 5000] };

    #[test]
    fn every_endpoint_has_a_bucket() {
        for &count in ENDPOINTS {
            let endpoints = endpoints(&vec![3; count]);
            for buckets in [weighted(&endpoints), unweighted(&endpoints)] {
                let mut seen = buckets.clone();
                seen.sort_unstable();
                seen.dedup();
                assert_eq!(seen.len(), count);
            }
        }
    }
}
