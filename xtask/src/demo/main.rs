//! The demo: the whole product on one machine, without a cluster. Network namespaces take the place
//! of machines. The agents, the kernel programs, the servers, the clients and every packet are
//! real.

mod ingress;
mod options;
mod screen;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use std::{env, fs};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use lb_testbed::controllers::{self, AppliedService};
use lb_testbed::host::{Datagrams, LoadKind, Process};
use lb_testbed::manifests::{self, Protocol};
use lb_testbed::report::Exchange;
use lb_testbed::topology::Pod;
use lb_testbed::{Agent, AgentOptions, AttachMode, Family, Host, Topology, Underlay, agent, daemon, run};

use self::options::{Mode, Options};
use self::screen::{Cell, Checks, Screen, Tone};

#[derive(Parser)]
#[command(about = "The demo of Sluice; `cargo xtask demo` builds and runs it")]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

/// Pods with the replicas. The remaining pod is a client.
const REPLICAS: [usize; 3] = [0, 2, 3];
const CLIENT_POD: usize = 1;
/// Requests to each address.
const REQUESTS: u32 = 6;
const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples");

fn main() -> ExitCode {
    match run(&Arguments::parse().options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    if options.remove {
        for id in run::remove_kept()? {
            println!("removed {id}");
        }
        return Ok(());
    }
    let servers = env::current_exe().context("cannot find this program")?.with_file_name("lb-testbed");
    if options.ingress {
        return ingress::run(options, &servers);
    }
    let mut demo = Demo::set_up(options, Screen::new(), &servers)?;
    demo.start_agents()?;
    demo.requests()?;
    demo.spread()?;
    demo.removal_under_load()?;
    demo.maps()?;
    demo.finish(options.keep)
}

struct Demo {
    screen: Screen,
    // Dropped in this order: processes before the namespaces they run in.
    agents: Vec<Agent>,
    servers: Vec<Process>,
    services: Vec<AppliedService>,
    topology: Topology,
    checks: Checks,
}

impl Demo {
    fn set_up(options: &Options, mut screen: Screen, tool: &Path) -> Result<Self> {
        screen.heading("Cluster");
        let underlay = if options.overlay { Underlay::Vxlan } else { Underlay::Routed };
        let datapath = match options.mode {
            Mode::Tc => AttachMode::Tc,
            Mode::Xdp => AttachMode::Xdp,
        };
        let topology = Topology::build(underlay, datapath, tool)?;
        let services = controllers::apply(Path::new(EXAMPLES), REPLICAS.len())?;
        let mut servers = Vec::new();
        for (index, listen) in controllers::listeners(&services) {
            let host = &topology.pods[REPLICAS[index]].host;
            servers.push(host.serve_at(&host.name, &listen)?);
        }
        let nodes: Vec<_> = topology.nodes.iter().map(manifests::node).collect();
        topology.manifests.write("nodes.yaml", &nodes)?;
        for applied in &services {
            applied.publish(&topology.manifests, &pods(&topology, &applied.pods))?;
        }
        let checks = Checks::default();
        let demo = Self { screen, agents: Vec::new(), servers, services, topology, checks };
        demo.show_cluster();
        Ok(demo)
    }

    fn show_cluster(&self) {
        let topology = &self.topology;
        let row = |host: &Host, is: String| -> Vec<Cell> {
            vec![host.name.as_str().into(), is.into(), host.v4.to_string().into(), host.v6.to_string().into()]
        };
        let mut rows = vec![row(&topology.client, "client outside the cluster".to_owned())];
        rows.extend(topology.nodes.iter().map(|node| row(&node.host, "node".to_owned())));
        for (index, pod) in topology.pods.iter().enumerate() {
            let role = if index == CLIENT_POD { "a client" } else { "HTTP and UDP servers" };
            rows.push(row(&pod.host, format!("pod on {}, {role}", pod.node)));
        }
        self.screen.table(&["HOST", "IS", "IPV4", "IPV6"], &rows);
        println!();
        let row = |applied: &AppliedService| -> Vec<Cell> {
            let service = &applied.service;
            let join = |texts: Vec<String>| if texts.is_empty() { "-".to_owned() } else { texts.join(" ") };
            let port = |port: &manifests::ServicePort| match port.node_port {
                Some(node_port) => format!("{}:{node_port}/{}", port.port, port.protocol),
                None => format!("{}/{}", port.port, port.protocol),
            };
            let endpoints = pods(&self.topology, &applied.pods);
            vec![
                format!("{}/{}", service.namespace, service.name).into(),
                applied.service_type.as_str().into(),
                join(service.cluster_ips.iter().map(IpAddr::to_string).collect()).into(),
                join(service.ports.iter().map(port).collect()).into(),
                join(endpoints.iter().map(|pod| pod.host.name.clone()).collect()).into(),
            ]
        };
        let rows: Vec<_> = self.services.iter().map(row).collect();
        self.screen.table(&["SERVICE", "TYPE", "CLUSTER-IPS", "PORTS", "ENDPOINTS"], &rows);
        self.screen.line(
            "from deploy/examples; the demo assigns the addresses and writes the EndpointSlices, as a cluster does",
        );
    }

    fn start_agents(&mut self) -> Result<()> {
        self.screen.heading("Agents");
        for node in &self.topology.nodes {
            let begin = Instant::now();
            let agent = Agent::start(&self.topology, node, &AgentOptions::default())?;
            let took = begin.elapsed().as_secs_f32();
            let links = node.host.place.run("ip", ["-details", "link", "show", "dev", "eth0"])?;
            let by = if links.contains("prog/xdp") { "XDP" } else { "tc" };
            let name = &node.host.name;
            self.screen.toned(
                &format!(
                    "{name}: initial sync complete after {took:.1} s; {by} translates the packets of eth0"
                ),
                Tone::Good,
            );
            self.agents.push(agent);
        }
        Ok(())
    }

    /// Sends requests from every kind of client to every kind of address, IPv4 and IPv6.
    fn requests(&mut self) -> Result<()> {
        self.screen.heading("Requests");
        let mut rows = Vec::new();
        for service in ["web", "web-nodeport", "shop", "ingress-controller", "echo", "signalling"] {
            let applied = self.find(service)?.clone();
            for port in &applied.service.ports {
                for family in Family::BOTH {
                    let ip = applied.cluster_ip(family).context("the examples are dual-stack")?;
                    let mut targets = Vec::new();
                    if service == "web" || service == "echo" {
                        targets.push((self.topology.pods[CLIENT_POD].host.clone(), (ip, port.port).into()));
                        targets.push((self.topology.nodes[0].host.clone(), (ip, port.port).into()));
                    }
                    if let Some(node_port) = port.node_port {
                        for node in &self.topology.nodes {
                            targets.push((self.topology.client.clone(), node.host.at(family, node_port)));
                        }
                    }
                    for (client, target) in targets {
                        rows.push(self.request(&applied, port.protocol, &client, target)?);
                    }
                }
            }
        }
        self.screen.table(&["FROM", "SERVICE", "ADDRESS", "ANSWERED BY", "CLIENT ADDRESS THERE", ""], &rows);
        Ok(())
    }

    fn request(
        &mut self,
        applied: &AppliedService,
        protocol: Protocol,
        client: &Host,
        target: SocketAddr,
    ) -> Result<Vec<Cell>> {
        let exchanges = match protocol {
            Protocol::Tcp => client.get(&[target], REQUESTS)?,
            Protocol::Sctp => client.associate(target, REQUESTS)?,
            Protocol::Udp => client
                .send_datagrams(target, Datagrams { count: REQUESTS, size: 32, ..Datagrams::default() })?,
        };
        let answers = || exchanges.iter().flat_map(|exchange| &exchange.result);
        let join = |texts: BTreeSet<String>| texts.into_iter().collect::<Vec<_>>().join(" ");
        let by = join(answers().map(|answer| answer.greeting.pod.clone()).collect());
        let seen = join(answers().map(|answer| answer.greeting.client.ip().to_string()).collect());
        let problem = exchanges.iter().find_map(|exchange| self.problem(applied, client, exchange));
        let verdict = Cell::verdict(problem.as_deref());
        self.checks.check(problem.map(|problem| format!("{} to {target}: {problem}", client.name)));
        let name = applied.service.name.as_str();
        Ok(vec![
            client.name.as_str().into(),
            name.into(),
            format!("{} {target}", scheme(protocol)).into(),
            by.into(),
            seen.into(),
            verdict,
        ])
    }

    /// Returns the problem of an exchange: no answer, the wrong pod, the wrong peer, or a wrong
    /// client address.
    fn problem(&self, applied: &AppliedService, client: &Host, exchange: &Exchange) -> Option<String> {
        let answer = match &exchange.result {
            Ok(answer) => answer,
            Err(failure) => return Some(failure.to_string()),
        };
        let endpoints = pods(&self.topology, &applied.pods);
        let Some(pod) = endpoints.iter().find(|pod| pod.host.name == answer.greeting.pod) else {
            return Some(format!("{} is not an endpoint", answer.greeting.pod));
        };
        if answer.peer != exchange.target {
            return Some(format!("the client sees the peer {}", answer.peer));
        }
        let seen = answer.greeting.client.ip();
        let family = Family::of(seen);
        // The endpoint sees the client's own address if the packet entered at the endpoint's node.
        // It sees an address of a node if the packet entered at the other node, or if the client is
        // a process of a node.
        let entry = self.topology.nodes.iter().find(|node| node.host.address(family) == exchange.target.ip());
        let own = client.address(family) == seen;
        let nodes = self.topology.nodes.iter();
        let of_node = nodes.clone().any(|node| node.addresses().contains(&seen));
        let right = match entry {
            Some(node) if node.host.name == pod.node => own,
            Some(node) => node.addresses().contains(&seen),
            None => own || (of_node && nodes.clone().any(|node| node.host.name == client.name)),
        };
        (!right).then(|| format!("{} saw the client as {seen}", pod.host.name))
    }

    fn spread(&mut self) -> Result<()> {
        const COUNT: u32 = 300;
        self.screen.heading(&format!("Spread of {COUNT} requests from a pod to web"));
        let applied = self.find("web")?.clone();
        let target = web_address(&applied)?;
        let exchanges = self.topology.pods[CLIENT_POD].host.get(&[target], COUNT)?;
        for pod in pods(&self.topology, &applied.pods) {
            let name = &pod.host.name;
            let count = exchanges
                .iter()
                .flat_map(|exchange| &exchange.result)
                .filter(|answer| answer.greeting.pod == *name)
                .count();
            self.screen.line(&format!("{name}  {:<50}  {count}", "█".repeat(count / 4)));
            // A fair share is 100 with a standard deviation of 8.
            let fair = (50..=150).contains(&count);
            self.checks.check((!fair).then(|| format!("{name} got {count} of {COUNT} requests")));
        }
        let answered = exchanges.iter().filter(|exchange| exchange.result.is_ok()).count();
        let all = answered == COUNT as usize;
        self.checks.check((!all).then(|| format!("{answered} of {COUNT} requests were answered")));
        Ok(())
    }

    /// Removes one of three endpoints during requests. No request may fail, and none may reach the
    /// removed endpoint.
    fn removal_under_load(&mut self) -> Result<()> {
        let leaving = *REPLICAS.last().context("there are replicas")?;
        let leaving_name = self.topology.pods[leaving].host.name.clone();
        self.screen.heading(&format!("{leaving_name} leaves under load"));
        let inside = web_address(self.find("web")?)?;
        let outside = self.topology.nodes[0].host.at(Family::V4, node_port(self.find("web-nodeport")?)?);
        let (pod, client) = (&self.topology.pods[CLIENT_POD].host, &self.topology.client);
        let loads = [
            ("pod → ClusterIP, a connection each", pod.start_load(LoadKind::NewConnections, inside, 200)?),
            (
                "outside → NodePort, a connection each",
                client.start_load(LoadKind::NewConnections, outside, 200)?,
            ),
            ("outside → NodePort, one connection", client.start_load(LoadKind::OneConnection, outside, 200)?),
        ];
        thread::sleep(Duration::from_secs(1));
        let begin = Instant::now();
        for name in ["web", "web-nodeport"] {
            let applied = self.find(name)?;
            let left: Vec<_> =
                applied.pods.iter().copied().filter(|index| REPLICAS[*index] != leaving).collect();
            applied.publish(&self.topology.manifests, &pods(&self.topology, &left))?;
        }
        let gone = || -> Result<bool> {
            let exchanges = [pod.get(&[inside], 30)?, client.get(&[outside], 30)?].concat();
            let by_others = |exchange: &Exchange| {
                exchange.result.as_ref().is_ok_and(|answer| answer.greeting.pod != leaving_name)
            };
            Ok(exchanges.len() == 60 && exchanges.iter().all(by_others))
        };
        let mut left = false;
        while !left && begin.elapsed() < Duration::from_secs(10) {
            left = gone()?;
        }
        let took = begin.elapsed().as_millis();
        thread::sleep(Duration::from_secs(1));
        let mut rows = Vec::new();
        let mut reports = Vec::new();
        for (what, load) in loads {
            let report = load.finish()?;
            let tone = if report.failures == 0 { Tone::Good } else { Tone::Bad };
            let by: Vec<_> = report.by_pod.iter().map(|(pod, count)| format!("{pod} {count}")).collect();
            rows.push(vec![
                what.into(),
                report.requests.to_string().into(),
                Cell::new(report.failures.to_string(), tone),
                by.join("  ").into(),
            ]);
            reports.push((what, report));
        }
        self.screen.table(&["LOAD", "REQUESTS", "FAILED", "ANSWERED BY"], &rows);
        for (what, report) in reports {
            let failed = report.failures > 0 || report.requests == 0;
            self.checks.check(failed.then(|| format!("{what}: {report:?}")));
        }
        if left {
            self.screen.line(&format!(
                "{took} ms after the change of its EndpointSlice, 60 new requests reached only the other two"
            ));
        }
        self.checks
            .check((!left).then(|| format!("{leaving_name} still receives requests 10 s after its removal")));
        Ok(())
    }

    fn maps(&mut self) -> Result<()> {
        self.screen.heading("Maps of node1");
        let Some(agent) = self.agents.first() else { bail!("no agent runs") };
        let services = agent.lb(&["get", "services"])?;
        let (client, node) = (self.topology.client.v4.to_string(), self.topology.nodes[0].host.v4);
        let node_port = self.services.iter().find_map(|applied| {
            let mut ports = applied.service.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
            ports.find_map(|port| port.node_port)
        });
        let asked = format!("{node}:{}", node_port.context("no example has a nodePort")?);
        let explain = ["lb", "explain", "tcp", &client, &asked, "--in", "external"];
        for (command, output) in [
            ("lb get services", services.clone()),
            ("lb get backends", agent.lb(&["get", "backends"])?),
            ("lb get flows", agent.lb(&["get", "flows"])?),
            (&*explain.join(" "), agent.lb(&explain[1..])?),
        ] {
            self.screen.toned(command, Tone::Good);
            self.screen.excerpt(&output, 12);
            println!();
        }
        let bpffs = &self.topology.nodes[0].bpffs;
        if let Some(map) = find_pin(bpffs, "services_v4")
            && let Some(dump) = dump(&map)
        {
            self.screen.toned(&format!("bpftool map dump pinned {}", map.display()), Tone::Good);
            self.screen.excerpt(&dump, 22);
        }
        let missing = self
            .services
            .iter()
            .filter(|applied| applied.service_type != "ExternalName")
            .find(|applied| !services.contains(&applied.service.name))
            .map(|applied| format!("lb get services does not show {}", applied.service.name));
        self.checks.check(missing);
        let alias = services.contains("database");
        self.checks.check(alias.then(|| "the ExternalName Service has map entries".to_owned()));
        Ok(())
    }

    fn finish(self, keep: bool) -> Result<()> {
        let logs = || self.agents.iter().for_each(|one| println!("{}", daemon::tail(one.log_path())));
        let result = self.checks.finish(&self.screen, logs);
        if keep {
            self.keep()?;
        }
        result
    }

    fn keep(self) -> Result<()> {
        let node = &self.topology.nodes[0];
        let (id, netns) = (self.topology.id(), node.host.place.netns());
        let lb = agent::program()?.display();
        let bpffs = node.bpffs.display();
        let pod = &self.topology.pods[CLIENT_POD].host;
        let inside = web_address(self.find("web")?)?;
        let outside = self.topology.nodes[0].host.at(Family::V4, node_port(self.find("web-nodeport")?)?);
        println!("\n{id} keeps running. To look around:");
        self.screen
            .line(&format!("ip netns exec {} curl http://{outside}/", self.topology.client.place.netns()));
        self.screen.line(&format!(
            "sh -c 'echo $$ > {}/cgroup.procs; exec ip netns exec {} curl http://{inside}/'",
            pod.place.cgroup().display(),
            pod.place.netns()
        ));
        self.screen.line(&format!("ip netns exec {netns} {lb} get flows --bpffs {bpffs}"));
        self.screen
            .line(&format!("ls {bpffs}/sluice/*; less {}/node1-agent.log", self.topology.folder().display()));
        self.screen.line(&format!("edit the YAML in {}", self.topology.manifests.path().display()));
        println!("To remove it: cargo xtask demo --remove");
        let Self { agents, servers, topology, .. } = self;
        agents.into_iter().for_each(Agent::keep);
        servers.into_iter().for_each(Process::keep);
        topology.keep()
    }

    fn find(&self, name: &str) -> Result<&AppliedService> {
        let found = self.services.iter().find(|applied| applied.service.name == name);
        found.with_context(|| format!("deploy/examples has no Service {name}"))
    }
}

/// Returns the pods with these numbers, as [`AppliedService`] counts them.
fn pods<'a>(topology: &'a Topology, numbers: &[usize]) -> Vec<&'a Pod> {
    numbers.iter().map(|index| &topology.pods[REPLICAS[*index]]).collect()
}

fn scheme(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "http",
        Protocol::Udp => "udp ",
        Protocol::Sctp => "sctp",
    }
}

fn web_address(applied: &AppliedService) -> Result<SocketAddr> {
    let ip = applied.cluster_ip(Family::V4).context("web has no IPv4 address")?;
    let port = applied.service.ports.first().context("web has no port")?;
    Ok((ip, port.port).into())
}

fn node_port(applied: &AppliedService) -> Result<u16> {
    applied.service.ports.first().and_then(|port| port.node_port).context("web-nodeport has no nodePort")
}

/// Returns the path of the pinned map with this name below the folder. Upper and lower case do not
/// count.
fn find_pin(folder: &Path, name: &str) -> Option<PathBuf> {
    for entry in fs::read_dir(folder).ok()?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            if let Some(found) = find_pin(&path, name) {
                return Some(found);
            }
        } else if entry.file_name().eq_ignore_ascii_case(name) {
            return Some(path);
        }
    }
    None
}

/// Returns the output of bpftool for a map. Returns `None` if this machine has no bpftool.
fn dump(map: &Path) -> Option<String> {
    let output = Command::new("bpftool")
        .args(["map", "dump", "pinned"])
        .arg(map)
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
