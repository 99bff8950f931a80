//! The paths that are measured, and how a repeated test run is kept on one of them.
//!
//! `BPF_PROG_TEST_RUN` with a repeat count gives the program the same buffer again and again, so
//! the second run sees what the first made of the packet. The Services here are built so that a
//! rewritten packet is again addressed to a Service (or belongs to a flow): each run walks one link
//! of a chain of connections, as long as the hop count lasts.

use std::fmt;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use lb_datapath::ProgramStatistics;
use lb_testbed::packet::layer::Layer;
use lb_testbed::packet::{Link, build, dissect, parse};
use lb_testbed::programs::world::{self, NIC, World};
use lb_testbed::programs::{Action, Endpoint, Hook, ServiceEntry, Subject};

use crate::report::median;

/// Links of a chain: runs per call. Less than the largest hop count.
const CHAIN: u32 = 200;
/// Runs per call of a path that needs no chain: enough that what the first ones wait for memory
/// does not count.
const LOOP: u32 = 20_000;
/// Calls per round and path. A repeated run of an XDP program is slow to set up and take down: the
/// kernel patches its dispatcher and waits for RCU (net/bpf/test_run.c, `bpf_prog_change_xdp`),
/// some 20 ms that no figure contains.
const CALLS: usize = 8;
/// Port of the Service that a chain begins with.
const PORT: u16 = 9000;
/// Two local endpoints that are each other's Service: a packet of a connection goes to and fro
/// between them.
const LOOP_PORTS: [u16; 2] = [9001, 9002];
/// First port of the chain of local endpoints; the next link is the next port.
const LOCAL_PORT: u16 = 20_000;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// What happens to the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Addressed to the node itself, but to no Service: passed on untouched.
    NotOurs,
    /// Of an open connection to an endpoint on this node: rewritten and passed up, no FIB lookup.
    EstablishedLocal,
    /// Of an open connection to an endpoint elsewhere: rewritten, FIB lookup, sent on. UDP is not
    /// answered yet, and so found in the half-open table, after the other.
    EstablishedRouted,
    /// Opens a connection to an endpoint on this node.
    FirstLocal,
    /// Opens a connection to an endpoint elsewhere: FIB lookup and a source port too.
    FirstRouted,
}

impl Kind {
    const ALL: [Self; 5] =
        [Self::NotOurs, Self::EstablishedLocal, Self::EstablishedRouted, Self::FirstLocal, Self::FirstRouted];

    fn routed(self) -> bool {
        matches!(self, Self::EstablishedRouted | Self::FirstRouted)
    }

    /// Runs per call.
    fn runs(self) -> u32 {
        if matches!(self, Self::NotOurs | Self::EstablishedLocal) { LOOP } else { CHAIN }
    }

    fn opens(self) -> bool {
        matches!(self, Self::FirstLocal | Self::FirstRouted)
    }

    pub fn describe(self) -> &'static str {
        match self {
            Self::NotOurs => "none of ours",
            Self::EstablishedLocal => "open connection, rewritten, no FIB lookup",
            Self::EstablishedRouted => "open connection, rewritten, FIB lookup",
            Self::FirstLocal => "first packet, no FIB lookup",
            Self::FirstRouted => "first packet, FIB lookup, source port",
        }
    }

    /// Nanoseconds above the floor that are aimed at, for XDP.
    pub fn target(self, v6: bool) -> u32 {
        match self {
            Self::NotOurs => 20,
            Self::EstablishedLocal => {
                if v6 {
                    60
                } else {
                    45
                }
            }
            Self::EstablishedRouted => 100,
            Self::FirstLocal | Self::FirstRouted => 250,
        }
    }
}

/// One line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    pub hook: Hook,
    pub kind: Kind,
    pub v6: bool,
    pub protocol: u8,
}

