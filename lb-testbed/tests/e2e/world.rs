//! A cluster with agents and servers, and the Services that cases publish in it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result};
use lb_testbed::agent::{self, Agent, AgentOptions, LbBuild};
use lb_testbed::daemon;
use lb_testbed::host::{Datagrams, HTTP_PORT, Host, Process, SCTP_PORT, TRANSFER_PORT, UDP_PORT};
use lb_testbed::manifests::{self, ServiceManifest, ServicePort};
use lb_testbed::topology::{Node, Pod};
use lb_testbed::{AttachMode, Family, Topology, Underlay};
use serde_json::Value;

use crate::check::{answered_by, eventually};

/// Ports of every published Service.
const HTTP: u16 = 80;
const UDP: u16 = 53;
const SCTP: u16 = 38412;
const TRANSFER: u16 = 9000;

pub struct World {
    pub topology: Topology,
    agents: [Option<Agent>; 2],
    /// Arguments of the agents that do not follow from the topology.
    arguments: &'static [&'static str],
    _servers: Vec<Process>,
    /// Manifest files of published Services.
    published: Vec<String>,
    /// Number of the last Service.
    next: u16,
}

/// A port of a published Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    Http,
    Udp,
    Sctp,
    Transfer,
}

/// A Service of a case. No other Service of the cluster has its addresses and nodePorts.
#[derive(Debug, Clone)]
pub struct Published {
    pub service: ServiceManifest,
    number: u16,
}

impl Published {
    pub fn cluster_ip(&self, family: Family, to: To) -> SocketAddr {
        let port = match to {
            To::Http => HTTP,
            To::Udp => UDP,
            To::Sctp => SCTP,
            To::Transfer => TRANSFER,
        };
        let wanted = |ip: &&IpAddr| Family::of(**ip) == family;
        let ip = self.service.cluster_ips.iter().find(wanted).expect("published Services are dual-stack");
        SocketAddr::new(*ip, port)
    }

    pub fn node_port(&self, node: &Node, family: Family, to: To) -> SocketAddr {
        node.host.at(family, node_port(self.number, to))
    }

    /// Returns a number that no other Service of the cluster has.
    pub fn number(&self) -> u16 {
        self.number
    }

    fn file(&self) -> String {
        format!("{}.yaml", self.service.name)
    }
}

fn node_port(number: u16, to: To) -> u16 {
    30000 + number * 4 + to as u16
}

