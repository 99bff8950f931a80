//! The programs under test, loaded privately: nothing pinned, nothing attached.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

use anyhow::{Context, Result};
use ipnet::IpNet;
use lb_common::layout::{
    self, address_flags, algorithm, backend_flags, device_flags, kind, network_flags, service_flags,
};
use lb_datapath::apply::tables::{BackendEntry, ServiceAddress, Tables};
use lb_datapath::{
    Datapath, FlowTimeouts, LoadOptions, MapSizes, ProgramStatistics, ServiceTables, TcAttach, monotonic_ns,
};
use lb_model::IpFamily;

use super::world::{DEVICES, World};

/// Sizes of maps and ranges.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Limits {
    pub services: u32,
    pub backends: u32,
    pub slots: u32,
    pub flows: u32,
    pub half_open: u32,
    pub snat_ports: RangeInclusive<u16>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            services: 64,
            backends: 1024,
            slots: 1024,
            flows: 4096,
            half_open: 4096,
            snat_ports: 61_000..=65_535,
        }
    }
}

/// Where a packet is given to a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    Xdp,
    TcIngress,
    TcEgress,
    /// On devices without Ethernet header.
    TcIngressL3,
    TcEgressL3,
    /// The least that an XDP program can do with a packet: what the others are measured against.
    Floor,
}

impl Hook {
    fn program(self) -> &'static str {
        match self {
            Self::Xdp => "lb_xdp",
            Self::TcIngress => "lb_tc_ingress",
            Self::TcEgress => "lb_tc_egress",
            Self::TcIngressL3 => "lb_tc_ingress_l3",
            Self::TcEgressL3 => "lb_tc_egress_l3",
            Self::Floor => "lb_floor",
        }
    }

    fn is_xdp(self) -> bool {
        matches!(self, Self::Xdp | Self::Floor)
    }
}

/// What a program does with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// On, along the path it was on.
    Pass,
    Drop,
    /// Out of the device it came in by (XDP).
    Tx,
    Redirect,
    /// Anything else: an error.
    Other(u32),
}

impl Action {
    /// `enum xdp_action` and `TC_ACT_*` (include/uapi/linux/bpf.h, pkt_cls.h). A tc program passes a packet on with
    /// `TC_ACT_UNSPEC`, so that the next program of the device has it too.
    fn of(hook: Hook, code: u32) -> Self {
        match (hook.is_xdp(), code) {
            (true, 1) | (false, 2) => Self::Drop,
            (true, 2) | (false, u32::MAX) => Self::Pass,
            (true, 3) => Self::Tx,
            (true, 4) | (false, 7) => Self::Redirect,
            (_, code) => Self::Other(code),
        }
    }
}

/// The outcome of a run.
#[derive(Debug, Clone)]
pub struct Run {
    pub action: Action,
    pub packet: Vec<u8>,
    /// Mean over the repetitions.
    pub nanoseconds: u32,
}

/// A Service port at one address, as the programs see it.
#[derive(Debug, Clone)]
pub struct ServiceEntry {
    /// Entries with the same name are addresses of one Service port. Without a name: an address of one of its own.
    pub name: Option<String>,
    /// Unspecified: at every address of the node.
    pub address: SocketAddr,
    pub protocol: u8,
    pub kind: Kind,
    pub backends: Vec<Endpoint>,
    /// With no backend, packets are dropped instead of rejected.
    pub drop: bool,
    /// Only these may use a load balancer address of their family.
    pub source_ranges: Option<Vec<IpNet>>,
    /// Session affinity; 0: off.
    pub affinity_seconds: u32,
    /// Traffic from outside the cluster gets the local backends only, and is dropped when there are none.
    pub outside_local: bool,
    /// The same for pods and the node.
    pub inside_local: bool,
}

