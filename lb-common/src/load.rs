//! The open connections of endpoints, and the algorithms that compare them. The definitions are
//! those of the IPVS schedulers (`net/netfilter/ipvs/ip_vs_*.c`).

use crate::hash::position;
use crate::layout::{Load, algorithm, counted};

/// The greatest number of slots that are compared for one new connection. A range of more slots is
/// sampled.
pub const SAMPLE: u32 = 16;

/// 2^32 divided by the golden ratio: its multiples are spread evenly (Knuth, TAOCP 6.4).
const SPREAD: u32 = 0x9e37_79b9;

/// Returns the `n`th slot that is compared, of a range of `count` slots. If the range has no more
/// than [`SAMPLE`] slots, these are all slots in their order. Otherwise the slots are spread evenly
/// over the range, from a position that `random` selects.
#[inline(always)]
pub fn sampled(random: u32, n: u32, count: u32) -> u32 {
    if count <= SAMPLE { n } else { position(random.wrapping_add(n.wrapping_mul(SPREAD)), count) }
}

/// The open connections of an endpoint.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Default)]
pub struct Connections {
    pub active: u32,
    pub inactive: u32,
}

impl Connections {
    /// Returns the number of connections.
    #[inline(always)]
    pub fn sum(&self) -> u64 {
        self.active as u64 + self.inactive as u64
    }

    /// Returns the sum that IPVS calls the overhead: an active connection counts as 256 inactive
    /// ones.
    #[inline(always)]
    pub fn overhead(&self) -> u64 {
        ((self.active as u64) << 8) + self.inactive as u64
    }
}

/// Returns the number to add to a pair of counts in [`Load`], modulo 2^64, for a connection that
/// was counted as `before` and is counted as `after`, both of [`counted`]. Both counts change at
/// once.
#[inline(always)]
pub fn step(before: u8, after: u8) -> u64 {
    let unit = |counted| match counted {
        counted::ACTIVE => 1 << 32,
        counted::INACTIVE => 1,
        _ => 0u64,
    };
    unit(after).wrapping_sub(unit(before))
}

impl Load {
    pub const NONE: Self = Self { inactive: 0, active: 0, socket_inactive: 0, socket_active: 0 };

    /// Returns the load with these pairs of counts, each the active ones above the inactive ones.
    #[inline(always)]
    pub fn of_pairs(flows: u64, sockets: u64) -> Self {
        let (inactive, active) = (flows as u32, (flows >> 32) as u32);
        let (socket_inactive, socket_active) = (sockets as u32, (sockets >> 32) as u32);
        Self { inactive, active, socket_inactive, socket_active }
    }

    /// Returns the connections of packets and sockets together.
    #[inline(always)]
    pub fn connections(&self) -> Connections {
        let pair = |active: u32, inactive: u32| (active as u64) << 32 | inactive as u64;
        let flows = pair(self.active, self.inactive);
        let sum = flows.wrapping_add(pair(self.socket_active, self.socket_inactive));
        // While an agent converts maps, one part may be below zero.
        if (sum as i64) < 0 {
            return Connections { active: 0, inactive: 0 };
        }
        Connections { active: (sum >> 32) as u32, inactive: sum as u32 }
    }
}

/// An endpoint in a comparison. Less is `cost / weight`.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    cost: u64,
    weight: u64,
}

impl Candidate {
    /// Returns the endpoint as an algorithm, one of [`algorithm`], compares it. Returns `None` if
    /// the algorithm does not select it in any case.
    #[inline(always)]
    pub fn new(algorithm: u8, connections: Connections, weight: u32) -> Option<Self> {
        if weight == 0 {
            return None;
        }
        let Connections { active, .. } = connections;
        let (cost, weight) = match algorithm {
            algorithm::LEAST => (connections.overhead(), 1),
            algorithm::SHORTEST_DELAY => (active as u64 + 1, weight),
            algorithm::NEVER_QUEUE => (if active == 0 { 0 } else { active as u64 + 1 }, weight),
            algorithm::OVERFLOW if active > weight => return None,
            // The greatest weight is the least.
            algorithm::OVERFLOW | algorithm::GREATEST_WEIGHT => (1, weight),
            _ => (connections.overhead(), weight),
        };
        Some(Self { cost, weight: weight as u64 })
    }

