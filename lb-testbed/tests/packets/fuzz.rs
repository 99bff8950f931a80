//! Sends generated packets through the programs and compares the results with the
//! [model](crate::model).
//!
//! The sequence of packets is the same in each run. `SLUICE_FUZZ_PACKETS` sets the number of
//! packets per mode (default 20,000), and `SLUICE_FUZZ_SEED` the first seed. A failure names the
//! seed of its round: the round alone reproduces it.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use lb_testbed::packet::{Link, build, diff, dissect, parse, render};
use lb_testbed::programs::world::{self, Peer, World};
use lb_testbed::programs::{Action, Endpoint, Limits, ServiceEntry, Subject};

use crate::case::{Hook, Mode};
use crate::model::connection::End;
use crate::model::{Direction, Expected, Model, Route, Service, Tuple};
use crate::run::{Found, can_be_an_skb, is_icmp, send};

pub const MODES: [Mode; 2] = [Mode::Xdp, Mode::Tc];

/// Number of packets after which maps and model are cleared.
const ROUND: u64 = 1000;

/// An address name of the world, and a port.
type Named = (&'static str, u16);

/// Services of the fuzz: address, protocol, endpoints, drop. All endpoints of a Service are of one
/// kind.
const SERVICES: [(Named, u8, &[Named], bool); 17] = [
    (("vip", 80), 6, &[("remote", 8080), ("remote2", 8080)], false),
    (("vip", 53), 17, &[("remote", 53)], false),
    (("vip2", 80), 6, &[("local", 8080), ("local2", 8081)], false),
    (("vip2", 53), 17, &[("local", 5353)], false),
    (("unspecified", 30080), 6, &[("remote", 8080)], false),
    (("unspecified", 30053), 17, &[("local", 5353), ("local2", 5353)], false),
    (("vip", 81), 6, &[("far", 8080)], false),
    (("vip", 54), 17, &[("overlay", 53)], false),
    (("vip", 84), 6, &[("silent", 8080)], false),
    (("vip", 55), 17, &[("nowhere", 53)], false),
    (("vip", 82), 17, &[], false),
    (("vip", 83), 17, &[], true),
    (("vip", 38412), 132, &[("remote", 3868), ("remote2", 38412)], false),
    (("vip2", 38412), 132, &[("local", 38412), ("local2", 3868)], false),
    (("unspecified", 30412), 132, &[("remote2", 30412)], false),
    (("vip", 38413), 132, &[], false),
    (("vip", 85), 6, &[], false),
];

pub fn run(mode: Mode, world: &World, subject: &mut Subject) -> Result<()> {
    let packets = setting("SLUICE_FUZZ_PACKETS")?.unwrap_or(20_000);
    let first = setting("SLUICE_FUZZ_SEED")?.unwrap_or(1);
    let mut outcomes = Outcomes::default();
    for round in 0..packets.div_ceil(ROUND) {
        let seed = first + round;
        let length = ROUND.min(packets - round * ROUND);
        self::round(seed, length, mode, world, subject, &mut outcomes)
            .with_context(|| format!("run again with SLUICE_FUZZ_SEED={seed} SLUICE_FUZZ_PACKETS={ROUND}"))?;
    }
    // The test means nothing if the generator no longer reaches some outcome.
    for (outcome, least) in [
        ("untouched", 10),
        ("dropped", 40),
        ("delivered", 20),
        ("forwarded", 20),
        ("answered", 60),
        ("error translated", 60),
    ] {
        let count = outcomes.get(outcome).copied().unwrap_or(0);
        ensure!(
            packets < 1000 || count * least >= packets,
            "only {count} of {packets} packets had the outcome \"{outcome}\": {outcomes:?}"
        );
    }
    Ok(())
}

/// Number of packets by outcome.
type Outcomes = BTreeMap<&'static str, u64>;

fn setting(name: &str) -> Result<Option<u64>> {
    match std::env::var(name) {
        Ok(text) => Ok(Some(text.parse().with_context(|| format!("{name}={text} is not a number"))?)),
        Err(_) => Ok(None),
    }
}

fn round(
    seed: u64,
    length: u64,
    mode: Mode,
    world: &World,
    subject: &mut Subject,
    outcomes: &mut Outcomes,
) -> Result<()> {
    let mut model = Model::new(Link::Ethernet, services(), *Limits::default().snat_ports.start());
    subject.clear()?;
    subject.serve(&entries())?;
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    for number in 0..length {
        let (bytes, direction, device) = generate(&mut random, &model, mode);
        let outcome = send_and_compare(&bytes, direction, device, mode, &mut model, world, subject)
            .with_context(|| {
                let packet = render(&dissect(&bytes, Link::Ethernet));
                format!("packet {number} on {device}, {direction:?}\n  {packet}")
            })?;
        *outcomes.entry(outcome).or_default() += 1;
    }
    Ok(())
}

/// Sends one packet and compares the result with the model. Returns the name of the outcome.
fn send_and_compare(
    bytes: &[u8],
    direction: Direction,
    device: &'static str,
    mode: Mode,
    model: &mut Model,
    world: &World,
    subject: &mut Subject,
) -> Result<&'static str> {
    let before = subject.counters()?;
    let hook = if direction == Direction::Ingress { Hook::Ingress } else { Hook::Egress };
    let found = send(subject, world, mode, hook, device, bytes)?;
    let after = subject.counters()?;
    let mut counted: BTreeMap<&str, u64> =
        after.iter().map(|(label, n)| (*label, n - before[label])).collect();
    counted.retain(|_, count| *count > 0);

    let mut expected = model.expect(bytes, direction);
    let mut counters = Vec::new();
    if let Expected::Opens(endpoints) = &expected {
        let tuple = model
            .tuple_of(&found.packet)
            .context("a connection should open, but the packet that leaves has no ports")?;
        ensure!(
            found.packet != bytes,
            "a connection should open, but the packet is untouched: {:?}",
            found.action
        );
        expected = model.opened(bytes, &endpoints.clone(), tuple).map_err(anyhow::Error::msg)?;
        counters.push("flow_opened");
    }
    let outcome = match &expected {
        Expected::Untouched(labels) => {
            ensure!(found.action == Action::Pass, "it should pass, but: {:?}", found.action);
            same(bytes, &found.packet, model)?;
            counters.extend(labels);
            "untouched"
        }
        Expected::Dropped(label) => {
            ensure!(found.action == Action::Drop, "it should be dropped ({label}), but: {:?}", found.action);
            counters.push(label);
            if found.left_to_tc && !is_icmp(bytes, Link::Ethernet) {
                counters.push("left_to_tc");
            }
            "dropped"
        }
        Expected::Rewritten { to, routed: None } => {
            ensure!(found.action == Action::Pass, "it should be delivered here, but: {:?}", found.action);
            let rewritten = model.rewritten(bytes, *to, false).context("the model cannot rewrite it")?;
            same(&rewritten, &found.packet, model)?;
            counters.push("delivered");
            "delivered"
        }
        Expected::Rewritten { to, routed: Some(route) } => {
            check_forwarded(bytes, *to, *route, device, mode, &found, model)?;
            counters.push("forwarded");
            if found.left_to_tc {
                counters.push("left_to_tc");
            }
            "forwarded"
        }
        Expected::Translated { frame, routed } => {
            let action = if routed.is_some() { Action::Redirect } else { Action::Pass };
            ensure!(found.action == action, "it should be translated ({action:?}), but: {:?}", found.action);
            same(frame, &found.packet, model)?;
            counters.push("icmp_translated");
            "error translated"
        }
        Expected::Answered { answer, counter } => {
            ensure!(
                found.action == Action::Redirect && !found.by_xdp,
                "tc should answer, but: {:?}",
                found.action
            );
            let answer = model.answered(bytes, *answer).context("the model cannot answer it")?;
            same(&answer, &found.packet, model)?;
            counters.push(counter);
            if found.left_to_tc && !is_icmp(bytes, Link::Ethernet) {
                counters.push("left_to_tc");
            }
            "answered"
        }
        Expected::Opens(_) => bail!("replaced by `Model::opened`"),
    };
    let mut expected: BTreeMap<&str, u64> = BTreeMap::new();
    for label in counters {
        *expected.entry(label).or_default() += 1;
    }
    ensure!(counted == expected, "counters increased by {counted:?}, expected {expected:?}");
    Ok(outcome)
}