impl ServiceEntry {
    /// With nothing special: an address that is not the node's is a ClusterIP, without policies.
    pub fn new(address: SocketAddr, protocol: u8, backends: Vec<Endpoint>) -> Self {
        let kind = if address.ip().is_unspecified() { Kind::NodePort } else { Kind::ClusterIp };
        Self {
            name: None,
            address,
            protocol,
            kind,
            backends,
            drop: false,
            source_ranges: None,
            affinity_seconds: 0,
            outside_local: false,
            inside_local: false,
        }
    }

    fn key(&self) -> ServiceAddress {
        ServiceAddress { ip: self.address.ip(), port: self.address.port(), protocol: self.protocol }
    }

    /// What tells its Service port from others.
    fn port_name(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.key().to_string())
    }

    /// The bits of `ADDRESSES` that its address needs.
    fn marks(&self) -> u32 {
        match self.kind {
            Kind::NodePort => 0,
            Kind::ClusterIp => address_flags::SERVICE | address_flags::CLUSTER_IP,
            Kind::ExternalIp | Kind::LoadBalancer => address_flags::SERVICE,
        }
    }
}

/// Which address of its Service an entry stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    ClusterIp = kind::CLUSTER_IP,
    NodePort = kind::NODE_PORT,
    ExternalIp = kind::EXTERNAL_IP,
    LoadBalancer = kind::LOAD_BALANCER,
}

/// Networks that the programs know.
#[derive(Debug, Clone, Default)]
pub struct Networks {
    pub pods: Vec<IpNet>,
    pub service_cidrs: Vec<IpNet>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    pub address: SocketAddr,
    pub local: bool,
}

/// A flow entry, as cases write it.
#[derive(Debug, Clone)]
pub struct Flow {
    text: String,
    pub half_open: bool,
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// How programs with such maps are loaded.
pub fn load_options(limits: &Limits) -> LoadOptions {
    let sizes = MapSizes {
        max_services: limits.services,
        max_slots: limits.slots,
        max_backends: limits.backends,
        max_flows: limits.flows,
        max_half_open: limits.half_open,
        max_fragments: 4096,
        max_socket_peers: 64,
        max_source_ranges: 64,
        max_affinity: 64,
    };
    let snat_ports = (*limits.snat_ports.start(), *limits.snat_ports.end());
    LoadOptions {
        sizes,
        snat_ports,
        log_level: 0,
        tc_attach: TcAttach::Auto,
        protect_node_ports: true,
        host_sockets_only: false,
    }
}

/// The loaded programs, and what the test has put into their maps.
pub struct Subject {
    datapath: Datapath,
    tables: ServiceTables,
    /// Ids of Service ports, by name.
    ids: HashMap<String, u32>,
    services: HashMap<ServiceAddress, u32>,
    marks: HashMap<IpAddr, u32>,
    source_ranges: HashSet<(u32, IpNet)>,
    networks: HashMap<IpNet, u32>,
    backends: HashMap<(u32, SocketAddr), u32>,
    next_service: u32,
    next_backend: u32,
    next_slot: u32,
}

impl Subject {
    /// Loads the programs on empty maps, and tells them of the devices and addresses of the world.
    pub fn load(limits: &Limits, world: &World) -> Result<Self> {
        let options = load_options(limits);
        let datapath = Datapath::load_private(&options).context("cannot load the programs")?;
        for device in DEVICES {
            let ifindex = world.ifindex(device.name).context("no such device")?;
            let [v4, v6] = device.addresses;
            let (v4, v6): (Ipv4Addr, Ipv6Addr) = (v4.parse()?, v6.parse()?);
            let mut flags = 0;
            flags |= if device.xdp_target { device_flags::XDP_TARGET } else { 0 };
            flags |= if device.pod { device_flags::POD } else { 0 };
            flags |= if device.ethernet { 0 } else { device_flags::NO_ETHERNET };
            let entry = layout::Device { addr_v4: v4.octets(), addr_v6: v6.octets(), mtu: device.mtu, flags };
            datapath.put_device(ifindex, &entry)?;
            for address in [IpAddr::V4(v4), IpAddr::V6(v6)] {
                let entry =
                    layout::KnownAddress { ifindex, flags: address_flags::NODE | address_flags::NODE_PORTS };
                datapath.put_node_address(address, &entry)?;
            }
        }
        let tables = datapath.tables()?;
        Ok(Self {
            datapath,
            tables,
            ids: HashMap::new(),
            services: HashMap::new(),
            marks: HashMap::new(),
            source_ranges: HashSet::new(),
            networks: HashMap::new(),
            backends: HashMap::new(),
            next_service: 1,
            next_backend: 1,
            next_slot: 0,
        })
    }

