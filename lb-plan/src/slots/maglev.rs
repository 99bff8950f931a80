//! Maglev tables (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer",
//! NSDI 2016, section 3.4).
//!
//! Each endpoint has a permutation of the table, made from its address. The endpoints take turns:
//! each takes the first entry of its permutation that is free. When an endpoint leaves, nearly all
//! other entries stay.

use std::hash::Hasher;
use std::net::{IpAddr, SocketAddr};

use siphasher::sip::SipHasher13;

use super::eligible::EligibleEndpoint;

/// The sizes of tables, all prime, and the greatest number of endpoints for each: a hundredth of
/// the size, so that the busiest endpoint has at most 2 % more entries than the mean.
///
/// The size depends on the number of endpoints alone, because all nodes must have the same table.
/// At a step most clients change their endpoint; the steps are far apart.
const SIZES: [(usize, usize); 3] = [(10, 1_021), (163, 16_381), (usize::MAX, 131_071)];

fn table_size(endpoints: usize) -> usize {
    let (_, size) = SIZES.into_iter().find(|(most, _)| endpoints <= *most).unwrap_or(SIZES[2]);
    size
}

/// The order in which an endpoint takes entries of the table.
struct Permutation {
    next: usize,
    skip: usize,
}

impl Permutation {
    fn of(address: SocketAddr, size: usize) -> Self {
        let hash = |key| {
            let mut hasher = SipHasher13::new_with_keys(key, key);
            match address.ip() {
                IpAddr::V4(ip) => hasher.write(&ip.octets()),
                IpAddr::V6(ip) => hasher.write(&ip.octets()),
            }
            hasher.write(&address.port().to_be_bytes());
            hasher.finish() as usize
        };
        Self { next: hash(1) % size, skip: hash(2) % (size - 1) + 1 }
    }

    /// Takes the first free entry.
    fn take(&mut self, table: &mut [Option<u32>], index: u32) {
        loop {
            let entry = self.next;
            self.next = (entry + self.skip) % table.len();
            if table[entry].is_none() {
                table[entry] = Some(index);
                return;
            }
        }
    }
}

/// Returns the table. In each round an endpoint earns its weight, and pays the greatest weight for
/// an entry: with equal weights each takes one entry in each round.
pub fn table(endpoints: &[EligibleEndpoint]) -> Vec<u32> {
    let size = table_size(endpoints.len());
    let price = endpoints.iter().map(|endpoint| u32::from(endpoint.weight)).max().unwrap_or(1);
    let mut turns: Vec<_> =
        endpoints.iter().map(|endpoint| (endpoint, Permutation::of(endpoint.address, size), 0)).collect();
    let mut table = vec![None; size];
    let mut free = size;
    while free > 0 {
        for (endpoint, permutation, credit) in &mut turns {
            *credit += u32::from(endpoint.weight);
            if *credit >= price && free > 0 {
                *credit -= price;
                permutation.take(&mut table, endpoint.index);
                free -= 1;
            }
        }
    }
    table.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::eligible::endpoints;
    use super::*;

    // Miri needs minutes for the tables of more than ten endpoints.
    const ENDPOINTS: &[usize] = if cfg!(miri) { &[1, 3] } else { &[1, 2, 3, 10, 100, 163, 1000] };
    /// Numbers of endpoints, and the greatest share of the entries that may move without need.
    const MOVED: &[(usize, f64)] =
        if cfg!(miri) { &[(10, 0.03)] } else { &[(10, 0.03), (100, 0.017), (1000, 0.007)] };

    fn shares(table: &[u32], endpoints: usize) -> Vec<usize> {
        let mut shares = vec![0; endpoints];
        table.iter().for_each(|index| shares[*index as usize] += 1);
        shares
    }

    #[test]
    fn the_busiest_endpoint_has_at_most_two_percent_more_than_the_mean() {
        for &count in ENDPOINTS {
            let table = table(&endpoints(&vec![1; count]));
            let most = *shares(&table, count).iter().max().unwrap();
            let ratio = most as f64 * count as f64 / table.len() as f64;
            assert!(ratio <= 1.02, "{count} endpoints: {ratio}");
        }
    }

    /// An entry moves without need if its endpoint stays and the entry changes all the same.
    #[test]
    fn removing_an_endpoint_moves_few_entries_of_others() {
        for &(count, bound) in MOVED {
            let all = endpoints(&vec![1; count]);
            let before = table(&all);
            let removals = (0..count).step_by(count / 10);
            let moved: usize = removals
                .clone()
                .map(|removed| {
                    let mut rest = all.clone();
                    rest.remove(removed);
                    let entries = before.iter().zip(table(&rest));
                    entries.filter(|(old, new)| **old != removed as u32 && *old != new).count()
                })
                .sum();
            let mean = moved as f64 / (before.len() * removals.len()) as f64;
            assert!(mean <= bound, "{count} endpoints: {mean}");
        }
    }

    #[test]
    fn the_table_depends_on_addresses_only() {
        let all = endpoints(&[1, 2, 3, 4]);
        let renumbered: Vec<_> =
            all.iter().map(|endpoint| EligibleEndpoint { index: 7 - endpoint.index, ..*endpoint }).collect();
        let [one, other] = [&all, &renumbered].map(|endpoints| table(endpoints));
        assert!(one.iter().zip(&other).all(|(one, other)| *one == 7 - *other));
    }

    proptest! {
        /// No endpoint has two entries less than its share. The heaviest one has these entries.
        #[test]
        fn shares_follow_the_weights(weights in proptest::collection::vec(1u16..1000, 1..10)) {
            let table = table(&endpoints(&weights));
            let sum: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
            for (share, weight) in shares(&table, weights.len()).into_iter().zip(&weights) {
                let fair = f64::from(*weight) / sum * table.len() as f64;
                let difference = share as f64 - fair;
                prop_assert!(difference > -2.0 && difference < weights.len() as f64, "{share} entries, {fair} would be fair");
            }
        }
    }
}
