//! The hash that selects a slot for a client.

/// 2^64 divided by the golden ratio (Knuth, TAOCP 6.4).
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// Returns a hash of an address and a port: the same number for the same input, on every node, so
/// it is not seeded. `address` has the bytes of an IPv6 address, or those of an IPv4 address and
/// zeros.
///
/// Multiplication mixes the lower bits into the upper ones; the shifts do the reverse.
#[inline(always)]
pub fn hash(address: (u64, u64), port: u16) -> u32 {
    let (low, high) = address;
    let port = port as u64;
    let mut mixed = (low ^ port << 48 ^ port).wrapping_mul(MIX);
    mixed = (mixed ^ mixed >> 32 ^ high).wrapping_mul(MIX);
    mixed = (mixed ^ mixed >> 32).wrapping_mul(MIX);
    (mixed >> 32) as u32
}

/// Returns the position that a number selects in a range of `count`. It is uniform to within
/// `count` divided by 2^32, and needs no division.
#[inline(always)]
pub fn position(number: u32, count: u32) -> u32 {
    ((number as u64 * count as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec;
    use std::vec::Vec;

    use super::*;

    /// Returns chi-squared per degree of freedom: about 1 for numbers at random, far more for
    /// numbers that prefer some positions, far less for numbers that avoid each other.
    fn unevenness(numbers: impl Iterator<Item = u32>, count: u32) -> f64 {
        let mut buckets = vec![0_u32; count as usize];
        let mut total = 0.0;
        for number in numbers {
            buckets[position(number, count) as usize] += 1;
            total += 1.0;
        }
        let mean = total / f64::from(count);
        let squares: f64 = buckets.iter().map(|bucket| (f64::from(*bucket) - mean).powi(2) / mean).sum();
        squares / f64::from(count - 1)
    }

    fn v4(address: [u8; 4]) -> (u64, u64) {
        (u32::from_le_bytes(address).into(), 0)
    }

    fn v6(address: [u16; 8]) -> (u64, u64) {
        let bytes: Vec<u8> = address.iter().flat_map(|group| group.to_be_bytes()).collect();
        let word = |range: std::ops::Range<usize>| u64::from_le_bytes(bytes[range].try_into().unwrap());
        (word(0..8), word(8..16))
    }

    /// Last number of a host, network or port in the samples: Miri needs a millisecond for each.
    const LAST: u16 = if cfg!(miri) { 99 } else { u16::MAX };
    const COUNTS: &[u32] = if cfg!(miri) { &[2, 10] } else { &[2, 3, 10, 64, 256, 1021] };

    #[test]
    fn clients_spread_evenly() {
        for &count in COUNTS {
            let hosts = (0..=LAST).map(|host| {
                let [high, low] = host.to_be_bytes();
                hash(v4([10, 0, high, low]), 0)
            });
            let networks = (0..=LAST).map(|network| {
                let [high, low] = network.to_be_bytes();
                hash(v4([10, high, low, 1]), 0)
            });
            let ports = (0..=LAST).map(|port| hash(v4([192, 0, 2, 1]), port));
            let hosts_v6 = (0..=LAST).map(|host| hash(v6([0xfd00, 0, 0, 0, 0, 0, 0, host]), 0));
            let networks_v6 = (0..=LAST).map(|network| hash(v6([0x2001, 0xdb8, network, 0, 0, 0, 0, 1]), 0));
            let subnets_v6 = (0..=LAST).map(|subnet| hash(v6([0xfd00, 0, 0, subnet, 0, 0, 0, 1]), 0));
            for (name, unevenness) in [
                ("hosts", unevenness(hosts, count)),
                ("networks", unevenness(networks, count)),
                ("ports", unevenness(ports, count)),
                ("IPv6 hosts", unevenness(hosts_v6, count)),
                ("IPv6 networks", unevenness(networks_v6, count)),
                ("IPv6 subnets", unevenness(subnets_v6, count)),
            ] {
                // Six standard deviations. The inputs are fixed, so the result is too.
                let most = 1.0 + 6.0 * (2.0 / f64::from(count - 1)).sqrt();
                assert!(unevenness < most, "{name}, {count} positions: {unevenness}");
            }
        }
    }

    #[test]
    fn addresses_with_equal_sums_have_different_hashes() {
        let one = hash(v6([0xfd00, 0, 0, 0, 0, 0, 1, 2]), 0);
        let other = hash(v6([0xfd00, 0, 0, 0, 0, 0, 2, 1]), 0);
        assert_ne!(one, other);
    }

    #[test]
    fn positions_are_in_the_range() {
        assert_eq!(position(u32::MAX, 10), 9);
        assert_eq!(position(0, 10), 0);
        assert_eq!(position(u32::MAX, 0), 0);
        assert_eq!(position(u32::MAX, u32::MAX), u32::MAX - 1);
    }
}