    /// Makes these the services, as the agent would: what stays keeps its ids, what goes is marked gone.
    pub fn serve(&mut self, entries: &[ServiceEntry]) -> Result<()> {
        let mut gone_services: HashSet<ServiceAddress> = self.services.keys().copied().collect();
        let mut gone_backends: HashSet<(u32, SocketAddr)> = self.backends.keys().copied().collect();
        let mut gone_ranges = self.source_ranges.clone();
        let mut marks: HashMap<IpAddr, u32> = HashMap::new();
        for entry in entries {
            let address = entry.key();
            gone_services.remove(&address);
            let next_id = self.next_service;
            let service_id = *self.ids.entry(entry.port_name()).or_insert(next_id);
            self.next_service = next_id.max(service_id + 1);
            for endpoint in &entry.backends {
                gone_backends.remove(&(service_id, endpoint.address));
                self.backend(service_id, *endpoint)?;
            }
            if entry.marks() != 0 {
                *marks.entry(address.ip).or_default() |= entry.marks();
                self.mark(address.ip, self.marks.get(&address.ip).unwrap_or(&0) | marks[&address.ip])?;
            }
            let family = IpFamily::of(&address.ip);
            let of_family = |sources: &&IpNet| IpFamily::of(&sources.addr()) == family;
            for sources in entry.source_ranges.iter().flatten().filter(of_family) {
                gone_ranges.remove(&(service_id, *sources));
                if self.source_ranges.insert((service_id, *sources)) {
                    self.tables.put_source_range(service_id, *sources)?;
                }
            }
            let service = self.service(service_id, entry)?;
            self.tables.put_service(address, service)?;
            self.services.insert(address, service_id);
        }
        for address in gone_services {
            self.services.remove(&address);
            self.tables.remove_service(address)?;
        }
        for address in self.marks.keys().copied().collect::<Vec<_>>() {
            self.mark(address, marks.get(&address).copied().unwrap_or(0))?;
        }
        for (service_id, sources) in gone_ranges {
            self.source_ranges.remove(&(service_id, sources));
            self.tables.remove_source_range(service_id, sources)?;
        }
        for key in gone_backends {
            if let Some(id) = self.backends.remove(&key) {
                self.tables.clear_backend(IpFamily::of(&key.1.ip()), id)?;
            }
        }
        Ok(())
    }

    /// The map entry of an address; writes its slots.
    fn service(&mut self, service_id: u32, entry: &ServiceEntry) -> Result<layout::Service> {
        let all = self.slots(service_id, entry.backends.iter())?;
        let local = if entry.outside_local || entry.inside_local {
            self.slots(service_id, entry.backends.iter().filter(|endpoint| endpoint.local))?
        } else {
            all
        };
        let (outside, inside) =
            (if entry.outside_local { local } else { all }, if entry.inside_local { local } else { all });
        let (_, outside_count) = outside;
        let (_, inside_count) = inside;
        let outside_drop = outside_count == 0 && (entry.drop || entry.outside_local);
        let inside_drop = inside_count == 0 && (entry.drop || entry.inside_local);
        let mut flags = 0;
        for (set, flag) in [
            (outside_drop, service_flags::OUTSIDE_DROP),
            (inside_drop, service_flags::INSIDE_DROP),
            (entry.kind != Kind::ClusterIp, service_flags::EXTERNAL),
            ((outside, outside_drop) != (inside, inside_drop), service_flags::POLICY_LOCAL),
            (entry.outside_local, service_flags::OUTSIDE_LOCAL),
            (entry.inside_local, service_flags::INSIDE_LOCAL),
            (entry.source_ranges.is_some(), service_flags::SOURCE_RANGES),
        ] {
            flags |= if set { flag } else { 0 };
        }
        Ok(layout::Service {
            service_id,
            flags,
            outside_base: outside.0,
            outside_count,
            inside_base: inside.0,
            inside_count,
            affinity_seconds: entry.affinity_seconds,
            algorithm: algorithm::RANDOM,
            kind: entry.kind as u8,
            pad: 0,
        })
    }

