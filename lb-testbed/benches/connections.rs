//! `cargo xtask bench connections`: opens many connections to one endpoint on another node, with
//! real sockets and an agent with default settings. It fails if one is refused.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use lb_testbed::agent::METRICS;
use lb_testbed::host::{Connections, Listen};
use lb_testbed::manifests::{self, ServiceManifest, ServicePort};
use lb_testbed::report::{ConnectionsReport, OpenedReport};
use lb_testbed::{Agent, AgentOptions, AttachMode, Family, Topology, Underlay, http};

/// The port of the server, TCP and UDP.
const PORT: u16 = 7;
/// The nodePort of the Service, TCP and UDP.
const NODE_PORT: u16 = 30_007;

/// Further addresses of the client, so that no source port is used again within two minutes.
const SOURCES: [Ipv4Addr; 4] = [
    Ipv4Addr::new(10, 10, 0, 101),
    Ipv4Addr::new(10, 10, 0, 102),
    Ipv4Addr::new(10, 10, 0, 103),
    Ipv4Addr::new(10, 10, 0, 104),
];

/// The counters that are printed.
const COUNTERS: [&str; 7] = [
    "flow_opened",
    "evicted_half_open",
    "evicted_datagrams",
    "evicted_closed",
    NO_SOURCE_PORT,
    FLOW_TABLE_FULL,
    "no_route",
];
const NO_SOURCE_PORT: &str = "no_source_port";
const FLOW_TABLE_FULL: &str = "flow_table_full";

fn main() -> Result<()> {
    let options = Options::parse();
    let mut failed = false;
    for mode in [AttachMode::Xdp, AttachMode::Tc] {
        if options.mode.is_none_or(|wanted| wanted == mode) {
            failed |= !run(&options, mode)?;
        }
    }
    if failed { bail!("connections were refused or failed, see above") } else { Ok(()) }
}

/// Runs the load. Returns whether every connection was opened.
fn run(options: &Options, mode: AttachMode) -> Result<bool> {
    let tool = PathBuf::from(env!("CARGO_BIN_EXE_lb-testbed"));
    let topology = Topology::build(Underlay::Routed, mode, &tool)?;
    for source in SOURCES {
        topology.client.place.ip(&format!("address add {source}/24 dev eth0\n"))?;
    }
    // The endpoint is on the second node; the packets arrive at the first one.
    let pod = &topology.pods[2];
    let listen = Listen { echo: vec![PORT], ..Listen::default() };
    let _servers = pod.host.serve_at(&pod.host.name, &listen)?;
    let nodes: Vec<_> = topology.nodes.iter().map(manifests::node).collect();
    topology.manifests.write("nodes.yaml", &nodes)?;
    let service = ServiceManifest {
        namespace: "default".to_owned(),
        name: "busy".to_owned(),
        cluster_ips: vec![Ipv4Addr::new(10, 96, 0, 20).into()],
        ports: vec![
            ServicePort::tcp("tcp", PORT, PORT).node_port(NODE_PORT),
            ServicePort::udp("udp", PORT, PORT).node_port(NODE_PORT),
        ],
    };
    topology.manifests.write("busy.yaml", &service.with_endpoints(&[pod]))?;
    let node = &topology.nodes[0];
    let _agent = Agent::start(&topology, node, &AgentOptions::default())?;
    let load = Connections {
        tcp: node.host.at(Family::V4, NODE_PORT),
        udp: node.host.at(Family::V4, NODE_PORT),
        tcp_rate: options.rate,
        udp_rate: options.rate,
        seconds: options.seconds,
        sources: SOURCES.map(IpAddr::from).to_vec(),
    };
    eprintln!("{mode:?}: {} connections and flows a second, {} s", options.rate, options.seconds);
    let report = topology.client.open_connections(&load)?;
    let metrics = http::get(&node.host.place, METRICS, "/metrics")?.body;
    let refused: u64 = [NO_SOURCE_PORT, FLOW_TABLE_FULL].iter().map(|reason| count(&metrics, reason)).sum();
    print!("{}", table(mode, &report, &metrics));
    if let Some(path) = &options.json {
        let path = path.with_extension(format!("{mode:?}.json").to_lowercase());
        fs::write(&path, serde_json::to_vec_pretty(&report)?).with_context(|| path.display().to_string())?;
    }
    let wanted = u64::from(options.rate) * u64::from(options.seconds);
    Ok(refused == 0 && report.tcp.opened == wanted && report.udp.opened == wanted)
}

fn count(metrics: &str, reason: &str) -> u64 {
    let label = format!("reason=\"{reason}\"}} ");
    let samples = metrics.lines().filter(|line| line.starts_with("sluice_packets_total{"));
    samples.filter_map(|line| line.split_once(&label)?.1.parse::<u64>().ok()).sum()
}

fn table(mode: AttachMode, report: &ConnectionsReport, metrics: &str) -> String {
    let ConnectionsReport { tcp, udp, seconds } = report;
    let mut text = format!("{mode:?}, {seconds:.1} s\n");
    let _ = writeln!(
        text,
        "{:<6}{:>9}{:>8}{:>8}{:>10}{:>12}",
        "", "opened", "per s", "failed", "repeated", "slowest ms"
    );
    for (name, opened) in [("TCP", tcp), ("UDP", udp)] {
        let OpenedReport { opened, failed, repeated, slowest_milliseconds, examples } = opened;
        let rate = *opened as f64 / seconds;
        let _ = writeln!(
            text,
            "{name:<6}{opened:>9}{rate:>8.0}{failed:>8}{repeated:>10}{slowest_milliseconds:>12}"
        );
        for example in examples {
            let _ = writeln!(text, "      {example}");
        }
    }
    for reason in COUNTERS {
        let _ = writeln!(text, "{reason:<20}{}", count(metrics, reason));
    }
    text
}

/// The options that xtask passes.
#[derive(Parser)]
struct Options {
    #[arg(long, default_value_t = 300)]
    seconds: u32,
    #[arg(long, default_value_t = 2000)]
    rate: u32,
    #[arg(long, value_parser = mode)]
    mode: Option<AttachMode>,
    #[arg(long)]
    json: Option<PathBuf>,
    /// `cargo bench` adds it.
    #[arg(long = "bench", hide = true)]
    _bench: bool,
}

fn mode(text: &str) -> Result<AttachMode> {
    match text {
        "xdp" => Ok(AttachMode::Xdp),
        "tc" => Ok(AttachMode::Tc),
        _ => bail!("xdp or tc"),
    }
}
