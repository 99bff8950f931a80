//! The measured paths, and the Services that keep a repeated test run on one path.
//!
//! `BPF_PROG_TEST_RUN` with a repeat count gives the program the same buffer in each repetition, so
//! the second repetition starts with the packet that the first one rewrote. The Services here form
//! chains: a rewritten packet is again addressed to a Service, or belongs to a flow. Each
//! repetition uses the next connection of the chain. The hop count limits the length of a chain.

use std::fmt;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use lb_datapath::ProgramStatistics;
use lb_testbed::measure::median;
use lb_testbed::programs::world::{self, NIC, World};
use lb_testbed::programs::{Action, BackendEndpoint, Hook, Segment, ServiceAddressEntry, Subject};

/// Connections in a chain, and repetitions per call. It must be less than the largest hop count.
const CHAIN: u32 = 200;
/// Repetitions per call of a path that needs no chain. With so many, the cache misses of the first
/// ones do not matter.
const LOOP: u32 = 20_000;
/// Calls per round and path. Setting up and ending a repeated run of an XDP program takes some
/// 20 ms: the kernel patches its dispatcher and waits for RCU (net/bpf/test_run.c,
/// `bpf_prog_change_xdp`). The figures do not contain that time.
const CALLS: usize = 8;
/// Port of the first Service of a chain.
const PORT: u16 = 9000;
/// Ports of two local Services. Each one's endpoint is the other Service, so a packet of a
/// connection is rewritten from one to the other and back.
const LOOP_PORTS: [u16; 2] = [9001, 9002];
/// First port of the chain of local endpoints. Each connection of the chain uses the next port.
const LOCAL_PORT: u16 = 20_000;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// The work that the program does for the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// The packet is neither IPv4 nor IPv6, and the program returns at once: the cost of the hook.
    NotIp,
    /// The packet is addressed to a pod, not to a Service. It is passed untouched.
    OtherAddress,
    /// The packet is addressed to the node, but not to a Service. It is passed untouched.
    NodeAddress,
    /// The packet belongs to an open connection to an endpoint on this node. It is rewritten and
    /// passed up the stack, without a FIB lookup.
    EstablishedLocal,
    /// The packet belongs to a known connection to an endpoint on another node. It is rewritten and
    /// forwarded along a route.
    EstablishedRouted,
    /// The packet is the client's acknowledgement of the endpoint's SYN-ACK, which establishes the
    /// connection. The endpoint is on this node.
    Establishing,
    /// The packet opens a connection to an endpoint on this node.
    FirstLocal,
    /// The packet opens a connection to an endpoint on another node, with a FIB lookup and a new
    /// source port.
    FirstRouted,
}

impl Work {
    const ALL: [Self; 8] = [
        Self::NotIp,
        Self::OtherAddress,
        Self::NodeAddress,
        Self::EstablishedLocal,
        Self::EstablishedRouted,
        Self::Establishing,
        Self::FirstLocal,
        Self::FirstRouted,
    ];

    fn routed(self) -> bool {
        matches!(self, Self::EstablishedRouted | Self::FirstRouted)
    }

    /// Returns the number of repetitions per call.
    fn runs(self) -> u32 {
        match self {
            Self::NotIp | Self::OtherAddress | Self::NodeAddress | Self::EstablishedLocal => LOOP,
            _ => CHAIN,
        }
    }

    fn opens(self) -> bool {
        matches!(self, Self::FirstLocal | Self::FirstRouted)
    }

    pub fn describe(self) -> &'static str {
        match self {
            Self::NotIp => "neither IPv4 nor IPv6",
            Self::OtherAddress => "no Service: the address of a pod",
            Self::NodeAddress => "no Service: an address of the node",
            Self::EstablishedLocal => "open connection, endpoint on this node",
            Self::EstablishedRouted => "open connection, endpoint elsewhere",
            Self::Establishing => "the client's ACK that establishes it",
            Self::FirstLocal => "first packet, endpoint on this node",
            Self::FirstRouted => "first packet, endpoint elsewhere",
        }
    }

    /// Returns the target for XDP, in nanoseconds above the floor.
    pub fn target(self, v6: bool) -> Option<u32> {
        Some(match self {
            Self::NotIp => return None,
            Self::OtherAddress | Self::NodeAddress => 20,
            Self::EstablishedLocal => {
                if v6 {
                    60
                } else {
                    45
                }
            }
            Self::EstablishedRouted => 100,
            Self::Establishing => 60,
            Self::FirstLocal | Self::FirstRouted => 350,
        })
    }
}

