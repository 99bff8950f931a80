//! Generated packets through the programs, each judged by the [model](crate::model).
//!
//! The sequence is the same every time. `SLUICE_FUZZ_PACKETS` sets how many per mode (default 20,000) and
//! `SLUICE_FUZZ_SEED` where it starts; a failure names the seed of its round, which alone shows it again.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use lb_testbed::packet::{Link, build, diff, dissect, parse, render};
use lb_testbed::programs::world::{self, Place, World};
use lb_testbed::programs::{Action, Endpoint, Limits, ServiceEntry, Subject};

use crate::case::{Hook, Mode};
use crate::model::{Judgement, Model, Service, Towards, Tuple, Way};
use crate::run::{Found, can_be_an_skb, is_icmp, send};

pub const MODES: [Mode; 2] = [Mode::Xdp, Mode::Tc];

/// Packets before maps and model are emptied.
const ROUND: u64 = 1000;

/// A name of the world and a port.
type Named = (&'static str, u16);

/// Services of the fuzz: address, protocol, endpoints, drop. The endpoints of one Service are of one kind.
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
    let mut made = Tally::default();
    for round in 0..packets.div_ceil(ROUND) {
        let seed = first + round;
        let length = ROUND.min(packets - round * ROUND);
        self::round(seed, length, mode, world, subject, &mut made)
            .with_context(|| format!("run again with SLUICE_FUZZ_SEED={seed} SLUICE_FUZZ_PACKETS={ROUND}"))?;
    }
    // A generator that no longer reaches some outcome would let everything pass.
    for (outcome, least) in [
        ("untouched", 10),
        ("dropped", 40),
        ("delivered", 20),
        ("forwarded", 20),
        ("answered", 60),
        ("error translated", 60),
    ] {
        let count = made.get(outcome).copied().unwrap_or(0);
        ensure!(
            packets < 1000 || count * least >= packets,
            "only {count} of {packets} packets were {outcome}: {made:?}"
        );
    }
    Ok(())
}

type Tally = BTreeMap<&'static str, u64>;

fn setting(name: &str) -> Result<Option<u64>> {
    match std::env::var(name) {
        Ok(text) => Ok(Some(text.parse().with_context(|| format!("{name}={text}: want a number"))?)),
        Err(_) => Ok(None),
    }
}

fn round(
    seed: u64,
    length: u64,
    mode: Mode,
    world: &World,
    subject: &mut Subject,
    made: &mut Tally,
) -> Result<()> {
    let mut model = Model::new(Link::Ethernet, services(), *Limits::default().snat_ports.start());
    subject.clear()?;
    subject.serve(&entries())?;
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    for number in 0..length {
        let (bytes, way, device) = generate(&mut dice, &model, mode);
        let outcome = one(&bytes, way, device, mode, &mut model, world, subject).with_context(|| {
            format!("packet {number} on {device}, {way:?}\n  {}", render(&dissect(&bytes, Link::Ethernet)))
        })?;
        *made.entry(outcome).or_default() += 1;
    }
    Ok(())
}

