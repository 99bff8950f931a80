//! `lb explain` of a packet: runs it through the programs and explains the result.
//!
//! The command loads the programs of the agent a second time, on the agent's maps, with `RECORDING`
//! set (lb-ebpf/src/record.rs). They make the same decisions as the attached programs, and write
//! only a record of these decisions. **Invariant:** this code does not implement any rule of
//! Services.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;
use lb_common::layout::{NamespaceAddrs, backend_flags};
use lb_datapath::{Datapath, Occasion, Pins, attached_devices, device_index, device_name, serves_sockets};
use lb_model::IpFamily;

use super::error::ExplainError;
use crate::agent::once;
use crate::cli::doctor::devices;
use crate::cli::get::names;
use crate::cli::pin_args::PinArgs;
use crate::config::{Config, Machine, SocketHooks, read_settings};
use crate::node::route;
use crate::preflight;
use crate::probe::origin::{Hook, Origin, OriginDevice, OriginFacts, OriginOption};
use crate::probe::packet::{AddressArg, PacketError, PacketProtocol, ProbePacket};
use crate::view::BackendsById;
use crate::view::doctor::DevicePrograms;
use crate::view::explain::{Explanation, ExplanationFormat, Observation, explain};

/// The arguments of a packet.
#[derive(Debug, Args)]
pub struct PacketArgs {
    /// Protocol of the packet
    #[arg(value_name = "PROTOCOL", value_enum, required = true)]
    pub protocol: Option<PacketProtocol>,

    /// Sender: 10.1.2.3:40000, [fd00::1]:40000, or an address without port
    #[arg(value_name = "SOURCE", required = true)]
    pub source: Option<AddressArg>,

    /// Target: 10.96.0.10:80 or [fd00:96::10]:80; for icmp an address without port
    #[arg(value_name = "DESTINATION", required = true)]
    pub destination: Option<AddressArg>,

    /// Origin of the packet: a device, `external`, `pod` or `node`. Default: found from SOURCE
    ///
    /// A device name: the packet arrives at this device. `external`: it arrives at the device on
    /// the route to SOURCE. `pod` or `node`: a process of a pod or of this node calls connect, and
    /// the socket programs see the call.
    ///
    /// By default the origin is `node` if SOURCE is an address of this node, `pod` if it is the
    /// address of a pod on this node, and `external` otherwise.
    #[arg(long = "in", value_name = "DEVICE|external|pod|node")]
    pub from: Option<OriginOption>,

    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value = "table")]
    pub output: ExplanationFormat,

    /// Number of runs for the time measurement; the explanation comes from one run before them
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub repeat: u32,

    /// Explain without an agent: read Services and EndpointSlices from the files in this folder
    ///
    /// The result is the same as if an agent served these files on this node. Settings of the agent
    /// come from the environment, for example SLUICE_CLUSTER_CIDR.
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,

    /// Name of this machine's Node object in the manifests. Default: the host name
    #[arg(long, value_name = "NAME", requires = "manifests")]
    pub node: Option<String>,

    #[command(flatten)]
    pub pins: PinArgs,
}

/// The loaded programs and the settings of their agent.
struct RecordingDatapath {
    datapath: Datapath,
    /// Indices of the devices that have programs attached. With `--manifests`: those to which an
    /// agent would attach programs.
    attached: Vec<u32>,
    socket_hooks: SocketHooks,
    /// Warnings about the manifests.
    problems: Vec<String>,
}

impl PacketArgs {
    /// Returns the packet to explain.
    pub fn packet(&self) -> Result<ProbePacket, PacketError> {
        let (Some(protocol), Some(source), Some(destination)) =
            (self.protocol, self.source, self.destination)
        else {
            unreachable!("clap requires them, unless there is a subcommand")
        };
        ProbePacket::new(protocol, source, destination)
    }

    /// Returns the text for standard output and the warnings for standard error.
    pub async fn run(&self) -> Result<(String, Vec<String>), ExplainError> {
        let packet = &self.packet()?;
        preflight::may_load()?;
        let recording = match &self.manifests {
            Some(folder) => self.load_with_manifests(folder.clone()).await?,
            None => self.load_on_pins()?,
        };
        let node = recording.node_state(packet, self.from.as_ref()).await?;
        let origin = node.origin(packet, self.from.as_ref())?;
        if self.manifests.is_some() {
            recording.add_namespace(&origin, packet.source.ip()).map_err(ExplainError::Maps)?;
        }
        let programs = programs_at(&origin).await;
        let explanation = recording.explain(packet, &origin, &node, programs, self.repeat)?;
        Ok((explanation.render(self.output)?, recording.problems))
    }

    /// Loads the programs on the maps that an agent has pinned.
    fn load_on_pins(&self) -> Result<RecordingDatapath, ExplainError> {
        preflight::check_bpffs(&self.pins.bpffs)?;
        let pins = Pins::new(&self.pins.bpffs);
        let datapath = Datapath::load_recorder(&pins)?;
        let settings = datapath.settings().map_err(ExplainError::Maps)?;
        let agent_netns = settings.netns_cookie;
        if datapath.features().netns_cookie.is_some_and(|own| agent_netns != 0 && own != agent_netns) {
            return Err(ExplainError::OtherNamespace);
        }
        let socket_hooks = match settings.host_sockets_only {
            _ if !serves_sockets(&pins) => SocketHooks::Off,
            0 => SocketHooks::All,
            _ => SocketHooks::Host,
        };
        let attached = attached_devices(&pins)?;
        Ok(RecordingDatapath { datapath, attached, socket_hooks, problems: Vec::new() })
    }