fn check_forwarded(
    bytes: &[u8],
    to: Tuple,
    route: Route,
    device: &str,
    mode: Mode,
    found: &Found,
    model: &Model,
) -> Result<()> {
    let out = world::device(route.device).context("no such device")?;
    let by_xdp = mode == Mode::Xdp && out.xdp_target && route.mac.is_some();
    ensure!(found.by_xdp == by_xdp, "it should be sent by {}", if by_xdp { "XDP" } else { "tc" });
    let action = if by_xdp && route.device == device { Action::Tx } else { Action::Redirect };
    ensure!(found.action == action, "it should be forwarded ({action:?}), but: {:?}", found.action);
    let mut expected = model.rewritten(bytes, to, true).context("the model cannot rewrite it")?;
    if let (true, Some(mac)) = (by_xdp, route.mac) {
        expected[..6].copy_from_slice(&mac);
        expected[6..12].copy_from_slice(&out.mac);
    }
    same(&expected, &found.packet, model)
}

fn same(expected: &[u8], found: &[u8], model: &Model) -> Result<()> {
    if !model.same(expected, found) {
        let layers = |bytes| dissect(bytes, Link::Ethernet);
        bail!("the packet is not the expected one\n{}", diff(&layers(expected), &layers(found)));
    }
    Ok(())
}

