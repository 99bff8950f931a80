//! Associations over raw sockets: just enough of SCTP (RFC 9260) for one request and its answer.
//! Many kernels, including those of the test machines, are built without SCTP. The packets look the
//! same.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, SystemTime};

use anyhow::Result;
use clap::Args;
use lb_testbed::packet::sums::crc32c;
use lb_testbed::patience::patient;
use lb_testbed::pattern;
use lb_testbed::report::{Exchange, Greeting, RequestAnswer, RequestFailure};
use rustix::net::{AddressFamily, SocketType, ipproto, socket};

use super::datagrams::{ANSWER_LIMIT, parse};

/// Bytes of the common header, and of a chunk header.
const HEADER: usize = 12;
const CHUNK_HEADER: usize = 4;
/// Bytes of TSN, stream and protocol identifiers before the payload of a DATA chunk.
const DATA_FIELDS: usize = 12;
/// Bytes of payload in a request. The number is odd, so that the chunk needs padding.
const PAYLOAD: usize = 333;

/// Chunk types (RFC 9260 3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum ChunkType {
    Data = 0,
    Init = 1,
    InitAck = 2,
    Shutdown = 7,
    ShutdownAck = 8,
    CookieEcho = 10,
    CookieAck = 11,
    ShutdownComplete = 14,
}

impl ChunkType {
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

/// A packet with one chunk.
struct Packet {
    source: u16,
    destination: u16,
    /// The verification tag.
    tag: u32,
    chunk: ChunkType,
    value: Vec<u8>,
}

impl Packet {
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.source.to_be_bytes());
        bytes.extend(self.destination.to_be_bytes());
        bytes.extend(self.tag.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend([self.chunk as u8, 0]);
        bytes.extend(((CHUNK_HEADER + self.value.len()) as u16).to_be_bytes());
        bytes.extend(&self.value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        let checksum = crc32c(&bytes).to_le_bytes();
        bytes[8..HEADER].copy_from_slice(&checksum);
        bytes
    }

    /// Parses a packet. Returns `None` if its checksum is wrong or its chunk type is unknown.
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
            chunk: ChunkType::ALL.into_iter().find(|known| *known as u8 == chunk[0])?,
            value: chunk.get(CHUNK_HEADER..length)?.to_vec(),
        })
    }

    fn answer(&self, tag: u32, chunk: ChunkType, value: Vec<u8>) -> Self {
        Self { source: self.destination, destination: self.source, tag, chunk, value }
    }
}

fn be16(bytes: &[u8]) -> Option<u16> {
    bytes.first_chunk().copied().map(u16::from_be_bytes)
}

fn be32(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().copied().map(u32::from_be_bytes)
}

/// Returns the first fields of INIT and INIT ACK: tag, window, streams, first TSN.
fn init(tag: u32) -> Vec<u8> {
    [tag, 0x0001_0000, 0x0001_0001, 1].into_iter().flat_map(u32::to_be_bytes).collect()
}

fn data(payload: &[u8]) -> Vec<u8> {
    [&[0; DATA_FIELDS], payload].concat()
}

/// A raw socket for SCTP over IPv4 or IPv6.
struct Raw {
    /// Sends and receives IP packets. The port of each socket address is unused: SCTP ports are in
    /// the payload.
    socket: UdpSocket,
    v6: bool,
}

impl Raw {
    fn open(v6: bool) -> io::Result<Self> {
        let family = if v6 { AddressFamily::INET6 } else { AddressFamily::INET };
        let socket = socket(family, SocketType::RAW, Some(ipproto::SCTP))?;
        Ok(Self { socket: socket.into(), v6 })
    }

    fn send(&self, to: IpAddr, packet: &Packet) -> io::Result<()> {
        self.socket.send_to(&packet.to_bytes(), (to, 0)).map(drop)
    }

