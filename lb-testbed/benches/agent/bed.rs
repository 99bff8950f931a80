//! The cluster: an API server with many Services, and a node whose agent watches it.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context as _, Result, ensure};
use lb_common::layout::TCP;
use lb_datapath::Pins;
use lb_datapath::apply::tables::ServiceAddress;
use lb_datapath::inspect::AgentMaps;
use lb_testbed::agent::{cleanup, lb_at, program};
use lb_testbed::control_plane::{self, Api, Deployment};
use lb_testbed::ingress_bed::{EndpointState, slice};
use lb_testbed::manifests::{ServiceManifest, ServicePort};
use lb_testbed::topology::Node;
use lb_testbed::{Agent, AgentOptions, AttachMode, ControlPlane, Topology, Underlay};
use serde::Serialize;
use serde_json::Value;

/// The Services that change all the time, if any do. The measured changes are of others.
pub const CHURNED: u32 = 100;
/// Requests at a time while the objects are written.
const AT_ONCE: usize = 16;
/// Endpoints of a slice, as the EndpointSlice controller makes them.
const PER_SLICE: u32 = 100;
/// The port of the Services.
const PORT: u16 = 80;
/// The port of the endpoints.
const TARGET: u16 = 8080;
/// Services that have addresses in 10.96.0.0/16.
const MOST_SERVICES: u32 = 50_000;
/// Endpoints that have addresses in 10.128.0.0/10.
const MOST_ENDPOINTS: u32 = 1 << 22;

/// The number of Services, and of endpoints of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Size {
    pub services: u32,
    pub endpoints: u32,
}

impl FromStr for Size {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (services, endpoints) = text.split_once('x').context("not of the form 10000x10")?;
        let size = Self { services: services.parse()?, endpoints: endpoints.parse()? };
        ensure!(
            size.services > CHURNED && size.services <= MOST_SERVICES,
            "there can be {} to {MOST_SERVICES} Services",
            CHURNED + 1
        );
        ensure!(
            size.endpoints > 0 && size.services.saturating_mul(size.endpoints) <= MOST_ENDPOINTS,
            "there can be 1 to {MOST_ENDPOINTS} endpoints"
        );
        Ok(size)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} × {}", self.services, self.endpoints)
    }
}

impl Size {
    /// Returns the name of a Service.
    pub fn name(number: u32) -> String {
        format!("service-{number}")
    }

    fn cluster_ip(number: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 16, 0)) + number)
    }

    /// Returns the key of a Service in the maps.
    pub fn address(number: u32) -> ServiceAddress {
        ServiceAddress { ip: Self::cluster_ip(number).into(), port: PORT, protocol: TCP }
    }

    fn service(number: u32) -> Value {
        let service = ServiceManifest {
            namespace: "default".to_owned(),
            name: Self::name(number),
            cluster_ips: vec![Self::cluster_ip(number).into()],
            ports: vec![ServicePort::tcp("", PORT, TARGET)],
        };
        service.object()
    }

    /// Returns the EndpointSlices of a Service. The name of the first one ends in `-1`.
    pub fn slices(&self, number: u32) -> Vec<Value> {
        let first = u32::from(Ipv4Addr::new(10, 128, 0, 0)) + number * self.endpoints;
        let addresses: Vec<_> = (first..first + self.endpoints)
            .map(|address| (Ipv4Addr::from(address), EndpointState::Ready))
            .collect();
        let parts = (1..).zip(addresses.chunks(PER_SLICE as usize));
        parts
            .map(|(part, addresses)| {
                let mut slice = slice(&Self::name(number), TARGET, addresses);
                slice["metadata"]["name"] = format!("{}-{part}", Self::name(number)).into();
                slice
            })
            .collect()
    }
}

/// The cluster. Dropping it removes everything.
pub struct Bed {
    pub size: Size,
    pub admin: Api,
    deployment: Deployment,
    _control_plane: ControlPlane,
    pub topology: Topology,
}

impl Bed {
    pub fn build(size: Size) -> Result<Self> {
        // Check the programs first: if one is missing, no topology has to be removed.
        control_plane::program()?;
        program()?;
        let tool = Path::new(env!("CARGO_BIN_EXE_lb-testbed"));
        let topology = Topology::build(Underlay::Routed, AttachMode::Tc, tool)?;
        let control_plane = ControlPlane::start(&topology.client, &topology.folder().join("control-plane"))?;
        let admin = control_plane.admin()?;
        let deployment = control_plane.deploy(&admin, &topology)?;
        admin.create_all((0..size.services).map(Size::service).collect(), AT_ONCE)?;
        let slices = (0..size.services).flat_map(|number| size.slices(number));
        admin.create_all(slices.collect(), AT_ONCE)?;
        Ok(Self { size, admin, deployment, _control_plane: control_plane, topology })
    }

    pub fn node(&self) -> &Node {
        &self.topology.nodes[0]
    }

    /// Starts the agent and waits until its initial sync is complete.
    pub fn start_agent(&self) -> Result<Agent> {
        let Deployment { kubeconfig, config } = &self.deployment;
        let arguments = vec![
            format!("--config={}", config.display()),
            "--log-format=json".to_owned(),
            // The half-open connections of the flood stay until the end.
            "--flow-timeouts=tcp-syn=3600".to_owned(),
        ];
        let options =
            AgentOptions { kubeconfig: Some(kubeconfig.clone()), arguments, ..AgentOptions::default() };
        Agent::start(&self.topology, self.node(), &options)
    }

    /// Stops the agent, and removes its maps and programs.
    pub fn remove_agent(&self, agent: Agent) -> Result<()> {
        agent.stop()?;
        cleanup(self.node()).map(drop)
    }

    /// Returns the seconds that an agent took to load the kernel programs.
    pub fn load_time(&self, agent: &Agent) -> Result<f64> {
        let times = logged(agent, "loaded the kernel programs", "seconds")?;
        times.first().copied().context("the agent did not log that it has loaded the programs")
    }

    /// Makes the agent log each update of the maps from now on.
    pub fn log_updates(&self) -> Result<()> {
        lb_at(&self.node().host.place, &["log-level", "debug"]).map(drop)
    }

    /// Opens the agent's maps.
    pub fn maps(&self) -> Result<AgentMaps> {
        let pins = Pins::new(&self.node().bpffs);
        AgentMaps::open(&pins).with_context(|| format!("open the maps in {}", pins.root().display()))
    }
}

/// Returns a number from each line of an agent's log that has this message.
pub fn logged(agent: &Agent, message: &str, field: &str) -> Result<Vec<f64>> {
    let log = agent.log()?;
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let lines = lines.filter(|line| line["message"] == message);
    Ok(lines.filter_map(|line| line[field].as_f64()).collect())
}
