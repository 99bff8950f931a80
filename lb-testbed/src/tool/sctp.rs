//! Associations over raw sockets: just enough of SCTP (RFC 9260) to ask one question. Many kernels, that of the test machines too,
//! have no SCTP; on the wire it makes no difference.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, SystemTime};

use anyhow::Result;
use clap::Args;
use lb_testbed::packet::sums::crc32c;
use lb_testbed::pattern;
use lb_testbed::report::{Answer, Exchange, Failure};
use rustix::net::{AddressFamily, SocketType, ipproto, socket};

use super::ask::{ANSWER_LIMIT, parse};
use super::serve::greeting;

/// Bytes of the common header, and of that of a chunk.
const HEADER: usize = 12;
const CHUNK_HEADER: usize = 4;
/// TSN, stream and protocol identifiers before the payload of a DATA chunk.
const DATA_FIELDS: usize = 12;
/// Bytes of the question: odd, so that the chunk is padded.
const QUESTION: usize = 333;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Data = 0,
    Init = 1,
    InitAck = 2,
    Shutdown = 7,
    ShutdownAck = 8,
    CookieEcho = 10,
    CookieAck = 11,
    ShutdownComplete = 14,
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::Data,
        Self::Init,
        Self::InitAck,
        Self::Shutdown,
        Self::ShutdownAck,
        Self::CookieEcho,
        Self::CookieAck,
        Self::ShutdownComplete,
    ];
}

/// A packet of one chunk.
struct Packet {
    source: u16,
    destination: u16,
    tag: u32,
    kind: Kind,
    value: Vec<u8>,
}

impl Packet {
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.source.to_be_bytes());
        bytes.extend(self.destination.to_be_bytes());
        bytes.extend(self.tag.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend([self.kind as u8, 0]);
        bytes.extend(((CHUNK_HEADER + self.value.len()) as u16).to_be_bytes());
        bytes.extend(&self.value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        let checksum = crc32c(&bytes).to_le_bytes();
        bytes[8..HEADER].copy_from_slice(&checksum);
        bytes
    }

    /// Nothing: not a packet of ours, or one that is not intact.
    fn read(bytes: &[u8]) -> Option<Self> {
        let (header, chunk) = bytes.split_at_checked(HEADER)?;
        let mut zeroed = bytes.to_vec();
        zeroed[8..HEADER].fill(0);
        if header[8..] != crc32c(&zeroed).to_le_bytes() {
            return None;
        }
        let length = usize::from(be16(chunk.get(2..)?)?);
        Some(Self {
            source: be16(header)?,
            destination: be16(&header[2..])?,
            tag: be32(&header[4..])?,
            kind: Kind::ALL.into_iter().find(|kind| *kind as u8 == chunk[0])?,
            value: chunk.get(CHUNK_HEADER..length)?.to_vec(),
        })
    }

    fn answer(&self, tag: u32, kind: Kind, value: Vec<u8>) -> Self {
        Self { source: self.destination, destination: self.source, tag, kind, value }
    }
}

fn be16(bytes: &[u8]) -> Option<u16> {
    bytes.first_chunk().copied().map(u16::from_be_bytes)
}

fn be32(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().copied().map(u32::from_be_bytes)
}

/// What INIT and INIT ACK begin with: tag, window, streams, first TSN.
fn init(tag: u32) -> Vec<u8> {
    [tag, 0x0001_0000, 0x0001_0001, 1].into_iter().flat_map(u32::to_be_bytes).collect()
}

fn data(payload: &[u8]) -> Vec<u8> {
    [&[0; DATA_FIELDS], payload].concat()
}

/// A raw socket for SCTP of a family.
struct Raw {
    /// Datagrams to and from addresses, as those of UDP; the ports are inside.
    socket: UdpSocket,
    v6: bool,
}

impl Raw {
    fn open(at: IpAddr) -> io::Result<Self> {
        let family = if at.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
        let socket = socket(family, SocketType::RAW, Some(ipproto::SCTP))?;
        Ok(Self { socket: socket.into(), v6: at.is_ipv6() })
    }

    fn send(&self, to: IpAddr, packet: &Packet) -> io::Result<()> {
        self.socket.send_to(&packet.to_bytes(), (to, 0)).map(drop)
    }

