//! The programs under test. They are loaded privately: nothing is pinned and nothing is attached.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;
use lb_common::layout::{
    self, FlowTimeouts, address_flags, algorithm, backend_flags, device_flags, kind, network_flags,
    node_flags, service_flags,
};
use lb_common::load::Connections;
use lb_datapath::apply::tables::{BackendEntry, ServiceAddress, Tables};
use lb_datapath::{
    CallCounter, Calls, Datapath, FlowEntry, LoadOptions, MapSizes, ProgramStatistics, ServiceTables,
    TcAttach, TestRun,
};
use lb_model::{IpFamily, Thresholds};

use super::world::{DEVICES, World};

/// Numbers of map entries, and the range of source ports for SNAT.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Limits {
    pub services: u32,
    pub backends: u32,
    pub slots: u32,
    pub flows: u32,
    pub snat_ports: RangeInclusive<u16>,
    /// See [`LoadOptions::neighbour_check_ms`].
    pub neighbour_check_ms: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            services: 64,
            backends: 1024,
            slots: 1024,
            flows: 4096,
            snat_ports: 61_000..=65_535,
            neighbour_check_ms: 0,
        }
    }
}

/// The program that a packet is given to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hook {
    Xdp,
    TcIngress,
    TcEgress,
    /// On a device without Ethernet header.
    TcIngressL3,
    /// On a device without Ethernet header.
    TcEgressL3,
    /// An XDP program that does the minimum with a packet: the baseline of the benchmark.
    Floor,
}

impl Hook {
    /// Returns the name of the program.
    pub fn program(self) -> &'static str {
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

    /// Returns the context of a test run on a packet of a device.
    fn context(self, ifindex: u32, packet: &[u8]) -> Vec<u8> {
        if self.is_xdp() { xdp_context(ifindex, packet.len()) } else { skb_context(ifindex, 0) }
    }
}

/// The action that a program returns for a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The packet continues on its path.
    Pass,
    Drop,
    /// The packet is sent out of the device that it arrived on (XDP).
    Tx,
    /// The packet is sent out of another device, or by tc.
    Redirect,
    /// A return code that no program should return.
    Unexpected(u32),
}

impl Action {
    /// Converts `enum xdp_action` and `TC_ACT_*` (include/uapi/linux/bpf.h, pkt_cls.h). A tc
    /// program passes a packet with `TC_ACT_UNSPEC`, so that the next program of the device also
    /// runs.
    fn of(hook: Hook, code: u32) -> Self {
        match (hook.is_xdp(), code) {
            (true, 1) | (false, 2) => Self::Drop,
            (true, 2) | (false, u32::MAX) => Self::Pass,
            (true, 3) => Self::Tx,
            (true, 4) | (false, 7) => Self::Redirect,
            (_, code) => Self::Unexpected(code),
        }
    }
}

/// The result of a test run.
#[derive(Debug, Clone)]
pub struct Run {
    pub action: Action,
    pub packet: Vec<u8>,
    /// Mean duration of one repetition, as the kernel measures it.
    pub nanoseconds: u32,
}

impl Run {
    fn of(hook: Hook, run: TestRun) -> Self {
        Self { action: Action::of(hook, run.return_code), packet: run.packet, nanoseconds: run.nanoseconds }
    }
}

