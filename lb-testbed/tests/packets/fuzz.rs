//! Sends generated packets through the programs and compares the results with the
//! [model](crate::model).
//!
//! There are two kinds of rounds. In a quiet one the tables have room for all connections. Under
//! pressure, records and source ports run out: two clients use their connections properly while
//! floods open others, time passes, and after each packet the table of connections must be that of
//! the model.
//!
//! The sequence of packets is the same in each run. `SLUICE_FUZZ_PACKETS` sets the number of
//! packets of each test (default 50,000), and `SLUICE_FUZZ_SEED` the first seed. A failure names
//! the seed of its round: the round alone reproduces it. Only the choices of the programs
//! (endpoint, source port, which connection gives way) differ between runs.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lb_common::layout::FlowTimeouts;
use lb_testbed::packet::{Link, build, diff, dissect, parse, render};
use lb_testbed::programs::world::{self, Peer, World};
use lb_testbed::programs::{Action, BackendEndpoint, Limits, ServiceAddressEntry, Subject};

use crate::case::{Hook, Mode};
use crate::model::connection::{End, Honest, TICK, Yields, timeout};
use crate::model::{Direction, Expected, Identity, Model, Route, Service, Tuple};
use crate::run::{Found, can_be_an_skb, is_icmp, send};
use crate::uptime::uptime;

pub const MODES: [Mode; 2] = [Mode::Xdp, Mode::Tc];

/// The kind of traffic of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoundKind {
    Quiet,
    Pressure,
}

impl RoundKind {
    pub const ALL: [Self; 2] = [Self::Quiet, Self::Pressure];

    pub fn name(self) -> &'static str {
        match self {
            Self::Quiet => "generated packets agree with the model",
            Self::Pressure => "under pressure, generated packets agree with the model",
        }
    }

    /// Returns the sizes of the maps and the range of source ports.
    pub fn limits(self) -> Limits {
        match self {
            Self::Quiet => Limits::default(),
            Self::Pressure => Limits { flows: 48, snat_ports: 61_000..=61_007, ..Limits::default() },
        }
    }

    /// Returns the number of packets after which maps and model are cleared.
    fn round(self) -> u64 {
        match self {
            Self::Quiet => 1000,
            Self::Pressure => 2000,
        }
    }

    /// Returns the outcomes that must occur: at least once in so many packets.
    fn outcomes(self) -> &'static [(&'static str, u64)] {
        match self {
            Self::Quiet => &[
                ("untouched", 10),
                ("dropped", 40),
                ("delivered", 20),
                ("forwarded", 20),
                ("answered", 60),
                ("error translated", 60),
            ],
            Self::Pressure => &[("delivered", 20), ("forwarded", 5), ("refused", 2000), ("gave way", 20)],
        }
    }
}

/// Number of packets after which progress is shown.
const REPORT_EVERY: u64 = 100_000;

/// Records that a program looks at before it lets a connection give way (docs/maps.md).
const LOOKS: usize = 16;

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

