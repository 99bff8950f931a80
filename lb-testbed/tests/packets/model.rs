//! A model of the programs: it returns what they should do with a packet. It is written from the
//! documents and shares no code with the programs.
//!
//! The model parses headers itself, takes the routes from [`world`], and keeps connections in hash
//! maps. Where a program chooses (endpoint, source port), the model checks the choice and stores
//! it.

pub mod connection;
mod icmp;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use lb_testbed::packet::layer::{Link, Mac};
use lb_testbed::packet::sums::crc32c;
use lb_testbed::packet::{build, parse};
use lb_testbed::programs::world;

use self::connection::{Connection, End, Numbers, Yields};

const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;
const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;
/// The programs ignore a packet whose headers end after this many bytes of the frame.
const HEADERS_WITHIN: usize = 512;
/// The programs send no ICMP error if it would quote more than this many bytes.
const QUOTE_MAX: usize = 128;
const MAX_EXTENSION_HEADERS: usize = 6;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Protocol, source and destination of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    pub protocol: u8,
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

impl Tuple {
    pub fn reversed(self) -> Self {
        Self { source: self.destination, destination: self.source, ..self }
    }
}

/// One direction of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Flow {
    /// The tuple that packets get.
    pub to: Tuple,
    pub reply: bool,
    /// The programs send the packets out along a route.
    pub routed: bool,
    /// Index of its connection in [`Model::connections`].
    connection: usize,
}

/// The header offsets and fields of a packet that the programs may translate.
#[derive(Debug, Clone, Copy)]
struct View {
    l3: usize,
    l4: usize,
    v6: bool,
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    ttl: u8,
    id: u32,
    part: Part,
    /// IPv4 without "don't fragment".
    may_be_fragmented: bool,
    /// Length of the IP packet in bytes.
    length: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Whole,
    First,
    Later,
}

/// The direction of a packet at a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Ingress,
    Egress,
}