/// A Service port at one address: one entry of the map `SERVICES_V4` or `SERVICES_V6`.
#[derive(Debug, Clone)]
pub struct ServiceAddressEntry {
    /// Entries with the same name are addresses of one Service port. An entry without a name is the
    /// only address of its Service port.
    pub name: Option<String>,
    /// The unspecified address stands for every address of the node.
    pub address: SocketAddr,
    pub protocol: u8,
    pub kind: AddressKind,
    pub backends: Vec<BackendEndpoint>,
    /// If there is no backend, packets are dropped instead of rejected.
    pub drop: bool,
    /// Sources that may use the address. `None` allows all.
    pub source_ranges: Option<Vec<IpNet>>,
    /// Session affinity in seconds. 0 turns it off.
    pub affinity_seconds: u32,
    /// One of [`algorithm`].
    pub algorithm: u8,
    /// A TCP client that repeats its SYN gets another endpoint.
    pub failover: bool,
    /// Endpoints that refuse or do not answer are left out.
    pub passive_health: bool,
    /// When a backend has too many connections to get new ones.
    pub thresholds: Option<Thresholds>,
    /// Another backend replaces one that is overloaded, with an algorithm by a hash.
    pub fallback: bool,
    /// Traffic from outside the cluster uses local backends only. It is dropped if there are none.
    pub outside_local: bool,
    /// Traffic from pods and from the node uses local backends only. It is dropped if there are
    /// none.
    pub inside_local: bool,
}

impl ServiceAddressEntry {
    /// Returns an entry with default settings: a NodePort for the unspecified address, otherwise a
    /// ClusterIP.
    pub fn new(address: SocketAddr, protocol: u8, backends: Vec<BackendEndpoint>) -> Self {
        let kind = if address.ip().is_unspecified() { AddressKind::NodePort } else { AddressKind::ClusterIp };
        Self {
            name: None,
            address,
            protocol,
            kind,
            backends,
            drop: false,
            source_ranges: None,
            affinity_seconds: 0,
            algorithm: algorithm::RANDOM,
            failover: false,
            passive_health: false,
            thresholds: None,
            fallback: false,
            outside_local: false,
            inside_local: false,
        }
    }

    fn key(&self) -> ServiceAddress {
        ServiceAddress { ip: self.address.ip(), port: self.address.port(), protocol: self.protocol }
    }

    /// Returns whether another backend replaces one that is overloaded.
    fn replaces_overloaded(&self) -> bool {
        let is_by_hash = (algorithm::HASH_SOURCE..=algorithm::HASH_DESTINATION).contains(&self.algorithm);
        self.thresholds.is_some() && self.algorithm != algorithm::OVERFLOW && (self.fallback || !is_by_hash)
    }

    /// Returns the name that identifies the Service port.
    fn port_name(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.key().to_string())
    }

    /// Returns the flags that the address needs in the map `ADDRESSES`.
    fn address_flags(&self) -> u32 {
        match self.kind {
            AddressKind::NodePort => 0,
            AddressKind::ClusterIp => address_flags::SERVICE | address_flags::CLUSTER_IP,
            AddressKind::ExternalIp | AddressKind::LoadBalancer => address_flags::SERVICE,
        }
    }
}

/// The kind of Service address that an entry has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum AddressKind {
    ClusterIp = kind::CLUSTER_IP,
    NodePort = kind::NODE_PORT,
    ExternalIp = kind::EXTERNAL_IP,
    LoadBalancer = kind::LOAD_BALANCER,
}

