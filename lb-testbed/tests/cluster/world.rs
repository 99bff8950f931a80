//! A cluster whose first node runs an agent that takes its objects from a real API server, which
//! runs on the client's host.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lb_testbed::agent::{self, Agent, AgentOptions};
use lb_testbed::check::{answered_by, eventually, eventually_within, spread_over, unanswered};
use lb_testbed::control_plane::{self, Api, ControlPlane, documents};
use lb_testbed::host::{Datagrams, HTTP_PORT, Host, Load, LoadKind, Process, UDP_PORT};
use lb_testbed::manifests::{self, Port, ServiceManifest};
use lb_testbed::topology::{Node, Pod};
use lb_testbed::{Datapath, Family, Topology, Underlay};
use serde_json::Value;

/// Namespace and name of the service account of `deploy/rbac.yaml`.
pub const ACCOUNT: (&str, &str) = ("sluice", "sluice");
/// From a connected socket: it is told when nobody is there.
pub const ONE_DATAGRAM: Datagrams = Datagrams { connected: true, count: 1, size: 32, dont_fragment: false };
const DATAGRAMS: Datagrams = Datagrams { connected: false, count: 3, ..ONE_DATAGRAM };

/// How long a watch may take to come back after a short outage: the pauses between attempts grow
/// meanwhile.
const WATCH_LIMIT: Duration = Duration::from_secs(60);

pub struct World {
    pub topology: Topology,
    pub control_plane: ControlPlane,
    pub admin: Api,
    /// Of the agent; says where it looks for the API server.
    pub kubeconfig: PathBuf,
    /// The settings of `deploy/config.yaml`.
    config: PathBuf,
    agent: Option<Agent>,
    _servers: Vec<Process>,
    /// What [`Self::reset`] deletes.
    applied: Vec<Value>,
    next: u16,
}

impl World {
    pub fn build() -> Result<Self> {
        // Before the topology: nothing is left half built when one is missing.
        control_plane::program()?;
        agent::program()?;
        let tool = Path::new(env!("CARGO_BIN_EXE_lb-testbed"));
        let topology = Topology::build(Underlay::Routed, Datapath::Tc, tool)?;
        let servers = topology.pods.iter().map(|pod| pod.host.serve(&pod.host.name));
        let servers = servers.collect::<Result<_>>()?;
        let control_plane = ControlPlane::start(&topology.client, &topology.folder().join("control-plane"))?;
        let admin = control_plane.admin()?;
        for node in &topology.nodes {
            admin.apply(&manifests::node(node))?;
        }
        for file in ["namespace.yaml", "rbac.yaml"] {
            documents(&deploy().join(file))?.iter().try_for_each(|object| admin.apply(object))?;
        }
        let (namespace, name) = ACCOUNT;
        let kubeconfig = control_plane.kubeconfig_of(namespace, name, &control_plane.address())?;
        let config = topology.folder().join("config.yaml");
        fs::write(&config, settings()?)?;
        let mut world = Self {
            topology,
            control_plane,
            admin,
            kubeconfig,
            config,
            agent: None,
            _servers: servers,
            applied: Vec::new(),
            next: 0,
        };
        world.start_agent()?;
        Ok(world)
    }

    pub fn node(&self) -> &Node {
        &self.topology.nodes[0]
    }

    /// By the number in its name: `pod(1)` and `pod(2)` run on the node of the agent, `pod(3)` and
    /// `pod(4)` on the other.
    pub fn pod(&self, number: usize) -> &Pod {
        &self.topology.pods[number - 1]
    }

    /// Starts the agent and waits until it has synced.
    pub fn start_agent(&mut self) -> Result<()> {
        self.spawn_agent()?;
        self.agent()?.wait_until_healthy()
    }

    /// Starts the agent and does not wait.
    pub fn spawn_agent(&mut self) -> Result<()> {
        let options = AgentOptions {
            kubeconfig: Some(self.kubeconfig.clone()),
            arguments: vec![format!("--config={}", self.config.display())],
        };
        self.agent = Some(Agent::spawn(&self.topology, self.node(), &options)?);
        Ok(())
    }

    pub fn agent(&mut self) -> Result<&mut Agent> {
        self.agent.as_mut().context("no agent runs")
    }

    pub fn stop_agent(&mut self) -> Result<()> {
        self.agent.take().context("no agent runs")?.stop()
    }

