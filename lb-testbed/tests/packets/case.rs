//! The format of a case file. `cases/README.md` documents it.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use lb_common::layout::algorithm;
use serde::Deserialize;

/// One document of a case file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Case {
    /// Its name, unique in its file.
    pub case: String,
    /// The reason for the expected result: a document, an RFC, a bug.
    #[serde(default, rename = "why")]
    pub _why: Option<String>,
    #[serde(default = "both_families")]
    pub families: Vec<Family>,
    #[serde(default = "xdp_and_tc")]
    pub modes: Vec<Mode>,
    #[serde(default)]
    pub limits: Limits,
    /// Networks of pods, of both families.
    #[serde(default)]
    pub pods: Vec<String>,
    /// ServiceCIDRs, of both families.
    #[serde(default)]
    pub service_cidrs: Vec<String>,
    /// Networks to which the kernel forwards translated packets.
    #[serde(default)]
    pub by_kernel: Vec<String>,
    #[serde(default)]
    pub services: Vec<Service>,
    /// No rules of kube-proxy are on the node.
    #[serde(default)]
    pub without_kube_proxy: bool,
    /// Sockets that processes of this node have while the case runs.
    #[serde(default)]
    pub sockets: Vec<Socket>,
    pub steps: Vec<Step>,
}

/// A socket of this node: bound with UDP, listening with TCP.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Socket {
    pub address: String,
    pub port: u16,
    pub protocol: Protocol,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    V4,
    V6,
}

/// The programs that are attached to the devices of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// XDP and tc, as on a device in XDP mode: packets that XDP passes go through tc.
    Xdp,
    /// Only tc.
    Tc,
    /// Only tc, on a device without Ethernet header.
    L3,
}

/// Limits that a case can lower.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Limits {
    pub flows: u32,
    pub first_snat_port: u16,
    pub last_snat_port: u16,
    /// The time for which XDP sends packets to a neighbour before the kernel checks it. With 0, XDP
    /// never leaves a packet to the kernel.
    pub neighbour_check_ms: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { flows: 4096, first_snat_port: 61_000, last_snat_port: 65_535, neighbour_check_ms: 0 }
    }
}