/// Networks of pods and of Services, by which the programs classify addresses.
#[derive(Debug, Clone, Default)]
pub struct Networks {
    pub pods: Vec<IpNet>,
    pub service_cidrs: Vec<IpNet>,
    /// The kernel forwards translated packets to these networks.
    pub by_kernel: Vec<IpNet>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackendEndpoint {
    pub address: SocketAddr,
    pub local: bool,
    /// Matters for algorithms that compare connections.
    pub weight: u32,
}

impl BackendEndpoint {
    /// Returns an endpoint with weight 1.
    pub fn new(address: SocketAddr, local: bool) -> Self {
        Self { address, local, weight: 1 }
    }
}

/// A flow entry, in the form in which cases write it.
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

/// Returns the load options for programs with these limits.
pub fn load_options(limits: &Limits) -> LoadOptions {
    let sizes = MapSizes {
        max_services: limits.services,
        max_slots: limits.slots,
        max_backends: limits.backends,
        max_flows: limits.flows,
        max_fragments: 4096,
        max_socket_peers: 64,
        max_source_ranges: 64,
        max_affinity: 64,
    };
    let snat_ports = (*limits.snat_ports.start(), *limits.snat_ports.end());
    LoadOptions {
        sizes,
        map_memory: sizes.memory(),
        snat_ports,
        flow_timeouts: FlowTimeouts::DEFAULT,
        log_level: 0,
        tc_attach: TcAttach::Auto,
        protect_node_ports: true,
        host_sockets_only: false,
        neighbour_check_ms: limits.neighbour_check_ms,
        kernel_fragments: true,
    }
}

/// The loaded programs, and the entries that the test has written to their maps.
pub struct Subject {
    datapath: Datapath,
    /// The programs that count their helper calls. Each is loaded when it is needed first.
    call_counters: HashMap<Hook, CallCounter>,
    tables: ServiceTables,
    /// Ids of Service ports, by name.
    ids: HashMap<String, u32>,
    services: HashMap<ServiceAddress, u32>,
    address_flags: HashMap<IpAddr, u32>,
    source_ranges: HashSet<(u32, IpNet)>,
    networks: HashMap<IpNet, u32>,
    backends: HashMap<(u32, SocketAddr), u32>,
    next_service: u32,
    next_backend: u32,
    next_slot: u32,
}

impl Subject {
    /// Loads the programs with empty maps, and writes the devices and addresses of the world to the
    /// maps.
    pub fn load(limits: &Limits, world: &World) -> Result<Self> {
        let options = load_options(limits);
        let datapath = Datapath::load_private(&options).context("cannot load the programs")?;
        for device in DEVICES {
            let ifindex = world.ifindex(device.name).context("no such device")?;
            let [v4, v6] = device.addresses;
            let (v4, v6): (Ipv4Addr, Ipv6Addr) = (v4.parse()?, v6.parse()?);
            let mut flags = 0;
            flags |= if device.xdp_target { device_flags::XDP_TARGET } else { 0 };
            flags |= match device.pod {
                true => device_flags::POD | device_flags::ONLY_LOCAL_PODS,
                false => device_flags::OTHER_NODES,
            };
            let entry = layout::Device { addr_v4: v4.octets(), addr_v6: v6.octets(), flags };
            datapath.host().set_device(ifindex, Some(&entry))?;
            let link = layout::LinkAddress { addr: device.mac, pad: [0; 2] };
            datapath.host().set_link(ifindex, Some(&link))?;
            for address in [IpAddr::V4(v4), IpAddr::V6(v6)] {
                let entry =
                    layout::KnownAddress { ifindex, flags: address_flags::NODE | address_flags::NODE_PORTS };
                datapath.host().set_address(address, Some(&entry))?;
            }
        }
        let tables = datapath.tables()?;
        Ok(Self {
            datapath,
            call_counters: HashMap::new(),
            tables,
            ids: HashMap::new(),
            services: HashMap::new(),
            address_flags: HashMap::new(),
            source_ranges: HashSet::new(),
            networks: HashMap::new(),
            backends: HashMap::new(),
            next_service: 1,
            next_backend: 1,
            next_slot: 0,
        })
    }

    /// Returns the maps of services and endpoints, for Services that are not written with
    /// [`Self::serve`]. A subject has either these or those.
    pub fn tables(&self) -> Result<ServiceTables> {
        Ok(self.datapath.tables()?)
    }

