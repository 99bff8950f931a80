//! The PROXY protocol (versions 1 and 2), by which a load balancer in front sends the address of
//! the client. <https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt>

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt as _};

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Longest header of version 1.
const MAX_V1: usize = 107;
/// Longest header of version 2 that is read, with its options.
const MAX_V2: usize = 2048;

/// Reads the header, and no byte after it. Returns the address of the client, or `None` if the
/// load balancer itself is the client.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "no PROXY protocol header");
    // Both versions have at least 15 bytes.
    let mut header = vec![0; 12];
    stream.read_exact(&mut header).await?;
    if header == SIGNATURE {
        let mut rest = [0; 4];
        stream.read_exact(&mut rest).await?;
        let length = usize::from(u16::from_be_bytes([rest[2], rest[3]]));
        if length > MAX_V2 || rest[0] >> 4 != 2 {
            return Err(malformed());
        }
        let mut addresses = vec![0; length];
        stream.read_exact(&mut addresses).await?;
        return match rest[0] & 15 {
            0 => Ok(None),
            1 => address_v2(rest[1], &addresses).ok_or_else(malformed),
            _ => Err(malformed()),
        };
    }
    if !header.starts_with(b"PROXY ") {
        return Err(malformed());
    }
    while !header.ends_with(b"\r\n") {
        if header.len() >= MAX_V1 {
            return Err(malformed());
        }
        header.push(stream.read_u8().await?);
    }
    let text = std::str::from_utf8(&header).map_err(|_| malformed())?;
    address_v1(text).ok_or_else(malformed)
}

/// Returns `None` for a malformed header, and `Some(None)` for one without an address.
fn address_v1(text: &str) -> Option<Option<SocketAddr>> {
    let words: Vec<_> = text.strip_suffix("\r\n")?.split(' ').collect();
    match words[..] {
        ["PROXY", "UNKNOWN", ..] => Some(None),
        ["PROXY", family @ ("TCP4" | "TCP6"), source, destination, source_port, destination_port] => {
            let address: IpAddr = source.parse().ok()?;
            let other: IpAddr = destination.parse().ok()?;
            destination_port.parse::<u16>().ok()?;
            let of_family = address.is_ipv4() == (family == "TCP4") && other.is_ipv4() == address.is_ipv4();
            of_family.then_some(())?;
            Some(Some(SocketAddr::new(address, source_port.parse().ok()?)))
        }
        _ => None,
    }
}

fn address_v2(family: u8, bytes: &[u8]) -> Option<Option<SocketAddr>> {
    let port = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    match family >> 4 {
        1 => {
            let address: [u8; 4] = bytes.get(..4)?.try_into().ok()?;
            Some(Some(SocketAddr::new(Ipv4Addr::from(address).into(), port(8)?)))
        }
        2 => {
            let address: [u8; 16] = bytes.get(..16)?.try_into().ok()?;
            Some(Some(SocketAddr::new(Ipv6Addr::from(address).into(), port(32)?)))
        }
        _ => Some(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read_all(header: &[u8]) -> Result<(Option<SocketAddr>, Vec<u8>), ()> {
        let bytes = [header, b"GET /"].concat();
        let mut stream = &bytes[..];
        let address = read(&mut stream).await.map_err(drop)?;
        Ok((address, stream.to_vec()))
    }

    #[tokio::test]
    async fn headers_of_both_versions() {
        let v2 = |command: u8, family: u8, addresses: &[u8]| {
            let length = u16::try_from(addresses.len()).unwrap().to_be_bytes();
            [&SIGNATURE[..], &[0x20 | command, family], &length, addresses].concat()
        };
        let v4 = [192, 0, 2, 7, 10, 0, 0, 1, 0x12, 0x34, 0, 80];
        let mut v6 = [0; 36];
        v6[15] = 1;
        v6[33] = 9;
        for (header, expected) in [
            (b"PROXY TCP4 192.0.2.7 10.0.0.1 4660 80\r\n".to_vec(), Some("192.0.2.7:4660")),
            (b"PROXY TCP6 fd00::7 fd00::1 4660 80\r\n".to_vec(), Some("[fd00::7]:4660")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (v2(1, 0x11, &v4), Some("192.0.2.7:4660")),
            (v2(1, 0x11, &[&v4[..], &[3, 0, 0]].concat()), Some("192.0.2.7:4660")),
            (v2(1, 0x21, &v6), Some("[::1]:9")),
            (v2(0, 0x11, &v4), None),
            (v2(1, 0, &[]), None),
        ] {
            let expected = expected.map(|text| text.parse().unwrap());
            assert_eq!(read_all(&header).await, Ok((expected, b"GET /".to_vec())), "{header:?}");
        }
        for header in [
            &b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..],
            b"PROXY TCP4 fd00::7 10.0.0.1 4660 80\r\n",
            b"PROXY TCP4 192.0.2.7 10.0.0.1 4660\r\n",
            &[b"PROXY TCP4 ".as_slice(), &[b'1'; 120]].concat(),
            &v2(2, 0x11, &v4),
            &v2(1, 0x11, &v4[..8]),
        ] {
            assert!(read_all(header).await.is_err(), "{header:?}");
        }
    }
}
