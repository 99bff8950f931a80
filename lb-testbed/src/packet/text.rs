//! Parses packets from one line of text, and writes them.
//!
//! ```text
//! eth 02:00:00:00:00:09 > 02:00:00:00:00:01 / vlan 7 / ip 192.0.2.9 > 10.96.0.10 / tcp 9 > 80 SA
//! ip 2001:db8::9 > 2001:db8::1 / hop-by-hop / udp 5000 > 53 csum=faulty / bytes 100
//! ip 10.0.0.1 > 10.0.0.2 / icmp too-big mtu=1400 quote=28 / ip 10.0.0.2 > 10.0.0.1 / zeros 2000
//! ```
//!
//! Layers are separated by ` / `. A layer starts with its name and its main fields (addresses,
//! ports, type). Options follow as `key=value` in any order. Fields that are left out are correct
//! (lengths, checksums, protocol numbers) or have a default value. `ip` is IPv4 or IPv6, depending
//! on its addresses.
//!
//! `piece=A-B` on an IPv4 header or a `fragment` header means: the layers that follow describe the
//! whole datagram, and this packet carries bytes A to B of it.
//!
//! `chunk NAME N` is an SCTP chunk with N bytes after its header, padded to a multiple of four.
//! `initiate=TAG` sets the initiate tag of an INIT or INIT ACK, the first four of these bytes.
//!
//! The writer leaves out correct fields and defaults. It writes chunks as bytes.

use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use super::layer::{
    Checksum, DatagramPart, Ethernet, Extension, FragmentHeader, Icmp, Ipv4, Ipv6, Layer, Mac, Ports, Sctp,
    Tcp, Udp, Vlan, protocol,
};

/// A layer whose text cannot be parsed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("packet layer `{layer}`: {problem}")]
pub struct ParseError {
    layer: String,
    problem: String,
}

const TTL: u8 = 64;
const WINDOW: u16 = 0x2000;
const FLAGS: &str = "FSRPAUEC";
/// Type and code of an ICMP message.
type IcmpKind = (u8, u8);
/// Names of ICMP messages, with type and code for IPv4 and for IPv6.
const ICMP_NAMES: [(&str, IcmpKind, IcmpKind); 6] = [
    ("echo", (8, 0), (128, 0)),
    ("echo-reply", (0, 0), (129, 0)),
    ("too-big", (3, 4), (2, 0)),
    ("host-unreachable", (3, 1), (1, 3)),
    ("port-unreachable", (3, 3), (1, 4)),
    ("time-exceeded", (11, 0), (3, 0)),
];
/// Names and types of SCTP chunks (RFC 9260 3.2).
const CHUNK_NAMES: [(&str, u8); 15] = [
    ("data", 0),
    ("init", 1),
    ("init-ack", 2),
    ("sack", 3),
    ("heartbeat", 4),
    ("heartbeat-ack", 5),
    ("abort", 6),
    ("shutdown", 7),
    ("shutdown-ack", 8),
    ("error", 9),
    ("cookie-echo", 10),
    ("cookie-ack", 11),
    ("ecne", 12),
    ("cwr", 13),
    ("shutdown-complete", 14),
];
const EXTENSION_NAMES: [(&str, u8); 4] = [
    ("hop-by-hop", protocol::HOP_BY_HOP),
    ("routing", protocol::ROUTING),
    ("destination", protocol::DESTINATION),
    ("authentication", protocol::AUTHENTICATION),
];

/// Parses a packet.
pub fn parse(text: &str) -> Result<Vec<Layer>, ParseError> {
    let mut layers = Vec::new();
    let mut over_v6 = None;
    for text in split_layers(text) {
        let layer = Fields::read(&text)
            .and_then(|mut fields| {
                let layer = fields.layer(over_v6)?;
                fields.finish()?;
                Ok(layer)
            })
            .map_err(|problem| ParseError { layer: text.clone(), problem })?;
        if let Some((source, _)) = layer.addresses() {
            over_v6 = Some(source.is_ipv6());
        }
        layers.push(layer);
    }
    Ok(layers)
}

/// Splits a text at each ` / ` outside quotes.
pub fn split_layers(text: &str) -> Vec<String> {
    let mut layers = vec![String::new()];
    let mut quoted = false;
    for token in text.split(' ') {
        quoted ^= token.matches('"').count() % 2 == 1;
        if token == "/" && !quoted {
            layers.push(String::new());
            continue;
        }
        let layer = layers.last_mut().expect("starts with one layer");
        if !layer.is_empty() {
            layer.push(' ');
        }
        layer.push_str(token);
    }
    layers.retain(|layer| !layer.is_empty());
    layers
}