pub fn run(kind: RoundKind, mode: Mode, world: &World, subject: &mut Subject) -> Result<()> {
    let packets = setting("SLUICE_FUZZ_PACKETS")?.unwrap_or(50_000);
    let first = setting("SLUICE_FUZZ_SEED")?.unwrap_or(1);
    subject.set_timeouts(&TIMEOUTS)?;
    let mut outcomes = Outcomes::default();
    let mut fuzz = Fuzz { kind, mode, world, subject, outcomes: &mut outcomes };
    for round in 0..packets.div_ceil(kind.round()) {
        let seed = first + round;
        let length = kind.round().min(packets - round * kind.round());
        let sent = round * kind.round();
        if sent.is_multiple_of(REPORT_EVERY) && sent > 0 {
            eprintln!("{sent} of {packets} packets ({mode}): {:?}", fuzz.outcomes);
        }
        fuzz.round(seed, length).with_context(|| {
            format!("run again with SLUICE_FUZZ_SEED={seed} SLUICE_FUZZ_PACKETS={length}")
        })?;
    }
    subject.set_timeouts(&FlowTimeouts::DEFAULT)?;
    // The test means nothing if the generator no longer reaches some outcome. On a busy machine,
    // rounds end early.
    let compared: u64 = outcomes.values().sum();
    ensure!(
        compared > 0 && (packets < 1000 || compared * 10 >= packets),
        "only {compared} of {packets} packets were compared in time"
    );
    for &(outcome, least) in kind.outcomes() {
        let count = outcomes.get(outcome).copied().unwrap_or(0);
        ensure!(
            packets < 1000 || count * least >= compared,
            "only {count} of {compared} packets had the outcome \"{outcome}\": {outcomes:?}"
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

/// The time-outs of the model.
const TIMEOUTS: FlowTimeouts = FlowTimeouts {
    tcp_syn: timeout::TCP_SYN as u32,
    tcp_established: timeout::TCP_ESTABLISHED as u32,
    tcp_half_closed: timeout::TCP_HALF_CLOSED as u32,
    tcp_time_wait: timeout::TCP_TIME_WAIT as u32,
    tcp_reset: timeout::TCP_RESET as u32,
    udp_unreplied: timeout::UDP_UNREPLIED as u32,
    udp: timeout::UDP as u32,
    // UDP counts as a stream after two seconds of real time, which the model does not follow.
    udp_stream: timeout::UDP as u32,
    sctp_opening: timeout::SCTP_OPENING as u32,
    sctp_established: timeout::SCTP_ESTABLISHED as u32,
    sctp_closed: timeout::SCTP_CLOSED as u32,
};

struct Fuzz<'a> {
    kind: RoundKind,
    mode: Mode,
    world: &'a World,
    subject: &'a mut Subject,
    outcomes: &'a mut Outcomes,
}

impl Fuzz<'_> {
    fn round(&mut self, seed: u64, length: u64) -> Result<()> {
        let limits = self.kind.limits();
        let mut model = Model::new(Link::Ethernet, services(), *limits.snat_ports.start());
        self.subject.clear()?;
        self.subject.serve(&entries())?;
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        // Connections are made older by moving their time stamps, which cannot be before the start
        // of the machine.
        let time_can_pass = self.kind == RoundKind::Pressure && uptime() > TIME_TRAVEL;
        let begin = uptime();
        for number in 0..length {
            if random.below(200) == 0 && time_can_pass {
                let seconds = TICK * (1 + random.below(6) as u64);
                self.subject.wait(seconds)?;
                model.wait(seconds);
            }
            if number % 100 == 50 {
                self.subject.tidy_filter()?;
            }
            let (bytes, direction, device) = match self.kind {
                RoundKind::Quiet => generate(&mut random, &model, self.mode),
                RoundKind::Pressure => generate_under_pressure(&mut random, &model, self.mode),
            };
            let outcome = self.send_and_compare(&bytes, direction, device, &mut model);
            // A process with a low priority may have waited for seconds within this step.
            if uptime() - begin > LONGEST_ROUND {
                break;
            }
            let outcome = outcome.with_context(|| {
                let packet = render(&dissect(&bytes, Link::Ethernet));
                format!("packet {number} on {device}, {direction:?}\n  {packet}")
            })?;
            *self.outcomes.entry(outcome).or_default() += 1;
        }
        Ok(())
    }

    /// Sends one packet and compares the result with the model. Returns the name of the outcome.
    fn send_and_compare(
        &mut self,
        bytes: &[u8],
        direction: Direction,
        device: &'static str,
        model: &mut Model,
    ) -> Result<&'static str> {
        let Self { kind, mode, world, .. } = *self;
        let before = self.subject.counters()?;
        let hook = if direction == Direction::Ingress { Hook::Ingress } else { Hook::Egress };
        let found = send(self.subject, world, mode, hook, device, bytes)?;
        let after = self.subject.counters()?;
        let mut counted: BTreeMap<&str, u64> =
            after.iter().map(|(label, n)| (*label, n - before[label])).collect();
        counted.retain(|_, count| *count > 0);

        let mut expected = model.expect(bytes, direction, device);
        if kind == RoundKind::Pressure {
            let opens = matches!(expected, Expected::Opens(_));
            self.check_eviction(&mut counted, opens, bytes, model)?;
            if opens && let Some(outcome) = check_refusal(bytes, &found, &mut counted, &expected, model)? {
                self.check_connections(model)?;
                return Ok(outcome);
            }
        }
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
                ensure!(
                    found.action == Action::Drop,
                    "it should be dropped ({label}), but: {:?}",
                    found.action
                );
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
                ensure!(
                    found.action == action,
                    "it should be translated ({action:?}), but: {:?}",
                    found.action
                );
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
        if kind == RoundKind::Pressure {
            self.check_connections(model)?;
        }
        Ok(outcome)
    }

    /// Checks the connections that gave way to a new one, and removes them from the model.
    fn check_eviction(
        &mut self,
        counted: &mut BTreeMap<&str, u64>,
        opens: bool,
        bytes: &[u8],
        model: &mut Model,
    ) -> Result<()> {
        let kinds = [
            ("evicted_half_open", Yields::HalfOpen),
            ("evicted_datagrams", Yields::Datagram),
            ("evicted_closed", Yields::Closed),
        ];
        let mut expected: Vec<Yields> = Vec::new();
        for (label, yields) in kinds {
            let count = counted.remove(label).unwrap_or(0);
            expected.extend((0..count).map(|_| yields));
        }
        if expected.is_empty() {
            return Ok(());
        }
        ensure!(opens, "connections gave way to a packet that opens none: {expected:?}");
        let mut found = self.identities()?;
        // The new connection may have the addresses of one that gave way.
        found.retain(|identity| model.tuple_of(bytes).is_none_or(|tuple| !is_of(identity, &tuple)));
        let mut gone = model.give_way(&found);
        gone.sort_by_key(|yields| format!("{yields:?}"));
        expected.sort_by_key(|yields| format!("{yields:?}"));
        ensure!(gone == expected, "{expected:?} counted as giving way, but {gone:?} is gone");
        *self.outcomes.entry("gave way").or_default() += gone.len() as u64;
        Ok(())
    }

    /// Compares the table of connections with that of the model.
    fn check_connections(&self, model: &Model) -> Result<()> {
        let (found, expected) = (self.identities()?, model.identities());
        ensure!(
            found == expected,
            "only in the table: {:?}; only in the model: {:?}",
            found.difference(&expected).collect::<Vec<_>>(),
            expected.difference(&found).collect::<Vec<_>>()
        );
        Ok(())
    }

    fn identities(&self) -> Result<HashSet<Identity>> {
        let connections = self.subject.connections()?;
        Ok(connections.iter().map(|c| (c.protocol, c.client, c.service, c.source, c.backend)).collect())
    }
}