    /// Replaces all services, as the agent would: entries that stay keep their ids, and backends
    /// that are removed are marked as gone.
    pub fn serve(&mut self, entries: &[ServiceAddressEntry]) -> Result<()> {
        let mut gone_services: HashSet<ServiceAddress> = self.services.keys().copied().collect();
        let mut gone_backends: HashSet<(u32, SocketAddr)> = self.backends.keys().copied().collect();
        let mut gone_ranges = self.source_ranges.clone();
        let mut flags: HashMap<IpAddr, u32> = HashMap::new();
        for entry in entries {
            let address = entry.key();
            gone_services.remove(&address);
            let service_id = self.service_id(entry)?;
            for endpoint in &entry.backends {
                gone_backends.remove(&(service_id, endpoint.address));
                self.backend(service_id, *endpoint, entry)?;
            }
            if entry.address_flags() != 0 {
                *flags.entry(address.ip).or_default() |= entry.address_flags();
                let old = self.address_flags.get(&address.ip).copied().unwrap_or(0);
                self.set_address_flags(address.ip, old | flags[&address.ip])?;
            }
            let family = IpFamily::of(&address.ip);
            let of_family = |sources: &&IpNet| IpFamily::of(&sources.addr()) == family;
            for sources in entry.source_ranges.iter().flatten().filter(of_family) {
                gone_ranges.remove(&(service_id, *sources));
                if self.source_ranges.insert((service_id, *sources)) {
                    self.tables.put_source_range(service_id, *sources)?;
                }
            }
            match entry.thresholds {
                Some(thresholds) => self.tables.put_thresholds(service_id, thresholds)?,
                None => self.tables.remove_thresholds(service_id)?,
            }
            let service = self.service(service_id, entry)?;
            self.tables.put_service(address, service)?;
            self.services.insert(address, service_id);
        }
        for address in gone_services {
            self.services.remove(&address);
            self.tables.remove_service(address)?;
        }
        for address in self.address_flags.keys().copied().collect::<Vec<_>>() {
            self.set_address_flags(address, flags.get(&address).copied().unwrap_or(0))?;
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
        self.tidy_filter()
    }

    /// Returns the id of the Service port of an entry. A new one gets a name in the maps.
    fn service_id(&mut self, entry: &ServiceAddressEntry) -> Result<u32> {
        let name = entry.port_name();
        if let Some(id) = self.ids.get(&name) {
            return Ok(*id);
        }
        let id = self.next_service;
        self.tables.put_service_name(id, &service_name(id, entry))?;
        self.ids.insert(name, id);
        self.next_service += 1;
        Ok(id)
    }

    /// Writes the slots of an entry and returns its map value.
    fn service(&mut self, service_id: u32, entry: &ServiceAddressEntry) -> Result<layout::ServiceEntry> {
        let all = self.slots(service_id, entry.backends.iter())?;
        let local = if entry.outside_local || entry.inside_local {
            self.slots(service_id, entry.backends.iter().filter(|endpoint| endpoint.local))?
        } else {
            all
        };
        if entry.algorithm == algorithm::IN_TURN {
            for (base, _) in BTreeSet::from([all, local]) {
                self.tables.put_cursor(base, 0)?;
            }
        }
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
            ((outside, outside_drop) != (inside, inside_drop), service_flags::POLICY_LOCAL),
            (entry.outside_local, service_flags::OUTSIDE_LOCAL),
            (entry.inside_local, service_flags::INSIDE_LOCAL),
            (entry.source_ranges.is_some(), service_flags::SOURCE_RANGES),
            (entry.replaces_overloaded(), service_flags::REPLACE_OVERLOADED),
        ] {
            flags |= if set { flag } else { 0 };
        }
        Ok(layout::ServiceEntry {
            service_id,
            flags,
            outside_base: outside.0,
            outside_count,
            inside_base: inside.0,
            inside_count,
            affinity_seconds: entry.affinity_seconds,
            algorithm: entry.algorithm,
            kind: entry.kind as u8,
            scheduler: 0,
            pad: 0,
        })
    }

    /// Writes a range of slots for these endpoints. Returns its base and length.
    fn slots<'a>(
        &mut self,
        service_id: u32,
        endpoints: impl Iterator<Item = &'a BackendEndpoint>,
    ) -> Result<(u32, u32)> {
        let ids: Vec<u32> =
            endpoints.map(|endpoint| self.backends[&(service_id, endpoint.address)]).collect();
        let (base, count) = (self.next_slot, ids.len() as u32);
        self.tables.write_slots(base, &ids)?;
        self.next_slot += count;
        Ok(if count == 0 { (0, 0) } else { (base, count) })
    }