/// The words of one layer that are not parsed yet.
struct Fields<'a> {
    words: Vec<&'a str>,
}

impl<'a> Fields<'a> {
    fn read(text: &'a str) -> Result<Self, String> {
        if text.starts_with('"') {
            return Ok(Self { words: vec![text] });
        }
        Ok(Self { words: text.split_whitespace().collect() })
    }

    fn layer(&mut self, over_v6: Option<bool>) -> Result<Layer, String> {
        let name = self.word()?;
        Ok(match name {
            "eth" => {
                let (source, destination) = self.pair(mac)?;
                Layer::Ethernet(Ethernet { source, destination, ethertype: self.option("type", number)? })
            }
            "vlan" | "qinq" => Layer::Vlan(Vlan {
                service: name == "qinq",
                tci: number(self.word()?)?,
                ethertype: self.option("type", number)?,
            }),
            "ip" => match self.pair(parsed::<IpAddr>)? {
                (IpAddr::V4(source), IpAddr::V4(destination)) => Layer::Ipv4(self.ipv4(source, destination)?),
                (IpAddr::V6(source), IpAddr::V6(destination)) => Layer::Ipv6(self.ipv6(source, destination)?),
                _ => return Err("the addresses have different families".into()),
            },
            "fragment" => Layer::Fragment(FragmentHeader {
                next: self.option("next", number)?,
                id: self.option("id", number)?.unwrap_or(0),
                part: self.part()?,
                reserved: self.option("reserved", number)?.unwrap_or(0),
            }),
            "tcp" => Layer::Tcp(self.tcp()?),
            "udp" => {
                let (source, destination) = self.pair(number)?;
                let (length, checksum) = (self.option("len", number)?, self.checksum()?);
                Layer::Udp(Udp { source, destination, length, checksum })
            }
            "sctp" => {
                let (source, destination) = self.pair(number)?;
                let tag = self.option("tag", number)?.unwrap_or(0);
                Layer::Sctp(Sctp { source, destination, tag, checksum: self.checksum()? })
            }
            "chunk" => Layer::Data(self.chunk()?),
            "icmp" => Layer::Icmp(self.icmp(over_v6.ok_or("it needs an IP header before it")?)?),
            "ports" => {
                let protocol = number(self.word()?)?;
                let (source, destination) = self.pair(number)?;
                Layer::Ports(Ports { protocol, source, destination })
            }
            "zeros" => Layer::Data(vec![0; number(self.word()?)?]),
            "bytes" => Layer::Data(pattern(number(self.word()?)?)),
            "trailer" => Layer::Trailer(hex(self.word()?)?),
            _ if name.starts_with("0x") => Layer::Data(hex(name)?),
            _ if name.len() > 1 && name.starts_with('"') && name.ends_with('"') => {
                Layer::Data(name.as_bytes()[1..name.len() - 1].to_vec())
            }
            _ => match EXTENSION_NAMES.iter().find(|(known, _)| *known == name) {
                Some((_, kind)) => Layer::Extension(self.extension(*kind)?),
                None => return Err("unknown layer".into()),
            },
        })
    }

    fn ipv4(&mut self, source: Ipv4Addr, destination: Ipv4Addr) -> Result<Ipv4, String> {
        Ok(Ipv4 {
            source,
            destination,
            ttl: self.option("ttl", number)?.unwrap_or(TTL),
            tos: self.option("tos", number)?.unwrap_or(0),
            id: self.option("id", number)?.unwrap_or(0),
            dont_fragment: self.flag("df"),
            evil: self.flag("evil"),
            part: self.part()?,
            options: self.option("options", hex)?.unwrap_or_default(),
            protocol: self.option("proto", number)?,
            length: self.option("len", number)?,
            checksum: self.checksum()?,
        })
    }

    fn ipv6(&mut self, source: Ipv6Addr, destination: Ipv6Addr) -> Result<Ipv6, String> {
        Ok(Ipv6 {
            source,
            destination,
            hop_limit: self.option("ttl", number)?.unwrap_or(TTL),
            traffic_class: self.option("tos", number)?.unwrap_or(0),
            flow_label: self.option("flow", number)?.unwrap_or(0),
            next: self.option("proto", number)?,
            length: self.option("len", number)?,
        })
    }

    fn extension(&mut self, kind: u8) -> Result<Extension, String> {
        let body = self.option("body", hex)?.unwrap_or_else(|| default_body(kind));
        Ok(Extension { kind, next: self.option("next", number)?, body })
    }