/// One line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    pub hook: Hook,
    pub work: Work,
    pub v6: bool,
    pub protocol: u8,
}

impl Path {
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for hook in [Hook::Xdp, Hook::TcIngress] {
            for work in Work::ALL {
                let families: &[bool] = if work == Work::NotIp { &[false] } else { &[false, true] };
                for &v6 in families {
                    let protocols: &[u8] = match work {
                        Work::NotIp | Work::Establishing => &[TCP],
                        _ => &[TCP, UDP],
                    };
                    all.extend(protocols.iter().map(|&protocol| Self { hook, work, v6, protocol }));
                }
            }
        }
        all
    }

    /// Returns the number of connections that a packet of this path goes through.
    fn connections(&self) -> u32 {
        if self.work == Work::EstablishedLocal { 2 } else { CHAIN }
    }

    pub fn hook_name(&self) -> &'static str {
        if self.hook == Hook::Xdp { "XDP" } else { "tc" }
    }

    pub fn family(&self) -> &'static str {
        match self {
            Self { work: Work::NotIp, .. } => "other",
            Self { v6: true, .. } => "IPv6",
            Self { v6: false, .. } => "IPv4",
        }
    }

    pub fn protocol_name(&self) -> &'static str {
        match self {
            Self { work: Work::NotIp, .. } => "–",
            Self { protocol: TCP, .. } => "TCP",
            Self { .. } => "UDP",
        }
    }

    /// Returns a packet of this path from the client's port `source`.
    fn packet(&self, source: u16, segment: Segment) -> Result<Vec<u8>> {
        let destination = match self.work {
            Work::NotIp | Work::OtherAddress => address("local2", 8080, self.v6),
            Work::NodeAddress => address(NIC, 22, self.v6),
            Work::EstablishedLocal => address("local", LOOP_PORTS[0], self.v6),
            work if work.routed() => address("vip", PORT, self.v6),
            _ => address("vip2", PORT, self.v6),
        };
        self.between(address("client", source, self.v6), destination, segment)
    }

    fn between(&self, source: SocketAddr, destination: SocketAddr, segment: Segment) -> Result<Vec<u8>> {
        let mut frame = segment.frame(self.protocol, source, destination)?;
        if self.work == Work::NotIp {
            /// For experiments (IEEE 802 9.2.4).
            const LOCAL_EXPERIMENT: [u8; 2] = [0x88, 0xb5];
            frame[12..14].copy_from_slice(&LOCAL_EXPERIMENT);
        }
        Ok(frame)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, {}, {} {}",
            self.hook_name(),
            self.work.describe(),
            self.family(),
            self.protocol_name()
        )
    }
}

/// Nanoseconds per packet in one round. They are medians over the calls, so an interrupted call
/// does not matter.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub path: f64,
    pub floor: f64,
}

/// The loaded programs, with a number of Services in their maps.
pub struct LoadedPrograms {
    subject: Subject,
    ifindex: u32,
    /// The last client port that was used.
    next_port: u16,
}

impl LoadedPrograms {
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