    /// A dual-stack Service with a nodePort for each of its two ports, not applied yet.
    pub fn new_service(&mut self) -> ServiceManifest {
        self.next += 1;
        let number = self.next;
        ServiceManifest {
            namespace: "default".to_owned(),
            name: format!("case-{number}"),
            cluster_ips: vec![
                Ipv4Addr::new(10, 96, 1, number as u8).into(),
                Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 1, number).into(),
            ],
            ports: vec![
                Port::tcp("http", 80, HTTP_PORT).node_port(30000 + number * 2),
                Port::udp("udp", 53, UDP_PORT).node_port(30001 + number * 2),
            ],
        }
    }

    /// Applies a new Service with these pods as endpoints and waits until it is served.
    pub fn publish(&mut self, pods: &[usize]) -> Result<ServiceManifest> {
        let service = self.new_service();
        self.apply(&service.object())?;
        self.set_endpoints(&service, pods)?;
        self.serves(&service, pods)?;
        Ok(service)
    }

    pub fn slices(&self, service: &ServiceManifest, pods: &[usize]) -> Vec<Value> {
        let pods: Vec<_> = pods.iter().map(|number| self.pod(*number)).collect();
        service.slices(&pods)
    }

    pub fn set_endpoints(&mut self, service: &ServiceManifest, pods: &[usize]) -> Result<()> {
        self.slices(service, pods).iter().try_for_each(|slice| self.apply(slice))
    }

    pub fn delete_endpoints(&mut self, service: &ServiceManifest) -> Result<()> {
        self.slices(service, &[]).iter().try_for_each(|slice| self.delete(slice))
    }

    /// Creates or changes an object of a case.
    pub fn apply(&mut self, object: &Value) -> Result<()> {
        self.admin.apply(object)?;
        if !self.applied.iter().any(|other| same(other, object)) {
            self.applied.push(object.clone());
        }
        Ok(())
    }

    pub fn delete(&mut self, object: &Value) -> Result<()> {
        self.applied.retain(|other| !same(other, object));
        self.admin.delete(object)
    }

    /// Removes what a case applied, so that each starts from the same cluster.
    pub fn reset(&mut self) -> Result<()> {
        self.applied.drain(..).try_for_each(|object| self.admin.delete(&object))
    }

    /// Waits until each of these pods, and no other, answers at all addresses of a Service, from a
    /// pod and from outside.
    pub fn serves(&self, service: &ServiceManifest, pods: &[usize]) -> Result<()> {
        for family in Family::BOTH {
            answer(&self.pod(2).host, cluster_ip(service, family), pods)?;
            if let Some(target) = self.node_port(service, family) {
                answer(&self.topology.client, target, pods)?;
            }
        }
        Ok(())
    }

    /// Waits until nobody answers at any address of a Service.
    pub fn serves_no_more(&self, service: &ServiceManifest) -> Result<()> {
        for family in Family::BOTH {
            silence(&self.pod(2).host, cluster_ip(service, family))?;
        }
        self.serves_no_more_outside(service)
    }

    /// Waits until nobody answers at the nodePorts of a Service.
    pub fn serves_no_more_outside(&self, service: &ServiceManifest) -> Result<()> {
        for family in Family::BOTH {
            let target = self.node_port(service, family).context("a Service without nodePorts")?;
            silence(&self.topology.client, target)?;
        }
        Ok(())
    }

    /// Starts requests to a Service from a pod and from outside, on new connections and on one.
    pub fn start_loads(&self, service: &ServiceManifest) -> Result<Vec<(&'static str, Load)>> {
        let (pod, client) = (&self.pod(2).host, &self.topology.client);
        let inside = cluster_ip(service, Family::V4).http;
        let outside = self.node_port(service, Family::V6).context("a Service without nodePorts")?.http;
        Ok(vec![
            ("pod, new connections", pod.start_load(LoadKind::NewConnections, inside, 20)?),
            ("pod, one connection", pod.start_load(LoadKind::OneConnection, inside, 20)?),
            ("outside, new connections", client.start_load(LoadKind::NewConnections, outside, 20)?),
            ("outside, one connection", client.start_load(LoadKind::OneConnection, outside, 20)?),
        ])
    }

    fn node_port(&self, service: &ServiceManifest, family: Family) -> Option<Target> {
        let [http, udp] = [0, 1].map(|port| service.ports[port].node_port);
        let at = |port| self.node().host.at(family, port);
        Some(Target { http: at(http?), udp: at(udp?) })
    }

    /// What the agents have logged so far.
    pub fn agent_log(&self) -> Result<String> {
        let path = self.agent_log_path();
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }

    /// Waits until the agent has logged a line with all these words since its log was `before`.
    pub fn agent_says(&self, words: &[&str], before: &str) -> Result<()> {
        eventually_within(WATCH_LIMIT, || {
            let log = self.agent_log()?;
            let said = |line: &str| words.iter().all(|word| line.contains(word));
            ensure!(log[before.len()..].lines().any(said), "the agent did not say {words:?}");
            Ok(())
        })
    }

    /// The ends of all logs, for a failure.
    pub fn logs(&self) -> String {
        [self.control_plane.log(), self.agent_log_path()].map(|path| agent::tail(&path)).join("\n")
    }

    fn agent_log_path(&self) -> PathBuf {
        self.topology.folder().join(format!("{}-agent.log", self.node().host.name))
    }
}

/// The two ports of a Service at one address.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    pub http: SocketAddr,
    pub udp: SocketAddr,
}

pub fn cluster_ip(service: &ServiceManifest, family: Family) -> Target {
    let wanted = |ip: &&IpAddr| Family::of(**ip) == family;
    let ip = service.cluster_ips.iter().find(wanted).expect("the Services of these tests are dual-stack");
    let [http, udp] = [0, 1].map(|port| SocketAddr::new(*ip, service.ports[port].port));
    Target { http, udp }
}

/// Waits until each of these pods, and no other, answers to a client.
fn answer(client: &Host, target: Target, pods: &[usize]) -> Result<()> {
    eventually(|| spread_over(&client.get(&[target.http], 20)?, pods))?;
    eventually(|| answered_by(&client.send_datagrams(target.udp, DATAGRAMS)?, pods))
}

/// Waits until nobody answers to a client.
fn silence(client: &Host, target: Target) -> Result<()> {
    eventually(|| unanswered(&client.get(&[target.http], 1)?))?;
    eventually(|| unanswered(&client.send_datagrams(target.udp, ONE_DATAGRAM)?))
}

/// The manifests for a cluster.
pub fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// What the DaemonSet's agents find in the file of their `--config`.
fn settings() -> Result<String> {
    let maps = documents(&deploy().join("config.yaml"))?;
    let settings = maps.iter().find_map(|map| map["data"]["config.yaml"].as_str());
    settings.map(str::to_owned).context("deploy/config.yaml has no settings")
}

fn same(one: &Value, other: &Value) -> bool {
    one["kind"] == other["kind"] && one["metadata"]["name"] == other["metadata"]["name"]
}
