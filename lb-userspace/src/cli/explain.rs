//! `lb explain`: runs one packet through the programs and says what became of it.
//!
//! The programs are those of the agent, loaded once more on its maps with `RECORDING` set (lb-ebpf/src/record.rs): they decide as
//! ever and write down what they decided, nothing else. **Invariant:** no rule of Services is written down a second time here.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;
use lb_common::layout::{NamespaceAddrs, backend_flags};
use lb_datapath::{
    AttachError, Datapath, LoadError, Occasion, Pins, attached_devices, device_index, device_name,
    serves_sockets,
};
use lb_model::IpFamily;

use super::pin_args::PinArgs;
use crate::agent::{AgentError, once};
use crate::config::{Config, Machine, SettingsError, SocketHooks, read_settings};
use crate::node::{NodeError, route};
use crate::preflight::{self, PreflightError};
use crate::probe::origin::{Device, Facts, Hook, In, Origin, OriginError, Sockets};
use crate::probe::packet::{End, Packet, PacketError, Protocol};
use crate::view::explain::{Explanation, Format, Observation, explain};
use crate::view::{Backends, OutputError};

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ExplainArgs {
    /// Protocol of the packet
    #[arg(value_name = "PROTOCOL", value_enum)]
    protocol: Protocol,

    /// Who sends it: 10.1.2.3:40000, [fd00::1]:40000, or an address alone
    #[arg(value_name = "SOURCE")]
    source: End,

    /// Where it is sent to: 10.96.0.10:80 or [fd00:96::10]:80; for icmp an address alone
    #[arg(value_name = "DESTINATION")]
    destination: End,

    /// Where it comes from: the device it arrives by, or `external` (by the device that leads to SOURCE), or `pod` or `node` (a
    /// process on this node calls connect). Default: what SOURCE says, an address of this node, of a pod on it, or neither
    #[arg(long = "in", value_name = "IFACE|pod|node|external")]
    from: Option<In>,

    /// Format
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value = "table")]
    output: Format,

    /// Measure the time over so many runs; what is said comes from one run before them
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    repeat: u32,

    /// Need no agent: take Services and EndpointSlices from the YAML files in this folder, and other settings of the agent from the
    /// environment (SLUICE_CLUSTER_CIDR …)
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,

    /// Name of the node in the manifests that this machine is. Default: the host name
    #[arg(long, value_name = "NAME", requires = "manifests")]
    node: Option<String>,

    #[command(flatten)]
    pins: PinArgs,
}

const EXAMPLES: &str = "\
The packet is built and run through the kernel programs on the agent's maps, in the agent's network
namespace. Nothing is sent, and the run leaves no trace: no flow, no affinity, no count.
Verdicts: forward (translated), pass (left as it is), reject (answered with an error), drop.

Examples:
  lb explain tcp 192.0.2.7 10.10.0.11:30080              A client outside asks a nodePort
  lb explain tcp 10.244.1.11:5000 10.96.0.10:80          A pod asks a ClusterIP; from that port
  lb explain udp fd00:2::7 [fd00:96::10]:53 --in eth0    As a packet that arrives by eth0
  lb explain icmp 192.0.2.7 10.96.0.10                   A ping
  lb explain tcp 10.10.0.11 10.96.0.10:80 -o json        For programs
  lb explain tcp 192.0.2.7 10.96.0.10:80 --manifests ./manifests --node worker-1
                                                         What would be, before anything is installed";

