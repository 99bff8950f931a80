//! `cargo xtask bench connect`: what a short TCP connection from a pod costs through a Service, and
//! directly to the address of a pod.
//!
//! Each subject has a cluster of its own, and all exist at the same time. A client in a pod opens
//! connections, one after the other: 64 bytes in each direction. The figure is the CPU time of the
//! client's and of the server's process, divided by the number of connections. The kernel's work
//! for a packet between namespaces is done by the process that sent it, and counts as its time. The
//! subjects take turns, and another one begins in each round.

mod report;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use lb_testbed::agent::program;
use lb_testbed::control_plane::{KubeProxyMode, RunningProxy, ServiceProxy};
use lb_testbed::host::{Listen, Process};
use lb_testbed::manifests::{ServiceManifest, ServicePort};
use lb_testbed::measure::Output;
use lb_testbed::topology::Pod;
use lb_testbed::{AttachMode, Family, Topology, Underlay};

use crate::report::{Figure, Report, Sample};

/// The port of the servers and of the Services.
const PORT: u16 = 7070;
/// What serves Services. `None`: nothing does.
type Subject = Option<ServiceProxy>;
const SUBJECTS: [Subject; 4] = [
    None,
    Some(ServiceProxy::Sluice),
    Some(ServiceProxy::KubeProxy(KubeProxyMode::Nftables)),
    Some(ServiceProxy::KubeProxy(KubeProxyMode::Iptables)),
];

fn main() -> Result<()> {
    let options = Options::parse();
    program()?;
    let is_wanted = |subject: &Subject| {
        !options.without_kube_proxy || !matches!(subject, Some(ServiceProxy::KubeProxy(_)))
    };
    let mut beds = Vec::new();
    for subject in SUBJECTS.into_iter().filter(is_wanted) {
        eprintln!("building the cluster of {}", report::name(subject));
        beds.push(Bed::build(subject).with_context(|| report::name(subject))?);
    }
    let mut report = Report::new()?;
    for round in 0..options.rounds {
        eprintln!("round {} of {}", round + 1, options.rounds);
        for (figure, family) in report::figures() {
            for turn in 0..beds.len() {
                let bed = &beds[(turn + round) % beds.len()];
                let Some(target) = bed.target(figure, family) else { continue };
                let sample = bed
                    .measure(figure, target, options.connections)
                    .with_context(|| format!("{}, {target}", report::name(bed.subject)))?;
                report.add(figure, family, bed.subject, sample);
            }
        }
    }
    options.output.write(&report, &report.table(), |path| report.write_into(path))
}

/// A cluster. Its client is the second pod. The first pod is on the same node, the third one on the
/// other node. Dropping it removes everything.
struct Bed {
    subject: Subject,
    // These are dropped in this order.
    _proxy: Option<RunningProxy>,
    near_server: Process,
    far_server: Process,
    topology: Topology,
}

impl Bed {
    fn build(subject: Subject) -> Result<Self> {
        let tool = Path::new(env!("CARGO_BIN_EXE_lb-testbed"));
        let topology = Topology::build(Underlay::Routed, AttachMode::Tc, tool)?;
        let serve = |pod: &Pod| {
            pod.host.serve_at(&pod.host.name, &Listen { exchange: vec![PORT], ..Listen::default() })
        };
        let [near, _, far, _] = &topology.pods;
        let (near_server, far_server) = (serve(near)?, serve(far)?);
        let objects = [
            service(Figure::SameNode).with_endpoints(&[near]),
            service(Figure::OtherNode).with_endpoints(&[far]),
        ];
        let pods =
            [near, far].into_iter().flat_map(|pod| Family::BOTH.map(|family| pod.host.address(family)));
        let addresses: Vec<IpAddr> = [Figure::SameNode, Figure::OtherNode]
            .into_iter()
            .flat_map(|figure| service(figure).cluster_ips)
            .chain(pods)
            .collect();
        let proxy = subject.map(|proxy| proxy.start(&topology, &objects.concat(), &addresses)).transpose()?;
        Ok(Self { subject, _proxy: proxy, near_server, far_server, topology })
    }

    /// Returns where the client connects to: without a proxy, always to the pod itself.
    fn target(&self, figure: Figure, family: Family) -> Option<SocketAddr> {
        let [near, _, far, _] = &self.topology.pods;
        let through = |pod: &Pod| match self.subject {
            None => pod.host.address(family),
            Some(_) => address(figure, family),
        };
        let ip = match figure {
            Figure::SameNode => through(near),
            Figure::OtherNode => through(far),
            // Without a proxy, this is the figure above.
            Figure::PastServices if self.subject.is_none() => return None,
            Figure::PastServices => far.host.address(family),
        };
        Some((ip, PORT).into())
    }

    fn measure(&self, figure: Figure, target: SocketAddr, connections: u32) -> Result<Sample> {
        let server = match figure {
            Figure::SameNode => &self.near_server,
            Figure::OtherNode | Figure::PastServices => &self.far_server,
        };
        let before = cpu_time(server)?;
        let times = self.topology.pods[1].host.exchange(target, connections)?;
        let cpu = times.cpu + (cpu_time(server)? - before);
        let microseconds = |time: Duration| time.as_secs_f64() * 1e6;
        Ok(Sample { cpu: microseconds(cpu) / f64::from(connections), latency: microseconds(times.median) })
    }
}

fn service(figure: Figure) -> ServiceManifest {
    ServiceManifest {
        namespace: "default".to_owned(),
        name: figure.service().to_owned(),
        cluster_ips: Family::BOTH.map(|family| address(figure, family)).to_vec(),
        ports: vec![ServicePort::tcp("", PORT, PORT)],
    }
}

fn address(figure: Figure, family: Family) -> IpAddr {
    let last = 90 + figure as u8;
    match family {
        Family::V4 => Ipv4Addr::new(10, 96, 0, last).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, last.into()).into(),
    }
}

/// Returns the CPU time of a process.
fn cpu_time(process: &Process) -> Result<Duration> {
    let mut clock = 0;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: both pointers are those of local variables.
    let failed = unsafe {
        libc::clock_getcpuclockid(process.pid().cast_signed(), &raw mut clock) != 0
            || libc::clock_gettime(clock, &raw mut time) != 0
    };
    if failed {
        return Err(io::Error::last_os_error()).context("read the CPU time of a server");
    }
    Ok(Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec)?))
}

/// The options that xtask passes.
#[derive(Parser)]
struct Options {
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Connections of each measurement.
    #[arg(long, default_value_t = 3000)]
    connections: u32,
    #[arg(long)]
    without_kube_proxy: bool,
    #[command(flatten)]
    output: Output,
}
