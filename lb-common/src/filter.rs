//! The bits of the first filter, by which a packet program recognizes most packets that are not for
//! Sluice without a hash lookup (`lb-ebpf/src/filter.rs`). It is a Bloom filter: a bit that is not
//! set proves that nothing with this hash exists.
//!
//! The bits of an address are in one [`FilterLine`], a cache line. The agent sets a bit before it
//! writes the map entry to which the bit belongs.

use crate::family::{Family, V4, V6};
use crate::layout::FilterLine;

/// The number of lines with the bits of addresses; a power of two. They have 8 million bits.
const ADDRESS_LINES: usize = 1 << 14;

/// The number of lines with a bit for each port of a protocol.
const PORT_LINES: usize = (1 << 16) / LINE_BITS;

/// The number of lines. Those of ports follow those of addresses, for four protocols.
pub const LINES: usize = ADDRESS_LINES + 4 * PORT_LINES;

/// The number of bits in a line.
const LINE_BITS: usize = 512;

/// 2^64 divided by the golden ratio (Knuth, TAOCP 6.4).
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

// The kinds of bits. Each is mixed with the hash of an address or port, so that one address has
// different bits for each kind.
const SERVICE: u64 = 0x5851_f42d_4c95_7f2d;
const NETWORK: u64 = 0x1405_7b7e_f767_814f;

/// The place of a bit.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Index of the line, below [`LINES`].
    pub line: u32,
    /// Number of the bit in its line.
    bit: u32,
}

impl Position {
    #[inline(always)]
    fn new(line: u64, bit: u64) -> Self {
        Self {
            line: (line >> 32) as u32 & (ADDRESS_LINES as u32 - 1),
            bit: (bit.wrapping_mul(MIX) >> 55) as u32,
        }
    }

    /// Returns whether the bit is set in its line.
    #[inline(always)]
    pub fn is_set(self, line: &FilterLine) -> bool {
        line.words[self.word()] & self.mask() != 0
    }

    /// Sets the bit in its line. Returns false if it was set.
    pub fn set(self, line: &mut FilterLine) -> bool {
        let is_new = !self.is_set(line);
        line.words[self.word()] |= self.mask();
        is_new
    }

    /// Clears the bit in its line.
    pub fn clear(self, line: &mut FilterLine) {
        line.words[self.word()] &= !self.mask();
    }

    /// Returns the places of all bits.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..LINES as u32).flat_map(|line| (0..LINE_BITS as u32).map(move |bit| Self { line, bit }))
    }

    #[inline(always)]
    fn word(self) -> usize {
        (self.bit >> 6) as usize & 7
    }

    #[inline(always)]
    fn mask(self) -> u64 {
        1 << (self.bit & 63)
    }
}

/// The hash of an address.
#[derive(Copy, Clone)]
pub struct Spread(u64);

impl Spread {
    /// Returns the bit of an endpoint with this address and a port.
    #[inline(always)]
    pub fn endpoint(self, port: u16) -> Position {
        Position::new(self.0, self.0 ^ (port as u64).wrapping_mul(MIX))
    }

    /// Returns the bit of an address of Services.
    #[inline(always)]
    pub fn service(self) -> Position {
        Position::new(self.0, self.0 ^ SERVICE)
    }
}

/// Returns the bit of a port that Services have at addresses of this node. TCP, UDP and SCTP
/// differ in the two lower bits of their protocol numbers.
#[inline(always)]
pub fn node_port(port: u16, protocol: u8) -> Position {
    let of_protocol = ADDRESS_LINES as u32 + (protocol as u32 & 3) * PORT_LINES as u32;
    Position { line: of_protocol + (port as u32 >> 9), bit: port as u32 & (LINE_BITS as u32 - 1) }
}

/// Hashes the addresses of a family.
pub trait Filtered: Family {
    /// The prefix length of the networks that have bits of their own. A longer ServiceCIDR shares
    /// the bit of the network that contains it.
    const NETWORK_BITS: u8;

    /// Returns the hash of an address.
    fn spread(addr: Self::Addr) -> Spread;
    /// Returns the bit of the network of an address.
    fn service_network(addr: Self::Addr) -> Position;
}

#[inline(always)]
fn network(hash: u64) -> Position {
    Position::new(hash, hash ^ NETWORK)
}

impl Filtered for V4 {
    const NETWORK_BITS: u8 = 16;

    #[inline(always)]
    fn spread(addr: [u8; 4]) -> Spread {
        Spread((u32::from_le_bytes(addr) as u64).wrapping_mul(MIX))
    }

    #[inline(always)]
    fn service_network([a, b, ..]: [u8; 4]) -> Position {
        network((u16::from_le_bytes([a, b]) as u64).wrapping_mul(MIX))
    }
}

impl Filtered for V6 {
    const NETWORK_BITS: u8 = 64;

    #[inline(always)]
    fn spread(addr: [u8; 16]) -> Spread {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = addr;
        let low = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        let high = u64::from_le_bytes([i, j, k, l, m, n, o, p]);
        // The shifts mix the upper bits into the lower ones, multiplication does the reverse.
        let low = low.wrapping_mul(MIX);
        let both = low ^ low >> 32 ^ high;
        Spread((both ^ both >> 32).wrapping_mul(MIX))
    }