/// The expected result for a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// The packet passes untouched, and these counters increase.
    Untouched(Vec<&'static str>),
    /// The packet is dropped, and this counter increases.
    Dropped(&'static str),
    /// The packet gets this tuple. With a route, its hop count decreases and it is sent along the
    /// route.
    Rewritten { to: Tuple, routed: Option<Route> },
    /// The packet is an ICMP error about a packet of a connection and becomes this frame. With a
    /// route, it is sent along the route.
    Translated { frame: Vec<u8>, routed: Option<Route> },
    /// The packet opens a connection to one of these endpoints.
    Opens(Vec<SocketAddr>),
    /// The sender gets this answer, and this counter increases.
    Answered { answer: Answer, counter: &'static str },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// An ICMP error that quotes the headers: type, code, and the 32-bit word after the checksum.
    Error {
        kind: u8,
        code: u8,
        word: u32,
    },
    /// A TCP reset.
    Reset,
    EchoReply,
}

/// The route to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    pub device: &'static str,
    /// MAC address of the next hop. `None`: the neighbour is not resolved.
    pub mac: Option<Mac>,
    /// The packet fits only in fragments: the kernel gets it.
    pub in_fragments: bool,
}

/// A connection with its addresses and its age.
#[derive(Debug, Clone, Copy)]
struct Tracked {
    connection: Connection,
    /// The tuple of the client's packets.
    request: Tuple,
    /// The tuple of the packets that the endpoint receives.
    translated: Tuple,
    /// The time at which its last packet passed, in seconds.
    last_seen: u64,
}

/// Protocol, client, Service address, source and endpoint of a connection.
pub type Identity = (u8, SocketAddr, SocketAddr, SocketAddr, SocketAddr);

impl Tracked {
    fn identity(&self) -> Identity {
        let Self { request, translated, .. } = self;
        (request.protocol, request.source, request.destination, translated.source, translated.destination)
    }
}

/// The state of the model.
pub struct Model {
    link: Link,
    services: HashMap<(u8, SocketAddr), Service>,
    pub flows: HashMap<Tuple, Flow>,
    /// Every connection that was opened, in this order. Connections without flows are over.
    connections: Vec<Tracked>,
    /// Seconds since the model was made.
    now: u64,
    /// Ports of a datagram, by addresses, protocol and identification of its fragments.
    fragments: HashMap<(IpAddr, IpAddr, u8, u32), (u16, u16)>,
    first_snat_port: u16,
    /// MTU of the device that the packet is on.
    mtu: u32,
}

/// A Service port at one address. The unspecified address stands for every address of the node.
#[derive(Debug, Clone)]
pub struct Service {
    pub endpoints: Vec<SocketAddr>,
    pub drop: bool,
}

impl Model {
    pub fn new(link: Link, services: HashMap<(u8, SocketAddr), Service>, first_snat_port: u16) -> Self {
        Self {
            link,
            services,
            flows: HashMap::new(),
            connections: Vec::new(),
            now: 0,
            fragments: HashMap::new(),
            first_snat_port,
            mtu: 0,
        }
    }

    /// Returns what the sender and the receiver of packets with this tuple have sent in their
    /// connection.
    pub fn ends(&self, tuple: &Tuple) -> Option<(End, End)> {
        let flow = self.flows.get(tuple)?;
        let Connection { client, endpoint, .. } = self.connections[flow.connection].connection;
        Some(if flow.reply { (endpoint, client) } else { (client, endpoint) })
    }

    /// Returns the connection that packets with this tuple belong to.
    pub fn connection(&self, tuple: &Tuple) -> Option<&Connection> {
        Some(&self.connections[self.flows.get(tuple)?.connection].connection)
    }

    /// Lets time pass. Connections that were silent for as long as their time-out are over.
    pub fn wait(&mut self, seconds: u64) {
        self.now += seconds;
        for index in self.open() {
            let tracked = &self.connections[index];
            if self.now - tracked.last_seen >= tracked.connection.timeout() {
                self.remove(index);
            }
        }
    }

    /// Returns the indices of the connections that are not over.
    fn open(&self) -> HashSet<usize> {
        self.flows.values().map(|flow| flow.connection).collect()
    }

    fn remove(&mut self, index: usize) {
        self.flows.retain(|_, flow| flow.connection != index);
    }

    /// Returns the connections that are not over.
    pub fn identities(&self) -> HashSet<Identity> {
        self.open().into_iter().map(|index| self.connections[index].identity()).collect()
    }

    /// Removes the connections that are not in `found`: they gave way. Returns what they were.
    pub fn give_way(&mut self, found: &HashSet<Identity>) -> Vec<Yields> {
        let mut gone = Vec::new();
        for index in self.open() {
            if !found.contains(&self.connections[index].identity()) {
                gone.push(self.connections[index].connection.yields());
                self.remove(index);
            }
        }
        gone
    }

    /// Returns the number of connections that a new one cannot replace, of those that `select`
    /// selects by protocol, source and endpoint.
    pub fn count_lasting(&self, select: impl Fn(&Tuple) -> bool) -> usize {
        self.open()
            .into_iter()
            .map(|index| &self.connections[index])
            .filter(|tracked| select(&tracked.translated))
            .filter(|tracked| matches!(tracked.connection.yields(), Yields::Never | Yields::Datagram))
            .count()
    }

    /// Returns the expected result for a packet at a device. Closes connections and stores the
    /// ports of fragments, but does not open connections: [`Model::opened`] does.
    pub fn expect(&mut self, bytes: &[u8], direction: Direction, device: &str) -> Expected {
        self.mtu = mtu(device);
        let untouched = || Expected::Untouched(Vec::new());
        let Some(view) = View::of(bytes, self.link) else { return untouched() };
        if view.is_icmp() {
            return self.expect_icmp(&view, bytes, direction);
        }
        let Some(tuple) = self.tuple(&view, bytes) else { return untouched() };
        let flags = view.flags(bytes);
        let opening = view.protocol == UDP || flags & (SYN | ACK | RST | FIN) == SYN;

        if let Some(flow) = self.flows.get(&tuple).copied() {
            let replaced =
                view.protocol != UDP && opening && self.connections[flow.connection].connection.gives_way();
            if direction == Direction::Ingress && !flow.reply && replaced {
                self.flows.remove(&tuple);
                self.flows.remove(&flow.to.reversed());
            } else {
                return self.expect_flow(&view, bytes, tuple, flow, direction);
            }
        }
        if direction == Direction::Egress {
            return untouched();
        }
        if opening && !self.is_known(tuple.destination.ip()) {
            self.give_up_closed(&tuple);
            return untouched();
        }
        if !view.is_intact(bytes) {
            return untouched();
        }
        let Some(service) = self.service(&tuple) else {
            // All Service addresses of the fuzz are ClusterIPs.
            let address = tuple.destination.ip();
            let cluster_ip =
                !address.is_unspecified() && self.services.keys().any(|(_, known)| known.ip() == address);
            return if cluster_ip && opening { refuse(&view, "unknown_port_rejected") } else { untouched() };
        };
        if !opening {
            return Expected::Untouched(vec!["not_opening"]);
        }
        if service.endpoints.is_empty() {
            return match service.drop {
                true => Expected::Dropped("no_endpoint_dropped"),
                false => refuse(&view, "no_endpoint_rejected"),
            };
        }
        // In the fuzz, all endpoints of a Service are of one kind. The first one stands for all.
        let endpoints = service.endpoints.clone();
        if !keeps_source(tuple.source, endpoints[0])
            && let Some(obstacle) = obstacle(&view, endpoints[0].ip(), view.may_be_fragmented)
        {
            return obstacle;
        }
        Expected::Opens(endpoints)
    }

    fn expect_flow(
        &mut self,
        view: &View,
        bytes: &[u8],
        tuple: Tuple,
        flow: Flow,
        direction: Direction,
    ) -> Expected {
        // A reply that stays on the kernel's path is translated at egress, everything else at
        // ingress.
        if (direction == Direction::Egress) != (flow.reply && !flow.routed) {
            return Expected::Untouched(Vec::new());
        }
        let routed = if flow.routed {
            if let Some(obstacle) = obstacle(view, flow.to.destination.ip(), view.may_be_fragmented) {
                return obstacle;
            }
            self.route(view, flow.to.destination.ip())
        } else {
            None
        };
        let now = self.now;
        let tracked = &mut self.connections[flow.connection];
        tracked.connection.passed(&view.numbers(bytes), !flow.reply);
        tracked.last_seen = now;
        let ports = |tuple: Tuple| (tuple.source.port(), tuple.destination.port());
        if view.protocol == SCTP && view.part == Part::First && ports(tuple) != ports(flow.to) {
            return Expected::Dropped("sctp_fragment");
        }
        self.remember_fragment(view, bytes);
        Expected::Rewritten { to: flow.to, routed }
    }

    /// Checks the tuple `to` that a program chose for a packet that opens a connection, and stores
    /// the connection. `Err` has the reason why the choice is wrong.
    pub fn opened(&mut self, bytes: &[u8], endpoints: &[SocketAddr], to: Tuple) -> Result<Expected, String> {
        let view = View::of(bytes, self.link).ok_or("the programs should ignore this packet")?;
        let tuple = self.tuple(&view, bytes).ok_or("the packet has no ports")?;
        if !endpoints.contains(&to.destination) {
            return Err(format!("{} is not an endpoint of the Service", to.destination));
        }
        let kept = keeps_source(tuple.source, to.destination);
        let route = self.route(&view, to.destination.ip());
        let expected = match (kept, route) {
            (true, _) => tuple.source.ip(),
            (false, Some(route)) => device_address(route.device, view.v6),
            (false, None) => return Err("there is no route to the endpoint".into()),
        };
        if to.source.ip() != expected {
            return Err(format!("the source is {}, it should be {expected}", to.source));
        }
        let taken = self.flows.contains_key(&to.reversed());
        let may_keep_port =
            kept && !self.flows.contains_key(&Tuple { source: tuple.source, ..to }.reversed());
        if may_keep_port && to.source != tuple.source {
            return Err("the client's port was free, but was changed".into());
        }
        if !(kept && to.source == tuple.source) && to.source.port() < self.first_snat_port {
            return Err(format!("source port {} is outside the range", to.source.port()));
        }
        if taken {
            return Err(format!("{:?} is already taken", to.reversed()));
        }
        let connection = self.connections.len();
        self.connections.push(Tracked {
            connection: Connection::opened(view.protocol, &view.numbers(bytes)),
            request: tuple,
            translated: to,
            last_seen: self.now,
        });
        let request = Flow { to, reply: false, routed: !kept, connection };
        let reply = Flow { to: tuple.reversed(), reply: true, routed: !kept, connection };
        self.flows.insert(tuple, request);
        self.flows.insert(to.reversed(), reply);
        self.remember_fragment(&view, bytes);
        Ok(Expected::Rewritten { to, routed: if kept { None } else { route } })
    }

    /// Ends a closed connection with an endpoint to which the client opens another one directly,
    /// with the same port.
    fn give_up_closed(&mut self, direct: &Tuple) {
        if let Some(flow) = self.flows.get(&direct.reversed())
            && flow.reply
            && !flow.routed
            && self.connections[flow.connection].connection.gives_way()
        {
            self.remove(flow.connection);
        }
    }

    /// Returns whether an address is a Service's or the node's.
    fn is_known(&self, address: IpAddr) -> bool {
        let mut own = world::DEVICES.iter().flat_map(|device| device.addresses);
        own.any(|text| text.parse() == Ok(address))
            || !address.is_unspecified() && self.services.keys().any(|(_, known)| known.ip() == address)
    }

    fn service(&self, tuple: &Tuple) -> Option<&Service> {
        if let Some(service) = self.services.get(&(tuple.protocol, tuple.destination)) {
            return Some(service);
        }
        let own = world::DEVICES.iter().flat_map(|device| device.addresses);
        if !own.into_iter().any(|text| text.parse() == Ok(tuple.destination.ip())) {
            return None;
        }
        let any: IpAddr = if tuple.destination.is_ipv6() { [0u16; 8].into() } else { [0u8; 4].into() };
        self.services.get(&(tuple.protocol, SocketAddr::new(any, tuple.destination.port())))
    }

    /// Returns the route of a packet to an address. The fragments of a datagram take the same way,
    /// which depends on the largest that the device can receive.
    fn route(&self, view: &View, to: IpAddr) -> Option<Route> {
        let device = if view.part == Part::Whole { 0 } else { self.mtu as usize };
        let fits = view.length.max(device) <= mtu(route(to)?.device) as usize;
        Some(Route { in_fragments: view.may_be_fragmented && !fits, ..route(to)? })
    }

    fn tuple(&self, view: &View, bytes: &[u8]) -> Option<Tuple> {
        let (source, destination) = if view.part == Part::Later {
            *self.fragments.get(&view.fragment())?
        } else {
            (be16(bytes, view.l4), be16(bytes, view.l4 + 2))
        };
        Some(Tuple {
            protocol: view.protocol,
            source: SocketAddr::new(view.source, source),
            destination: SocketAddr::new(view.destination, destination),
        })
    }

    fn remember_fragment(&mut self, view: &View, bytes: &[u8]) {
        if view.part == Part::First {
            self.fragments.insert(view.fragment(), (be16(bytes, view.l4), be16(bytes, view.l4 + 2)));
        }
    }

    /// Returns the packet with another tuple. If it is forwarded, its hop count decreases by one. A
    /// fault of a checksum remains.
    pub fn rewritten(&self, bytes: &[u8], to: Tuple, forwarded: bool) -> Option<Vec<u8>> {
        let view = View::of(bytes, self.link)?;
        let mut new = bytes.to_vec();
        let (source_at, width) = if view.v6 { (view.l3 + 8, 16) } else { (view.l3 + 12, 4) };
        put(&mut new, source_at, &octets(to.source.ip()));
        put(&mut new, source_at + width, &octets(to.destination.ip()));
        if forwarded {
            new[view.l3 + if view.v6 { 7 } else { 8 }] -= 1;
        }
        if view.part != Part::Later {
            put(&mut new, view.l4, &to.source.port().to_be_bytes());
            put(&mut new, view.l4 + 2, &to.destination.port().to_be_bytes());
            // The transport checksum covers the ports and (in the pseudo header) the addresses.
            let change = sum(&new[source_at..source_at + 2 * width])
                - sum(&bytes[source_at..source_at + 2 * width])
                + sum(&new[view.l4..view.l4 + 4])
                - sum(&bytes[view.l4..view.l4 + 4]);
            let at = view.l4 + if view.protocol == TCP { 16 } else { 6 };
            let old = be16(bytes, at);
            if view.protocol == SCTP {
                view.correct_crc(bytes, &mut new);
            } else if view.protocol == UDP && old == 0 {
                // The datagram has no checksum (RFC 768).
            } else {
                let checksum = adjusted(old, change);
                let checksum = if view.protocol == UDP && checksum == 0 { 0xffff } else { checksum };
                put(&mut new, at, &checksum.to_be_bytes());
            }
        }
        if !view.v6 {
            let header = view.l3..view.l4;
            let change = sum(&new[header.clone()]) - sum(&bytes[header]);
            let checksum = adjusted(be16(bytes, view.l3 + 10), change);
            put(&mut new, view.l3 + 10, &checksum.to_be_bytes());
        }
        Some(new)
    }

    /// Returns the frame that answers a packet.
    pub fn answered(&self, bytes: &[u8], answer: Answer) -> Option<Vec<u8>> {
        let view = View::of(bytes, self.link)?;
        let text = match answer {
            Answer::EchoReply => return Some(icmp::echoed(&view, bytes)),
            Answer::Error { kind, code, word } => {
                let mut quoted = bytes[view.l3..].to_vec();
                quoted.resize(view.quote(), 0);
                let quoted: String = quoted.iter().map(|byte| format!("{byte:02x}")).collect();
                let tos = if view.v6 { "" } else { " tos=192" };
                format!("{tos} df / icmp {kind}.{code} rest={word:#010x} / 0x{quoted}")
            }
            // RFC 9293 3.10.7.1. The length of a SYN segment is that of its data plus one.
            Answer::Reset => {
                let tcp = &bytes[view.l4..];
                let header = view.l4 - view.l3 + usize::from(tcp[12] >> 4) * 4;
                let length = view.length.saturating_sub(header) as u32 + 1;
                let ack = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]).wrapping_add(length);
                let (source, destination) = (be16(tcp, 0), be16(tcp, 2));
                format!(" df / tcp {destination} > {source} RA win=0 ack={ack}")
            }
        };
        let text = if view.v6 { text.replacen(" df", "", 1) } else { text };
        let packet = build(&parse(&format!("ip {} > {}{text}", view.destination, view.source)).ok()?);
        Some([&bytes[6..12], &bytes[..6], &bytes[12..14], &packet].concat())
    }

    /// Returns whether two packets are equal. The two representations of zero in ones' complement
    /// are equal in checksums.
    pub fn same(&self, expected: &[u8], found: &[u8]) -> bool {
        let Some(view) = View::of(expected, self.link) else { return expected == found };
        let mut found = found.to_vec();
        let mut checksums = vec![];
        if !view.v6 {
            checksums.push(view.l3 + 10);
        }
        if view.part != Part::Later {
            // A UDP checksum is not compared this way: it is never sent as a computed zero.
            checksums.extend((view.protocol == TCP).then_some(view.l4 + 16));
            checksums.extend(view.is_icmp().then_some(view.l4 + 2));
        }
        for at in checksums {
            if found.len() >= at + 2
                && matches!((be16(expected, at), be16(&found, at)), (0, 0xffff) | (0xffff, 0))
            {
                put(&mut found, at, &expected[at..at + 2]);
            }
        }
        expected == found
    }

    /// Returns the tuple of a packet, or `None` if it is not translatable or a later fragment.
    pub fn tuple_of(&self, bytes: &[u8]) -> Option<Tuple> {
        let view = View::of(bytes, self.link)?;
        if view.part == Part::Later {
            return None;
        }
        self.tuple(&view, bytes)
    }
}