    /// The next packet and where it comes from. Nothing: it is not intact.
    fn receive(&self) -> io::Result<Option<(SocketAddr, Packet)>> {
        let mut buffer = vec![0; 65536];
        let (length, from) = self.socket.recv_from(&mut buffer)?;
        // raw(7): IPv4 packets come with their header, IPv6 packets (RFC 3542) without.
        let header = if self.v6 { 0 } else { usize::from(buffer[0] & 0xf) * 4 };
        let packet = buffer.get(header..length).and_then(Packet::read);
        Ok(packet.map(|packet| (SocketAddr::new(from.ip(), packet.source), packet)))
    }
}

#[derive(Args)]
pub struct Options {
    #[arg(long, default_value_t = 1)]
    count: u32,
    target: SocketAddr,
}

/// Opens associations one after the other, and asks a question over each.
pub fn run(options: &Options) -> Vec<Exchange> {
    let target = options.target;
    (0..options.count).map(|_| Exchange { target, result: associate(target) }).collect()
}

fn associate(target: SocketAddr) -> Result<Answer, Failure> {
    let any: IpAddr =
        if target.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let raw = Raw::open(any)?;
    raw.socket.set_read_timeout(Some(ANSWER_LIMIT))?;
    let random = SystemTime::UNIX_EPOCH.elapsed().unwrap_or(Duration::ZERO).subsec_nanos();
    let own_tag = random | 1;
    let source = 32_768 + (random % 28_000) as u16;
    let mut asked =
        Packet { source, destination: target.port(), tag: 0, kind: Kind::Init, value: init(own_tag) };
    let mut say = |tag: u32, kind: Kind, value: Vec<u8>, wanted: Kind| -> io::Result<(SocketAddr, Packet)> {
        (asked.tag, asked.kind, asked.value) = (tag, kind, value);
        raw.send(target.ip(), &asked)?;
        loop {
            if let Some((peer, packet)) = raw.receive()?
                && packet.destination == source
                && packet.tag == own_tag
                && packet.kind == wanted
            {
                return Ok((peer, packet));
            }
        }
    };
    let (_, accepted) = say(0, Kind::Init, init(own_tag), Kind::InitAck)?;
    let tag = be32(&accepted.value).unwrap_or(0);
    say(tag, Kind::CookieEcho, b"cookie".to_vec(), Kind::CookieAck)?;
    let mut question = vec![0; QUESTION];
    pattern::fill(&mut question, 0);
    let (peer, answer) = say(tag, Kind::Data, data(&question), Kind::Data)?;
    say(tag, Kind::Shutdown, vec![0; 4], Kind::ShutdownAck)?;
    (asked.kind, asked.value) = (Kind::ShutdownComplete, Vec::new());
    raw.send(target.ip(), &asked)?;
    parse(answer.value.get(DATA_FIELDS..).unwrap_or(&[]), peer)
}

/// Serves associations at one address.
pub fn serve(address: SocketAddr, name: &str) -> io::Result<impl FnOnce() + Send + use<>> {
    let raw = Raw::open(address.ip())?;
    let name = name.to_owned();
    Ok(move || {
        // Tags of the clients, by their address and port.
        let mut tags = HashMap::new();
        loop {
            let Ok(Some((client, packet))) = raw.receive() else { continue };
            if packet.destination != address.port() {
                continue;
            }
            if packet.kind == Kind::Init {
                tags.insert(client, be32(&packet.value).unwrap_or(0));
            }
            let Some(tag) = tags.get(&client).copied() else { continue };
            let answer = match packet.kind {
                Kind::Init => packet.answer(tag, Kind::InitAck, init(tag ^ 0x5555)),
                Kind::CookieEcho => packet.answer(tag, Kind::CookieAck, Vec::new()),
                Kind::Shutdown => packet.answer(tag, Kind::ShutdownAck, Vec::new()),
                Kind::Data => {
                    let question = packet.value.get(DATA_FIELDS..).unwrap_or(&[]);
                    let intact =
                        question.len() == QUESTION && pattern::first_difference(question, 0).is_none();
                    packet.answer(tag, Kind::Data, data(&greeting(&name, client, intact)))
                }
                _ => continue,
            };
            // A client that has gone is no failure.
            let _ = raw.send(client.ip(), &answer);
        }
    })
}