    fn tcp(&mut self) -> Result<Tcp, String> {
        let (source, destination) = self.pair(number)?;
        let mut flags = 0;
        if self.words.first().is_some_and(|word| !word.contains('=')) {
            for letter in self.word()?.chars().filter(|letter| *letter != '-') {
                flags |= 1
                    << FLAGS.find(letter).ok_or(format!("unknown flag {letter}: use letters of {FLAGS}"))?;
            }
        }
        let mut options = self.option("options", hex)?.unwrap_or_default();
        if let Some(mss) = self.option("mss", number::<u16>)? {
            options.splice(0..0, [2, 4].into_iter().chain(mss.to_be_bytes()));
        }
        Ok(Tcp {
            source,
            destination,
            seq: self.option("seq", number)?.unwrap_or(0),
            ack: self.option("ack", number)?.unwrap_or(0),
            flags: flags | self.option("reserved", number::<u16>)?.unwrap_or(0) << 8,
            window: self.option("win", number)?.unwrap_or(WINDOW),
            urgent: self.option("urg", number)?.unwrap_or(0),
            options,
            checksum: self.checksum()?,
        })
    }

    fn chunk(&mut self) -> Result<Vec<u8>, String> {
        let name = self.word()?;
        let (_, kind) =
            CHUNK_NAMES.iter().find(|(known, _)| *known == name).ok_or(format!("unknown chunk `{name}`"))?;
        let body: u16 = number(self.word()?)?;
        let [high, low] = (4 + body).to_be_bytes();
        let mut bytes = vec![*kind, 0, high, low];
        bytes.extend(pattern(body.into()));
        if let Some(tag) = self.option("initiate", number::<u32>)? {
            bytes.get_mut(4..8).ok_or("no room for a tag")?.copy_from_slice(&tag.to_be_bytes());
        }
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        Ok(bytes)
    }

    fn icmp(&mut self, v6: bool) -> Result<Icmp, String> {
        let name = self.word()?;
        let (kind, code) = match ICMP_NAMES.iter().find(|(known, ..)| *known == name) {
            Some((_, over_v4, over_v6)) => {
                if v6 {
                    *over_v6
                } else {
                    *over_v4
                }
            }
            None => {
                let (kind, code) = name.split_once('.').ok_or("expected TYPE.CODE or a name")?;
                (number(kind)?, number(code)?)
            }
        };
        let mut rest: [u8; 4] = self.option("rest", number::<u32>)?.unwrap_or(0).to_be_bytes();
        if let Some(mtu) = self.option("mtu", number::<u32>)? {
            rest = mtu.to_be_bytes();
        }
        if let Some(id) = self.option("id", number::<u16>)? {
            rest[..2].copy_from_slice(&id.to_be_bytes());
        }
        if let Some(seq) = self.option("seq", number::<u16>)? {
            rest[2..].copy_from_slice(&seq.to_be_bytes());
        }
        Ok(Icmp { v6, kind, code, rest, checksum: self.checksum()?, quote: self.option("quote", number)? })
    }

    fn part(&mut self) -> Result<DatagramPart, String> {
        if let Some(range) = self.option("piece", |text| Ok(text.to_owned()))? {
            let (from, to) = range.split_once('-').ok_or("piece: expected FROM-TO")?;
            return Ok(DatagramPart::Piece { from: number(from)?, to: number(to)? });
        }
        Ok(match self.option("frag", |text| Ok(text.to_owned()))? {
            Some(text) => {
                DatagramPart::Raw { offset: number(text.trim_end_matches('+'))?, more: text.ends_with('+') }
            }
            None => DatagramPart::Whole,
        })
    }

    fn checksum(&mut self) -> Result<Checksum, String> {
        self.option("csum", |text| match text {
            "faulty" => Ok(Checksum::Faulty),
            "none" => Ok(Checksum::Exactly(0)),
            _ => Ok(Checksum::Exactly(number(text)?)),
        })
        .map(Option::unwrap_or_default)
    }

    fn word(&mut self) -> Result<&'a str, String> {
        if self.words.is_empty() {
            return Err("a field is missing at the end".into());
        }
        Ok(self.words.remove(0))
    }

    fn pair<T>(&mut self, read: impl Fn(&str) -> Result<T, String>) -> Result<(T, T), String> {
        let first = read(self.word()?)?;
        match self.word()? {
            ">" => Ok((first, read(self.word()?)?)),
            found => Err(format!("expected `>`, found `{found}`")),
        }
    }

    fn option<T>(
        &mut self,
        key: &str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, String> {
        let found =
            self.words.iter().position(|word| word.split_once('=').is_some_and(|(name, _)| name == key));
        found
            .map(|at| read(&self.words.remove(at)[key.len() + 1..]).map_err(|e| format!("{key}: {e}")))
            .transpose()
    }

    fn flag(&mut self, name: &str) -> bool {
        let found = self.words.iter().position(|word| *word == name);
        found.map(|at| self.words.remove(at)).is_some()
    }

    fn finish(self) -> Result<(), String> {
        match self.words.first() {
            Some(word) => Err(format!("unknown option `{word}`")),
            None => Ok(()),
        }
    }
}

