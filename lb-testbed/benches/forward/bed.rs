//! The subjects of the comparison, each with a cluster of its own.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use lb_common::traffic::{FloorRewrite, NODE_PORT, TARGET_PORT};
use lb_testbed::agent::program;
use lb_testbed::command;
use lb_testbed::control_plane::{KubeProxyMode, RunningProxy, ServiceProxy};
use lb_testbed::manifests::{ServiceManifest, ServicePort};
use lb_testbed::packet::layer::Mac;
use lb_testbed::topology::Node;
use lb_testbed::{AttachMode, Family, Host, Place, Topology, Underlay};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};
use serde::Serialize;
use serde_json::{Value, json};

use crate::frames::Target;
use crate::traffic::Traffic;

/// Endpoints of the Service. They are behind the second node.
const ENDPOINTS: u16 = 64;
const FIRST_ENDPOINT: u16 = 20;
const NIC: &str = "eth0";

/// What handles the packets of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// The least that an XDP program can do.
    Floor,
    /// The kernel, which forwards packets to the endpoint's own address. There is no Service.
    Routing,
    SluiceXdp,
    SluiceTc,
    KubeProxyNftables,
    KubeProxyIptables,
}

impl Subject {
    pub const ALL: [Self; 6] = [
        Self::Floor,
        Self::SluiceXdp,
        Self::Routing,
        Self::SluiceTc,
        Self::KubeProxyNftables,
        Self::KubeProxyIptables,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Routing => "routing",
            Self::SluiceXdp => "Sluice XDP",
            Self::SluiceTc => "Sluice tc",
            Self::KubeProxyNftables => "kube-proxy nftables",
            Self::KubeProxyIptables => "kube-proxy iptables",
        }
    }

    pub fn kube_proxy(self) -> Option<KubeProxyMode> {
        match self {
            Self::KubeProxyNftables => Some(KubeProxyMode::Nftables),
            Self::KubeProxyIptables => Some(KubeProxyMode::Iptables),
            _ => None,
        }
    }

    fn mode(self) -> AttachMode {
        if matches!(self, Self::Floor | Self::SluiceXdp) { AttachMode::Xdp } else { AttachMode::Tc }
    }
}

/// A cluster whose first node is measured. Dropping it removes everything.
pub struct Bed {
    pub subject: Subject,
    /// Index of the node's device for the generator.
    pub device: u32,
    /// The kernel thread that handles what the node receives.
    thread: Pid,
    pub node_mac: Mac,
    pub next_node_mac: Mac,
    gateway_mac: Mac,
    // It is dropped before its cluster.
    _proxy: Option<RunningProxy>,
    topology: Topology,
}

impl Bed {
    pub fn build(subject: Subject, device: u32, traffic: &mut Traffic) -> Result<Self> {
        if matches!(subject, Subject::SluiceXdp | Subject::SluiceTc) {
            program()?;
        }
        let tool = Path::new(env!("CARGO_BIN_EXE_lb-testbed"));
        let topology = Topology::build(Underlay::Routed, subject.mode(), tool)?;
        let [node, next] = &topology.nodes;
        let [node_mac, next_node_mac, gateway_mac] =
            [mac(&node.host)?, mac(&next.host)?, mac(&topology.client)?];
        prepare(node, &[(&next.host, next_node_mac), (&topology.client, gateway_mac)])?;
        let objects = service_objects(&next.host.name);
        let mut proxy = None;
        match subject {
            Subject::Routing => {}
            Subject::Floor => traffic.attach_floor(
                &node.host.place,
                NIC,
                FloorRewrite {
                    endpoint_v4: endpoint_v4(0).octets(),
                    endpoint_v6: endpoint_v6(0).octets(),
                    node_v4: node.host.v4.octets(),
                    node_v6: node.host.v6.octets(),
                    next_node: next_node_mac,
                    gateway: gateway_mac,
                },
            )?,
            Subject::SluiceXdp | Subject::SluiceTc => {
                proxy = Some(ServiceProxy::Sluice.start(&topology, &objects, &served())?);
            }
            Subject::KubeProxyNftables | Subject::KubeProxyIptables => {
                let mode = subject.kube_proxy().context("not kube-proxy")?;
                proxy = Some(ServiceProxy::KubeProxy(mode).start(&topology, &objects, &served())?);
                // Generated frames have no verdict of a NIC on their checksum.
                node.host.place.sysctl(&["net/netfilter/nf_conntrack_checksum=0"])?;
            }
        }
        traffic.connect(&topology, node, device)?;
        let thread = napi_thread(&node.host.place)?;
        Ok(Self { subject, device, thread, node_mac, next_node_mac, gateway_mac, _proxy: proxy, topology })
    }

    /// Returns where clients send their requests.
    pub fn target(&self, family: Family) -> Target {
        let (address, port) = match (self.subject, family) {
            (Subject::Routing, Family::V4) => (endpoint_v4(0).into(), TARGET_PORT),
            (Subject::Routing, Family::V6) => (endpoint_v6(0).into(), TARGET_PORT),
            _ => (self.topology.nodes[0].host.address(family), NODE_PORT),
        };
        Target { gateway: self.gateway_mac, node: self.node_mac, address, port }
    }