    /// Returns the endpoint as one number, which is not 0 and below 2^57.
    #[inline(always)]
    pub fn to_number(self) -> u64 {
        self.cost << 16 | self.weight
    }

    /// Returns the endpoint of a number, of [`Self::to_number`]. Returns `None` for 0.
    #[inline(always)]
    pub fn from_number(number: u64) -> Option<Self> {
        let candidate = Self { cost: number >> 16, weight: number & 0xffff };
        if candidate.weight == 0 { None } else { Some(candidate) }
    }

    /// Returns whether this endpoint is selected and not the other one, which precedes it in the
    /// list. Of two equal ones, the first is selected.
    #[inline(always)]
    pub fn is_less(&self, other: &Self) -> bool {
        // Costs are below 2^41 and weights below 2^16: the products do not overflow.
        self.cost * other.weight < other.cost * self.weight
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec;
    use std::vec::Vec;

    use super::*;

    /// Returns the position of the endpoint that an algorithm selects from (active, inactive,
    /// weight).
    fn select(algorithm: u8, endpoints: &[(u32, u32, u32)]) -> Option<usize> {
        let mut best: Option<(Candidate, usize)> = None;
        for (position, &(active, inactive, weight)) in endpoints.iter().enumerate() {
            if let Some(candidate) = Candidate::new(algorithm, Connections { active, inactive }, weight)
                && best.is_none_or(|(best, _)| candidate.is_less(&best))
            {
                best = Some((candidate, position));
            }
        }
        best.map(|(_, position)| position)
    }

    #[test]
    fn candidates_survive_as_numbers() {
        assert_eq!(Candidate::from_number(0), None);
        for connections in [(0, 0), (7, 3), (u32::MAX, u32::MAX)] {
            let connections = Connections { active: connections.0, inactive: connections.1 };
            for weight in [1, 100, 65_535] {
                for algorithm in algorithm::LEAST..=algorithm::GREATEST_WEIGHT {
                    let candidate = Candidate::new(algorithm, connections, weight);
                    let number = candidate.map_or(0, Candidate::to_number);
                    assert!(number < 1 << 57);
                    assert_eq!(Candidate::from_number(number), candidate);
                }
            }
        }
    }

    #[test]
    fn least_connections() {
        let lc = |endpoints: &[_]| select(algorithm::LEAST, endpoints);
        assert_eq!(lc(&[(1, 0, 1), (0, 255, 1), (0, 254, 1)]), Some(2));
        assert_eq!(lc(&[(1, 0, 1), (0, 256, 1)]), Some(0), "the first of equal ones");
        assert_eq!(lc(&[(4, 0, 100), (3, 0, 1)]), Some(1), "weights do not matter");
        assert_eq!(lc(&[(0, 0, 0), (9, 0, 1)]), Some(1), "weight 0 is not eligible");
        assert_eq!(lc(&[]), None);
    }

    #[test]
    fn weighted_least_connections() {
        let wlc = |endpoints: &[_]| select(algorithm::LEAST_WEIGHTED, endpoints);
        assert_eq!(wlc(&[(2, 0, 1), (5, 0, 3)]), Some(1));
        assert_eq!(wlc(&[(2, 0, 1), (6, 0, 3)]), Some(0), "the first of equal ones");
        assert_eq!(wlc(&[(2, 0, 1), (6, 1, 3)]), Some(0));
        assert_eq!(wlc(&[(0, 0, 1), (0, 0, 3)]), Some(0), "without connections weights do not matter");
        assert_eq!(wlc(&[(u32::MAX, u32::MAX, 1), (u32::MAX, 0, 65_535)]), Some(1), "no overflow");
    }

    #[test]
    fn shortest_expected_delay_and_never_queue() {
        // The new connection counts: (0 + 1) / 1 against (1 + 1) / 3.
        let endpoints = [(0, 0, 1), (1, 0, 3)];
        assert_eq!(select(algorithm::SHORTEST_DELAY, &endpoints), Some(1));
        assert_eq!(select(algorithm::NEVER_QUEUE, &endpoints), Some(0), "an idle one first");
        assert_eq!(select(algorithm::NEVER_QUEUE, &[(2, 0, 1), (0, 0, 1), (0, 0, 9)]), Some(1));
        assert_eq!(select(algorithm::NEVER_QUEUE, &[(1, 0, 1), (2, 0, 9)]), Some(1));
        // Inactive connections do not matter.
        assert_eq!(select(algorithm::SHORTEST_DELAY, &[(1, 0, 1), (0, 9999, 1)]), Some(1));
    }

    #[test]
    fn overflow_takes_weight_plus_one_connections() {
        let mut endpoints = vec![(0, 0, 1), (0, 0, 3)];
        let taken: Vec<_> = core::iter::from_fn(|| {
            let position = select(algorithm::OVERFLOW, &endpoints)?;
            endpoints[position].0 += 1;
            Some(position)
        })
        .collect();
        assert_eq!(taken, [1, 1, 1, 1, 0, 0]);
    }

    #[test]
    fn the_greatest_weight() {
        let fo = |endpoints: &[_]| select(algorithm::GREATEST_WEIGHT, endpoints);
        assert_eq!(fo(&[(0, 0, 1), (9, 9, 3), (0, 0, 3)]), Some(1), "the first of equal ones");
        assert_eq!(fo(&[(0, 0, 0)]), None);
    }

    #[test]
    fn a_sum_out_of_step_is_not_below_zero() {
        let closed = step(counted::ACTIVE, counted::NONE);
        assert_eq!(Load::of_pairs(0, closed).connections(), Connections::default());
        let load = Load::of_pairs(step(counted::NONE, counted::ACTIVE) * 3, closed);
        assert_eq!(load.connections(), Connections { active: 2, inactive: 0 });
    }

    #[test]
    fn a_step_changes_both_counts_at_once() {
        let mut pair = 0u64;
        for (before, after, active, inactive) in [
            (counted::NONE, counted::ACTIVE, 1, 0),
            (counted::NONE, counted::INACTIVE, 1, 1),
            (counted::ACTIVE, counted::INACTIVE, 0, 2),
            (counted::INACTIVE, counted::ACTIVE, 1, 1),
            (counted::INACTIVE, counted::NONE, 1, 0),
            (counted::ACTIVE, counted::NONE, 0, 0),
        ] {
            pair = pair.wrapping_add(step(before, after));
            let load = Load::of_pairs(pair, 0);
            assert_eq!((load.active, load.inactive), (active, inactive), "{before} to {after}");
        }
    }

    #[test]
    fn small_ranges_are_compared_whole() {
        for count in 1..=SAMPLE {
            assert!((0..count).all(|n| sampled(n * 77, n, count) == n));
        }
    }

    #[test]
    fn samples_of_large_ranges_are_different_slots() {
        for count in [17, 33, 100, 1000, 65_536] {
            for random in (0..64).map(|step: u32| step.wrapping_mul(0x0808_0807)) {
                let mut slots: Vec<_> = (0..SAMPLE).map(|n| sampled(random, n, count)).collect();
                assert!(slots.iter().all(|slot| *slot < count));
                slots.sort_unstable();
                slots.dedup();
                // Neighbours in a sample are at least a 34th of the range apart.
                assert!(slots.len() == SAMPLE as usize || count < 34, "{count}: {slots:?}");
            }
        }
    }

    /// The busiest of many endpoints has a few connections more than the mean: connections that
    /// stay open, compared with exact least connections, where the difference is below one.
    #[test]
    fn a_sample_balances_nearly_as_well_as_all() {
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 32) as u32
        };
        for count in [100_u32, 1000] {
            let mut active = vec![0_u32; count as usize];
            let per_endpoint = if cfg!(miri) { 2 } else { 50 };
            for _ in 0..count * per_endpoint {
                let start = random();
                let slot =
                    (0..SAMPLE).map(|n| sampled(start, n, count)).min_by_key(|slot| active[*slot as usize]);
                active[slot.unwrap() as usize] += 1;
            }
            let most = active.iter().max().unwrap();
            assert!(*most <= per_endpoint + 2, "{count} endpoints: {most}");
            if !cfg!(miri) {
                let least = active.iter().min().unwrap();
                assert!(*least + 4 >= per_endpoint, "{count} endpoints: {least}");
            }
        }
    }
}