    /// Measures one round of a path. Calls of the floor program and of the path alternate.
    pub fn measure(&mut self, path: &Path) -> Result<Sample> {
        self.subject.forget_flows()?;
        let port = self.port();
        if matches!(path.work, Work::EstablishedLocal | Work::EstablishedRouted) {
            self.open(path, port)?;
            self.run(path.hook, &path.packet(port, Segment::Ack)?, path.connections())?;
        }
        let expected = match path.work {
            Work::NotIp | Work::OtherAddress | Work::NodeAddress => vec![],
            Work::EstablishedLocal | Work::Establishing => vec!["delivered"],
            Work::EstablishedRouted => vec!["forwarded"],
            Work::FirstLocal => vec!["delivered", "flow_opened"],
            Work::FirstRouted => vec!["flow_opened", "forwarded"],
        };
        let all: Vec<(&str, u64)> =
            expected.into_iter().map(|label| (label, u64::from(path.work.runs()))).collect();
        let (mut floor, mut measured) = (Vec::new(), Vec::new());
        for _ in 0..CALLS {
            let (source, segment) = match path.work {
                Work::FirstLocal | Work::FirstRouted => (self.port(), Segment::Syn),
                Work::Establishing => (self.port(), Segment::Ack),
                _ => (port, Segment::Ack),
            };
            if path.work == Work::Establishing {
                self.open(path, source)?;
            }
            let packet = path.packet(source, segment)?;
            floor.push(f64::from(self.run(Hook::Floor, &packet, path.work.runs())?.nanoseconds));
            let before = self.subject.counters()?;
            measured.push(f64::from(self.run(path.hook, &packet, path.work.runs())?.nanoseconds));
            // The figures are valid only if every repetition took this path.
            let after = self.subject.counters()?;
            let counted: Vec<(&str, u64)> = after
                .iter()
                .map(|(label, count)| (*label, count - before[label]))
                .filter(|(_, count)| *count > 0)
                .collect();
            ensure!(counted == all, "not all packets took this path: counted {counted:?}, expected {all:?}");
            let half_open = self.subject.awaited_replies()?.len();
            let expects_none = !path.work.opens() && !path.work.routed();
            ensure!(!expects_none || half_open == 0, "{half_open} connections are not established");
        }
        Ok(Sample { path: median(measured), floor: median(floor) })
    }

    /// Opens the connections of a loop or chain. Endpoints on this node answer, which establishes
    /// their connections. Connections to endpoints on another node stay half-open: from the second
    /// connection of a chain on, the client is this node, and the programs forward no reply to it.
    fn open(&mut self, path: &Path, port: u16) -> Result<()> {
        self.run(path.hook, &path.packet(port, Segment::Syn)?, path.connections())?;
        let awaited = self.subject.awaited_replies()?;
        ensure!(awaited.len() == path.connections() as usize, "{} connections were opened", awaited.len());
        if !path.work.routed() {
            for (endpoint, to) in awaited {
                self.run(Hook::TcEgress, &path.between(endpoint, to, Segment::SynAck)?, 1)?;
            }
        }
        Ok(())
    }

    fn run(&mut self, hook: Hook, packet: &[u8], runs: u32) -> Result<lb_testbed::programs::Run> {
        let run = self.subject.run(hook, self.ifindex, packet, runs)?;
        ensure!(
            !matches!(run.action, Action::Drop | Action::Unexpected(_)),
            "the last packet was not passed or forwarded: {:?}",
            run.action
        );
        Ok(run)
    }

    /// Returns a client port that has not been used since the flows were removed.
    fn port(&mut self) -> u16 {
        self.next_port = self.next_port.checked_add(1).unwrap_or(1024);
        self.next_port
    }
}

/// Returns Services whose endpoints are Services again.
fn chains(v6: bool, protocol: u8) -> Vec<ServiceAddressEntry> {
    let service = |address, backend, local| {
        ServiceAddressEntry::new(address, protocol, vec![BackendEndpoint::new(backend, local)])
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

/// Returns a Service that no packet is addressed to.
fn filler(number: u32, v6: bool, protocol: u8) -> ServiceAddressEntry {
    let [_, a, b, c] = number.to_be_bytes();
    let ip = |network: u8| match v6 {
        true => [0xfd00, 0x10, network.into(), 0, 0, 0, a.into(), u16::from_be_bytes([b, c])].into(),
        false => [10, 100 + network + a, b, c].into(),
    };
    let backend = BackendEndpoint::new(SocketAddr::new(ip(100), 8080), false);
    ServiceAddressEntry::new(SocketAddr::new(ip(97), 80), protocol, vec![backend])
}

fn address(name: &str, port: u16, v6: bool) -> SocketAddr {
    SocketAddr::new(world::address(name, v6).expect("the world defines the names of this file"), port)
}
