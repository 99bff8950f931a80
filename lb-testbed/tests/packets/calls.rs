//! The helper calls of each path through the programs, compared with the limits in `calls.txt`.
//!
//! Time is no measure in a test. The calls are: they are most of the cost of a packet, and a change
//! that adds a lookup to a path adds one to its count.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;

use anyhow::{Context as _, Result, bail, ensure};
use lb_datapath::Calls;
use lb_testbed::programs::world::{self, NIC, World};
use lb_testbed::programs::{Action, BackendEndpoint, Hook, Segment, ServiceAddressEntry, Subject, features};

const LIMITS: &str = include_str!("calls.txt");

/// The highest number of times that a path is counted. The smallest count is compared with the
/// limit: a run can make more calls by chance, because a random source port can be taken. A packet
/// of the same kind runs just before, so that its route is remembered; that ends after 100 ms.
const ROUNDS: u16 = 20;

/// Port of the Services.
const PORT: u16 = 80;
const FIRST_CLIENT_PORT: u16 = 40_000;
/// Distance between the client ports of the two connections of a pair.
const PAIR: u16 = 10_000;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// A path: program, family, protocol and step.
type Path = (&'static str, &'static str, &'static str, &'static str);

pub fn run(world: &World, subject: &mut Subject) -> Result<()> {
    if !features()?.missing().is_empty() {
        // Programs for older kernels call other helpers. The limits are those of the newest.
        return Ok(());
    }
    let ifindex = world.ifindex(NIC).context("no device")?;
    let mut counted = BTreeMap::new();
    for round in 0..ROUNDS {
        for v6 in [false, true] {
            for protocol in [TCP, UDP] {
                subject.clear()?;
                let service = |name, endpoint, is_here| {
                    let backends = vec![BackendEndpoint::new(address(endpoint, 8080, v6), is_here)];
                    ServiceAddressEntry::new(address(name, PORT, v6), protocol, backends)
                };
                subject.serve(&[service("vip", "local", true), service("vip2", "remote", false)])?;
                let mut packets = Packets { subject, ifindex, v6, protocol, counted: &mut counted };
                packets.none_of_ours()?;
                for hook in [Hook::Xdp, Hook::TcIngress] {
                    packets.connections(hook, FIRST_CLIENT_PORT + round)?;
                }
            }
        }
        if compare(&counted).is_ok() {
            return Ok(());
        }
    }
    compare(&counted)
}

/// Compares counts with their limits.
fn compare(counted: &BTreeMap<Path, Calls>) -> Result<()> {
    let mut table = String::new();
    let mut wrong = String::new();
    let mut limits: BTreeMap<Vec<&str>, [u64; 4]> = BTreeMap::new();
    for line in LIMITS.lines().filter(|line| !line.starts_with('#') && !line.starts_with("program ")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [path @ .., arrays, hashes, writes, others] = &words[..] else { bail!("calls.txt: {line}") };
        let numbers = [arrays.parse()?, hashes.parse()?, writes.parse()?, others.parse()?];
        limits.insert(path.to_vec(), numbers);
    }
    for ((program, family, protocol, step), calls) in counted {
        let Calls { arrays, hashes, writes, others } = *calls;
        let counts = [arrays, hashes, writes, others];
        let line = format!(
            "{program:<14} {family} {protocol} {step:<20} {arrays:>6} {hashes:>6} {writes:>6} {others:>6}"
        );
        let _ = writeln!(table, "{line}");
        match limits.remove(&vec![*program, *family, *protocol, *step]) {
            Some(limit) if counts.iter().zip(limit).all(|(count, limit)| *count <= limit) => {}
            limit => {
                let _ = writeln!(wrong, "{line}  limits: {limit:?}");
            }
        }
    }
    for path in limits.keys() {
        let _ = writeln!(wrong, "{path:?} was not counted");
    }
    ensure!(
        wrong.is_empty(),
        "helper calls beyond the limits in lb-testbed/tests/packets/calls.txt (arrays, hashes, writes, \
         others):\n{wrong}Make these paths shorter, or raise the limits and give the reason. All counts:\n{table}"
    );
    Ok(())
}