/// Why nothing can be explained.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    #[error(transparent)]
    Packet(#[from] PacketError),
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Devices(#[from] AttachError),
    #[error(transparent)]
    Origin(#[from] OriginError),
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Manifests(#[from] AgentError),
    #[error("the settings of an agent in the environment: {0}")]
    Settings(#[source] Box<SettingsError>),
    #[error("the agent runs in another network namespace, whose devices and routes decide")]
    OtherNamespace,
    #[error("cannot read the maps")]
    Maps(#[source] io::Error),
    #[error("the kernel cannot run the recording program (BPF_PROG_TEST_RUN)")]
    Run(#[source] io::Error),
    #[error(transparent)]
    Output(#[from] OutputError),
}

impl ExplainError {
    /// What a person can do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Preflight(error) => Some(error.hint()),
            Self::Load(LoadError::NoMaps(_)) => Some(
                "start `lb agent` of this version, or give its --bpffs; --manifests DIR needs no agent"
                    .into(),
            ),
            Self::OtherNamespace => Some(
                "run it there: `nsenter --net --target PID lb explain …` with the agent's process id".into(),
            ),
            Self::Manifests(error) => error.hint(),
            _ => None,
        }
    }
}

/// The programs, and what is said about how their maps were filled.
struct Subject {
    datapath: Datapath,
    /// Indices of the devices that the programs are attached to, or would be.
    attached: Vec<u32>,
    sockets: Sockets,
    problems: Vec<String>,
}

impl ExplainArgs {
    /// The packet, if there can be such a one.
    pub fn packet(&self) -> Result<Packet, PacketError> {
        Packet::new(self.protocol, self.source, self.destination)
    }

    /// The text to print, and what is to be said beside it on standard error.
    pub async fn run(&self) -> Result<(String, Vec<String>), ExplainError> {
        let packet = &self.packet()?;
        preflight::may_load()?;
        let subject = match &self.manifests {
            Some(folder) => self.private(folder.clone()).await?,
            None => self.pinned()?,
        };
        let facts = subject.facts(packet, self.from.as_ref()).await?;
        let origin = facts.origin(packet, self.from.as_ref())?;
        if self.manifests.is_some() {
            subject.add_namespace(&origin, packet.source.ip()).map_err(ExplainError::Maps)?;
        }
        let explanation = subject.explain(packet, &origin, &facts, self.repeat)?;
        Ok((explanation.render(self.output)?, subject.problems))
    }

    fn pinned(&self) -> Result<Subject, ExplainError> {
        preflight::check_bpffs(&self.pins.bpffs)?;
        let pins = Pins::new(&self.pins.bpffs);
        let datapath = Datapath::load_recorder(&pins)?;
        let settings = datapath.settings().map_err(ExplainError::Maps)?;
        let agents = settings.netns_cookie;
        if datapath.features().netns_cookie.is_some_and(|own| agents != 0 && own != agents) {
            return Err(ExplainError::OtherNamespace);
        }
        let sockets = match settings.host_sockets_only {
            _ if !serves_sockets(&pins) => Sockets::None,
            0 => Sockets::All,
            _ => Sockets::Node,
        };
        Ok(Subject { datapath, attached: attached_devices(&pins)?, sockets, problems: Vec::new() })
    }

    async fn private(&self, folder: PathBuf) -> Result<Subject, ExplainError> {
        let config = self.agent_settings(&folder)?;
        let datapath = Datapath::load_private_recorder(&crate::agent::load_options(&config))?;
        let written = once::write(&datapath, &config, &folder).await?;
        let sockets = match config.socket_hooks {
            SocketHooks::All => Sockets::All,
            SocketHooks::Host => Sockets::Node,
            SocketHooks::Off => Sockets::None,
        };
        Ok(Subject { datapath, attached: written.devices, sockets, problems: written.problems })
    }

    /// The settings that an agent would have here.
    fn agent_settings(&self, folder: &std::path::Path) -> Result<Config, ExplainError> {
        let mut arguments: Vec<OsString> = vec!["--manifests".into(), folder.into()];
        if let Some(node) = &self.node {
            arguments.extend(["--node-name".into(), node.into()]);
        }
        read_settings(arguments, &Machine::detect()).map_err(|error| ExplainError::Settings(Box::new(error)))
    }
}

impl Subject {
    async fn facts(&self, packet: &Packet, said: Option<&In>) -> Result<Facts, ExplainError> {
        let maps = self.datapath.maps();
        let source = packet.source.ip();
        let mut endpoints_here = HashSet::new();
        let mut read = || {
            for (_, entry) in maps.backends(IpFamily::of(&source))? {
                if entry.flags & backend_flags::LOCAL != 0 {
                    endpoints_here.insert(entry.address.ip());
                }
            }
            let host = self.datapath.host();
            Ok((self.datapath.settings()?.netns_cookie, host.addresses()?, host.namespaces()?))
        };
        let (netns_cookie, addresses, namespaces) = read().map_err(ExplainError::Maps)?;
        let route = route::device_to(source).await?;
        let named = match said {
            Some(In::Device(name)) => device_index(name),
            _ => None,
        };
        // The attached ones first, in the order of their indices: so were they made.
        let others = [route, named].into_iter().flatten().filter(|index| !self.attached.contains(index));
        let device = |ifindex, attached| device_name(ifindex).map(|name| Device { ifindex, name, attached });
        let devices = self.attached.iter().filter_map(|index| device(*index, true));
        let devices = devices.chain(others.filter_map(|index| device(index, false))).collect();
        let sockets = self.sockets;
        Ok(Facts { netns_cookie, sockets, addresses, namespaces, endpoints_here, devices, route })
    }

    /// Without an agent nobody has said which address a namespace has: the one that asks has that of the packet.
    fn add_namespace(&self, origin: &Origin, source: IpAddr) -> io::Result<()> {
        let Hook::Socket { netns_cookie } = origin.hook else { return Ok(()) };
        let mut addresses = NamespaceAddrs { addr_v4: [0; 4], addr_v6: [0; 16] };
        match source {
            IpAddr::V4(ip) => addresses.addr_v4 = ip.octets(),
            IpAddr::V6(ip) => addresses.addr_v6 = ip.octets(),
        }
        Ok(self.datapath.host().set_namespace(netns_cookie, Some(&addresses))?)
    }

    fn explain(
        &self,
        packet: &Packet,
        origin: &Origin,
        facts: &Facts,
        repeat: u32,
    ) -> Result<Explanation, ExplainError> {
        let frame = packet.build();
        let occasion = match origin.hook {
            Hook::Socket { netns_cookie } => Occasion::Call { netns_cookie },
            Hook::Device { ifindex } => Occasion::Arrival { ifindex },
        };
        let run = || self.datapath.record(occasion, &frame).map_err(ExplainError::Run);
        let recorded = run()?;
        // One run at a time: a program changes the packet, and would be given the changed one again by the kernel's own repetition.
        let mut times = Vec::new();
        for _ in 0..repeat {
            times.push(run()?.run.nanoseconds);
        }
        times.sort_unstable();

        let maps = self.datapath.maps();
        let record = &recorded.record;
        let family = IpFamily::of(&packet.source.ip());
        let read = || {
            let names = maps.service_names()?.into_iter().collect();
            let backends: Backends =
                maps.backends(family)?.into_iter().map(|(id, entry)| ((family, id), entry)).collect();
            Ok((names, backends, maps.slots(record.slot_base, record.slot_count)?))
        };
        let (names, backends, slots) = read().map_err(ExplainError::Maps)?;
        Ok(explain(&Observation {
            packet,
            origin,
            recorded: &recorded,
            nanoseconds: times[times.len() / 2],
            names: &names,
            backends: &backends,
            slots: &slots,
            device: (record.ifindex != 0).then(|| device_name(record.ifindex)).flatten(),
            source_is_node: facts.is_node(packet.source.ip()),
        }))
    }
}