    /// Writes the flags of a Service address, if they have changed.
    fn set_address_flags(&mut self, ip: IpAddr, flags: u32) -> Result<()> {
        if self.address_flags.get(&ip).copied().unwrap_or(0) != flags {
            self.tables.mark_address(ip, flags)?;
        }
        match flags {
            0 => drop(self.address_flags.remove(&ip)),
            _ => drop(self.address_flags.insert(ip, flags)),
        }
        Ok(())
    }

    /// Replaces all networks.
    pub fn set_networks(&mut self, networks: &Networks) -> Result<()> {
        let mut wanted: HashMap<IpNet, u32> = HashMap::new();
        for (networks, flag) in [
            (&networks.pods, network_flags::PODS),
            (&networks.service_cidrs, network_flags::SERVICES),
            (&networks.by_kernel, network_flags::BY_KERNEL),
        ] {
            for network in networks {
                *wanted.entry(*network).or_default() |= flag;
            }
        }
        for network in self.networks.keys().filter(|network| !wanted.contains_key(network)) {
            self.datapath.host().set_network(*network, None)?;
        }
        for (network, flags) in &wanted {
            self.datapath.host().set_network(*network, Some(*flags))?;
        }
        self.networks = wanted;
        Ok(())
    }

    fn backend(
        &mut self,
        service_id: u32,
        endpoint: BackendEndpoint,
        entry: &ServiceAddressEntry,
    ) -> Result<()> {
        let id = match self.backends.get(&(service_id, endpoint.address)) {
            Some(_) => return Ok(()),
            None => self.next_backend,
        };
        let local = if endpoint.local { backend_flags::LOCAL | backend_flags::IN_LOCAL } else { 0 };
        let failover = if entry.failover { backend_flags::FAILOVER } else { 0 };
        let health = if entry.passive_health { backend_flags::PASSIVE_HEALTH } else { 0 };
        let limit = if entry.thresholds.is_some() { backend_flags::THRESHOLDS } else { 0 };
        let flags = backend_flags::PRESENT | backend_flags::IN_CLUSTER | local | failover | health | limit;
        let entry = BackendEntry { address: endpoint.address, flags, service_id, weight: endpoint.weight };
        self.tables.write_backend(IpFamily::of(&endpoint.address.ip()), id, entry)?;
        self.backends.insert((service_id, endpoint.address), id);
        self.next_backend += 1;
        Ok(())
    }

    /// Removes services, endpoints, networks and flows. Counters keep their values.
    pub fn clear(&mut self) -> Result<()> {
        self.serve(&[])?;
        self.set_networks(&Networks::default())?;
        self.forget_flows()?;
        self.allow_answers(true)?;
        self.set_kube_proxy(true)?;
        self.datapath.sweeper()?.forget_gone_endpoints()?;
        for id in std::mem::take(&mut self.ids).into_values() {
            self.tables.remove_thresholds(id)?;
            self.tables.remove_service_name(id)?;
        }
        (self.next_service, self.next_backend, self.next_slot) = (1, 1, 0);
        Ok(())
    }

    /// Clears all bits of the first filter that entries and connections do not need. No program
    /// runs meanwhile.
    pub fn tidy_filter(&mut self) -> Result<()> {
        let sweeper = self.datapath.sweeper()?;
        for _ in 0..2 {
            let tidied = sweeper.tidy_filter(lb_datapath::monotonic_ns())?;
            ensure!(tidied.set == 0, "{} bits of the first filter were missing", tidied.set);
        }
        ensure!(!sweeper.is_filter_due(Instant::now()), "bits of the first filter are left");
        Ok(())
    }

    /// Allows or forbids ICMP errors and resets, as if the programs had sent none lately, or too
    /// many.
    pub fn allow_answers(&mut self, allowed: bool) -> Result<()> {
        Ok(self.datapath.set_next_answer(if allowed { 0 } else { u64::MAX / 2 })?)
    }