    #[inline(always)]
    fn service_network([a, b, c, d, e, f, g, h, ..]: [u8; 16]) -> Position {
        let low = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        network((low ^ low >> 32).wrapping_mul(MIX))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::HashSet;
    use std::vec;
    use std::vec::Vec;

    use super::*;

    fn v4(network: u8, host: u16) -> [u8; 4] {
        let [high, low] = host.to_be_bytes();
        [10, network, high, low]
    }

    fn v6(network: u8, host: u16) -> [u8; 16] {
        let [high, low] = host.to_be_bytes();
        [0xfd, 0, 0, 16, 0, 0, 0, network, 0, 0, 0, 0, 0, 0, high, low]
    }

    /// Returns the share of `absent` whose bits are set by `present`.
    fn false_positives(present: impl Iterator<Item = Position>, absent: Vec<Position>) -> f64 {
        let mut lines = vec![FilterLine { words: [0; 8] }; LINES];
        for position in present {
            position.set(&mut lines[position.line as usize]);
        }
        let hits = absent.iter().filter(|position| position.is_set(&lines[position.line as usize])).count();
        hits as f64 / absent.len() as f64
    }

    /// Last host of the samples: Miri needs a millisecond for each.
    const LAST: u16 = if cfg!(miri) { 99 } else { u16::MAX };

    #[test]
    fn few_bits_that_are_not_set_seem_so() {
        // 65,536 of 8 million bits are set: 0.8 %. Neighbours must not share bits more often.
        let hosts = 0..=LAST;
        for (name, rate) in [
            (
                "endpoints, IPv4",
                false_positives(
                    hosts.clone().map(|host| V4::spread(v4(1, host)).endpoint(8080)),
                    hosts.clone().map(|host| V4::spread(v4(2, host)).endpoint(8080)).collect(),
                ),
            ),
            (
                "ports of endpoints, IPv4",
                false_positives(
                    hosts.clone().map(|host| V4::spread(v4(1, host)).endpoint(8080)),
                    hosts.clone().map(|host| V4::spread(v4(1, host)).endpoint(host ^ 0x5555)).collect(),
                ),
            ),
            (
                "endpoints, IPv6",
                false_positives(
                    hosts.clone().map(|host| V6::spread(v6(1, host)).endpoint(8080)),
                    hosts.clone().map(|host| V6::spread(v6(2, host)).endpoint(8080)).collect(),
                ),
            ),
            (
                "services, IPv6",
                false_positives(
                    hosts.clone().map(|host| V6::spread(v6(1, host)).service()),
                    hosts.clone().map(|host| V6::spread(v6(2, host)).service()).collect(),
                ),
            ),
            (
                "services and endpoints",
                false_positives(
                    hosts.clone().map(|host| V4::spread(v4(1, host)).service()),
                    hosts.map(|host| V4::spread(v4(1, host)).endpoint(80)).collect(),
                ),
            ),
        ] {
            assert!(rate < 0.02, "{name}: {rate}");
        }
    }

    #[test]
    fn hosts_and_networks_use_many_lines() {
        let lines = |positions: &mut dyn Iterator<Item = Position>| -> usize {
            positions.map(|position| position.line).collect::<HashSet<_>>().len()
        };
        let hosts = if cfg!(miri) { 64 } else { 4096 };
        for (name, used) in [
            ("hosts, IPv4", lines(&mut (0..hosts).map(|host| V4::spread(v4(1, host)).service()))),
            ("hosts, IPv6", lines(&mut (0..hosts).map(|host| V6::spread(v6(1, host)).service()))),
        ] {
            // Thrown at random, they would use some 12 % fewer lines than there are hosts.
            assert!(used > usize::from(hosts) * 3 / 4, "{name}: {used} lines");
        }
        let networks = lines(&mut (0..64).map(|network| V6::service_network(v6(network, 1))));
        assert!(networks > 48, "{networks} lines");
    }

    #[test]
    fn each_port_of_a_protocol_has_a_bit_of_its_own() {
        let ports =
            [6, 17, 132].into_iter().flat_map(|protocol| (0..=LAST).map(move |port| (port, protocol)));
        let positions: HashSet<_> = ports.map(|(port, protocol)| node_port(port, protocol)).collect();
        assert_eq!(positions.len(), 3 * (usize::from(LAST) + 1));
        assert!(positions.iter().all(|position| (ADDRESS_LINES..LINES).contains(&(position.line as usize))));
    }

    #[test]
    fn addresses_of_a_network_share_its_bit() {
        assert_eq!(V4::service_network([10, 96, 0, 1]), V4::service_network([10, 96, 255, 7]));
        assert_ne!(V4::service_network([10, 96, 0, 1]), V4::service_network([10, 97, 0, 1]));
        assert_eq!(V6::service_network(v6(1, 2)), V6::service_network(v6(1, 3)));
        assert_ne!(V6::service_network(v6(1, 2)), V6::service_network(v6(2, 2)));
    }
}