impl View {
    fn of(bytes: &[u8], link: Link) -> Option<Self> {
        let (l3, v6) = match link {
            Link::None => (0, bytes.first()? >> 4 == 6),
            // A frame with a VLAN tag in its bytes is not the device's own.
            Link::Ethernet => match (bytes.len() >= 14).then(|| be16(bytes, 12))? {
                0x0800 => (14, false),
                0x86dd => (14, true),
                _ => return None,
            },
        };
        let ip = &bytes[l3..];
        let mut view = if v6 { Self::v6(ip)? } else { Self::v4(ip)? };
        // The whole IP packet must be there, and the transport header must be within it.
        let transport = match (view.part, view.protocol) {
            (Part::Later, TCP | UDP | SCTP) => 0,
            (_, TCP) => 20,
            (_, UDP) => 8,
            (_, SCTP) => 12,
            (Part::Whole, _) if view.is_icmp() => 8,
            _ => return None,
        };
        if view.l4 + transport > view.length || view.length > ip.len() {
            return None;
        }
        let (segment, whole) = (view.length - view.l4, view.part == Part::Whole);
        let is_well_formed = match view.protocol {
            _ if view.part == Part::Later => true,
            TCP => {
                let header = usize::from(ip[view.l4 + 12] >> 4) * 4;
                header >= 20 && (!whole || header <= segment)
            }
            UDP => {
                let length = usize::from(be16(ip, view.l4 + 4));
                length >= 8 && (!whole || length <= segment)
            }
            _ => true,
        };
        if !is_well_formed {
            return None;
        }
        view.l3 = l3;
        view.l4 += l3;
        (view.l4 + transport <= HEADERS_WITHIN).then_some(view)
    }