    /// Returns how long the node's thread has run, in nanoseconds.
    pub fn run_time(&self) -> Result<u64> {
        let path = format!("/proc/{}/schedstat", self.thread.as_raw_nonzero());
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        text.split(' ').next().and_then(|field| field.parse().ok()).with_context(|| format!("{path}: {text}"))
    }
}

/// Gives the node fixed neighbours, and receive processing as with a real NIC.
fn prepare(node: &Node, neighbours: &[(&Host, Mac)]) -> Result<()> {
    let place = &node.host.place;
    for (host, mac) in neighbours {
        let mac = text(*mac);
        for address in Family::BOTH.map(|family| host.address(family)) {
            place.ip(&format!("neighbour replace {address} lladdr {mac} dev {NIC} nud permanent\n"))?;
        }
    }
    // A veth device processes frames in batches (NAPI) only with GRO or XDP.
    place.run("ethtool", ["--offload", NIC, "gro", "on"]).map(drop)
}

/// Moves the receive processing of the node's NIC into a thread of its own on the last CPU. All
/// that a packet costs is done there: XDP, tc, netfilter, routing, and sending.
fn napi_thread(place: &Place) -> Result<Pid> {
    let before = napi_threads()?;
    let script = format!("echo 1 > /sys/class/net/{NIC}/threaded");
    // This mounts the `/sys` of the network namespace.
    command::run(Command::new("ip").args(["netns", "exec", place.netns(), "sh", "-c", &script]))?;
    let new: Vec<i32> = napi_threads()?.difference(&before).copied().collect();
    ensure!(new.len() == 1, "{} threads appeared for {NIC}, not one", new.len());
    let pid = Pid::from_raw(new[0]).context("not a process")?;
    sched_setaffinity(Some(pid), &one_cpu(true)?).context("pin the thread")?;
    rustix::process::setpriority_process(Some(pid), PRIORITY).context("raise the priority of the thread")?;
    Ok(pid)
}

/// The priority of both measured threads: other work on the machine hardly delays them.
pub const PRIORITY: i32 = -15;

fn napi_threads() -> Result<BTreeSet<i32>> {
    let mut threads = BTreeSet::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let Some(pid) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
        // A process may end meanwhile.
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        if name.starts_with(&format!("napi/{NIC}-")) {
            threads.insert(pid);
        }
    }
    Ok(threads)
}

/// Returns the first or the last CPU that this process may use.
pub fn one_cpu(last: bool) -> Result<CpuSet> {
    let allowed = rustix::thread::sched_getaffinity(None).context("sched_getaffinity")?;
    let mut cpus = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
    let cpu = if last { cpus.next_back() } else { cpus.next() };
    let mut one = CpuSet::new();
    one.set(cpu.context("no CPU")?);
    Ok(one)
}

fn endpoint_v4(number: u16) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, 2, (FIRST_ENDPOINT + number) as u8)
}

fn endpoint_v6(number: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x244, 2, 0, 0, 0, 1, FIRST_ENDPOINT + number)
}

fn service() -> ServiceManifest {
    ServiceManifest {
        namespace: "default".to_owned(),
        name: "measured".to_owned(),
        cluster_ips: vec![
            Ipv4Addr::new(10, 96, 0, 99).into(),
            Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 99).into(),
        ],
        ports: vec![ServicePort::udp("", TARGET_PORT, TARGET_PORT).node_port(NODE_PORT)],
    }
}

/// Returns addresses that the rules of a proxy have when it serves the Service.
fn served() -> Vec<IpAddr> {
    [service().cluster_ips, vec![endpoint_v4(0).into(), endpoint_v6(0).into()]].concat()
}

/// Returns the Service, and its endpoints on this node. No process has their addresses: the counter
/// takes what is sent to them.
fn service_objects(node: &str) -> Vec<Value> {
    let service = service();
    let slices = Family::BOTH.map(|family| {
        let mut slice = service.slice(family, &[]);
        let addresses = (0..ENDPOINTS).map(|number| match family {
            Family::V4 => IpAddr::from(endpoint_v4(number)),
            Family::V6 => endpoint_v6(number).into(),
        });
        let endpoints = addresses.map(|address| {
            let conditions = json!({ "ready": true, "serving": true, "terminating": false });
            json!({ "addresses": [address.to_string()], "conditions": conditions, "nodeName": node })
        });
        slice["endpoints"] = endpoints.collect::<Vec<_>>().into();
        slice
    });
    [service.object()].into_iter().chain(slices).collect()
}

/// Returns the MAC address of a host's NIC.
fn mac(host: &Host) -> Result<Mac> {
    let output = host.place.run("ip", ["-json", "link", "show", "dev", NIC])?;
    let links: Value = serde_json::from_str(&output)?;
    let address = links[0]["address"].as_str().context("a NIC without an address")?;
    let bytes: Vec<u8> =
        address.split(':').map(|byte| Ok(u8::from_str_radix(byte, 16)?)).collect::<Result<_>>()?;
    bytes.try_into().ok().with_context(|| format!("{address} is no MAC address"))
}

fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