/// Sends one packet and compares. Returns the outcome for the tally.
fn one(
    bytes: &[u8],
    way: Way,
    device: &'static str,
    mode: Mode,
    model: &mut Model,
    world: &World,
    subject: &mut Subject,
) -> Result<&'static str> {
    let before = subject.counters()?;
    let hook = if way == Way::In { Hook::Ingress } else { Hook::Egress };
    let found = send(subject, world, mode, hook, device, bytes)?;
    let after = subject.counters()?;
    let mut counted: BTreeMap<&str, u64> =
        after.iter().map(|(label, n)| (*label, n - before[label])).collect();
    counted.retain(|_, count| *count > 0);

    let mut judgement = model.judge(bytes, way);
    let mut counters = Vec::new();
    if let Judgement::Opens(endpoints) = &judgement {
        let tuple = model
            .tuple_of(&found.packet)
            .context("a connection should open, but the packet has no ports now")?;
        ensure!(
            found.packet != bytes,
            "a connection should open, but the packet is untouched: {:?}",
            found.action
        );
        judgement = model.opened(bytes, &endpoints.clone(), tuple).map_err(anyhow::Error::msg)?;
        counters.push("flow_opened");
    }
    let outcome = match &judgement {
        Judgement::Untouched(labels) => {
            ensure!(found.action == Action::Pass, "it should pass, but: {:?}", found.action);
            same(bytes, &found.packet, model)?;
            counters.extend(labels);
            "untouched"
        }
        Judgement::OpensForTc => {
            ensure!(found.action == Action::Pass, "it should pass, but: {:?}", found.action);
            same(bytes, &found.packet, model)?;
            counters.extend(["flow_opened", "left_to_tc"]);
            // The packet does not show which endpoint was chosen.
            subject.forget_flows()?;
            model.forget_flows();
            "untouched"
        }
        Judgement::Dropped(label) => {
            ensure!(found.action == Action::Drop, "it should be dropped ({label}), but: {:?}", found.action);
            counters.push(label);
            if found.left_to_tc && !is_icmp(bytes, Link::Ethernet) {
                counters.push("left_to_tc");
            }
            "dropped"
        }
        Judgement::Rewritten { to, routed: None } => {
            ensure!(found.action == Action::Pass, "it should be delivered here, but: {:?}", found.action);
            same(&model.rewritten(bytes, *to, false).context("not rewritable")?, &found.packet, model)?;
            counters.push("delivered");
            "delivered"
        }
        Judgement::Rewritten { to, routed: Some(towards) } => {
            check_forwarded(bytes, *to, *towards, device, mode, &found, model)?;
            counters.push("forwarded");
            if found.left_to_tc {
                counters.push("left_to_tc");
            }
            "forwarded"
        }
        Judgement::Translated { frame, routed } => {
            let action = if routed.is_some() { Action::Redirect } else { Action::Pass };
            ensure!(found.action == action, "it should be translated ({action:?}), but: {:?}", found.action);
            same(frame, &found.packet, model)?;
            counters.push("icmp_translated");
            "error translated"
        }
        Judgement::Answered { answer, counter } => {
            ensure!(
                found.action == Action::Redirect && !found.by_xdp,
                "tc should answer, but: {:?}",
                found.action
            );
            same(&model.answered(bytes, *answer).context("not answerable")?, &found.packet, model)?;
            counters.push(counter);
            if found.left_to_tc && !is_icmp(bytes, Link::Ethernet) {
                counters.push("left_to_tc");
            }
            "answered"
        }
        Judgement::Opens(_) => bail!("judged above"),
    };
    let mut expected: BTreeMap<&str, u64> = BTreeMap::new();
    for label in counters {
        *expected.entry(label).or_default() += 1;
    }
    ensure!(counted == expected, "counters went up by {counted:?}, expected {expected:?}");
    Ok(outcome)
}

fn check_forwarded(
    bytes: &[u8],
    to: Tuple,
    towards: Towards,
    device: &str,
    mode: Mode,
    found: &Found,
    model: &Model,
) -> Result<()> {
    let out = world::device(towards.device).context("no such device")?;
    let by_xdp = mode == Mode::Xdp && out.xdp_target && towards.mac.is_some();
    ensure!(found.by_xdp == by_xdp, "it should be sent by {}", if by_xdp { "XDP" } else { "tc" });
    let action = if by_xdp && towards.device == device { Action::Tx } else { Action::Redirect };
    ensure!(found.action == action, "it should be sent on ({action:?}), but: {:?}", found.action);
    let mut expected = model.rewritten(bytes, to, true).context("not rewritable")?;
    if let (true, Some(mac)) = (by_xdp, towards.mac) {
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
    SocketAddr::new(world::address(name, v6).expect("names of this file are names of the world"), port)
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
            local: world::place_at(endpoint.ip()).is_some_and(|place| place.device == "pod0"),
        });
        let entry = ServiceEntry::new(address, protocol, backends.collect());
        entries.push(ServiceEntry { drop: service.drop, ..entry });
    }
    entries
}

/// SplitMix64: small, and the same everywhere.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.roll() % n as u64) as usize
    }

    fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// A packet, which way it goes, and the device it is on.