    fn v4(ip: &[u8]) -> Option<Self> {
        if ip.len() < 20 || ip[0] >> 4 != 4 || ip[0] & 0xf < 5 {
            return None;
        }
        let field = be16(ip, 6);
        Some(Self {
            l3: 0,
            l4: usize::from(ip[0] & 0xf) * 4,
            v6: false,
            source: IpAddr::from([ip[12], ip[13], ip[14], ip[15]]),
            destination: IpAddr::from([ip[16], ip[17], ip[18], ip[19]]),
            protocol: ip[9],
            ttl: ip[8],
            id: be16(ip, 4).into(),
            part: match (field & 0x1fff, field & 0x2000) {
                (0, 0) => Part::Whole,
                (0, _) => Part::First,
                _ => Part::Later,
            },
            may_be_fragmented: field & 0x4000 == 0,
            length: be16(ip, 2).into(),
        })
    }

    fn v6(ip: &[u8]) -> Option<Self> {
        if ip.len() < 40 || ip[0] >> 4 != 6 {
            return None;
        }
        let address =
            |at: usize| IpAddr::from(<[u8; 16]>::try_from(&ip[at..at + 16]).expect("sixteen bytes"));
        let mut view = Self {
            l3: 0,
            l4: 40,
            v6: true,
            source: address(8),
            destination: address(24),
            protocol: ip[6],
            ttl: ip[7],
            id: 0,
            part: Part::Whole,
            may_be_fragmented: false,
            length: 40 + usize::from(be16(ip, 4)),
        };
        for _ in 0..MAX_EXTENSION_HEADERS {
            let header = ip.get(view.l4..).unwrap_or_default();
            match view.protocol {
                0 | 43 | 60 | 135 if header.len() >= 2 => view.l4 += (usize::from(header[1]) + 1) * 8,
                51 if header.len() >= 2 => view.l4 += (usize::from(header[1]) + 2) * 4,
                44 if header.len() >= 8 => {
                    view.l4 += 8;
                    view.id = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                    let field = be16(header, 2);
                    if field & !7 != 0 {
                        view.part = Part::Later;
                        view.protocol = header[0];
                        break;
                    }
                    if field & 1 == 1 {
                        view.part = Part::First;
                    }
                }
                0 | 43 | 60 | 135 | 51 | 44 => return None,
                _ => break,
            }
            view.protocol = header[0];
        }
        Some(view)
    }