/// Returns whether a connection is the one that a client's packet with this tuple belongs to.
fn is_of(identity: &Identity, tuple: &Tuple) -> bool {
    (identity.0, identity.1, identity.2) == (tuple.protocol, tuple.source, tuple.destination)
}

/// If the programs refused to open a connection, checks that they had to. Returns the outcome then.
fn check_refusal(
    bytes: &[u8],
    found: &Found,
    counted: &mut BTreeMap<&str, u64>,
    expected: &Expected,
    model: &Model,
) -> Result<Option<&'static str>> {
    let (ports, table) = (counted.remove("no_source_port"), counted.remove("flow_table_full"));
    if ports.is_none() && table.is_none() {
        return Ok(None);
    }
    ensure!(found.action == Action::Drop, "a packet without a connection is not dropped: {:?}", found.action);
    counted.remove("left_to_tc");
    ensure!(counted.is_empty(), "other counters increased too: {counted:?}");
    let tuple = model.tuple_of(bytes).context("the packet has no ports")?;
    if ports.is_some() {
        let lasting = model.count_lasting(|to| {
            to.protocol == tuple.protocol
                && match expected {
                    Expected::Opens(endpoints) => endpoints.contains(&to.destination),
                    _ => true,
                }
        });
        // The programs try 16 ports of the range, by chance. With two thirds of them free, the
        // chance to meet none is 1 in 40 millions.
        let range = RoundKind::Pressure.limits().snat_ports.len();
        ensure!(lasting * 3 >= range, "no source port, but only {lasting} of {range} are in use");
    } else {
        let lasting = model.count_lasting(|to| to.source.is_ipv6() == tuple.source.is_ipv6());
        ensure!(lasting >= LOOKS, "the table counts as full with {lasting} lasting connections");
    }
    Ok(Some("refused"))
}