fn parsed<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| {
        format!("`{text}` is not a {}", std::any::type_name::<T>().rsplit(':').next().unwrap_or("value"))
    })
}

/// Parses a decimal or `0x` number.
fn number<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
    let value = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    value
        .ok()
        .and_then(|value| T::try_from(value).ok())
        .ok_or_else(|| format!("`{text}` is not a number, or too large"))
}

fn hex(text: &str) -> Result<Vec<u8>, String> {
    let digits = text.strip_prefix("0x").ok_or("expected 0x…")?;
    if !digits.len().is_multiple_of(2) || !digits.is_ascii() {
        return Err("expected an even number of hex digits".into());
    }
    (0..digits.len())
        .step_by(2)
        .map(|at| {
            u8::from_str_radix(&digits[at..at + 2], 16).map_err(|_| format!("`{text}` is not hexadecimal"))
        })
        .collect()
}

fn mac(text: &str) -> Result<Mac, String> {
    let bytes: Vec<u8> = text.split(':').map_while(|part| u8::from_str_radix(part, 16).ok()).collect();
    bytes.try_into().map_err(|_| format!("`{text}` is not a MAC address"))
}

/// Returns the bytes 0, 1, 2, … 255, 0, …
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| i as u8).collect()
}

/// Returns the body of the shortest valid extension header: a PadN option (RFC 8200 4.2), a routing
/// header with no segments left, or an authentication header with an integrity check value of
/// twelve zero bytes.
fn default_body(kind: u8) -> Vec<u8> {
    match kind {
        protocol::AUTHENTICATION => vec![0; 22],
        protocol::ROUTING => vec![0; 6],
        _ => vec![1, 4, 0, 0, 0, 0],
    }
}

/// Returns the text of a packet, in the form that [`parse`] accepts.
pub fn render(layers: &[Layer]) -> String {
    layers.iter().map(Layer::to_string).collect::<Vec<_>>().join(" / ")
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Layer::Ethernet(header) => {
                write!(f, "eth {} > {}", MacText(header.source), MacText(header.destination))?;
                given(f, "type", header.ethertype.map(|kind| format!("{kind:#06x}")))
            }
            Layer::Vlan(tag) => {
                write!(f, "{} {}", if tag.service { "qinq" } else { "vlan" }, tag.tci)?;
                given(f, "type", tag.ethertype.map(|kind| format!("{kind:#06x}")))
            }
            Layer::Ipv4(header) => {
                write!(f, "ip {} > {}", header.source, header.destination)?;
                unless(f, "ttl", header.ttl, TTL)?;
                unless(f, "tos", header.tos, 0)?;
                unless(f, "id", header.id, 0)?;
                f.write_str(if header.dont_fragment { " df" } else { "" })?;
                f.write_str(if header.evil { " evil" } else { "" })?;
                part(f, header.part)?;
                given(f, "options", (!header.options.is_empty()).then(|| Hex(&header.options)))?;
                given(f, "proto", header.protocol)?;
                given(f, "len", header.length)?;
                checksum(f, header.checksum)
            }
            Layer::Ipv6(header) => {
                write!(f, "ip {} > {}", header.source, header.destination)?;
                unless(f, "ttl", header.hop_limit, TTL)?;
                unless(f, "tos", header.traffic_class, 0)?;
                unless(f, "flow", header.flow_label, 0)?;
                given(f, "proto", header.next)?;
                given(f, "len", header.length)
            }
            Layer::Extension(header) => {
                let name = EXTENSION_NAMES
                    .iter()
                    .find(|(_, kind)| *kind == header.kind)
                    .map_or("extension", |(name, _)| name);
                f.write_str(name)?;
                given(f, "body", (header.body != default_body(header.kind)).then_some(Hex(&header.body)))?;
                given(f, "next", header.next)
            }
            Layer::Fragment(header) => {
                f.write_str("fragment")?;
                unless(f, "id", header.id, 0)?;
                part(f, header.part)?;
                unless(f, "reserved", header.reserved, 0)?;
                given(f, "next", header.next)
            }
            Layer::Tcp(header) => {
                write!(f, "tcp {} > {} ", header.source, header.destination)?;
                let flags: String = FLAGS
                    .char_indices()
                    .filter(|(bit, _)| header.flags >> bit & 1 == 1)
                    .map(|(_, letter)| letter)
                    .collect();
                f.write_str(if flags.is_empty() { "-" } else { &flags })?;
                unless(f, "reserved", header.flags >> 8, 0)?;
                unless(f, "seq", header.seq, 0)?;
                unless(f, "ack", header.ack, 0)?;
                unless(f, "win", header.window, WINDOW)?;
                unless(f, "urg", header.urgent, 0)?;
                given(f, "options", (!header.options.is_empty()).then(|| Hex(&header.options)))?;
                checksum(f, header.checksum)
            }
            Layer::Udp(header) => {
                write!(f, "udp {} > {}", header.source, header.destination)?;
                given(f, "len", header.length)?;
                checksum(f, header.checksum)
            }
            Layer::Sctp(header) => {
                write!(f, "sctp {} > {}", header.source, header.destination)?;
                unless(f, "tag", header.tag, 0)?;
                checksum(f, header.checksum)
            }
            Layer::Icmp(header) => {
                let found = (header.kind, header.code);
                match ICMP_NAMES.iter().find(|(_, v4, v6)| found == if header.v6 { *v6 } else { *v4 }) {
                    Some((name, ..)) => write!(f, "icmp {name}")?,
                    None => write!(f, "icmp {}.{}", header.kind, header.code)?,
                }
                given(f, "rest", (header.rest != [0; 4]).then_some(Hex(&header.rest)))?;
                given(f, "quote", header.quote)?;
                checksum(f, header.checksum)
            }
            Layer::Ports(ports) => {
                write!(f, "ports {} {} > {}", ports.protocol, ports.source, ports.destination)
            }
            Layer::Data(bytes) => data(f, bytes),
            Layer::Trailer(bytes) => write!(f, "trailer {}", Hex(bytes)),
        }
    }
}