impl World {
    pub fn build(
        datapath: AttachMode,
        underlay: Underlay,
        arguments: &'static [&'static str],
    ) -> Result<Self> {
        // Build `lb` first: if that fails, no topology has to be removed.
        agent::program()?;
        // A guest of `cargo xtask test kernels` runs copies of the programs.
        let tool = std::env::var_os("SLUICE_TESTBED")
            .map_or_else(|| env!("CARGO_BIN_EXE_lb-testbed").into(), PathBuf::from);
        let topology = Topology::build(underlay, datapath, &tool)?;
        let servers = topology.pods.iter().map(|pod| pod.host.serve(&pod.host.name));
        let servers = servers.collect::<Result<_>>()?;
        let nodes: Vec<_> = topology.nodes.iter().map(manifests::node).collect();
        topology.manifests.write("nodes.yaml", &nodes)?;
        let mut world = Self {
            topology,
            agents: [None, None],
            arguments,
            _servers: servers,
            published: Vec::new(),
            next: 0,
        };
        world.start_agents()?;
        Ok(world)
    }

    pub fn is(&self, datapath: AttachMode, underlay: Underlay) -> bool {
        (self.topology.datapath, self.topology.underlay) == (datapath, underlay)
    }

    pub fn client(&self) -> &Host {
        &self.topology.client
    }

    pub fn node(&self, index: usize) -> &Node {
        &self.topology.nodes[index]
    }

    /// Returns the pod with this number. Pods 1 and 2 run on the first node, pods 3 and 4 on the
    /// second.
    pub fn pod(&self, number: usize) -> &Pod {
        &self.topology.pods[number - 1]
    }

    pub fn agent(&self, node: usize) -> Result<&Agent> {
        self.agents[node].as_ref().with_context(|| format!("no agent runs on node{}", node + 1))
    }

    pub fn take_agent(&mut self, node: usize) -> Result<Agent> {
        self.agents[node].take().with_context(|| format!("no agent runs on node{}", node + 1))
    }

    pub fn start_agent(&mut self, node: usize) -> Result<()> {
        self.start_agent_with(node, &[])
    }

    /// Returns the arguments that all agents get.
    pub fn arguments(&self) -> impl Iterator<Item = &'static str> {
        self.arguments.iter().copied()
    }

    pub fn start_agent_with(&mut self, node: usize, arguments: &[&str]) -> Result<()> {
        self.start_agent_of_build(node, arguments, LbBuild::Usual)
    }

    /// Starts an agent without waiting for its initial sync.
    pub fn spawn_agent_with(&mut self, node: usize, arguments: &[&str]) -> Result<()> {
        let arguments = self.arguments.iter().chain(arguments).map(ToString::to_string).collect();
        let options = AgentOptions { arguments, ..AgentOptions::default() };
        self.agents[node] = Some(Agent::spawn(&self.topology, &self.topology.nodes[node], &options)?);
        Ok(())
    }

    /// Starts an agent of another build.
    pub fn start_agent_of_build(&mut self, node: usize, arguments: &[&str], build: LbBuild) -> Result<()> {
        let arguments = self.arguments.iter().chain(arguments).map(ToString::to_string).collect();
        let options = AgentOptions { arguments, build, ..AgentOptions::default() };
        self.agents[node] = Some(Agent::start(&self.topology, &self.topology.nodes[node], &options)?);
        Ok(())
    }

    /// Starts an agent with these options and waits until it is healthy. Returns its log.
    pub fn start_agent_as(&mut self, node: usize, options: &AgentOptions) -> Result<String> {
        let agent = Agent::start(&self.topology, &self.topology.nodes[node], options)?;
        let log = agent.log()?;
        self.agents[node] = Some(agent);
        Ok(log)
    }

    /// Starts an agent that kills itself at a step of a conversion, and waits for its end.
    pub fn run_agent_until(
        &self,
        node: usize,
        arguments: &[&str],
        build: LbBuild,
        step: &'static str,
    ) -> Result<()> {
        let arguments = self.arguments.iter().chain(arguments).map(ToString::to_string).collect();
        let options = AgentOptions { arguments, build, kill_at: Some(step), ..AgentOptions::default() };
        Agent::spawn(&self.topology, &self.topology.nodes[node], &options)?.wait_until_killed()
    }

    /// Restarts the agents with these arguments, unless they already run with them. Maps and links
    /// stay.
    pub fn restart_agents_with(&mut self, arguments: &'static [&'static str]) -> Result<()> {
        if self.arguments == arguments {
            return Ok(());
        }
        self.arguments = arguments;
        for node in 0..2 {
            self.take_agent(node)?.stop()?;
        }
        self.start_agents()
    }

    /// Starts the agents of both nodes at the same time, and waits for both.
    fn start_agents(&mut self) -> Result<()> {
        let arguments = self.arguments.iter().map(ToString::to_string).collect();
        let options = AgentOptions { arguments, ..AgentOptions::default() };
        let [first, second] = &self.topology.nodes;
        let mut agents =
            [Agent::spawn(&self.topology, first, &options)?, Agent::spawn(&self.topology, second, &options)?];
        agents.iter_mut().try_for_each(Agent::wait_until_healthy)?;
        self.agents = agents.map(Some);
        Ok(())
    }

    /// Returns the entries of a map on a node, as `bpftool` shows them.
    pub fn dump(&self, node: usize, map: &str) -> Result<Vec<serde_json::Value>> {
        let node = self.node(node);
        let path = self.map_path(node, map)?;
        let dump = node.host.place.run("bpftool", ["--json", "map", "dump", "pinned", &path])?;
        let entries: Vec<serde_json::Value> = serde_json::from_str(&dump)?;
        Ok(entries.into_iter().map(|mut entry| entry["formatted"].take()).collect())
    }

    /// Removes the entries of a map on a node whose value has these bytes in a field.
    pub fn remove_entries(&self, node: usize, map: &str, field: &str, bytes: &[u8]) -> Result<usize> {
        let node = self.node(node);
        let path = self.map_path(node, map)?;
        let dump = node.host.place.run("bpftool", ["--json", "map", "dump", "pinned", &path])?;
        let entries: Vec<Value> = serde_json::from_str(&dump)?;
        let of_value = |entry: &&Value| entry["formatted"]["value"][field] == serde_json::json!(bytes);
        let mut removed = 0;
        for entry in entries.iter().filter(of_value) {
            let key: Vec<String> = serde_json::from_value(entry["key"].clone())?;
            let arguments = ["map", "delete", "pinned", &path, "key", "hex"];
            let digits = key.iter().map(|byte| byte.trim_start_matches("0x"));
            node.host.place.run("bpftool", arguments.into_iter().chain(digits))?;
            removed += 1;
        }
        Ok(removed)
    }

    /// Returns the pin of a map on a node.
    fn map_path(&self, node: &Node, map: &str) -> Result<String> {
        let versions: Vec<_> =
            fs::read_dir(node.bpffs.join("sluice"))?.flatten().map(|entry| entry.path()).collect();
        let path = versions.iter().map(|version| version.join("maps").join(map)).find(|path| path.exists());
        let path = path.with_context(|| format!("{} has no map {map}", node.host.name))?;
        Ok(path.to_string_lossy().into_owned())
    }

    /// Returns a new Service with a ClusterIP of each family and a nodePort for each port. It is
    /// not published yet.
    pub fn new_service(&mut self) -> Published {
        self.next += 1;
        let number = self.next;
        let at = |to| node_port(number, to);
        let service = ServiceManifest {
            namespace: "default".to_owned(),
            name: format!("case-{number}"),
            cluster_ips: vec![
                Ipv4Addr::new(10, 96, 1 + (number >> 8) as u8, number as u8).into(),
                Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 1, number).into(),
            ],
            ports: vec![
                ServicePort::tcp("http", HTTP, HTTP_PORT).node_port(at(To::Http)),
                ServicePort::udp("udp", UDP, UDP_PORT).node_port(at(To::Udp)),
                ServicePort::sctp("sctp", SCTP, SCTP_PORT).node_port(at(To::Sctp)),
                ServicePort::tcp("transfer", TRANSFER, TRANSFER_PORT).node_port(at(To::Transfer)),
            ],
        };
        Published { service, number }
    }

    /// Publishes a new Service with these pods as endpoints and waits until both nodes serve it.
    pub fn publish(&mut self, pods: &[usize]) -> Result<Published> {
        let published = self.new_service();
        self.set_endpoints(&published, pods)?;
        self.wait_until_served(&published, pods)?;
        Ok(published)
    }

    /// Writes a Service and its EndpointSlices. Does not wait.
    pub fn set_endpoints(&mut self, published: &Published, pods: &[usize]) -> Result<()> {
        let pods: Vec<_> = pods.iter().map(|number| self.pod(*number)).collect();
        let objects = published.service.with_endpoints(&pods);
        self.write(published, &objects)
    }

    /// Replaces the published objects of a Service with these objects. Does not wait.
    pub fn write(&mut self, published: &Published, objects: &[Value]) -> Result<()> {
        let file = published.file();
        self.topology.manifests.write(&file, objects)?;
        if !self.published.contains(&file) {
            self.published.push(file);
        }
        Ok(())
    }

    pub fn delete(&mut self, published: &Published) -> Result<()> {
        let file = published.file();
        self.published.retain(|published| *published != file);
        self.topology.manifests.remove(&file)
    }

    /// Removes all published Services, so that every case starts with the same cluster.
    pub fn reset(&mut self) -> Result<()> {
        self.published.drain(..).try_for_each(|file| self.topology.manifests.remove(&file))
    }

    /// Waits until requests from both nodes to the Service's ClusterIPs are answered, over HTTP and
    /// UDP, by these pods only.
    pub fn wait_until_served(&self, published: &Published, pods: &[usize]) -> Result<()> {
        for node in &self.topology.nodes {
            let http = Family::BOTH.map(|family| published.cluster_ip(family, To::Http));
            eventually(|| answered_by(&node.host.get(&http, 8)?, pods))?;
            for family in Family::BOTH {
                let datagrams = Datagrams { count: 1, size: 32, ..Datagrams::default() };
                let target = published.cluster_ip(family, To::Udp);
                eventually(|| answered_by(&node.host.send_datagrams(target, datagrams)?, pods))?;
            }
        }
        Ok(())
    }

    /// Returns the rows of a table on a node: the output of `lb get` with these arguments.
    pub fn rows(&self, node: usize, arguments: &[&str]) -> Result<Vec<Value>> {
        let arguments = [&["get"], arguments, &["-o", "json"]].concat();
        Ok(serde_json::from_str(&self.agent(node)?.lb(&arguments)?)?)
    }

    /// Returns the number of open connections on the first node from a client to an address of a
    /// Service.
    pub fn flows(&self, client: IpAddr, service: SocketAddr) -> Result<usize> {
        let rows = self.rows(0, &["flows"])?;
        let address =
            |row: &Value, field: &str| row[field].as_str().and_then(|text| text.parse::<SocketAddr>().ok());
        let matches = |row: &&Value| {
            address(row, "client").map(|at| at.ip()) == Some(client)
                && address(row, "address") == Some(service)
        };
        Ok(rows.iter().filter(matches).count())
    }

    /// Returns the last lines of the agents' logs, for a failure message.
    pub fn logs(&self) -> String {
        let logs =
            self.topology.nodes.iter().map(|node| {
                daemon::tail(&self.topology.folder().join(format!("{}-agent.log", node.host.name)))
            });
        logs.collect::<Vec<_>>().join("\n")
    }
}