fn socket(name: &str, port: u16, v6: bool) -> SocketAddr {
    SocketAddr::new(world::address(name, v6).expect("the world defines the names of this file"), port)
}

fn services() -> HashMap<(u8, SocketAddr), Service> {
    let mut services = HashMap::new();
    for v6 in [false, true] {
        for ((name, port), protocol, endpoints, drop) in SERVICES {
            let endpoints = endpoints.iter().map(|(name, port)| socket(name, *port, v6)).collect();
            services.insert((protocol, socket(name, port, v6)), Service { endpoints, drop });
        }
    }
    services
}

fn entries() -> Vec<ServiceEntry> {
    let mut entries = Vec::new();
    for ((protocol, address), service) in services() {
        let backends = service.endpoints.iter().map(|endpoint| Endpoint {
            address: *endpoint,
            local: world::peer_at(endpoint.ip()).is_some_and(|peer| peer.device == "pod0"),
        });
        let entry = ServiceEntry::new(address, protocol, backends.collect());
        entries.push(ServiceEntry { drop: service.drop, ..entry });
    }
    entries
}

/// SplitMix64: a small generator with the same sequence on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// Generates a packet. Returns it with its direction and its device.
fn generate(random: &mut Random, model: &Model, mode: Mode) -> (Vec<u8>, Direction, &'static str) {
    let (tuple, direction) = if random.percent(55) { of_a_flow(random, model) } else { None }
        .unwrap_or_else(|| new_connection(random, mode));
    let ingress = direction == Direction::Ingress;
    let neighbour = world::peer_at(if ingress { tuple.source.ip() } else { tuple.destination.ip() });
    let device = neighbour.map_or(world::NIC, |peer| peer.device);
    let mac = |mac: Option<[u8; 6]>| {
        mac.unwrap_or([2, 0, 0, 0, 0, 0x99]).map(|byte| format!("{byte:02x}")).join(":")
    };
    let outside = mac(neighbour.and_then(|peer: &Peer| peer.mac));
    let own = mac(world::device(device).map(|device| device.mac));
    let (from, to) = if ingress { (outside, own) } else { (own, outside) };
    let tag = if mode == Mode::Xdp && ingress && random.percent(5) {
        random.pick(&["vlan 7 / ", "qinq 3 / vlan 4100 / ", "qinq 1 / qinq 2 / vlan 3 / "])
    } else {
        ""
    };
    let packet = if random.percent(8) { error_text(random, model) } else { None };
    let packet = packet.unwrap_or_else(|| ip_text(random, &tuple, model.ends(&tuple)));
    let text = format!("eth {from} > {to} / {tag}{packet}");
    let mut bytes = build(&parse(&text).expect("the generator writes valid packet texts"));
    damage(random, &mut bytes, mode, direction);
    (bytes, direction, device)
}