fn generate(dice: &mut Dice, model: &Model, mode: Mode) -> (Vec<u8>, Way, &'static str) {
    let (tuple, way) =
        if dice.percent(55) { of_a_flow(dice, model) } else { None }.unwrap_or_else(|| fresh(dice, mode));
    let ends = (tuple.source.ip(), tuple.destination.ip());
    let neighbour = world::place_at(if way == Way::In { ends.0 } else { ends.1 });
    let device = neighbour.map_or(world::NIC, |place| place.device);
    let mac = |mac: Option<[u8; 6]>| {
        mac.unwrap_or([2, 0, 0, 0, 0, 0x99]).map(|byte| format!("{byte:02x}")).join(":")
    };
    let outside = mac(neighbour.and_then(|place: &Place| place.mac));
    let own = mac(world::device(device).map(|device| device.mac));
    let (from, to) = if way == Way::In { (outside, own) } else { (own, outside) };
    let tag = if mode == Mode::Xdp && way == Way::In && dice.percent(5) {
        dice.pick(&["vlan 7 / ", "qinq 3 / vlan 4100 / ", "qinq 1 / qinq 2 / vlan 3 / "])
    } else {
        ""
    };
    let packet = if dice.percent(8) { error_text(dice, model) } else { None };
    let packet = packet.unwrap_or_else(|| ip_text(dice, &tuple));
    let text = format!("eth {from} > {to} / {tag}{packet}");
    let mut bytes = build(&parse(&text).expect("the generator writes packets that can be read"));
    damage(dice, &mut bytes, mode, way);
    (bytes, way, device)
}

/// An ICMP error about a packet that left this node, from its IP header on.
fn error_text(dice: &mut Dice, model: &Model) -> Option<String> {
    let (tuple, _) = of_a_flow(dice, model)?;
    let sent = model.flows[&tuple].to;
    // Where it goes is judged by the route back.
    world::place_at(tuple.source.ip())?;
    let v6 = sent.source.is_ipv6();
    let from = dice.pick(&["client", "stranger", "remote", "local", "far"]);
    let from = world::address(from, v6)?;
    let to = if dice.percent(4) { world::address("nic", v6)? } else { sent.source.ip() };
    let ttl = if dice.percent(4) { dice.below(3) } else { 1 + dice.below(255) };
    let kind = dice.pick(&["too-big mtu=1280", "time-exceeded", "port-unreachable", "5.1", "12.0", "4.0"]);
    let checksum = dice.pick(&["", "", "", " csum=faulty"]);
    let quote = if dice.percent(50) { format!(" quote={}", 20 + dice.below(80)) } else { String::new() };
    let quoted = ip_text(dice, &sent);
    let quoted = quoted.split(" / trailer").next().unwrap_or_default();
    Some(format!("ip {from} > {to} ttl={ttl} / icmp {kind}{quote}{checksum} / {quoted}"))
}

/// The next packet of a connection the model knows.
fn of_a_flow(dice: &mut Dice, model: &Model) -> Option<(Tuple, Way)> {
    let mut known: Vec<&Tuple> = model.flows.keys().collect();
    if known.is_empty() {
        return None;
    }
    known.sort_by_key(|tuple| (tuple.protocol, tuple.source, tuple.destination));
    let tuple = *dice.pick(&known);
    let flow = model.flows[&tuple];
    let way =
        if flow.reply && !flow.routed && !dice.percent(5) || dice.percent(2) { Way::Out } else { Way::In };
    // Only towards places: to others the model knows no route.
    world::place_at(flow.to.destination.ip()).map(|_| (tuple, way))
}

/// A packet that may open a connection.
fn fresh(dice: &mut Dice, mode: Mode) -> (Tuple, Way) {
    let v6 = dice.percent(50);
    let mut client = dice.pick(&["client", "client", "client2", "stranger", "far", "remote"]);
    // A pod that is no endpoint of any Service. XDP is never where its packets arrive.
    if mode == Mode::Tc && dice.percent(15) {
        client = "pod";
    }
    let ((name, port), protocol, ..) = dice.pick(&SERVICES);
    let name = if name == "unspecified" { dice.pick(&["nic", "wan", "pod0"]) } else { name };
    let name = if dice.percent(4) { dice.pick(&["remote", "client2", "nic", "vip2"]) } else { name };
    let port = if dice.percent(5) { dice.pick(&[0, 1, 22, 53, 80, 8080, 65535]) } else { port };
    let protocol = if dice.percent(6) { dice.pick(&[6, 17, 132, 1, 1, 1]) } else { protocol };
    let source = if dice.percent(50) { 40_000 + dice.below(16) } else { dice.below(65_536) } as u16;
    let tuple = Tuple { protocol, source: socket(client, source, v6), destination: socket(name, port, v6) };
    (tuple, if dice.percent(4) { Way::Out } else { Way::In })
}

