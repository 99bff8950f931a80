//! Runs one case: gives the packet of each step to the programs, and compares all results.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;
use lb_common::layout::Thresholds;
use lb_testbed::packet::layer::{Ethernet, Layer, Link, Mac};
use lb_testbed::packet::{build, diff, dissect, parse, verify};
use lb_testbed::programs::world::{self, World};
use lb_testbed::programs::{
    Action, AddressKind, BackendEndpoint, Flow, Hook, Networks, ServiceAddressEntry, Subject,
};

use crate::case::{self, Case, Family, Mode, Out, Policy, Step};
use crate::text::Names;
use crate::uptime::wait_until_after;

/// Runs a case for one family and mode, on programs with empty maps.
pub fn run(case: &Case, family: Family, mode: Mode, world: &World, subject: &mut Subject) -> Result<()> {
    wait_until_after(case.steps.iter().map(|step| step.wait).max().unwrap_or_default());
    let mut run = CaseRun { mode, world, subject, names: Names::new(family == Family::V6) };
    let networks = Networks {
        pods: run.networks(&case.pods)?,
        service_cidrs: run.networks(&case.service_cidrs)?,
        by_kernel: run.networks(&case.by_kernel)?,
    };
    run.subject.set_networks(&networks)?;
    run.serve(&case.services)?;
    run.subject.set_kube_proxy(!case.without_kube_proxy)?;
    let _sockets = case.sockets.iter().map(|socket| run.open(socket)).collect::<Result<Vec<_>>>()?;
    for (i, step) in case.steps.iter().enumerate() {
        let description = || format!("step {}: {}", i + 1, step.packet);
        if let Some(services) = &step.services {
            run.serve(services).with_context(description)?;
        }
        if step.wait > 0 {
            run.subject.wait(step.wait).with_context(description)?;
        }
        if step.sweep {
            run.subject.sweep().with_context(description)?;
        }
        run.subject.allow_answers(!step.no_answers).with_context(description)?;
        let [first, last] = step.for_each.unwrap_or([0, 0]);
        for number in first..=last {
            run.names.set("i", number.to_string());
            run.step(step).with_context(description)?;
        }
    }
    Ok(())
}

struct CaseRun<'a> {
    mode: Mode,
    world: &'a World,
    subject: &'a mut Subject,
    names: Names,
}

/// The result of sending a packet through the programs.
pub struct Found {
    pub action: Action,
    pub packet: Vec<u8>,
    /// XDP left the packet to tc, untouched. `action` is that of tc.
    pub left_to_tc: bool,
    /// The action is that of XDP, not of tc.
    pub by_xdp: bool,
}

/// Sends a frame through the programs as the kernel would. On a device in XDP mode, frames that XDP
/// passes go through tc.
pub fn send(
    subject: &mut Subject,
    world: &World,
    mode: Mode,
    at: case::Hook,
    device: &str,
    sent: &[u8],
) -> Result<Found> {
    let ifindex = world.ifindex(device).with_context(|| format!("no device {device}"))?;
    let mut run = |hook, packet: &[u8]| subject.run(hook, ifindex, packet, 1);
    // XDP is never attached to devices of pods.
    let leads_to_pods = world::device(device).is_some_and(|device| device.pod);
    let mode = if leads_to_pods && mode == Mode::Xdp && can_be_an_skb(sent) { Mode::Tc } else { mode };
    match (at, mode) {
        (case::Hook::Ingress, Mode::Xdp) => {
            let xdp = run(Hook::Xdp, sent)?;
            let untouched = xdp.packet == sent;
            // The kernel removes a VLAN tag before tc and gives the packet to the VLAN device's
            // programs.
            if xdp.action != Action::Pass || is_tagged(sent) || !can_be_an_skb(sent) {
                return Ok(Found { action: xdp.action, packet: xdp.packet, left_to_tc: false, by_xdp: true });
            }
            let tc = run(Hook::TcIngress, &xdp.packet)?;
            let idle = tc.action == Action::Pass && tc.packet == xdp.packet;
            ensure!(untouched || idle, "tc changed or took a packet that XDP had already translated");
            let action = if untouched { tc.action } else { xdp.action };
            Ok(Found { action, packet: tc.packet, left_to_tc: untouched && !idle, by_xdp: idle })
        }
        (case::Hook::Ingress, Mode::Tc) => run(Hook::TcIngress, sent).map(Found::by_tc),
        (case::Hook::Egress, Mode::Xdp | Mode::Tc) => run(Hook::TcEgress, sent).map(Found::by_tc),
        (case::Hook::Ingress, Mode::L3) => run(Hook::TcIngressL3, sent).map(Found::by_tc),
        (case::Hook::Egress, Mode::L3) => run(Hook::TcEgressL3, sent).map(Found::by_tc),
    }
}