impl Path {
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for hook in [Hook::Xdp, Hook::TcIngress] {
            for kind in Kind::ALL {
                for v6 in [false, true] {
                    all.extend([TCP, UDP].map(|protocol| Self { hook, kind, v6, protocol }));
                }
            }
        }
        all
    }

    pub fn hook_name(&self) -> &'static str {
        if self.hook == Hook::Xdp { "XDP" } else { "tc" }
    }

    pub fn family(&self) -> &'static str {
        if self.v6 { "IPv6" } else { "IPv4" }
    }

    pub fn protocol_name(&self) -> &'static str {
        if self.protocol == TCP { "TCP" } else { "UDP" }
    }

    /// A packet of this path from a client's port.
    fn packet(&self, source: u16, opening: bool) -> Result<Vec<u8>> {
        let destination = match self.kind {
            Kind::NotOurs => address(NIC, 22, self.v6),
            Kind::EstablishedLocal => address("local", LOOP_PORTS[0], self.v6),
            kind if kind.routed() => address("vip", PORT, self.v6),
            _ => address("vip2", PORT, self.v6),
        };
        self.between(address("client", source, self.v6), destination, opening)
    }

    fn between(&self, source: SocketAddr, destination: SocketAddr, opening: bool) -> Result<Vec<u8>> {
        let transport = match (self.protocol, opening) {
            (TCP, true) => format!("tcp {} > {} S", source.port(), destination.port()),
            (TCP, false) => format!("tcp {} > {} A", source.port(), destination.port()),
            _ => format!("udp {} > {}", source.port(), destination.port()),
        };
        // 64 bytes of IPv4 with TCP: the frame that rates are quoted for.
        let text = format!(
            "eth 02:00:00:00:00:09 > 02:00:00:00:00:01 / ip {} > {} ttl=255 / {transport} / zeros 10",
            source.ip(),
            destination.ip()
        );
        Ok(build(&parse(&text)?))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, {}, {} {}",
            self.hook_name(),
            self.kind.describe(),
            self.family(),
            self.protocol_name()
        )
    }
}

/// Nanoseconds per packet in one round: the median of its calls, so that one which was interrupted
/// does not count.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub path: f64,
    pub floor: f64,
}

/// Programs with a number of Services loaded.
pub struct Stage {
    subject: Subject,
    ifindex: u32,
    next_port: u16,
}

impl Stage {
    pub fn new(mut subject: Subject, world: &World, services: usize) -> Result<Self> {
        let mut entries = Vec::new();
        for v6 in [false, true] {
            for protocol in [TCP, UDP] {
                entries.extend(chains(v6, protocol));
                entries.extend((1..services as u32).map(|n| filler(n, v6, protocol)));
            }
        }
        subject.serve(&entries)?;
        let ifindex = world.ifindex(NIC).context("no device")?;
        Ok(Self { subject, ifindex, next_port: 1024 })
    }

    pub fn statistics(&self) -> Result<Vec<ProgramStatistics>> {
        self.subject.statistics()
    }

    /// One round of a path: the floor and the path in turns.
    pub fn measure(&mut self, path: &Path) -> Result<Sample> {
        self.subject.forget_flows()?;
        let port = self.port();
        if matches!(path.kind, Kind::EstablishedLocal | Kind::EstablishedRouted) {
            self.establish(path, port)?;
        }
        let expected = match path.kind {
            Kind::NotOurs => vec![],
            Kind::EstablishedLocal => vec!["delivered"],
            Kind::EstablishedRouted => vec!["forwarded"],
            Kind::FirstLocal => vec!["delivered", "flow_opened"],
            Kind::FirstRouted => vec!["flow_opened", "forwarded"],
        };
        let before = self.subject.counters()?;
        let (mut floor, mut measured) = (Vec::new(), Vec::new());
        for _ in 0..CALLS {
            let source = if path.kind.opens() { self.port() } else { port };
            let packet = path.packet(source, path.kind.opens())?;
            floor.push(f64::from(self.run(Hook::Floor, &packet, path.kind.runs())?.nanoseconds));
            measured.push(f64::from(self.run(path.hook, &packet, path.kind.runs())?.nanoseconds));
        }
        // The figures mean something only if every run took the path.
        let after = self.subject.counters()?;
        let counted: Vec<(&str, u64)> = after
            .iter()
            .map(|(label, count)| (*label, count - before[label]))
            .filter(|(_, count)| *count > 0)
            .collect();
        let runs = CALLS as u64 * u64::from(path.kind.runs());
        let all: Vec<(&str, u64)> = expected.into_iter().map(|label| (label, runs)).collect();
        ensure!(
            counted == all,
            "the packets did not all take this path: counted {counted:?}, expected {all:?}"
        );
        Ok(Sample { path: median(measured), floor: median(floor) })
    }

