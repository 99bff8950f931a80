//! The loaded programs, and the Services that the agent's own code writes to their maps: the slots
//! are arranged by `lb-plan` and written by the engine of `lb-datapath`.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use lb_common::layout::FlowTimeouts;
use lb_datapath::ServiceTables;
use lb_datapath::apply::{Engine, ReferencedIds};
use lb_model::{Algorithm, HashInput, IpFamily, Protocol, Weight};
use lb_plan::desired::{
    DesiredEndpoint, DesiredServicePort, EndpointList, EndpointLists, Frontend, FrontendAddress,
    FrontendKind, ListPolicy, ServicePortId, WhenEmpty,
};
use lb_testbed::packet::dissect;
use lb_testbed::packet::layer::{Layer, Link};
use lb_testbed::programs::world::{NIC, World};
use lb_testbed::programs::{Action, Hook, Limits, Run, Segment, Subject};

/// A Service port of one algorithm.
pub struct Service {
    pub name: String,
    pub algorithm: Algorithm,
    /// What `sh` and `mh` hash.
    pub hash: HashInput,
    /// The addresses that clients use.
    pub addresses: Vec<SocketAddr>,
    /// Sorted by address.
    pub endpoints: Vec<Endpoint>,
}

#[derive(Debug, Clone, Copy)]
pub struct Endpoint {
    pub address: SocketAddr,
    pub weight: u16,
    /// The endpoint is on this node.
    pub local: bool,
}

impl Service {
    fn id(&self) -> ServicePortId {
        let name = self.name.clone();
        ServicePortId { namespace: "bench".into(), name, port_name: String::new(), protocol: Protocol::Tcp }
    }

    fn desired(&self) -> DesiredServicePort {
        let policy = ListPolicy { list: EndpointList::Cluster, when_empty: WhenEmpty::Reject };
        let mut frontends: Vec<_> = self
            .addresses
            .iter()
            .map(|address| Frontend {
                address: FrontendAddress::Ip(address.ip()),
                port: address.port(),
                kind: FrontendKind::ClusterIp,
                outside: policy,
                inside: policy,
            })
            .collect();
        frontends.sort();
        DesiredServicePort {
            id: self.id(),
            port: 80,
            algorithm: self.algorithm,
            hash: if self.algorithm.hashes_the_client() { self.hash } else { HashInput::default() },
            failover: false,
            passive_health: false,
            thresholds: None,
            fallback: false,
            max_connection_age: None,
            affinity_seconds: None,
            source_ranges: Default::default(),
            frontends,
            v4: self.lists(IpFamily::V4),
            v6: self.lists(IpFamily::V6),
        }
    }

    fn lists(&self, family: IpFamily) -> EndpointLists {
        let of_family =
            self.endpoints.iter().filter(|endpoint| IpFamily::of(&endpoint.address.ip()) == family);
        let mut endpoints: Vec<_> = of_family
            .map(|Endpoint { address, weight, local }| DesiredEndpoint {
                address: *address,
                local: *local,
                draining: false,
                weight: Weight::new(*weight),
                drain_limit: None,
            })
            .collect();
        endpoints.sort();
        let cluster = (0..endpoints.len() as u32).collect();
        EndpointLists { endpoints, cluster, local: Vec::new() }
    }
}

pub struct Bed {
    pub subject: Subject,
    engine: Engine<ServiceTables>,
    ifindex: u32,
}

impl Bed {
    pub fn new(world: &World) -> Result<Self> {
        let limits = Limits {
            services: 1 << 16,
            backends: 1 << 16,
            slots: 1 << 20,
            flows: 1 << 16,
            snat_ports: 1024..=65_535,
            ..Limits::default()
        };
        let mut subject = Subject::load(&limits, world)?;
        // Connections stay open although no endpoint answers.
        subject.set_timeouts(&FlowTimeouts { tcp_syn: 86_400, ..FlowTimeouts::DEFAULT })?;
        let (nothing, grace) = (ReferencedIds::default(), Duration::from_millis(1));
        let engine = Engine::adopt(subject.tables()?, &nothing, grace, Instant::now())?;
        Ok(Self { subject, engine, ifindex: world.ifindex(NIC).context("no device")? })
    }

    /// Writes a Service, or its changes.
    pub fn serve(&mut self, service: &Service) -> Result<()> {
        Ok(self.engine.apply(&service.desired(), Instant::now())?)
    }

    /// Removes a Service and all connections.
    pub fn remove(&mut self, service: &Service) -> Result<()> {
        self.engine.remove(&service.id(), Instant::now())?;
        self.subject.forget_flows()?;
        let errors = self.engine.tick(Instant::now() + Duration::from_secs(1));
        ensure!(errors.is_empty(), "{errors:?}");
        let now = Instant::now() + Duration::from_secs(1);
        self.engine.free_unreferenced_ids(now, &ReferencedIds::default());
        Ok(())
    }

    pub fn run(&mut self, hook: Hook, packet: &[u8], runs: u32) -> Result<Run> {
        self.subject.run(hook, self.ifindex, packet, runs)
    }

    /// Opens a connection to an endpoint on this node. Returns the endpoint, or `None` if the
    /// client is refused.
    pub fn connect(&mut self, client: SocketAddr, service: SocketAddr) -> Result<Option<SocketAddr>> {
        let run = self.run(Hook::TcIngress, &frame(client, service, Segment::Syn)?, 1)?;
        if run.action != Action::Pass {
            return Ok(None);
        }
        let mut ip: Option<IpAddr> = None;
        for layer in dissect(&run.packet, Link::Ethernet) {
            match layer {
                Layer::Tcp(tcp) => {
                    return Ok(Some((ip.context("no IP header")?, tcp.destination).into()));
                }
                layer => ip = layer.addresses().map(|(_, destination)| destination).or(ip),
            }
        }
        bail!("the program returned no TCP segment")
    }

    /// Ends a connection: the client resets it.
    pub fn disconnect(&mut self, client: SocketAddr, service: SocketAddr) -> Result<()> {
        let run = self.run(Hook::TcIngress, &frame(client, service, Segment::Rst)?, 1)?;
        ensure!(run.action == Action::Pass, "a reset was not delivered: {:?}", run.action);
        Ok(())
    }

    /// Ends the connections that are closed: they count no longer.
    pub fn sweep(&mut self) -> Result<()> {
        self.subject.wait(u64::from(FlowTimeouts::DEFAULT.tcp_reset) + 1)?;
        self.subject.sweep()
    }
}

pub fn frame(source: SocketAddr, destination: SocketAddr, segment: Segment) -> Result<Vec<u8>> {
    segment.frame(Protocol::Tcp as u8, source, destination)
}