    /// Writes a range of slots for these endpoints: its base and length.
    fn slots<'a>(
        &mut self,
        service_id: u32,
        endpoints: impl Iterator<Item = &'a Endpoint>,
    ) -> Result<(u32, u32)> {
        let ids: Vec<u32> =
            endpoints.map(|endpoint| self.backends[&(service_id, endpoint.address)]).collect();
        let (base, count) = (self.next_slot, ids.len() as u32);
        self.tables.write_slots(base, &ids)?;
        self.next_slot += count;
        Ok(if count == 0 { (0, 0) } else { (base, count) })
    }

    /// Says what Services have at an address.
    fn mark(&mut self, ip: IpAddr, flags: u32) -> Result<()> {
        if self.marks.get(&ip).copied().unwrap_or(0) != flags {
            self.tables.mark_address(ip, flags)?;
        }
        match flags {
            0 => drop(self.marks.remove(&ip)),
            _ => drop(self.marks.insert(ip, flags)),
        }
        Ok(())
    }

    /// Makes these the networks that the programs know.
    pub fn set_networks(&mut self, networks: &Networks) -> Result<()> {
        let mut wanted: HashMap<IpNet, u32> = HashMap::new();
        for (networks, flag) in
            [(&networks.pods, network_flags::PODS), (&networks.service_cidrs, network_flags::SERVICES)]
        {
            for network in networks {
                *wanted.entry(*network).or_default() |= flag;
            }
        }
        for network in self.networks.keys().filter(|network| !wanted.contains_key(network)) {
            self.datapath.remove_network(*network)?;
        }
        for (network, flags) in &wanted {
            self.datapath.put_network(*network, *flags)?;
        }
        self.networks = wanted;
        Ok(())
    }

    fn backend(&mut self, service_id: u32, endpoint: Endpoint) -> Result<()> {
        let id = match self.backends.get(&(service_id, endpoint.address)) {
            Some(_) => return Ok(()),
            None => self.next_backend,
        };
        let local = if endpoint.local { backend_flags::LOCAL | backend_flags::IN_LOCAL } else { 0 };
        let flags = backend_flags::PRESENT | backend_flags::IN_CLUSTER | local;
        let entry = BackendEntry { address: endpoint.address, flags, service_id };
        self.tables.write_backend(IpFamily::of(&endpoint.address.ip()), id, entry)?;
        self.backends.insert((service_id, endpoint.address), id);
        self.next_backend += 1;
        Ok(())
    }

    /// Forgets services, endpoints, networks and connections. Counters go on.
    pub fn clear(&mut self) -> Result<()> {
        self.serve(&[])?;
        self.set_networks(&Networks::default())?;
        self.forget_flows()?;
        self.ids.clear();
        (self.next_service, self.next_backend, self.next_slot) = (1, 1, 0);
        Ok(())
    }

