//! The payload of requests and transfers: a byte stream that both ends compute. The receiver
//! compares every byte. So it also finds damaged or swapped data whose checksum was updated to
//! match.

/// Returns the 8-byte word at `index` of the stream. SplitMix64 repeats no word within a transfer.
fn word(index: u64) -> [u8; 8] {
    let mut z = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)).to_le_bytes()
}

/// Fills `buffer` with the stream, starting at byte `offset` of it.
pub fn fill(buffer: &mut [u8], offset: u64) {
    let mut position = offset;
    let mut rest = buffer;
    while !rest.is_empty() {
        let skip = (position % 8) as usize;
        let source = &word(position / 8)[skip..];
        let length = source.len().min(rest.len());
        let (now, later) = rest.split_at_mut(length);
        now.copy_from_slice(&source[..length]);
        position += length as u64;
        rest = later;
    }
}

/// Compares `received` with the stream from byte `offset` on. Returns the stream offset of the
/// first byte that differs, or `None` if all bytes are equal.
pub fn first_difference(received: &[u8], offset: u64) -> Option<u64> {
    let mut expected = vec![0; received.len()];
    fill(&mut expected, offset);
    let index = expected.iter().zip(received).position(|(a, b)| a != b)?;
    Some(offset + index as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_filled_separately_join_to_the_same_stream() {
        let mut whole = [0; 100];
        fill(&mut whole, 0);
        let mut pieces = [0; 100];
        for (start, end) in [(0, 3), (3, 8), (8, 41), (41, 100)] {
            fill(&mut pieces[start..end], start as u64);
        }
        assert_eq!(whole, pieces);
    }

    #[test]
    fn the_offset_of_a_changed_byte_is_found() {
        let mut bytes = [0; 64];
        fill(&mut bytes, 1000);
        assert_eq!(first_difference(&bytes, 1000), None);
        bytes[33] ^= 1;
        assert_eq!(first_difference(&bytes, 1000), Some(1033));
    }
}