struct MacText(Mac);

impl fmt::Display for MacText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("0x")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

fn data(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    let plain =
        |byte: &u8| matches!(byte, b' ' | b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b',' | b'-');
    if bytes.len() >= 4 && bytes.iter().all(plain) {
        write!(f, "\"{}\"", String::from_utf8_lossy(bytes))
    } else if bytes.len() >= 4 && bytes.iter().all(|byte| *byte == 0) {
        write!(f, "zeros {}", bytes.len())
    } else if bytes.len() >= 4 && bytes == pattern(bytes.len()) {
        write!(f, "bytes {}", bytes.len())
    } else {
        write!(f, "{}", Hex(bytes))
    }
}

fn unless<T: PartialEq + fmt::Display>(
    f: &mut fmt::Formatter<'_>,
    key: &str,
    value: T,
    usual: T,
) -> fmt::Result {
    given(f, key, (value != usual).then_some(value))
}

fn given<T: fmt::Display>(f: &mut fmt::Formatter<'_>, key: &str, value: Option<T>) -> fmt::Result {
    value.map_or(Ok(()), |value| write!(f, " {key}={value}"))
}

fn part(f: &mut fmt::Formatter<'_>, part: DatagramPart) -> fmt::Result {
    match part {
        DatagramPart::Whole => Ok(()),
        DatagramPart::Piece { from, to } => write!(f, " piece={from}-{to}"),
        DatagramPart::Raw { offset, more } => write!(f, " frag={offset}{}", if more { "+" } else { "" }),
    }
}

fn checksum(f: &mut fmt::Formatter<'_>, checksum: Checksum) -> fmt::Result {
    match checksum {
        Checksum::Correct => Ok(()),
        Checksum::Faulty => f.write_str(" csum=faulty"),
        Checksum::Exactly(0) => f.write_str(" csum=none"),
        Checksum::Exactly(value) => write!(f, " csum={value:#06x}"),
    }
}

/// Compares two packets layer by layer, for a failure message. Layers that differ are marked.
pub fn diff(expected: &[Layer], found: &[Layer]) -> String {
    let mut text = String::new();
    for i in 0..expected.len().max(found.len()) {
        let side = |layers: &[Layer]| layers.get(i).map_or("(no layer)".to_owned(), Layer::to_string);
        let (expected, found) = (side(expected), side(found));
        if expected == found {
            let _ = writeln!(text, "             {expected}");
        } else {
            let _ = writeln!(text, "    expected {expected}\n    found    {found}");
        }
    }
    text
}
