//! CRC32c, the checksum of SCTP (RFC 9260 6.8). Computes the new CRC of a packet whose ports change
//! without reading the packet.
//!
//! A CRC is the remainder of a polynomial over GF(2): the packet is the polynomial, its first bit
//! the highest power of x, and the remainder of `packet * x^32` by [`POLYNOMIAL`] is the CRC.
//! (Initial value and final inversion depend on the length alone; they cancel between packets of
//! one length.) Remainders add like polynomials, by exclusive or:
//!
//! ```text
//! crc(new) = crc(old) + crc(new + old)
//! ```
//!
//! In `new + old` only the first 32 bits, the two ports, are not zero. Call them `d`. In a packet
//! of `n` bytes they are `8n - 32` bits before its end, therefore
//!
//! ```text
//! crc(new + old) = d * x^(8n - 32) * x^32 = d * x^(8n)      modulo the polynomial
//! ```
//!
//! The power of x is the product of two powers from a table, one for each byte of `n`: two
//! multiplications for any length.
//!
//! Bits are reflected, as in RFC 9260 appendix A: the least significant bit of a byte is sent first
//! and is the highest power of x. A polynomial of degree below 32 is a `u32` whose bit 31 is the
//! factor of `x^0`. A CRC or four bytes of a packet are read as such a number in little-endian
//! order.

/// Castagnoli's polynomial without its `x^32`.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// The polynomial `1`.
const ONE: u32 = 1 << 31;

/// `x^(8i)` for each low byte `i` of a length, and `x^(8 * 256i)` for each high byte.
static POWERS: [[u32; 256]; 2] = {
    let byte = power(8);
    [multiples(byte), multiples(power(8 * 256))]
};

/// Returns `x^bits`.
const fn power(bits: usize) -> u32 {
    let mut power = ONE;
    let mut i = 0;
    while i < bits {
        power = times_x(power);
        i += 1;
    }
    power
}

/// Returns `step^i` for each byte `i`.
const fn multiples(step: u32) -> [u32; 256] {
    let mut table = [ONE; 256];
    let mut i = 1;
    while i < 256 {
        table[i] = multiply(table[i - 1], step);
        i += 1;
    }
    table
}

#[inline(always)]
const fn times_x(a: u32) -> u32 {
    // No branch: the kernel's verifier follows both sides of every branch.
    (a >> 1) ^ ((a & 1).wrapping_neg() & POLYNOMIAL)
}

/// Returns `a * b` modulo the polynomial.
#[inline(always)]
const fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut i = 0;
    while i < u32::BITS {
        product ^= ((a >> (31 - i)) & 1).wrapping_neg() & b;
        b = times_x(b);
        i += 1;
    }
    product
}

/// Returns the exclusive or of the new and the old CRC of a packet of `length` bytes. `difference`
/// is the exclusive or of its new and old first four bytes. Bytes and CRC are read in little-endian
/// order.
///
/// Only the lower 16 bits of `length` are used: no SCTP packet is longer.
#[inline(always)]
pub const fn change(difference: u32, length: usize) -> u32 {
    let low = POWERS[0][length & 0xff];
    let high = POWERS[1][(length >> 8) & 0xff];
    multiply(multiply(difference, low), high)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    /// RFC 9260 appendix A, bit by bit.
    fn reference(bytes: &[u8]) -> u32 {
        let mut crc = !0u32;
        for byte in bytes {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            }
        }
        !crc
    }

    /// The longest packet of the tests. Miri would need minutes for the longest SCTP packet.
    const LONGEST: usize = if cfg!(miri) { 300 } else { 65_515 };

    /// Checks a packet of `length` bytes whose first four bytes change.
    fn check(mut packet: Vec<u8>, new: [u8; 4]) -> Result<(), TestCaseError> {
        let before = reference(&packet);
        let old = [packet[0], packet[1], packet[2], packet[3]];
        packet[..4].copy_from_slice(&new);
        let difference = u32::from_le_bytes(old) ^ u32::from_le_bytes(new);
        prop_assert_eq!(before ^ change(difference, packet.len()), reference(&packet));
        Ok(())
    }

    #[test]
    fn the_reference_is_the_crc_of_rfc_3720() {
        assert_eq!(reference(&[0; 32]).to_le_bytes(), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(reference(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn the_shortest_and_the_longest_packet() {
        for length in [4, 12, 13, 255, 256, 257, LONGEST, LONGEST + 20] {
            check(vec![0x5a; length], [1, 2, 3, 4]).unwrap();
        }
    }

    proptest! {
        #[test]
        fn the_changed_crc_is_that_of_the_packet_with_the_new_ports(
            packet in prop::collection::vec(any::<u8>(), 12..LONGEST.min(2000)), new in any::<[u8; 4]>(),
        ) {
            check(packet, new)?;
        }

        #[test]
        fn any_length(length in 12..=LONGEST, fill in any::<u8>(), new in any::<[u8; 4]>()) {
            check(vec![fill; length], new)?;
        }

        #[test]
        fn the_same_ports_change_nothing(length in 12..=LONGEST) {
            prop_assert_eq!(change(0, length), 0);
        }
    }
}