/// Returns the text of an ICMP error about a packet that left this node, starting with its IP
/// header.
fn error_text(random: &mut Random, model: &Model) -> Option<String> {
    let (tuple, _) = of_a_flow(random, model)?;
    let sent = model.flows[&tuple].to;
    // The model needs a route back to the sender.
    world::peer_at(tuple.source.ip())?;
    let v6 = sent.source.is_ipv6();
    let from = random.pick(&["client", "stranger", "remote", "local", "far"]);
    let from = world::address(from, v6)?;
    let to = if random.percent(4) { world::address("nic", v6)? } else { sent.source.ip() };
    let ttl = if random.percent(4) { random.below(3) } else { 1 + random.below(255) };
    let kind = random.pick(&["too-big mtu=1280", "time-exceeded", "port-unreachable", "5.1", "12.0", "4.0"]);
    let checksum = random.pick(&["", "", "", " csum=faulty"]);
    let quote = if random.percent(50) { format!(" quote={}", 20 + random.below(80)) } else { String::new() };
    let quoted = ip_text(random, &sent, None);
    let quoted = quoted.split(" / trailer").next().unwrap_or_default();
    Some(format!("ip {from} > {to} ttl={ttl} / icmp {kind}{quote}{checksum} / {quoted}"))
}

/// Returns the next packet of a connection in the model.
fn of_a_flow(random: &mut Random, model: &Model) -> Option<(Tuple, Direction)> {
    let mut known: Vec<&Tuple> = model.flows.keys().collect();
    if known.is_empty() {
        return None;
    }
    known.sort_by_key(|tuple| (tuple.protocol, tuple.source, tuple.destination));
    let tuple = *random.pick(&known);
    let flow = model.flows[&tuple];
    let egress = flow.reply && !flow.routed && !random.percent(5) || random.percent(2);
    let direction = if egress { Direction::Egress } else { Direction::Ingress };
    // The model has routes to peers only.
    world::peer_at(flow.to.destination.ip()).map(|_| (tuple, direction))
}

/// Returns a packet that may open a connection.
fn new_connection(random: &mut Random, mode: Mode) -> (Tuple, Direction) {
    let v6 = random.percent(50);
    let mut client = random.pick(&["client", "client", "client2", "stranger", "far", "remote"]);
    // A pod that is not an endpoint. Its packets never arrive at a device with XDP.
    if mode == Mode::Tc && random.percent(15) {
        client = "pod";
    }
    let ((name, port), protocol, ..) = random.pick(&SERVICES);
    let name = if name == "unspecified" { random.pick(&["nic", "wan", "pod0"]) } else { name };
    let name = if random.percent(4) { random.pick(&["remote", "client2", "nic", "vip2"]) } else { name };
    let port = if random.percent(5) { random.pick(&[0, 1, 22, 53, 80, 8080, 65535]) } else { port };
    let protocol = if random.percent(6) { random.pick(&[6, 17, 132, 1, 1, 1]) } else { protocol };
    let source = if random.percent(50) { 40_000 + random.below(16) } else { random.below(65_536) } as u16;
    let tuple = Tuple { protocol, source: socket(client, source, v6), destination: socket(name, port, v6) };
    (tuple, if random.percent(4) { Direction::Egress } else { Direction::Ingress })
}

/// Returns a sequence and an acknowledgement number: of the connection, next to those, or any.
fn tcp_numbers(random: &mut Random, ends: Option<(End, End)>) -> (u32, u32) {
    let any = random.below(1 << 32) as u32;
    let Some((sender, receiver)) = ends else { return (any, random.below(1 << 32) as u32) };
    let near = [0, 0, 0, 0, 0, 1, u32::MAX, 1000, 60_000, 0u32.wrapping_sub(1000), 1 << 22, 1 << 23];
    let seq = match random.below(10) {
        0 => any,
        1 | 2 => receiver.acked,
        _ => sender.next.wrapping_add(random.pick(&near)),
    };
    let ack = match random.below(10) {
        0 => any,
        _ => receiver.next.wrapping_add(random.pick(&near)),
    };
    (seq, ack)
}