/// The time limit of a round: on a busy machine a round ends early. Time passes in the model only
/// when the round adds it. After 15 seconds of real time, connections that the model has would be
/// over (`TICK`). The result of the step that exceeds the limit is not compared.
const LONGEST_ROUND: Duration = Duration::from_secs(8);

/// Idle time that a round may add to a connection.
const TIME_TRAVEL: Duration = Duration::from_secs(timeout::TCP_ESTABLISHED + TICK);

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
    let by_xdp = mode == Mode::Xdp && out.xdp_target && route.mac.is_some() && !route.in_fragments;
    ensure!(found.by_xdp == by_xdp, "it should be sent by {}", if by_xdp { "XDP" } else { "tc" });
    let action = if by_xdp && route.device == device { Action::Tx } else { Action::Redirect };
    ensure!(found.action == action, "it should be forwarded ({action:?}), but: {:?}", found.action);
    let by_kernel = route.in_fragments;
    let mut expected = model.rewritten(bytes, to, !by_kernel).context("the model cannot rewrite it")?;
    if by_kernel {
        expected[..6].fill(0);
    }
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

fn entries() -> Vec<ServiceAddressEntry> {
    let mut entries = Vec::new();
    for ((protocol, address), service) in services() {
        let backends = service.endpoints.iter().map(|endpoint| {
            let local = world::peer_at(endpoint.ip()).is_some_and(|peer| peer.device == "pod0");
            BackendEndpoint::new(*endpoint, local)
        });
        let entry = ServiceAddressEntry::new(address, protocol, backends.collect());
        entries.push(ServiceAddressEntry { drop: service.drop, ..entry });
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

/// Returns the text of the Ethernet header of a packet with this tuple, and the device that it
/// arrives or leaves by: that of the neighbour outside.
fn ethernet_of(tuple: &Tuple, direction: Direction) -> (String, &'static str) {
    let ingress = direction == Direction::Ingress;
    let neighbour = world::peer_at(if ingress { tuple.source.ip() } else { tuple.destination.ip() });
    let device = neighbour.map_or(world::NIC, |peer| peer.device);
    let mac = |mac: Option<[u8; 6]>| {
        mac.unwrap_or([2, 0, 0, 0, 0, 0x99]).map(|byte| format!("{byte:02x}")).join(":")
    };
    let outside = mac(neighbour.and_then(|peer: &Peer| peer.mac));
    let own = mac(world::device(device).map(|device| device.mac));
    let (from, to) = if ingress { (outside, own) } else { (own, outside) };
    (format!("eth {from} > {to}"), device)
}

/// Generates a packet. Returns it with its direction and its device.
fn generate(random: &mut Random, model: &Model, mode: Mode) -> (Vec<u8>, Direction, &'static str) {
    let (tuple, direction) = if random.percent(55) { of_a_flow(random, model) } else { None }
        .unwrap_or_else(|| new_connection(random, mode));
    let (ethernet, device) = ethernet_of(&tuple, direction);
    let tag = if mode == Mode::Xdp && direction == Direction::Ingress && random.percent(5) {
        random.pick(&["vlan 7 / ", "qinq 3 / vlan 4100 / ", "qinq 1 / qinq 2 / vlan 3 / "])
    } else {
        ""
    };
    let packet = if random.percent(8) { error_text(random, model) } else { None };
    let packet = packet.unwrap_or_else(|| ip_text(random, &tuple, model.ends(&tuple)));
    let text = format!("{ethernet} / {tag}{packet}");
    let mut bytes = build(&parse(&text).expect("the generator writes valid packet texts"));
    damage(random, &mut bytes, mode, direction);
    (bytes, direction, device)
}

/// Generates a packet of a round under pressure. Returns it with its direction and its device.
fn generate_under_pressure(
    random: &mut Random,
    model: &Model,
    mode: Mode,
) -> (Vec<u8>, Direction, &'static str) {
    let (text, tuple, direction) = match random.below(10) {
        0..6 => honest(random, model),
        6..9 => flood(random),
        _ => return generate(random, model, mode),
    };
    let (ethernet, device) = ethernet_of(&tuple, direction);
    let text = format!("{ethernet} / {text}");
    (build(&parse(&text).expect("the generator writes valid packet texts")), direction, device)
}

/// Returns the next packet of one of two clients that use TCP properly, and of their endpoints.
fn honest(random: &mut Random, model: &Model) -> (String, Tuple, Direction) {
    let v6 = random.percent(50);
    let client = random.pick(&["client", "client2"]);
    let (service, port) = random.pick(&[("vip", 80), ("vip2", 80), ("vip", 81)]);
    let source = 50_000 + random.below(6) as u16;
    let request =
        Tuple { protocol: 6, source: socket(client, source, v6), destination: socket(service, port, v6) };
    let any = random.below(1 << 32) as u32;
    let Honest { from_client, flags, seq, ack, payload } = match model.connection(&request) {
        Some(connection) => connection.continued(any),
        None => Honest { from_client: true, flags: "S", seq: any, ack: 0, payload: 0 },
    };
    let tuple = if from_client { request } else { model.flows[&request].to.reversed() };
    let direction = match model.flows.get(&tuple) {
        Some(flow) if flow.reply && !flow.routed => Direction::Egress,
        _ => Direction::Ingress,
    };
    let data = if payload == 0 { String::new() } else { format!(" / bytes {payload}") };
    let text = format!(
        "ip {} > {} / tcp {} > {} {flags} seq={seq} ack={ack}{data}",
        tuple.source.ip(),
        tuple.destination.ip(),
        tuple.source.port(),
        tuple.destination.port()
    );
    (text, tuple, direction)
}

/// Returns a packet that opens a connection and that no other follows.
fn flood(random: &mut Random) -> (String, Tuple, Direction) {
    let v6 = random.percent(50);
    let client = random.pick(&["client", "stranger", "far"]);
    let ((service, port), protocol) =
        random.pick(&[(("vip", 80), 6), (("vip", 53), 17), (("vip2", 80), 6), (("vip", 54), 17)]);
    let source = socket(client, random.below(65_536) as u16, v6);
    let tuple = Tuple { protocol, source, destination: socket(service, port, v6) };
    let transport = match protocol {
        6 => format!("tcp {} > {port} S seq={}", source.port(), random.below(1 << 32)),
        _ => format!("udp {} > {port} / bytes 30", source.port()),
    };
    (format!("ip {} > {} / {transport}", source.ip(), tuple.destination.ip()), tuple, Direction::Ingress)
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
            // The receiver of the frame is not changed either: packet cases show the handling of
            // frames for other hosts.
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