    /// Waits for the next packet. Returns it with its source, or `None` if it cannot be parsed.
    fn receive(&self) -> io::Result<Option<(SocketAddr, Packet)>> {
        let mut buffer = vec![0; 65536];
        let (length, from) = self.socket.recv_from(&mut buffer)?;
        // An IPv4 raw socket returns the IP header (raw(7)), an IPv6 one does not (RFC 3542).
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

/// Opens associations one after the other, and sends a request over each.
pub fn run(options: &Options) -> Vec<Exchange> {
    let target = options.target;
    (0..options.count).map(|_| Exchange { target, result: associate(target) }).collect()
}

fn associate(target: SocketAddr) -> Result<RequestAnswer, RequestFailure> {
    let raw = Raw::open(target.is_ipv6())?;
    raw.socket.set_read_timeout(Some(patient(ANSWER_LIMIT)))?;
    let random = SystemTime::UNIX_EPOCH.elapsed().unwrap_or(Duration::ZERO).subsec_nanos();
    let own_tag = random | 1;
    let source = 32_768 + (random % 28_000) as u16;
    let send = |tag: u32, chunk: ChunkType, value: Vec<u8>| {
        raw.send(target.ip(), &Packet { source, destination: target.port(), tag, chunk, value })
    };
    let receive = |expected: ChunkType| -> io::Result<(SocketAddr, Packet)> {
        loop {
            if let Some((peer, packet)) = raw.receive()?
                && packet.destination == source
                && packet.tag == own_tag
                && packet.chunk == expected
            {
                return Ok((peer, packet));
            }
        }
    };
    send(0, ChunkType::Init, init(own_tag))?;
    let (_, accepted) = receive(ChunkType::InitAck)?;
    let tag = be32(&accepted.value).unwrap_or(0);
    send(tag, ChunkType::CookieEcho, b"cookie".to_vec())?;
    receive(ChunkType::CookieAck)?;
    let mut payload = vec![0; PAYLOAD];
    pattern::fill(&mut payload, 0);
    send(tag, ChunkType::Data, data(&payload))?;
    let (peer, answer) = receive(ChunkType::Data)?;
    send(tag, ChunkType::Shutdown, vec![0; 4])?;
    receive(ChunkType::ShutdownAck)?;
    send(tag, ChunkType::ShutdownComplete, Vec::new())?;
    parse(answer.value.get(DATA_FIELDS..).unwrap_or(&[]), peer)
}

/// Returns a closure that serves associations on one port forever. Its answers carry `name`.
pub fn serve(address: SocketAddr, name: &str) -> io::Result<impl FnOnce() + Send + use<>> {
    let raw = Raw::open(address.is_ipv6())?;
    let name = name.to_owned();
    Ok(move || {
        // Verification tags of the clients, by their address and port.
        let mut tags = HashMap::new();
        loop {
            let Ok(Some((client, packet))) = raw.receive() else { continue };
            if packet.destination != address.port() {
                continue;
            }
            if packet.chunk == ChunkType::Init {
                tags.insert(client, be32(&packet.value).unwrap_or(0));
            }
            let Some(tag) = tags.get(&client).copied() else { continue };
            let answer = match packet.chunk {
                ChunkType::Init => packet.answer(tag, ChunkType::InitAck, init(tag ^ 0x5555)),
                ChunkType::CookieEcho => packet.answer(tag, ChunkType::CookieAck, Vec::new()),
                ChunkType::Shutdown => packet.answer(tag, ChunkType::ShutdownAck, Vec::new()),
                ChunkType::Data => {
                    let payload = packet.value.get(DATA_FIELDS..).unwrap_or(&[]);
                    let intact = payload.len() == PAYLOAD && pattern::first_difference(payload, 0).is_none();
                    packet.answer(tag, ChunkType::Data, data(&Greeting::json(&name, client, intact)))
                }
                _ => continue,
            };
            // Sending to a client that has exited may fail. The server continues.
            let _ = raw.send(client.ip(), &answer);
        }
    })
}
