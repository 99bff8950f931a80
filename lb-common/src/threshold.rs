//! Thresholds: when an endpoint has too many connections to get new ones. The definition is that of
//! IPVS (`ip_vs_bind_dest` and `ip_vs_unbind_dest` in `net/netfilter/ipvs/ip_vs_conn.c`).

/// Value of `THRESHOLDS`: the thresholds of a Service port, for each of its endpoints.
#[repr(C)]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// An endpoint with so many connections is overloaded. At least 1.
    pub upper: u32,
    /// An overloaded endpoint with fewer connections than these is not overloaded any more. At most
    /// `upper`. 0: three quarters of `upper`.
    pub lower: u32,
}

impl Thresholds {
    /// Returns whether an endpoint with so many connections is overloaded. `was` is whether it was
    /// before.
    ///
    /// IPVS decides at each change of the number. Here, the programs decide before each new
    /// connection and after it, because a number that only falls changes nothing until then.
    #[inline(always)]
    pub fn is_overloaded(&self, connections: u64, was: bool) -> bool {
        connections >= self.upper as u64 || (was && !self.relieves(connections))
    }

    /// Returns whether so many connections are few enough for an endpoint that was overloaded.
    #[inline(always)]
    fn relieves(&self, connections: u64) -> bool {
        if self.lower != 0 {
            connections < self.lower as u64
        } else {
            connections * 4 < self.upper as u64 * 3
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;

    /// Returns the states of an endpoint whose number of connections changes like this.
    fn states(thresholds: Thresholds, numbers: &[u64]) -> Vec<bool> {
        let mut was = false;
        let states = numbers.iter().map(|&connections| {
            was = thresholds.is_overloaded(connections, was);
            was
        });
        states.collect()
    }

    #[test]
    fn overloaded_from_the_upper_threshold_until_below_the_lower_one() {
        let thresholds = Thresholds { upper: 4, lower: 2 };
        assert_eq!(
            states(thresholds, &[3, 4, 5, 4, 3, 2, 1, 2, 3, 4]),
            [false, true, true, true, true, true, false, false, false, true]
        );
    }

    #[test]
    fn without_a_lower_threshold_it_is_three_quarters() {
        let thresholds = Thresholds { upper: 8, lower: 0 };
        assert_eq!(states(thresholds, &[8, 7, 6, 5, 6, 7]), [true, true, true, false, false, false]);
        assert_eq!(states(Thresholds { upper: 1, lower: 0 }, &[0, 1, 0]), [false, true, false]);
        assert_eq!(states(Thresholds { upper: u32::MAX, lower: 0 }, &[u64::from(u32::MAX) * 2]), [true]);
    }

    #[test]
    fn equal_thresholds_have_no_range_between_them() {
        let thresholds = Thresholds { upper: 3, lower: 3 };
        assert_eq!(states(thresholds, &[2, 3, 2, 3]), [false, true, false, true]);
    }

    /// The state after each change of the number, as IPVS computes it, and the state that a program
    /// computes when it looks before and after each new connection only.
    #[test]
    fn looking_at_new_connections_only_is_enough() {
        for thresholds in [
            Thresholds { upper: 5, lower: 0 },
            Thresholds { upper: 5, lower: 2 },
            Thresholds { upper: 2, lower: 2 },
            Thresholds { upper: 1, lower: 0 },
        ] {
            let (mut random, mut connections) = (1u64, 0u64);
            let (mut ipvs, mut ours) = (false, false);
            for _ in 0..2_000 {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                if random >> 33 & 1 == 0 {
                    connections = connections.saturating_sub(1);
                    ipvs = ipvs && thresholds.is_overloaded(connections, true);
                    continue;
                }
                ours = thresholds.is_overloaded(connections, ours);
                assert_eq!(ours, ipvs, "{thresholds:?} with {connections}");
                if !ours {
                    connections += 1;
                    ours = thresholds.is_overloaded(connections, ours);
                    ipvs = ipvs || connections >= u64::from(thresholds.upper);
                }
                assert!(connections <= u64::from(thresholds.upper));
            }
        }
    }
}