/// Returns whether `BPF_PROG_TEST_RUN` accepts a frame for a tc program. It refuses an IP packet
/// that is shorter than its header (Linux 6.17, net/bpf/test_run.c, `bpf_prog_test_run_skb`).
pub fn can_be_an_skb(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.len() >= 14 + 20,
        Some([0x86, 0xdd]) => frame.len() >= 14 + 40,
        Some(_) => frame.len() > 14,
        None => false,
    }
}

/// Returns whether a frame has an ICMP header. XDP passes ICMP without counting `left_to_tc`.
pub fn is_icmp(frame: &[u8], link: Link) -> bool {
    dissect(frame, link).iter().any(|layer| matches!(layer, Layer::Icmp(_)))
}

fn is_tagged(frame: &[u8]) -> bool {
    matches!(frame.get(12..14), Some([0x81, 0x00] | [0x88, 0xa8]))
}

impl CaseRun<'_> {
    /// Replaces all services.
    fn serve(&mut self, services: &[case::Service]) -> Result<()> {
        let mut entries = Vec::new();
        for service in services {
            let mut backends = Vec::new();
            for backend in &service.backends {
                let address = self.socket_address(&backend.address, backend.port)?;
                let local = is_local(address) && !backend.without_node_name;
                backends.push(BackendEndpoint { address, local, weight: backend.weight });
            }
            let address = self.socket_address(&service.address, service.port)?;
            let mut entry = ServiceAddressEntry::new(address, service.protocol.number(), backends);
            entry.name = service.name.clone();
            entry.kind = service.kind.map_or(entry.kind, case::AddressKind::to_program_kind);
            entry.drop = service.drop;
            entry.source_ranges =
                service.source_ranges.as_ref().map(|ranges| self.networks(ranges)).transpose()?;
            entry.affinity_seconds = service.affinity;
            entry.algorithm = service.algorithm.number();
            entry.failover = service.failover;
            entry.passive_health = service.passive_health;
            let case::Service { upper_threshold: upper, lower_threshold: lower, .. } = *service;
            entry.thresholds = (upper > 0).then_some(Thresholds { upper, lower });
            entry.fallback = service.fallback;
            // A ClusterIP has the internal policy, other addresses have the external one. The
            // external one does not apply to pods and the node: they are inside the cluster
            // (KEP-1669).
            if entry.kind == AddressKind::ClusterIp {
                entry.inside_local = service.internal_policy == Policy::Local;
                entry.outside_local = entry.inside_local;
            } else {
                entry.outside_local = service.external_policy == Policy::Local;
            }
            entries.push(entry);
        }
        self.subject.serve(&entries)
    }

    /// Opens a socket in the namespace of the programs. It is closed when the result is dropped.
    fn open(&self, socket: &case::Socket) -> Result<OwnedFd> {
        let address = self.socket_address(&socket.address, socket.port)?;
        let opened = match socket.protocol {
            case::Protocol::Tcp => TcpListener::bind(address).map(OwnedFd::from),
            case::Protocol::Udp => UdpSocket::bind(address).map(OwnedFd::from),
            case::Protocol::Sctp => bail!("sockets of SCTP are not supported"),
        };
        opened.with_context(|| format!("open a socket at {address}"))
    }

    /// Parses networks. A single address, such as `$client`, is a network of one address.
    fn networks(&self, texts: &[String]) -> Result<Vec<IpNet>> {
        let network = |text: &String| {
            let text = self.names.fill(text);
            let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
            network.map(|network| network.trunc()).with_context(|| format!("`{text}` is not a network"))
        };
        texts.iter().map(network).collect()
    }

    fn socket_address(&self, name: &str, port: u16) -> Result<SocketAddr> {
        let text = self.names.fill(name);
        Ok(SocketAddr::new(text.parse().with_context(|| format!("`{text}` is not an address"))?, port))
    }

    fn step(&mut self, step: &Step) -> Result<()> {
        self.names.forget("_");
        let device = match (&step.on, self.mode) {
            (Some(device), _) => device.clone(),
            (None, Mode::L3) => "tun0".to_owned(),
            (None, _) => world::NIC.to_owned(),
        };
        let mut sent = self.frame(&step.packet, &device, step.at)?;
        if step.cut {
            let link = if self.link() == Link::Ethernet { 14 } else { 0 };
            sent.truncate(link + self.names.fill("$i").parse::<usize>()?);
            if self.mode != Mode::Xdp && !can_be_an_skb(&sent) {
                return Ok(());
            }
        }
        let link = self.link();
        let counters = self.subject.counters()?;
        let found = match step.merged_from {
            None => send(self.subject, self.world, self.mode, step.at, &device, &sent)?,
            Some(segment) => {
                ensure!(
                    self.mode == Mode::Tc && step.at == case::Hook::Ingress,
                    "merged-from is supported only for tc at ingress"
                );
                let ifindex = self.world.ifindex(&device).with_context(|| format!("no device {device}"))?;
                Found::by_tc(self.subject.run_merged(Hook::TcIngress, ifindex, &sent, segment)?)
            }
        };
        let counted = self.subject.counters()?;

        self.check_action(step, &device, &found)?;
        ensure!(
            self.mode != Mode::Xdp
                || step.at == case::Hook::Egress
                || is_icmp(&sent, link)
                || found.left_to_tc == (step.left_to_tc || step.taken_by_tc),
            "XDP {} the packet to tc",
            if found.left_to_tc { "left" } else { "did not leave" },
        );
        if step.out != Out::Drop {
            self.check_packet(step, &sent, &found, &device, link)?;
        }
        self.check_counters(step, &counters, &counted)?;
        self.check_flows(step)?;
        self.check_loads(step)?;
        self.check_port_shortages(step)?;
        self.check_left_out(step)
    }

    fn link(&self) -> Link {
        if self.mode == Mode::L3 { Link::None } else { Link::Ethernet }
    }

    /// Returns the bytes of a packet on a device. It gets a link header for that device, unless the
    /// text has one.
    fn frame(&self, text: &str, device: &str, at: case::Hook) -> Result<Vec<u8>> {
        let mut layers = parse(&self.names.fill(text))?;
        if self.link() == Link::Ethernet && !matches!(layers.first(), Some(Layer::Ethernet(_))) {
            let own = world::device(device).with_context(|| format!("no device {device}"))?.mac;
            let (source, destination) =
                layers.first().and_then(Layer::addresses).context("the text has no IP header")?;
            let neighbour = match at {
                case::Hook::Ingress => source,
                case::Hook::Egress => destination,
            };
            let neighbour =
                world::peer_at(neighbour).and_then(|peer| peer.mac).unwrap_or([2, 0, 0, 0, 0, 0x99]);
            let (source, destination) = match at {
                case::Hook::Ingress => (neighbour, own),
                case::Hook::Egress => (own, neighbour),
            };
            layers.insert(0, Layer::Ethernet(Ethernet { source, destination, ethertype: None }));
        }
        Ok(build(&layers))
    }

    fn check_action(&self, step: &Step, device: &str, found: &Found) -> Result<()> {
        let expected = match &step.out {
            Out::Pass => Action::Pass,
            Out::Drop => Action::Drop,
            Out::Forward(peer) => {
                let peer = world::peer(peer).with_context(|| format!("no peer {peer}"))?;
                if found.by_xdp && peer.device == device { Action::Tx } else { Action::Redirect }
            }
            Out::Answer(_) if found.by_xdp => Action::Tx,
            Out::Answer(_) | Out::Fragment => Action::Redirect,
        };
        ensure!(found.action == expected, "expected {expected:?}, found {:?}", found.action);
        Ok(())
    }

    fn check_packet(
        &mut self,
        step: &Step,
        sent: &[u8],
        found: &Found,
        device: &str,
        link: Link,
    ) -> Result<()> {
        // The loopback device has Ethernet headers.
        let link_out = if step.out == Out::Fragment { Link::Ethernet } else { link };
        let expected = match &step.packet_out {
            None => sent.to_vec(),
            Some(text) => {
                let filled = self.names.fill(text);
                self.names.capture(&filled, &found.packet, link_out)?;
                let mut layers = parse(&self.names.fill(&filled))?;
                if link_out == Link::Ethernet && !matches!(layers.first(), Some(Layer::Ethernet(_))) {
                    let mut outer =
                        if link == Link::Ethernet { link_layers(sent) } else { NO_ADDRESSES.to_vec() };
                    if let Some(Layer::Ethernet(header)) = outer.first_mut() {
                        if step.out == Out::Fragment {
                            header.destination = [0; 6];
                        } else if let Some(addresses) = self.link_addresses(step, device, found) {
                            (header.source, header.destination) = addresses;
                        }
                    }
                    layers.splice(0..0, outer);
                }
                build(&layers)
            }
        };
        if found.packet != expected {
            bail!(
                "the packet is not the expected one\n{}",
                diff(&dissect(&expected, link_out), &dissect(&found.packet, link_out))
            );
        }
        if verify(sent, link).is_empty() {
            let wrong = verify(&found.packet, link_out);
            ensure!(wrong.is_empty(), "the packet that leaves has faults: {}", wrong.join("; "));
        }
        Ok(())
    }

    /// Returns source and destination MAC address of the packet that leaves. Returns `None` if the
    /// kernel fills them in later or keeps them.
    fn link_addresses(&self, step: &Step, device: &str, found: &Found) -> Option<(Mac, Mac)> {
        let (peer, out_device) = match &step.out {
            Out::Forward(peer) if found.by_xdp => (world::peer(peer)?, world::peer(peer)?.device),
            Out::Answer(peer) => (world::peer(peer)?, device),
            _ => return None,
        };
        Some((world::device(out_device)?.mac, peer.mac?))
    }

    fn check_counters(&self, step: &Step, before: &Counters, after: &Counters) -> Result<()> {
        let mut expected: BTreeMap<&str, u64> = BTreeMap::new();
        for label in &step.counts {
            ensure!(after.contains_key(label.as_str()), "unknown counter {label}");
            *expected.entry(label).or_default() += 1;
        }
        if step.left_to_tc && self.mode == Mode::Xdp {
            expected.insert("left_to_tc", 1);
        }
        let found: BTreeMap<&str, u64> = after
            .iter()
            .map(|(label, count)| (*label, count - before.get(label).copied().unwrap_or(0)))
            .filter(|(_, count)| *count > 0)
            .collect();
        ensure!(found == expected, "counters increased by {found:?}, expected {expected:?}");
        Ok(())
    }

    fn check_flows(&self, step: &Step) -> Result<()> {
        if step.flows.is_none() && step.flow_numbers.is_none() {
            return Ok(());
        }
        let flows = self.subject.flows()?;
        if let Some([open, half_open]) = step.flow_numbers {
            let found_half_open = flows.iter().filter(|flow| flow.half_open).count();
            let found = [flows.len() - found_half_open, found_half_open];
            ensure!(found == [open, half_open], "flow entries [open, half-open]: found {found:?}");
        }
        if let Some(expected) = &step.flows {
            self.compare("flow entries", expected, flows.iter().map(Flow::to_string).collect())?;
        }
        Ok(())
    }

    fn check_loads(&self, step: &Step) -> Result<()> {
        let Some(expected) = &step.loads else { return Ok(()) };
        let loads = self.subject.loads()?.into_iter();
        let found =
            loads.map(|(at, load)| format!("{} {} {} {}", at.ip(), at.port(), load.active, load.inactive));
        self.compare("connections of endpoints", expected, found.collect())
    }

    fn check_port_shortages(&self, step: &Step) -> Result<()> {
        let Some(expected) = &step.port_shortages else { return Ok(()) };
        let shortages = self.subject.port_shortages()?.into_iter();
        let found = shortages.map(|(at, packets)| format!("{} {} {packets}", at.ip(), at.port()));
        self.compare("endpoints without a free source port", expected, found.collect())
    }

    fn check_left_out(&self, step: &Step) -> Result<()> {
        let Some(expected) = &step.left_out else { return Ok(()) };
        let left_out = self.subject.left_out()?.into_iter();
        let found = left_out.map(|(at, level)| format!("{} {} {level}", at.ip(), at.port()));
        self.compare("endpoints that are left out", expected, found.collect())
    }

    /// Compares the texts of a step with those that were found, in any order.
    fn compare(&self, what: &str, expected: &[String], mut found: Vec<String>) -> Result<()> {
        let mut expected: Vec<String> = expected.iter().map(|text| self.names.fill(text)).collect();
        expected.sort();
        found.sort();
        ensure!(
            expected == found,
            "{what}\n  expected\n    {}\n  found\n    {}",
            expected.join("\n    "),
            found.join("\n    ")
        );
        Ok(())
    }
}

/// An Ethernet header of the loopback device.
const NO_ADDRESSES: [Layer; 1] =
    [Layer::Ethernet(Ethernet { source: [0; 6], destination: [0; 6], ethertype: None })];

type Counters = BTreeMap<&'static str, u64>;

impl Found {
    fn by_tc(run: lb_testbed::programs::Run) -> Self {
        Self { action: run.action, packet: run.packet, left_to_tc: false, by_xdp: false }
    }
}

/// Returns Ethernet header and VLAN tags of a frame, without the EtherTypes that the next layer
/// implies.
fn link_layers(frame: &[u8]) -> Vec<Layer> {
    let mut layers = dissect(frame, Link::Ethernet);
    layers.retain(|layer| matches!(layer, Layer::Ethernet(_) | Layer::Vlan(_)));
    layers
}

fn is_local(address: SocketAddr) -> bool {
    world::peer_at(address.ip()).is_some_and(|peer| peer.device == "pod0")
}
