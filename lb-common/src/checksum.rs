//! Ones' complement checksum arithmetic (RFC 1071), with incremental update (RFC 1624, equation 3).
//!
//! A sum is an unfolded `u64`. It adds 16-bit words **as the host loads them from the wire**. Ones'
//! complement sums do not depend on byte order (RFC 1071, 2.B), so no bytes are swapped.

/// Returns an unfolded sum folded to 16 bits.
#[inline(always)]
pub const fn fold(mut sum: u64) -> u16 {
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// Returns the sum of two 16-bit words.
#[inline(always)]
pub fn sum4(bytes: [u8; 4]) -> u64 {
    u32::from_ne_bytes(bytes) as u64
}

/// Returns the sum of a 16-byte address.
#[inline(always)]
pub fn sum16(b: [u8; 16]) -> u64 {
    sum4([b[0], b[1], b[2], b[3]])
        + sum4([b[4], b[5], b[6], b[7]])
        + sum4([b[8], b[9], b[10], b[11]])
        + sum4([b[12], b[13], b[14], b[15]])
}

/// Returns the sum of any bytes. An odd last byte is padded with zero.
pub fn sum_bytes(bytes: &[u8]) -> u64 {
    let mut sum = 0;
    let mut words = bytes.chunks_exact(2);
    for word in &mut words {
        if let &[a, b] = word {
            sum += u16::from_ne_bytes([a, b]) as u64;
        }
    }
    if let &[last] = words.remainder() {
        sum += u16::from_ne_bytes([last, 0]) as u64;
    }
    sum
}

/// Returns the difference that a rewrite makes, for [`update`]. `old` and `new` are results of the
/// functions above.
#[inline(always)]
pub const fn difference(old: u64, new: u64) -> u64 {
    // ~old + new, per 16-bit word (RFC 1624): the complement of the folded sum is the sum of the
    // complements.
    (!fold(old)) as u64 + new
}

/// Returns the checksum field after its data changed by `difference`. Fields are in the byte order
/// of the wire.
#[inline(always)]
pub const fn update(checksum: u16, difference: u64) -> u16 {
    !fold((!checksum) as u64 + difference)
}

/// Does the same as [`update`] for UDP: a computed zero is sent as all ones (RFC 768, RFC 8200
/// 8.1).
#[inline(always)]
pub const fn update_udp(checksum: u16, difference: u64) -> u16 {
    match update(checksum, difference) {
        0 => 0xffff,
        sum => sum,
    }
}

/// Returns the checksum of data with this sum.
#[inline(always)]
pub const fn finish(sum: u64) -> u16 {
    !fold(sum)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Packets of the property tests are shorter than this. Miri would need minutes for long
    /// packets.
    const LENGTH: usize = if cfg!(miri) { 100 } else { 2000 };

    fn reference(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn rfc1071_example() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum_bytes(&bytes)).to_ne_bytes(), [0xdd, 0xf2]);
    }

    proptest! {
        #[test]
        fn whole_packet_checksum_agrees_with_the_reference(bytes in prop::collection::vec(any::<u8>(), 0..LENGTH)) {
            prop_assert_eq!(u16::from_be_bytes(finish(sum_bytes(&bytes)).to_ne_bytes()), reference(&bytes));
        }

        #[test]
        fn incremental_update_agrees_with_a_full_computation(
            mut bytes in prop::collection::vec(any::<u8>(), 40..LENGTH), new in any::<[u8; 16]>(), at in 0usize..12,
        ) {
            let at = at & !1;
            let before = finish(sum_bytes(&bytes));
            let mut old = [0; 16];
            old.copy_from_slice(&bytes[at..at + 16]);
            bytes[at..at + 16].copy_from_slice(&new);
            let updated = update(before, difference(sum16(old), sum16(new)));
            // 0x0000 and 0xffff are the same number in ones' complement; the results differ only
            // for an all-zero packet.
            prop_assert_eq!(updated, finish(sum_bytes(&bytes)));
        }

        #[test]
        fn a_udp_checksum_is_never_zero(checksum in any::<u16>(), diff in 0u64..0xffff_ffff) {
            prop_assert_ne!(update_udp(checksum, diff), 0);
        }
    }
}