    /// Writes whether rules of kube-proxy are on the node.
    pub fn set_kube_proxy(&mut self, present: bool) -> Result<()> {
        let flags = if present { 0 } else { node_flags::NO_KUBE_PROXY };
        let entry = layout::Device { addr_v4: [0; 4], addr_v6: [0; 16], flags };
        Ok(self.datapath.host().set_device(layout::NODE, Some(&entry))?)
    }

    /// Lets time pass for all connections and session affinities: they are silent for this many
    /// seconds more than they were.
    pub fn wait(&mut self, seconds: u64) -> Result<()> {
        Ok(self.datapath.age_flows(seconds)?)
    }

    /// Removes all flow and affinity entries.
    pub fn forget_flows(&mut self) -> Result<()> {
        Ok(self.datapath.forget_flows()?)
    }

    /// Runs a program `repeat` times on a packet of a device.
    pub fn run(&mut self, hook: Hook, ifindex: u32, packet: &[u8], repeat: u32) -> Result<Run> {
        self.run_in(hook, &hook.context(ifindex, packet), packet, repeat)
    }

    /// Runs a tc program on a packet that was merged from segments with `segment` bytes of payload
    /// each.
    pub fn run_merged(&mut self, hook: Hook, ifindex: u32, packet: &[u8], segment: u32) -> Result<Run> {
        self.run_in(hook, &skb_context(ifindex, segment), packet, 1)
    }

    fn run_in(&mut self, hook: Hook, context: &[u8], packet: &[u8], repeat: u32) -> Result<Run> {
        let run = self.datapath.test_run(hook.program(), packet, context, repeat).with_context(|| {
            format!("BPF_PROG_TEST_RUN of {} with {} bytes", hook.program(), packet.len())
        })?;
        Ok(Run::of(hook, run))
    }

    /// Runs a packet through an XDP or tc program, and returns the helper calls of the run.
    pub fn count_calls(&mut self, hook: Hook, ifindex: u32, packet: &[u8]) -> Result<(Run, Calls)> {
        let counter = match self.call_counters.entry(hook) {
            Entry::Occupied(loaded) => loaded.into_mut(),
            Entry::Vacant(vacant) => {
                let counter = self.datapath.load_call_counter(hook.program());
                vacant.insert(counter.context("cannot load the program that counts its calls")?)
            }
        };
        let counted = counter.run(packet, &hook.context(ifindex, packet));
        let (run, calls) = counted.with_context(|| hook.program().to_owned())?;
        Ok((Run::of(hook, run), calls))
    }