impl Limits {
    pub fn to_program_limits(&self) -> lb_testbed::programs::Limits {
        lb_testbed::programs::Limits {
            flows: self.flows,
            snat_ports: self.first_snat_port..=self.last_snat_port,
            neighbour_check_ms: self.neighbour_check_ms,
            ..Default::default()
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Service {
    /// Entries with the same name are addresses of one Service port.
    #[serde(default)]
    pub name: Option<String>,
    /// `$vip`, or `$unspecified` for a NodePort.
    pub address: String,
    pub port: u16,
    pub protocol: Protocol,
    /// The default is a NodePort for `$unspecified`, otherwise a ClusterIP.
    #[serde(default)]
    pub kind: Option<AddressKind>,
    #[serde(default)]
    pub backends: Vec<Backend>,
    /// If there is no backend, packets are dropped instead of rejected.
    #[serde(default)]
    pub drop: bool,
    /// Networks or addresses that may use a load-balancer address. Those of the other family are
    /// ignored.
    #[serde(default)]
    pub source_ranges: Option<Vec<String>>,
    /// Seconds of session affinity.
    #[serde(default)]
    pub affinity: u32,
    #[serde(default)]
    pub algorithm: SlotAlgorithm,
    /// A TCP client that repeats its SYN gets another endpoint.
    #[serde(default)]
    pub failover: bool,
    /// Endpoints that refuse or do not answer are left out.
    #[serde(default)]
    pub passive_health: bool,
    /// The upper threshold of each backend. 0: no thresholds.
    #[serde(default)]
    pub upper_threshold: u32,
    /// The lower threshold of each backend.
    #[serde(default)]
    pub lower_threshold: u32,
    /// With an algorithm by a hash, another backend replaces one that is overloaded.
    #[serde(default)]
    pub fallback: bool,
    /// With `local`, traffic from outside uses only backends on this node. It is dropped if there
    /// are none.
    #[serde(default)]
    pub external_policy: Policy,
    /// With `local`, traffic to a ClusterIP uses only backends on this node. It is dropped if there
    /// are none.
    #[serde(default)]
    pub internal_policy: Policy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AddressKind {
    ClusterIp,
    NodePort,
    ExternalIp,
    LoadBalancer,
}

/// How a slot is selected: the names of `lb_common::layout::algorithm`.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SlotAlgorithm {
    #[default]
    Random,
    InTurn,
    HashSource,
    HashSourcePort,
    HashDestination,
    Least,
    LeastWeighted,
    ShortestDelay,
    NeverQueue,
    Overflow,
    TwoChoices,
    GreatestWeight,
}

impl SlotAlgorithm {
    pub fn number(self) -> u8 {
        match self {
            Self::Random => algorithm::RANDOM,
            Self::InTurn => algorithm::IN_TURN,
            Self::HashSource => algorithm::HASH_SOURCE,
            Self::HashSourcePort => algorithm::HASH_SOURCE_PORT,
            Self::HashDestination => algorithm::HASH_DESTINATION,
            Self::Least => algorithm::LEAST,
            Self::LeastWeighted => algorithm::LEAST_WEIGHTED,
            Self::ShortestDelay => algorithm::SHORTEST_DELAY,
            Self::NeverQueue => algorithm::NEVER_QUEUE,
            Self::Overflow => algorithm::OVERFLOW,
            Self::TwoChoices => algorithm::TWO_CHOICES,
            Self::GreatestWeight => algorithm::GREATEST_WEIGHT,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    #[default]
    Cluster,
    Local,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// One endpoint. Its EndpointSlice places it on this node if its address belongs to a peer behind
/// `pod0`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Backend {
    pub address: String,
    pub port: u16,
    /// Its EndpointSlice has no nodeName.
    #[serde(default)]
    pub without_node_name: bool,
    /// Matters for algorithms that compare connections.
    #[serde(default = "one")]
    pub weight: u32,
}

/// One packet, and the expected results.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Step {
    /// Replaces the services before the packet.
    #[serde(default)]
    pub services: Option<Vec<Service>>,
    /// The seconds that pass without a packet, before this packet and after the services changed.
    #[serde(default)]
    pub wait: u64,
    /// The agent reads the flow table before the packet, and ends connections that are over.
    #[serde(default)]
    pub sweep: bool,
    /// The programs have sent too many ICMP errors and resets lately.
    #[serde(default)]
    pub no_answers: bool,
    #[serde(default)]
    pub at: Hook,
    /// The device that the packet is on.
    #[serde(default)]
    pub on: Option<String>,
    /// The packet, starting with its IP header or with `eth`.
    #[serde(rename = "in")]
    pub packet: String,
    /// The packet was merged by GRO from segments with this many bytes of payload. Only for tc.
    #[serde(default)]
    pub merged_from: Option<u32>,
    /// `pass`, `drop`, `fragment`, `forward PEER`, `answer PEER`.
    pub out: Out,
    /// The packet that leaves. The default is the packet that came in.
    #[serde(default)]
    pub packet_out: Option<String>,
    /// In XDP mode, XDP leaves the packet to tc, untouched.
    #[serde(default)]
    pub left_to_tc: bool,
    /// In XDP mode, XDP passes the packet without counting that, and tc takes it.
    #[serde(default)]
    pub taken_by_tc: bool,
    /// Counters that increase by one. A counter that increases by more is listed several times.
    #[serde(default)]
    pub counts: Vec<String>,
    /// All flow entries after the packet.
    #[serde(default)]
    pub flows: Option<Vec<String>>,
    /// The numbers of open and of half-open flow entries after the packet.
    #[serde(default)]
    pub flow_numbers: Option<[usize; 2]>,
    /// The endpoints that have connections, after the packet: `ADDRESS PORT ACTIVE INACTIVE`.
    #[serde(default)]
    pub loads: Option<Vec<String>>,
    /// The endpoints for whose connections no source port was free, after the packet: `ADDRESS PORT
    /// PACKETS`.
    #[serde(default)]
    pub port_shortages: Option<Vec<String>>,
    /// The endpoints that are left out, after the packet: `ADDRESS PORT LEVEL`.
    #[serde(default)]
    pub left_out: Option<Vec<String>>,
    /// Repeats the step with `$i` set to each number from the first to the last.
    #[serde(default)]
    pub for_each: Option<[u32; 2]>,
    /// Truncates the packet to `$i` bytes of IP.
    #[serde(default)]
    pub cut: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hook {
    #[default]
    Ingress,
    Egress,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Out {
    Pass,
    Drop,
    /// The kernel gets the packet, to fragment and forward it.
    Fragment,
    /// The packet is forwarded to a peer.
    Forward(String),
    /// An answer is sent back to a peer.
    Answer(String),
}

impl TryFrom<String> for Out {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Ok(match text.split_once(' ') {
            None if text == "pass" => Self::Pass,
            None if text == "drop" => Self::Drop,
            None if text == "fragment" => Self::Fragment,
            Some(("forward", peer)) => Self::Forward(peer.into()),
            Some(("answer", peer)) => Self::Answer(peer.into()),
            _ => {
                return Err(format!(
                    "`{text}`: expected pass, drop, fragment, `forward PEER` or `answer PEER`"
                ));
            }
        })
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Xdp => "XDP",
            Self::Tc => "tc",
            Self::L3 => "tc without Ethernet",
        })
    }
}

impl AddressKind {
    pub fn to_program_kind(self) -> lb_testbed::programs::AddressKind {
        use lb_testbed::programs::AddressKind;
        match self {
            Self::ClusterIp => AddressKind::ClusterIp,
            Self::NodePort => AddressKind::NodePort,
            Self::ExternalIp => AddressKind::ExternalIp,
            Self::LoadBalancer => AddressKind::LoadBalancer,
        }
    }
}

impl Protocol {
    /// Returns the IP protocol number (IANA).
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

fn one() -> u32 {
    1
}

fn both_families() -> Vec<Family> {
    vec![Family::V4, Family::V6]
}

fn xdp_and_tc() -> Vec<Mode> {
    vec![Mode::Xdp, Mode::Tc]
}

/// Returns every case below `folder` with its concern (`folder/file`), sorted by path.
pub fn read_all(folder: &Path) -> Result<Vec<(String, Case)>> {
    let mut cases = Vec::new();
    for path in files(folder)? {
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let concern = path.strip_prefix(folder).unwrap_or(&path).with_extension("").display().to_string();
        let read: Vec<Case> =
            serde_saphyr::from_multiple(&text).with_context(|| path.display().to_string())?;
        for case in read {
            let same_name =
                |(known, existing): &(String, Case)| *known == concern && existing.case == case.case;
            if cases.iter().any(same_name) {
                bail!("{}: two cases are named `{}`", path.display(), case.case);
            }
            cases.push((concern.clone(), case));
        }
    }
    Ok(cases)
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
