//! Checksums computed by their definitions: slow and simple. The code under test does not use them.

use std::net::IpAddr;

/// Returns the Internet checksum (RFC 1071) of the concatenated `parts`, in host byte order.
///
/// Every part but the last must have an even length.
pub fn internet(parts: &[&[u8]]) -> u16 {
    let mut sum: u32 = 0;
    for part in parts {
        for pair in part.chunks(2) {
            let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
            sum += u32::from(word);
            sum = (sum & 0xffff) + (sum >> 16);
        }
    }
    !(sum as u16)
}

/// Returns the pseudo header of TCP and UDP over IPv4 (RFC 9293 3.1), or of any transport protocol
/// over IPv6 (RFC 8200 8.1). `length` is that of transport header and payload, in bytes.
pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(40);
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            bytes.extend(source.octets());
            bytes.extend(destination.octets());
            bytes.extend([0, protocol]);
            bytes.extend((length as u16).to_be_bytes());
        }
        (source, destination) => {
            for address in [source, destination] {
                match address {
                    IpAddr::V4(address) => bytes.extend(address.to_ipv6_mapped().octets()),
                    IpAddr::V6(address) => bytes.extend(address.octets()),
                }
            }
            bytes.extend((length as u32).to_be_bytes());
            bytes.extend([0, 0, 0, protocol]);
        }
    }
    bytes
}

/// Returns the CRC32c (Castagnoli) as SCTP uses it (RFC 9260, Appendix A): reflected, with all ones
/// as the initial value and the final XOR.
///
/// The result is in host byte order. SCTP sends it in little-endian byte order.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn internet_checksum_of_the_example_in_rfc_1071() {
        // RFC 1071 section 3: the sum of these bytes is ddf2, its complement 220d.
        assert_eq!(internet(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]), 0x220d);
    }

    #[test]
    fn internet_checksum_pads_an_odd_length_with_zero() {
        assert_eq!(internet(&[&[0x12, 0x34, 0x56]]), internet(&[&[0x12, 0x34, 0x56, 0x00]]));
    }

    #[test]
    fn crc32c_of_the_examples_in_rfc_3720() {
        // RFC 3720 (iSCSI, the same CRC) B.4 lists the bytes in the order on the wire.
        assert_eq!(crc32c(&[0; 32]).to_le_bytes(), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(crc32c(&[0xff; 32]).to_le_bytes(), [0x43, 0xab, 0xa8, 0x62]);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&ascending).to_le_bytes(), [0x4e, 0x79, 0xdd, 0x46]);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }
}