    /// Opens the connections of a chain and has them answered, where that can be.
    fn establish(&mut self, path: &Path, port: u16) -> Result<()> {
        // Both directions of a loop, or every link of a chain.
        let opening = if path.kind == Kind::EstablishedLocal { 2 } else { CHAIN };
        let last = self.run(path.hook, &path.packet(port, true)?, opening)?.packet;
        if path.protocol == TCP {
            // The client's acknowledgement is the answer.
            self.run(path.hook, &path.packet(port, false)?, opening)?;
        } else if path.kind == Kind::EstablishedLocal {
            // The endpoint answers, to and fro.
            let (from, to) = ends(&last).context("the chain ends without ports")?;
            self.run(path.hook, &path.between(to, from, false)?, opening)?;
        }
        // An answer through rewritten sources would go to this node itself, where the chain ends:
        // those stay half open.
        Ok(())
    }

    fn run(&mut self, hook: Hook, packet: &[u8], runs: u32) -> Result<lb_testbed::programs::Run> {
        let run = self.subject.run(hook, self.ifindex, packet, runs)?;
        ensure!(
            !matches!(run.action, Action::Drop | Action::Other(_)),
            "the last packet was not sent: {:?}",
            run.action
        );
        Ok(run)
    }

    /// A client's port that was not used since the flows were forgotten.
    fn port(&mut self) -> u16 {
        self.next_port = self.next_port.checked_add(1).unwrap_or(1024);
        self.next_port
    }
}

/// Services whose endpoints are Services again.
fn chains(v6: bool, protocol: u8) -> Vec<ServiceEntry> {
    let service = |address, backend, local| {
        ServiceEntry::new(address, protocol, vec![Endpoint { address: backend, local }])
    };
    let remote = address("remote", PORT, v6);
    let local = |link: u16| address("local", LOCAL_PORT + link, v6);
    let mut chains = vec![
        service(address("vip", PORT, v6), remote, false),
        service(remote, remote, false),
        service(address("vip2", PORT, v6), local(0), true),
    ];
    let [here, there] = LOOP_PORTS.map(|port| address("local", port, v6));
    chains.extend([service(here, there, true), service(there, here, true)]);
    chains.extend((0..CHAIN as u16).map(|link| service(local(link), local(link + 1), true)));
    chains
}

/// A Service that no packet is addressed to.
fn filler(number: u32, v6: bool, protocol: u8) -> ServiceEntry {
    let [_, a, b, c] = number.to_be_bytes();
    let ip = |network: u8| match v6 {
        true => [0xfd00, 0x10, network.into(), 0, 0, 0, a.into(), u16::from_be_bytes([b, c])].into(),
        false => [10, 100 + network + a, b, c].into(),
    };
    let backend = Endpoint { address: SocketAddr::new(ip(100), 8080), local: false };
    ServiceEntry::new(SocketAddr::new(ip(97), 80), protocol, vec![backend])
}

fn address(name: &str, port: u16, v6: bool) -> SocketAddr {
    SocketAddr::new(world::address(name, v6).expect("names of this file are names of the world"), port)
}

/// Source and destination of a packet.
fn ends(packet: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let layers = dissect(packet, Link::Ethernet);
    let (source, destination) = layers.iter().find_map(Layer::addresses)?;
    let ports = layers.iter().find_map(|layer| match layer {
        Layer::Tcp(tcp) => Some((tcp.source, tcp.destination)),
        Layer::Udp(udp) => Some((udp.source, udp.destination)),
        _ => None,
    })?;
    Some((SocketAddr::new(source, ports.0), SocketAddr::new(destination, ports.1)))
}