    /// Sweeps the flow tables as the agent does.
    pub fn sweep(&mut self) -> Result<()> {
        let serves = |service_id, destination: ServiceAddress| {
            let unspecified: IpAddr = match destination.ip {
                IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            [destination, ServiceAddress { ip: unspecified, ..destination }]
                .iter()
                .any(|address| self.services.get(address) == Some(&service_id))
        };
        self.datapath.sweep_flows(monotonic_ns(), &FlowTimeouts::default(), serves)?;
        Ok(())
    }

    /// Forgets connections, and which endpoint clients were given.
    pub fn forget_flows(&mut self) -> Result<()> {
        Ok(self.datapath.forget_flows()?)
    }

    /// Gives a packet on a device to a program, `repeat` times.
    pub fn run(&mut self, hook: Hook, ifindex: u32, packet: &[u8], repeat: u32) -> Result<Run> {
        let context =
            if hook.is_xdp() { xdp_context(ifindex, packet.len()) } else { skb_context(ifindex, 0) };
        self.run_in(hook, &context, packet, repeat)
    }

    /// Gives a packet to a tc program that was merged from segments with a payload of that many bytes.
    pub fn run_merged(&mut self, hook: Hook, ifindex: u32, packet: &[u8], segment: u32) -> Result<Run> {
        self.run_in(hook, &skb_context(ifindex, segment), packet, 1)
    }

    fn run_in(&mut self, hook: Hook, context: &[u8], packet: &[u8], repeat: u32) -> Result<Run> {
        let run = self.datapath.test_run(hook.program(), packet, context, repeat).with_context(|| {
            format!("BPF_PROG_TEST_RUN of {} with {} bytes", hook.program(), packet.len())
        })?;
        Ok(Run {
            action: Action::of(hook, run.return_code),
            packet: run.packet,
            nanoseconds: run.nanoseconds,
        })
    }

    /// Every counter, by its label.
    pub fn counters(&self) -> Result<BTreeMap<&'static str, u64>> {
        let counters = self.datapath.maps().counters()?;
        Ok(counters.into_iter().map(|(reason, count)| (reason.label(), count)).collect())
    }

    /// Every flow entry.
    pub fn flows(&self) -> Result<Vec<Flow>> {
        let entries = self.datapath.maps().flows()?;
        Ok(entries
            .into_iter()
            .map(|entry| {
                let protocol = match entry.protocol {
                    layout::TCP => "tcp",
                    layout::UDP => "udp",
                    layout::SCTP => "sctp",
                    _ => "?",
                };
                let end = |address: SocketAddr| format!("{} {}", address.ip(), address.port());
                let direction = if entry.direction == layout::direction::REPLY { "reply" } else { "request" };
                let deliver = if entry.deliver == layout::deliver::ROUTE { "route" } else { "pass" };
                let stage = if entry.half_open { " half-open" } else { "" };
                let text = format!(
                    "{protocol} {} > {} => {} > {} {direction} {deliver}{stage}",
                    end(entry.src),
                    end(entry.dst),
                    end(entry.new_src),
                    end(entry.new_dst),
                );
                Flow { text, half_open: entry.half_open }
            })
            .collect())
    }

    /// Size and verification cost of each program.
    pub fn statistics(&self) -> Result<Vec<ProgramStatistics>> {
        Ok(self.datapath.program_statistics()?)
    }
}

/// `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
fn xdp_context(ifindex: u32, length: usize) -> Vec<u8> {
    [0, length as u32, 0, ifindex, 0, 0].into_iter().flat_map(u32::to_ne_bytes).collect()
}

/// `struct __sk_buff` with only `ifindex` and `gso_size` set: the kernel refuses most other fields.
fn skb_context(ifindex: u32, gso_size: u32) -> Vec<u8> {
    const IFINDEX: usize = 40;
    const GSO_SIZE: usize = 176;
    let mut context = vec![0; GSO_SIZE + 8];
    context[IFINDEX..IFINDEX + 4].copy_from_slice(&ifindex.to_ne_bytes());
    context[GSO_SIZE..GSO_SIZE + 4].copy_from_slice(&gso_size.to_ne_bytes());
    context
}