/// The packet from its IP header on.
fn ip_text(dice: &mut Dice, tuple: &Tuple) -> String {
    let v6 = tuple.source.is_ipv6();
    let ttl = if dice.percent(4) { dice.below(3) } else { 1 + dice.below(255) };
    let mut ip =
        format!("ip {} > {} ttl={ttl} tos={}", tuple.source.ip(), tuple.destination.ip(), dice.below(256));
    let mut headers = String::new();
    let length = match dice.below(40) {
        0 => 1300 + dice.below(200),
        1..20 => dice.below(64),
        _ => dice.below(400),
    };
    let piece = dice.percent(8).then(|| dice.pick(&["0-24", "0-64", "0-8", "24-64", "64-2000", "24-2000"]));
    // Few identifications, so that the pieces of a datagram meet.
    let id = if piece.is_some() { dice.below(4) } else { dice.below(65_536) };
    if v6 {
        ip += &format!(" flow={}", dice.below(1 << 20));
        for _ in 0..if dice.percent(15) { 1 + dice.below(4) } else { 0 } {
            headers += dice.pick(&["hop-by-hop / ", "destination / ", "routing / ", "authentication / "]);
        }
        if let Some(piece) = piece {
            headers += &format!("fragment id={id} piece={piece} / ");
        } else if dice.percent(3) {
            headers += &format!("fragment id={id} / ");
        }
    } else {
        ip += &format!(" id={id}");
        if let Some(piece) = piece {
            ip += &format!(" piece={piece}");
        }
        ip += dice.pick(&["", "", "", " df", " df", " evil"]);
        ip += dice.pick(&["", "", "", "", "", "", " options=0x01010100", " options=0x9404000001010100"]);
        if dice.percent(3) {
            ip += " csum=faulty";
        }
    }
    let checksum = match dice.below(30) {
        0 => " csum=faulty".to_owned(),
        1 => format!(" csum={}", 1 + dice.below(65_535)),
        2 if tuple.protocol != 6 => " csum=none".to_owned(),
        _ => String::new(),
    };
    let (source, destination) = (tuple.source.port(), tuple.destination.port());
    let transport = match tuple.protocol {
        6 => {
            let flags = dice
                .pick(&["S", "S", "S", "S", "A", "A", "PA", "PA", "FA", "R", "RA", "SA", "SEC", "-", "SF"]);
            let options = dice.pick(&["", "", " mss=1460", " options=0x0101080a0000000100000002"]);
            format!(
                "tcp {source} > {destination} {flags} seq={} ack={}{options}{checksum}",
                dice.below(1 << 32),
                dice.below(1 << 32)
            )
        }
        17 => format!("udp {source} > {destination}{checksum}"),
        132 => {
            let tag = if dice.percent(60) { 0 } else { dice.below(1 << 32) };
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
            format!(" / chunk {} {length}", dice.pick(&chunks))
        }
        _ => format!(" / bytes {length}"),
    };
    let trailer = if dice.percent(10) { " / trailer 0xdeadbeef0011" } else { "" };
    format!("{ip} / {headers}{transport}{payload}{trailer}")
}

/// Changes some bytes, or cuts the packet, once in a while. Keeps what `BPF_PROG_TEST_RUN` needs and, in tc mode, what
/// makes no tag: those never reach tc in the bytes of a packet.
fn damage(dice: &mut Dice, bytes: &mut Vec<u8>, mode: Mode, way: Way) {
    if dice.percent(12) {
        for _ in 0..1 + dice.below(3) {
            let headers = bytes.len().min(100);
            let at = dice.below(headers);
            let value = if dice.percent(50) { bytes[at] ^ 1 << dice.below(8) } else { dice.below(256) as u8 };
            let is_tag = |at: usize| (12..14).contains(&at);
            // An address that changes would need a route that the model does not know.
            let ip = 14 + 4 * usize::from(matches!(bytes[12..14], [0x81, 0x00] | [0x88, 0xa8]));
            let is_address = (ip + 8..ip + 40).contains(&at) && bytes[12] == 0x86
                || (ip + 12..ip + 20).contains(&at) && bytes[12] == 0x08;
            let makes_a_tag = is_tag(at) && mode == Mode::Tc;
            if !makes_a_tag && !is_address {
                bytes[at] = value;
            }
        }
    }
    if dice.percent(5) {
        let length = 14 + dice.below(bytes.len() - 13);
        bytes.truncate(length);
    }
    if (mode == Mode::Tc || way == Way::Out) && !can_be_an_skb(bytes) {
        bytes.resize(14 + 40, 0);
    }
}