    /// Returns whether the checksum of the IPv4 header is correct.
    fn is_intact(&self, bytes: &[u8]) -> bool {
        self.v6 || {
            let header = usize::from(bytes[self.l3] & 0xf) * 4;
            sum(&bytes[self.l3..self.l3 + header]) % 0xffff == 0
        }
    }

    /// Returns the number of bytes that an error about the packet quotes: the IP header and the
    /// transport header without options. For SCTP it quotes up to the tag in an INIT (RFC 9260 10),
    /// in whole words.
    fn quote(&self) -> usize {
        let header = self.l4 - self.l3;
        header
            + match self.protocol {
                TCP => 20,
                SCTP => (self.length - header).min(20) / 4 * 4,
                _ => 8,
            }
    }

    /// Returns the flags of a TCP header. For an unfragmented SCTP packet, returns the TCP flags
    /// with the meaning of its first chunk.
    fn flags(&self, bytes: &[u8]) -> u8 {
        match (self.protocol, self.part) {
            (TCP, Part::Whole | Part::First) => bytes[self.l4 + 13],
            (SCTP, Part::Whole) if bytes.len().min(self.l3 + self.length) >= self.l4 + 16 => {
                let untagged = bytes[self.l4 + 4..self.l4 + 8] == [0; 4];
                match bytes[self.l4 + 12] {
                    1 if untagged => SYN,
                    1 => 0,
                    2 => SYN | ACK,
                    6 | 14 => RST,
                    7 | 8 => FIN | ACK,
                    _ => ACK,
                }
            }
            _ => 0,
        }
    }