    /// Returns every counter by its label.
    pub fn counters(&self) -> Result<BTreeMap<&'static str, u64>> {
        let counters = self.datapath.maps().counters()?;
        Ok(counters.into_iter().map(|(reason, count)| (reason.label(), count)).collect())
    }

    /// Sets the time-outs of connections. Programs are loaded with the defaults.
    pub fn set_timeouts(&mut self, timeouts: &FlowTimeouts) -> Result<()> {
        Ok(self.datapath.set_flow_timeouts(timeouts)?)
    }

    /// Returns every connection that is not over.
    pub fn connections(&self) -> Result<Vec<FlowEntry>> {
        Ok(self.datapath.maps().flows()?)
    }

    /// Returns both directions of every connection that is not over.
    pub fn flows(&self) -> Result<Vec<Flow>> {
        Ok(self.connections()?.iter().flat_map(directions).collect())
    }

    /// Returns source and destination of the replies that half-open connections wait for.
    pub fn awaited_replies(&self) -> Result<Vec<(SocketAddr, SocketAddr)>> {
        let entries = self.datapath.maps().flows()?;
        let half_open = entries.iter().filter(|entry| entry.state.is_half_open(entry.protocol));
        Ok(half_open.map(|entry| (entry.backend, entry.source)).collect())
    }

    /// Returns the endpoints that have connections, each with the active and inactive ones.
    pub fn loads(&self) -> Result<Vec<(SocketAddr, Connections)>> {
        let loads = self.datapath.maps().loads()?;
        let known =
            self.backends.iter().map(|((_, address), id)| (*address, (IpFamily::of(&address.ip()), *id)));
        Ok(known.filter_map(|(address, id)| Some((address, *loads.get(&id)?))).collect())
    }

    /// Reads the flow table as the agent does, and ends connections that are over.
    pub fn sweep(&self) -> Result<()> {
        self.datapath.sweeper()?.flow_usage(lb_datapath::monotonic_ns())?;
        Ok(())
    }

    /// Returns the endpoints for whose connections no source port was free, each with the number of
    /// packets.
    pub fn port_shortages(&self) -> Result<Vec<(SocketAddr, u64)>> {
        let shortages = self.datapath.maps().port_shortages()?.into_iter();
        Ok(shortages.map(|shortage| (shortage.endpoint, shortage.packets)).collect())
    }

    /// Returns the endpoints that are left out, each with the number of times in succession.
    pub fn left_out(&self) -> Result<Vec<(SocketAddr, u32)>> {
        let left_out = self.datapath.maps().left_out()?.into_iter();
        Ok(left_out.map(|endpoint| (endpoint.endpoint, endpoint.level)).collect())
    }

    /// Returns size and verification cost of each program.
    pub fn statistics(&self) -> Result<Vec<ProgramStatistics>> {
        Ok(self.datapath.program_statistics()?)
    }
}

/// Returns the entry of `SERVICE_NAMES`: `test/service-ID`.
fn service_name(id: u32, entry: &ServiceAddressEntry) -> layout::ServiceName {
    let field = |text: &str| {
        let mut bytes = [0; 64];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        bytes
    };
    layout::ServiceName {
        namespace: field("test"),
        name: field(&format!("service-{id}")),
        port_name: [0; 64],
        port: entry.address.port(),
        protocol: entry.protocol,
        pad: 0,
    }
}

/// Returns both directions of a connection, as cases write them.
fn directions(entry: &FlowEntry) -> [Flow; 2] {
    let protocol = match entry.protocol {
        layout::TCP => "tcp",
        layout::UDP => "udp",
        layout::SCTP => "sctp",
        _ => "?",
    };
    let half_open = entry.state.is_half_open(entry.protocol);
    let deliver = if entry.deliver == layout::deliver::ROUTE { "route" } else { "pass" };
    let stage = if half_open { " half-open" } else { "" };
    let flow = |direction: &str, [src, dst, new_src, new_dst]: [SocketAddr; 4]| {
        let end = |address: SocketAddr| format!("{} {}", address.ip(), address.port());
        let text = format!(
            "{protocol} {} > {} => {} > {} {direction} {deliver}{stage}",
            end(src),
            end(dst),
            end(new_src),
            end(new_dst),
        );
        Flow { text, half_open }
    };
    [
        flow("request", [entry.client, entry.service, entry.source, entry.backend]),
        flow("reply", [entry.backend, entry.source, entry.service, entry.client]),
    ]
}

/// Returns a `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index,
/// egress_ifindex.
fn xdp_context(ifindex: u32, length: usize) -> Vec<u8> {
    [0, length as u32, 0, ifindex, 0, 0].into_iter().flat_map(u32::to_ne_bytes).collect()
}

/// Returns a `struct __sk_buff` with `ifindex` and `gso_size`. The kernel refuses most other
/// fields.
fn skb_context(ifindex: u32, gso_size: u32) -> Vec<u8> {
    const IFINDEX: usize = 40;
    const GSO_SIZE: usize = 176;
    let mut context = vec![0; GSO_SIZE + 8];
    context[IFINDEX..IFINDEX + 4].copy_from_slice(&ifindex.to_ne_bytes());
    context[GSO_SIZE..GSO_SIZE + 4].copy_from_slice(&gso_size.to_ne_bytes());
    context
}