    /// Loads the programs on maps of this process, and fills the maps from manifests.
    async fn load_with_manifests(&self, folder: PathBuf) -> Result<RecordingDatapath, ExplainError> {
        let config = self.agent_settings(&folder)?;
        let datapath = Datapath::load_private_recorder(&crate::agent::load_options(&config, true))?;
        let written = once::write(&datapath, &config, &folder).await?;
        Ok(RecordingDatapath {
            datapath,
            attached: written.devices,
            socket_hooks: config.socket_hooks,
            problems: written.problems,
        })
    }

    /// Returns the settings that an agent on this node would have.
    fn agent_settings(&self, folder: &std::path::Path) -> Result<Config, ExplainError> {
        let mut arguments: Vec<OsString> = vec!["--manifests".into(), folder.into()];
        if let Some(node) = &self.node {
            arguments.extend(["--node-name".into(), node.into()]);
        }
        read_settings(arguments, &Machine::detect()).map_err(|error| ExplainError::Settings(Box::new(error)))
    }
}

impl RecordingDatapath {
    /// Reads the state of the node from the maps and the kernel.
    async fn node_state(
        &self,
        packet: &ProbePacket,
        option: Option<&OriginOption>,
    ) -> Result<OriginFacts, ExplainError> {
        let maps = self.datapath.maps();
        let source = packet.source.ip();
        let mut local_endpoints = HashSet::new();
        let mut read = || {
            for (_, entry) in maps.backends(IpFamily::of(&source))? {
                if entry.flags & backend_flags::LOCAL != 0 {
                    local_endpoints.insert(entry.address.ip());
                }
            }
            let host = self.datapath.host();
            Ok((self.datapath.settings()?.netns_cookie, host.addresses()?, host.namespaces()?))
        };
        let (netns_cookie, addresses, namespaces) = read().map_err(ExplainError::Maps)?;
        let route_device = route::device_to(source).await?;
        let named_device = match option {
            Some(OriginOption::Device(name)) => device_index(name),
            _ => None,
        };
        // Devices with programs come first, in the order in which they were created.
        let others = [route_device, named_device].into_iter().flatten();
        let others = others.filter(|index| !self.attached.contains(index));
        let device =
            |ifindex, attached| device_name(ifindex).map(|name| OriginDevice { ifindex, name, attached });
        let devices = self.attached.iter().filter_map(|index| device(*index, true));
        let devices = devices.chain(others.filter_map(|index| device(index, false))).collect();
        let socket_hooks = self.socket_hooks;
        Ok(OriginFacts {
            netns_cookie,
            socket_hooks,
            addresses,
            namespaces,
            local_endpoints,
            devices,
            route_device,
        })
    }

    /// Writes the source address of the packet as the address of the network namespace that sends
    /// it. An agent would have written the addresses of all namespaces.
    fn add_namespace(&self, origin: &Origin, source: IpAddr) -> io::Result<()> {
        let Hook::Socket { netns_cookie } = origin.hook else { return Ok(()) };
        let mut addresses = NamespaceAddrs { addr_v4: [0; 4], addr_v6: [0; 16] };
        match source {
            IpAddr::V4(ip) => addresses.addr_v4 = ip.octets(),
            IpAddr::V6(ip) => addresses.addr_v6 = ip.octets(),
        }
        Ok(self.datapath.host().set_namespace(netns_cookie, Some(&addresses))?)
    }

    /// Runs the packet through the programs and explains the result.
    fn explain(
        &self,
        packet: &ProbePacket,
        origin: &Origin,
        node: &OriginFacts,
        programs: Option<DevicePrograms>,
        repeat: u32,
    ) -> Result<Explanation, ExplainError> {
        let frame = packet.build();
        let occasion = match origin.hook {
            Hook::Socket { netns_cookie } => Occasion::Call { netns_cookie },
            Hook::Device { ifindex } => Occasion::Arrival { ifindex },
        };
        let run = || self.datapath.record(occasion, &frame).map_err(ExplainError::Run);
        let recorded = run()?;
        // A loop, because a program changes the packet: the kernel's own repetition would run the
        // program on the changed packet.
        let mut times = Vec::new();
        for _ in 0..repeat {
            times.push(run()?.run.nanoseconds);
        }
        times.sort_unstable();

        let maps = self.datapath.maps();
        let record = &recorded.record;
        let family = IpFamily::of(&packet.source.ip());
        let read = || {
            let backends: BackendsById =
                maps.backends(family)?.into_iter().map(|(id, entry)| ((family, id), entry)).collect();
            Ok((names(&maps)?, backends, maps.slots(record.slot_base, record.slot_count)?, maps.loads()?))
        };
        let (names, backends, slots, loads) = read().map_err(ExplainError::Maps)?;
        Ok(explain(&Observation {
            packet,
            origin,
            recorded: &recorded,
            nanoseconds: times[times.len() / 2],
            names: &names,
            backends: &backends,
            slots: &slots,
            loads: &loads,
            device: (record.ifindex != 0).then(|| device_name(record.ifindex)).flatten(),
            programs,
            source_is_node: node.is_node(packet.source.ip()),
        }))
    }
}

/// Returns the programs at the device that the packet arrives at. Returns `None` for a call at a
/// socket, and if they cannot be listed, which `lb doctor` reports.
async fn programs_at(origin: &Origin) -> Option<DevicePrograms> {
    let Hook::Device { ifindex } = origin.hook else { return None };
    devices::read(Some(ifindex)).await.ok()?.pop()
}