/// Returns the text of a packet, starting with its IP header.
fn ip_text(random: &mut Random, tuple: &Tuple, ends: Option<(End, End)>) -> String {
    let v6 = tuple.source.is_ipv6();
    let ttl = if random.percent(4) { random.below(3) } else { 1 + random.below(255) };
    let mut ip =
        format!("ip {} > {} ttl={ttl} tos={}", tuple.source.ip(), tuple.destination.ip(), random.below(256));
    let mut headers = String::new();
    let length = match random.below(40) {
        0 => 1300 + random.below(200),
        1..20 => random.below(64),
        _ => random.below(400),
    };
    let piece =
        random.percent(8).then(|| random.pick(&["0-24", "0-64", "0-8", "24-64", "64-2000", "24-2000"]));
    // Fragments use few identifications, so that fragments of the same datagram occur.
    let id = if piece.is_some() { random.below(4) } else { random.below(65_536) };
    if v6 {
        ip += &format!(" flow={}", random.below(1 << 20));
        for _ in 0..if random.percent(15) { 1 + random.below(4) } else { 0 } {
            headers += random.pick(&["hop-by-hop / ", "destination / ", "routing / ", "authentication / "]);
        }
        if let Some(piece) = piece {
            headers += &format!("fragment id={id} piece={piece} / ");
        } else if random.percent(3) {
            headers += &format!("fragment id={id} / ");
        }
    } else {
        ip += &format!(" id={id}");
        if let Some(piece) = piece {
            ip += &format!(" piece={piece}");
        }
        ip += random.pick(&["", "", "", " df", " df", " evil"]);
        ip += random.pick(&["", "", "", "", "", "", " options=0x01010100", " options=0x9404000001010100"]);
        if random.percent(3) {
            ip += " csum=faulty";
        }
    }
    let checksum = match random.below(30) {
        0 => " csum=faulty".to_owned(),
        1 => format!(" csum={}", 1 + random.below(65_535)),
        2 if tuple.protocol != 6 => " csum=none".to_owned(),
        _ => String::new(),
    };
    let (source, destination) = (tuple.source.port(), tuple.destination.port());
    let transport = match tuple.protocol {
        6 => {
            let flags = random
                .pick(&["S", "S", "S", "S", "A", "A", "PA", "PA", "FA", "R", "RA", "SA", "SEC", "-", "SF"]);
            let options = random.pick(&["", "", " mss=1460", " options=0x0101080a0000000100000002"]);
            let (seq, ack) = tcp_numbers(random, ends);
            format!("tcp {source} > {destination} {flags} seq={seq} ack={ack}{options}{checksum}")
        }
        17 => format!("udp {source} > {destination}{checksum}"),
        132 => {
            let known = ends.map(|(sender, receiver)| if random.percent(80) { sender } else { receiver });
            let tag = match known {
                Some(end) if random.percent(70) => end.next as usize,
                _ if random.percent(60) => 0,
                _ => random.below(1 << 32),
            };
            format!("sctp {source} > {destination} tag={tag}{checksum}")
        }
        _ => format!("icmp echo id=7{checksum}"),
    };
    let payload = match length {
        0 => String::new(),
        _ if tuple.protocol == 132 => {
            let chunks = [
                "init",
                "init",
                "init",
                "init-ack",
                "cookie-echo",
                "data",
                "sack",
                "abort",
                "shutdown",
                "shutdown-complete",
            ];
            format!(" / chunk {} {length}", random.pick(&chunks))
        }
        _ => format!(" / bytes {length}"),
    };
    let trailer = if random.percent(10) { " / trailer 0xdeadbeef0011" } else { "" };
    format!("{ip} / {headers}{transport}{payload}{trailer}")
}

/// Changes some bytes of a few packets, and truncates a few. The packet remains valid for
/// `BPF_PROG_TEST_RUN`. In tc mode it gets no VLAN tag: the kernel removes tags before tc.
fn damage(random: &mut Random, bytes: &mut Vec<u8>, mode: Mode, direction: Direction) {
    if random.percent(12) {
        for _ in 0..1 + random.below(3) {
            let headers = bytes.len().min(100);
            let at = random.below(headers);
            let value =
                if random.percent(50) { bytes[at] ^ 1 << random.below(8) } else { random.below(256) as u8 };
            let is_tag = |at: usize| (12..14).contains(&at);
            // Addresses are not changed: the model has routes to the peers' addresses only.
            let ip = 14 + 4 * usize::from(matches!(bytes[12..14], [0x81, 0x00] | [0x88, 0xa8]));
            let is_address = (ip + 8..ip + 40).contains(&at) && bytes[12] == 0x86
                || (ip + 12..ip + 20).contains(&at) && bytes[12] == 0x08;
            let makes_a_tag = is_tag(at) && mode == Mode::Tc;
            // Nor is the frame's receiver: cases show what becomes of frames for other hosts.
            if at >= 6 && !makes_a_tag && !is_address {
                bytes[at] = value;
            }
        }
    }
    if random.percent(5) {
        let length = 14 + random.below(bytes.len() - 13);
        bytes.truncate(length);
    }
    if (mode == Mode::Tc || direction == Direction::Egress) && !can_be_an_skb(bytes) {
        bytes.resize(14 + 40, 0);
    }
}
