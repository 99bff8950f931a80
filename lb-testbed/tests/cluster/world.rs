//! A cluster whose first node runs an agent that watches a real API server. The API server runs on
//! the client's host.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lb_testbed::agent::{self, Agent, AgentOptions};
use lb_testbed::check::{answered_by, eventually, eventually_within, spread_over, unanswered};
use lb_testbed::control_plane::{self, Api, ControlPlane, Deployment, deploy, documents};
use lb_testbed::host::{Datagrams, HTTP_PORT, Host, Load, LoadKind, Process, UDP_PORT};
use lb_testbed::manifests::{ServiceManifest, ServicePort};
use lb_testbed::topology::{Node, Pod};
use lb_testbed::{AttachMode, Family, Topology, Underlay, daemon};
use serde_json::Value;

/// Namespace and name of the service account of `deploy/ingress/rbac.yaml`.
pub const INGRESS_ACCOUNT: (&str, &str) = ("sluice-ingress", "sluice-ingress");
/// One datagram from a connected socket: the kernel reports ICMP errors only to connected sockets.
pub const ONE_DATAGRAM: Datagrams = Datagrams { connected: true, count: 1, size: 32, dont_fragment: false };
const DATAGRAMS: Datagrams = Datagrams { connected: false, count: 3, ..ONE_DATAGRAM };

/// How long a watch may take to recover after a short outage. The delay between attempts grows
/// during the outage.
pub const WATCH_LIMIT: Duration = Duration::from_secs(60);

pub struct World {
    pub topology: Topology,
    pub control_plane: ControlPlane,
    pub admin: Api,
    /// Kubeconfig of the agent, with the address of the API server.
    pub kubeconfig: PathBuf,
    /// More arguments of the agent.
    pub arguments: Vec<String>,
    /// The settings of `deploy/config.yaml`.
    config: PathBuf,
    agent: Option<Agent>,
    _servers: Vec<Process>,
    /// Objects that [`Self::reset`] deletes.
    applied: Vec<Value>,
    /// Number of the last Service.
    next: u16,
}