    /// Returns the numbers by which connections are followed; zeros for what the packet lacks.
    fn numbers(&self, bytes: &[u8]) -> Numbers {
        let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let flags = self.flags(bytes);
        match (self.protocol, self.part) {
            (TCP, Part::Whole | Part::First) => {
                let header = usize::from(bytes[self.l4 + 12] >> 4) * 4;
                let payload = (self.l3 + self.length).saturating_sub(self.l4 + header) as u32;
                Numbers { flags, seq: word(self.l4 + 4), ack: word(self.l4 + 8), payload }
            }
            (SCTP, Part::Whole | Part::First) => {
                let has_tag = flags & SYN != 0 && bytes.len().min(self.l3 + self.length) >= self.l4 + 20;
                let ack = if has_tag { word(self.l4 + 16) } else { 0 };
                Numbers { flags, seq: word(self.l4 + 4), ack, payload: 0 }
            }
            _ => Numbers::default(),
        }
    }

    /// Updates the CRC of a changed SCTP packet. A fault of the old CRC remains, and zero remains
    /// zero.
    fn correct_crc(&self, old: &[u8], new: &mut [u8]) {
        let at = self.l4 + 8;
        let field = u32::from_le_bytes([old[at], old[at + 1], old[at + 2], old[at + 3]]);
        if field == 0 {
            return;
        }
        let crc = |bytes: &[u8]| {
            // Truncated bytes count as zeros in both packets.
            let mut covered = bytes[self.l4..].to_vec();
            covered.resize(self.l3 + self.length - self.l4, 0);
            covered[8..12].fill(0);
            crc32c(&covered)
        };
        put(new, at, &(field ^ crc(old) ^ crc(new)).to_le_bytes());
    }