/// Gives packets of one family and protocol to the programs, and counts their calls.
struct Packets<'a> {
    subject: &'a mut Subject,
    ifindex: u32,
    v6: bool,
    protocol: u8,
    counted: &'a mut BTreeMap<Path, Calls>,
}

impl Packets<'_> {
    /// Counts packets that belong to no Service.
    fn none_of_ours(&mut self) -> Result<()> {
        let (client, pod, node) = (self.at("client", 5000), self.at("local2", 8080), self.at(NIC, 22));
        for hook in [Hook::Xdp, Hook::TcIngress] {
            self.count(hook, "pod", [(client, pod); 2], Segment::Ack, 0)?;
            self.count(hook, "node", [(client, node); 2], Segment::Ack, 0)?;
        }
        self.count(Hook::TcEgress, "pod", [(pod, client); 2], Segment::Ack, 0)
    }

    /// Counts the packets of a connection to an endpoint on this node, and to one elsewhere.
    fn connections(&mut self, hook: Hook, client_port: u16) -> Result<()> {
        let clients = [self.at("client", client_port + PAIR), self.at("client", client_port)];
        for (name, steps) in [
            ("vip", ["here-first", "here-reply", "here-confirmed", "here-open"]),
            ("vip2", ["elsewhere-first", "elsewhere-reply", "elsewhere-confirmed", "elsewhere-open"]),
        ] {
            let [first, reply, confirmed, open] = steps;
            let requests = clients.map(|client| (client, self.at(name, PORT)));
            self.subject.forget_flows()?;
            self.count(hook, first, requests, Segment::Syn, 1)?;
            let awaited = self.subject.awaited_replies()?;
            let [one, other] = awaited[..] else { bail!("{} connections were opened", awaited.len()) };
            // The reply of an endpoint on this node is translated where it leaves.
            let replies_at = if name == "vip" { Hook::TcEgress } else { hook };
            self.count(replies_at, reply, [one, other], Segment::SynAck, 1)?;
            self.count(hook, confirmed, requests, Segment::Ack, 1)?;
            self.count(hook, open, requests, Segment::Ack, 1)?;
        }
        Ok(())
    }

    /// Runs a pair of packets, given by source and destination, and stores the count of the second.
    /// The program must translate each so often.
    fn count(
        &mut self,
        hook: Hook,
        step: &'static str,
        pair: [(SocketAddr, SocketAddr); 2],
        segment: Segment,
        translated: u64,
    ) -> Result<()> {
        let before = self.translated()?;
        let mut last = None;
        for (source, destination) in pair {
            let packet = segment.frame(self.protocol, source, destination)?;
            let (run, calls) = self.subject.count_calls(hook, self.ifindex, &packet)?;
            ensure!(
                !matches!(run.action, Action::Drop | Action::Unexpected(_)),
                "{step}: the program returned {:?}",
                run.action
            );
            last = Some(calls);
        }
        let calls = last.context("a pair has two packets")?;
        let after = self.translated()?;
        ensure!(after - before == 2 * translated, "{step}: {} of 2 packets were translated", after - before);
        let family = if self.v6 { "IPv6" } else { "IPv4" };
        let protocol = if self.protocol == TCP { "TCP" } else { "UDP" };
        let least = self.counted.entry((hook.program(), family, protocol, step)).or_insert(calls);
        if calls.total() < least.total() {
            *least = calls;
        }
        Ok(())
    }

    /// Returns the number of packets that were translated so far.
    fn translated(&self) -> Result<u64> {
        let counters = self.subject.counters()?;
        Ok(counters["delivered"] + counters["forwarded"])
    }

    fn at(&self, name: &str, port: u16) -> SocketAddr {
        address(name, port, self.v6)
    }
}

fn address(name: &str, port: u16, v6: bool) -> SocketAddr {
    SocketAddr::new(world::address(name, v6).expect("the world defines the names of this file"), port)
}