impl World {
    pub fn build() -> Result<Self> {
        // Check the programs first: if one is missing, no topology has to be removed.
        control_plane::program()?;
        agent::program()?;
        let tool = Path::new(env!("CARGO_BIN_EXE_lb-testbed"));
        let topology = Topology::build(Underlay::Routed, AttachMode::Tc, tool)?;
        let servers = topology.pods.iter().map(|pod| pod.host.serve(&pod.host.name));
        let servers = servers.collect::<Result<_>>()?;
        let control_plane = ControlPlane::start(&topology.client, &topology.folder().join("control-plane"))?;
        let admin = control_plane.admin()?;
        let Deployment { kubeconfig, config } = control_plane.deploy(&admin, &topology)?;
        for file in ["namespace.yaml", "rbac.yaml"] {
            let ingress = deploy().join("ingress").join(file);
            documents(&ingress)?.iter().try_for_each(|object| admin.apply(object))?;
        }
        let mut world = Self {
            topology,
            control_plane,
            admin,
            kubeconfig,
            arguments: Vec::new(),
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

    /// Returns the pod with this number. Pods 1 and 2 run on the node of the agent, pods 3 and 4 on
    /// the other node.
    pub fn pod(&self, number: usize) -> &Pod {
        &self.topology.pods[number - 1]
    }

    /// Starts the agent and waits until its initial sync is complete.
    pub fn start_agent(&mut self) -> Result<()> {
        self.spawn_agent()?;
        self.agent()?.wait_until_healthy()
    }

    /// Starts the agent without waiting for its initial sync.
    pub fn spawn_agent(&mut self) -> Result<()> {
        let mut arguments = vec![format!("--config={}", self.config.display())];
        arguments.extend_from_slice(&self.arguments);
        let options =
            AgentOptions { kubeconfig: Some(self.kubeconfig.clone()), arguments, ..AgentOptions::default() };
        self.agent = Some(Agent::spawn(&self.topology, self.node(), &options)?);
        Ok(())
    }

    /// Starts the agent of the DaemonSet with the patch in `deploy/retire`. It serves no Service,
    /// so that another proxy serves new connections. Open connections go on.
    pub fn start_retired_agent(&mut self) -> Result<()> {
        let daemonset = documents(&deploy().join("daemonset.yaml"))?.swap_remove(0);
        let mut patch = documents(&deploy().join("retire/patch.yaml"))?.swap_remove(0);
        patch["metadata"]["namespace"] = daemonset["metadata"]["namespace"].clone();
        self.apply(&daemonset)?;
        self.admin.merge(&patch)?;
        let pod = self.admin.get(&daemonset)?["spec"]["template"]["spec"].clone();
        let container = &pod["containers"][0];
        let arguments: Vec<_> = container["args"].as_array().context("no arguments")?.iter().collect();
        let value_of = |flag: &str| {
            let value = arguments.iter().find_map(|argument| argument.as_str()?.strip_prefix(flag));
            value.with_context(|| format!("no argument {flag} in {arguments:?}"))
        };
        let empty = value_of("--manifests=")?;
        let is_empty = |mount: &Value| mount["mountPath"] == empty && mount["name"] == "empty";
        ensure!(container["volumeMounts"].as_array().into_iter().flatten().any(is_empty), "{container}");
        let health: SocketAddr = value_of("--health-bind=")?.parse()?;
        ensure!(container["readinessProbe"]["httpGet"]["port"] == health.port(), "{container}");
        ensure!(container["livenessProbe"]["httpGet"]["port"] == health.port(), "{container}");
        // The folder of the testbed has no manifests.
        let arguments = [
            format!("--config={}", self.config.display()),
            format!("--terminate-sockets={}", value_of("--terminate-sockets=")?),
            format!("--metrics-bind={}", value_of("--metrics-bind=")?),
        ];
        let options =
            AgentOptions { arguments: arguments.to_vec(), health: Some(health), ..AgentOptions::default() };
        self.agent = Some(Agent::start(&self.topology, self.node(), &options)?);
        Ok(())
    }

    pub fn agent(&mut self) -> Result<&mut Agent> {
        self.agent.as_mut().context("no agent runs")
    }

    pub fn stop_agent(&mut self) -> Result<()> {
        self.agent.take().context("no agent runs")?.stop()
    }

    /// Returns a dual-stack Service with a nodePort for each of its two ports. It is not applied
    /// yet.
    pub fn new_service(&mut self) -> ServiceManifest {
        self.next += 1;
        let number = self.next;
        ServiceManifest {
            namespace: "default".to_owned(),
            name: format!("case-{number}"),
            cluster_ips: vec![
                Ipv4Addr::new(10, 96, 1, number as u8).into(),
                // API servers before Kubernetes 1.33 assign the first 65536 addresses only.
                Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0x100 + number).into(),
            ],
            ports: vec![
                ServicePort::tcp("http", 80, HTTP_PORT).node_port(30000 + number * 2),
                ServicePort::udp("udp", 53, UDP_PORT).node_port(30001 + number * 2),
            ],
        }
    }

    /// Applies a new Service with these pods as endpoints and waits until it is served.
    pub fn publish(&mut self, pods: &[usize]) -> Result<ServiceManifest> {
        let service = self.new_service();
        self.apply(&service.object())?;
        self.set_endpoints(&service, pods)?;
        self.wait_until_served(&service, pods)?;
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
        if !self.applied.iter().any(|applied| same(applied, object)) {
            self.applied.push(object.clone());
        }
        Ok(())
    }

    pub fn delete(&mut self, object: &Value) -> Result<()> {
        self.applied.retain(|applied| !same(applied, object));
        self.admin.delete(object)
    }

    /// Deletes all objects that a case applied, so that every case starts with the same cluster.
    pub fn reset(&mut self) -> Result<()> {
        self.applied.drain(..).try_for_each(|object| self.admin.delete(&object))
    }

    /// Waits until exactly these pods answer at all addresses of a Service, for a pod and for the
    /// outside client.
    pub fn wait_until_served(&self, service: &ServiceManifest, pods: &[usize]) -> Result<()> {
        for family in Family::BOTH {
            wait_for_answers(&self.pod(2).host, cluster_ip(service, family), pods)?;
            if let Some(target) = self.node_port(service, family) {
                wait_for_answers(&self.topology.client, target, pods)?;
            }
        }
        Ok(())
    }

    /// Waits until no address of a Service answers.
    pub fn wait_until_unserved(&self, service: &ServiceManifest) -> Result<()> {
        for family in Family::BOTH {
            wait_for_no_answer(&self.pod(2).host, cluster_ip(service, family))?;
        }
        self.wait_until_unserved_outside(service)
    }

    /// Waits until no nodePort of a Service answers.
    pub fn wait_until_unserved_outside(&self, service: &ServiceManifest) -> Result<()> {
        for family in Family::BOTH {
            let target = self.node_port_of(service, family)?;
            wait_for_no_answer(&self.topology.client, target)?;
        }
        Ok(())
    }

    /// Starts loads to a Service from a pod and from outside, each with new connections and with
    /// one connection.
    pub fn start_loads(&self, service: &ServiceManifest) -> Result<Vec<(&'static str, Load)>> {
        let (pod, client) = (&self.pod(2).host, &self.topology.client);
        let inside = cluster_ip(service, Family::V4).http;
        let outside = self.node_port_of(service, Family::V6)?.http;
        Ok(vec![
            ("pod, new connections", pod.start_load(LoadKind::NewConnections, inside, 20)?),
            ("pod, one connection", pod.start_load(LoadKind::OneConnection, inside, 20)?),
            ("outside, new connections", client.start_load(LoadKind::NewConnections, outside, 20)?),
            ("outside, one connection", client.start_load(LoadKind::OneConnection, outside, 20)?),
        ])
    }

    /// Returns the addresses of the nodePorts of a Service at the node of the agent.
    pub fn node_port_of(&self, service: &ServiceManifest, family: Family) -> Result<Target> {
        self.node_port(service, family).context("the Service has no nodePorts")
    }

    fn node_port(&self, service: &ServiceManifest, family: Family) -> Option<Target> {
        let [http, udp] = [0, 1].map(|port| service.ports[port].node_port);
        let at = |port| self.node().host.at(family, port);
        Some(Target { http: at(http?), udp: at(udp?) })
    }

    /// Returns the agent's log.
    pub fn agent_log(&self) -> Result<String> {
        let path = self.agent_log_path();
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }

    /// Waits until the agent logs a line that contains all these texts. `before` is the earlier
    /// log, which is skipped.
    pub fn wait_for_log(&self, texts: &[&str], before: &str) -> Result<()> {
        eventually_within(WATCH_LIMIT, || {
            let log = self.agent_log()?;
            let matches = |line: &str| texts.iter().all(|text| line.contains(text));
            ensure!(log[before.len()..].lines().any(matches), "the agent did not log {texts:?}");
            Ok(())
        })
    }

    /// Returns the last lines of all logs, for a failure message.
    pub fn logs(&self) -> String {
        [self.control_plane.log(), self.agent_log_path()].map(|path| daemon::tail(&path)).join("\n")
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

/// Waits until exactly these pods answer a client.
fn wait_for_answers(client: &Host, target: Target, pods: &[usize]) -> Result<()> {
    eventually(|| spread_over(&client.get(&[target.http], 20)?, pods))?;
    eventually(|| answered_by(&client.send_datagrams(target.udp, DATAGRAMS)?, pods))
}

/// Waits until a client gets no answer.
fn wait_for_no_answer(client: &Host, target: Target) -> Result<()> {
    eventually(|| unanswered(&client.get(&[target.http], 1)?))?;
    eventually(|| unanswered(&client.send_datagrams(target.udp, ONE_DATAGRAM)?))
}

fn same(left: &Value, right: &Value) -> bool {
    left["kind"] == right["kind"] && left["metadata"]["name"] == right["metadata"]["name"]
}