    fn is_icmp(&self) -> bool {
        self.protocol == if self.v6 { ICMP_V6 } else { ICMP }
    }

    fn fragment(&self) -> (IpAddr, IpAddr, u8, u32) {
        (self.source, self.destination, self.protocol, self.id)
    }
}

/// Returns the refusal of a packet to a port without endpoints.
fn refuse(view: &View, counter: &'static str) -> Expected {
    if view.part == Part::Later {
        return Expected::Dropped(counter);
    }
    match view.protocol {
        TCP if view.part == Part::First => Expected::Dropped(counter),
        TCP => Expected::Answered { answer: Answer::Reset, counter },
        _ => error(view, if view.v6 { (1, 4) } else { (3, 3) }, 0, counter),
    }
}

/// Returns an ICMP error, or a drop if the headers to quote are too long.
fn error(view: &View, (kind, code): (u8, u8), word: u32, counter: &'static str) -> Expected {
    if view.quote() > QUOTE_MAX {
        return Expected::Dropped("rewrite_failed");
    }
    Expected::Answered { answer: Answer::Error { kind, code, word }, counter }
}

/// Returns the result if a packet to an address cannot be forwarded, or `None` if it can. With
/// `fragments`, the size does not matter.
fn obstacle(view: &View, to: IpAddr, fragments: bool) -> Option<Expected> {
    let Some(route) = route(to) else { return Some(Expected::Dropped("no_route")) };
    let mtu = mtu(route.device);
    let (expected, counter) = if view.length > mtu as usize && !fragments {
        (error(view, if view.v6 { (2, 0) } else { (3, 4) }, mtu, "too_big"), "too_big")
    } else if view.ttl <= 1 {
        (error(view, if view.v6 { (3, 0) } else { (11, 0) }, 0, "ttl_expired"), "ttl_expired")
    } else {
        return None;
    };
    // RFC 1122 3.2.2: no ICMP error is sent about a fragment other than the first.
    Some(if view.part == Part::Later { Expected::Dropped(counter) } else { expected })
}

