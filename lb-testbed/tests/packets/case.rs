//! What a case file says. `cases/README.md` explains it to people.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// One document of a case file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Case {
    /// Its name, in words; unique in its file.
    pub case: String,
    /// Why it is as it is: a document, an RFC, a bug.
    #[serde(default, rename = "why")]
    pub _why: Option<String>,
    #[serde(default = "both_families")]
    pub families: Vec<Family>,
    #[serde(default = "xdp_and_tc")]
    pub modes: Vec<Mode>,
    #[serde(default)]
    pub limits: Limits,
    /// Networks of pods, and ServiceCIDRs, of both families.
    #[serde(default)]
    pub pods: Vec<String>,
    #[serde(default)]
    pub service_cidrs: Vec<String>,
    #[serde(default)]
    pub services: Vec<Service>,
    pub steps: Vec<Step>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    V4,
    V6,
}

/// How the programs are attached where the packets of a case arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// XDP, and what it passes on goes through tc, as on a device in XDP mode.
    Xdp,
    /// tc alone.
    Tc,
    /// tc on a device without Ethernet header.
    L3,
}

/// Sizes that a case must be small in.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Limits {
    pub flows: u32,
    pub half_open: u32,
    pub first_snat_port: u16,
    pub last_snat_port: u16,
}

impl Default for Limits {
    fn default() -> Self {
        Self { flows: 4096, half_open: 4096, first_snat_port: 61_000, last_snat_port: 65_535 }
    }
}

impl Limits {
    pub fn of_programs(&self) -> lb_testbed::programs::Limits {
        lb_testbed::programs::Limits {
            flows: self.flows,
            half_open: self.half_open,
            snat_ports: self.first_snat_port..=self.last_snat_port,
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
    /// Without it a ClusterIP, and a NodePort for `$unspecified`.
    #[serde(default)]
    pub kind: Option<Kind>,
    #[serde(default)]
    pub backends: Vec<Backend>,
    /// With no backend, packets are dropped instead of rejected.
    #[serde(default)]
    pub drop: bool,
    /// Networks or addresses that may use it (load balancers); of both families, each entry takes those of its own.
    #[serde(default)]
    pub source_ranges: Option<Vec<String>>,
    /// Seconds of session affinity.
    #[serde(default)]
    pub affinity: u32,
    /// Local: traffic from outside gets the backends on this node, and is dropped without any.
    #[serde(default)]
    pub external_policy: Policy,
    /// Local: all traffic to a ClusterIP gets the backends on this node, and is dropped without any.
    #[serde(default)]
    pub internal_policy: Policy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    ClusterIp,
    NodePort,
    ExternalIp,
    LoadBalancer,
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

/// One endpoint. It is on this node when its place is behind `pod0`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Backend {
    pub address: String,
    pub port: u16,
}

/// One packet, and what becomes of it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Step {
    /// Before the packet: the services are now these.
    #[serde(default)]
    pub services: Option<Vec<Service>>,
    /// Before the packet, and after the services changed: the flow tables are swept, as the agent does every ten seconds.
    #[serde(default)]
    pub sweep: bool,
    #[serde(default)]
    pub at: Hook,
    /// Device the packet is on.
    #[serde(default)]
    pub on: Option<String>,
    /// The packet, from its IP header on, or from `eth`.
    #[serde(rename = "in")]
    pub packet: String,
    /// The packet was merged from segments with a payload of so many bytes (GRO); tc only.
    #[serde(default)]
    pub merged_from: Option<u32>,
    /// `pass`, `drop`, `forward PLACE`, `answer PLACE`.
    pub out: Out,
    /// What leaves; without it, what came in.
    #[serde(default)]
    pub packet_out: Option<String>,
    /// In XDP mode: XDP leaves it to tc, untouched.
    #[serde(default)]
    pub left_to_tc: bool,
    /// Counters that go up by one; one that goes up by more stands here more often.
    #[serde(default)]
    pub counts: Vec<String>,
    /// All flow entries afterwards.
    #[serde(default)]
    pub flows: Option<Vec<String>>,
    /// The number of flow entries afterwards: open, half-open.
    #[serde(default)]
    pub flow_numbers: Option<[usize; 2]>,
    /// The step is made with `$i` being each of these numbers.
    #[serde(default)]
    pub for_each: Option<[u32; 2]>,
    /// The packet ends after `$i` bytes of IP.
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
    /// Sent on towards a place.
    Forward(String),
    /// An answer is sent back to a place.
    Answer(String),
}

impl TryFrom<String> for Out {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Ok(match text.split_once(' ') {
            None if text == "pass" => Self::Pass,
            None if text == "drop" => Self::Drop,
            Some(("forward", place)) => Self::Forward(place.into()),
            Some(("answer", place)) => Self::Answer(place.into()),
            _ => return Err(format!("`{text}`: want pass, drop, `forward PLACE` or `answer PLACE`")),
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

impl Kind {
    pub fn of_programs(self) -> lb_testbed::programs::Kind {
        use lb_testbed::programs::Kind;
        match self {
            Self::ClusterIp => Kind::ClusterIp,
            Self::NodePort => Kind::NodePort,
            Self::ExternalIp => Kind::ExternalIp,
            Self::LoadBalancer => Kind::LoadBalancer,
        }
    }
}

impl Protocol {
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

fn both_families() -> Vec<Family> {
    vec![Family::V4, Family::V6]
}

fn xdp_and_tc() -> Vec<Mode> {
    vec![Mode::Xdp, Mode::Tc]
}

/// Every case below `folder` with its concern (`folder/file`), sorted by path.
pub fn read_all(folder: &Path) -> Result<Vec<(String, Case)>> {
    let mut cases = Vec::new();
    for path in files(folder)? {
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let concern = path.strip_prefix(folder).unwrap_or(&path).with_extension("").display().to_string();
        let read: Vec<Case> =
            serde_saphyr::from_multiple(&text).with_context(|| path.display().to_string())?;
        for case in read {
            if cases
                .iter()
                .any(|(known, other): &(String, Case)| *known == concern && other.case == case.case)
            {
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