/// Returns the route to an address. The model has routes to the peers of [`world`] only.
pub fn route(to: IpAddr) -> Option<Route> {
    world::peer_at(to).map(|peer| Route { device: peer.device, mac: peer.mac, in_fragments: false })
}

fn mtu(device: &str) -> u32 {
    world::device(device).map_or(1500, |device| device.mtu)
}

fn is_local(end: SocketAddr) -> bool {
    world::peer_at(end.ip()).is_some_and(|peer| peer.device == "pod0")
}

/// Returns whether the source address is kept: client or endpoint is a pod of this node, so replies
/// pass this node in any case.
fn keeps_source(client: SocketAddr, endpoint: SocketAddr) -> bool {
    is_local(client) || is_local(endpoint)
}

fn device_address(device: &str, v6: bool) -> IpAddr {
    world::address(device, v6).expect("every device of the world has an address of each family")
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Returns the sum of the big-endian 16-bit words. The number of bytes must be even.
fn sum(bytes: &[u8]) -> i64 {
    bytes.chunks(2).map(|pair| i64::from(be16(pair, 0))).sum()
}

/// Returns the checksum after the sum of the covered words has changed by `change`. A checksum is
/// minus the sum, modulo ffff.
///
/// Zero is represented as 0000.
fn adjusted(old: u16, change: i64) -> u16 {
    (i64::from(old) - change).rem_euclid(0xffff) as u16
}
