//! `lb agent` as a child process on a node.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::command;
use crate::container::Container;
use crate::daemon::{Daemon, START_LIMIT};
use crate::host::Process;
use crate::http;
use crate::patience::patient;
use crate::place::Place;
use crate::run::cgroup2_mounts;
use crate::topology::{self, AttachMode, CLUSTER_CIDRS, Node, Topology};

/// Address of `/healthz` of an agent, in the network namespace of its node.
pub const HEALTH: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10256);
/// Address of `/metrics` of an agent, in the network namespace of its node. `lb agent` uses it by
/// default.
pub const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);
/// Environment variable with the path of the `lb` program. If it is not set, `lb` is built.
const LB_VARIABLE: &str = "SLUICE_LB";

/// Agent options that do not follow from the node.
#[derive(Debug, Clone, Default)]
pub struct AgentOptions {
    /// Kubeconfig of the API server to watch. `None` watches the testbed's manifest folder.
    pub kubeconfig: Option<PathBuf>,
    /// Further command-line arguments.
    pub arguments: Vec<String>,
    /// Path of the `lb` program to run in place of that of `build`.
    pub lb: Option<PathBuf>,
    /// Address of `/healthz`, if it is not the usual one.
    pub health: Option<SocketAddr>,
    /// Folders that are empty for the agent, as if nothing were mounted there.
    pub hidden: Vec<PathBuf>,
    /// For the agent, no cgroup-v2 hierarchy is mounted, and no option names a cgroup: the host has
    /// cgroup v1 only.
    pub without_cgroup2: bool,
    /// The container that the agent runs in. By default it has the rights of this process.
    pub container: Option<Container>,
    /// The build of the program.
    pub build: LbBuild,
    /// The step of a conversion at which the agent kills itself (lb-datapath/src/step.rs).
    pub kill_at: Option<&'static str>,
    /// The path of a file with the name of the step of a conversion that fails.
    pub fail_at: Option<PathBuf>,
    /// The path of a file that holds the sweeps of the flow table while it exists.
    pub hold_sweep: Option<PathBuf>,
}

impl AgentOptions {
    fn program(&self) -> Result<&Path> {
        match &self.lb {
            Some(lb) => Ok(lb),
            None => self.build.program(),
        }
    }

    fn health(&self) -> SocketAddr {
        self.health.unwrap_or(HEALTH)
    }
}

/// A build of the `lb` program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LbBuild {
    #[default]
    Usual,
    /// The entries of its maps have another layout (lb-common/src/other_layout.rs).
    OtherLayout,
}

/// A running agent. Dropping it kills the process, as a crash would: programs and maps stay pinned.
#[derive(Debug)]
pub struct Agent {
    daemon: Daemon,
    lb: PathBuf,
    place: Place,
    bpffs: PathBuf,
    health: SocketAddr,
}

impl Agent {
    /// Starts the agent of a node and waits until its initial sync is complete.
    pub fn start(topology: &Topology, node: &Node, options: &AgentOptions) -> Result<Self> {
        let mut agent = Self::spawn(topology, node, options)?;
        agent.wait_until_healthy()?;
        Ok(agent)
    }

    /// Starts the agent of a node without waiting for its initial sync.
    pub fn spawn(topology: &Topology, node: &Node, options: &AgentOptions) -> Result<Self> {
        let lb = options.program()?.to_owned();
        let log = topology.folder().join(format!("{}-agent.log", node.host.name));
        let mut command = command(&lb, topology, node, options)?;
        let place = node.host.place.clone();
        let daemon = Daemon::spawn(format!("the agent of {}", place.netns()), &mut command, log)?;
        Ok(Self { daemon, lb, place, bpffs: node.bpffs.clone(), health: options.health() })
    }

    /// Starts an agent that is expected to exit with an error. Returns its exit status and output.
    pub fn start_refused(
        topology: &Topology,
        node: &Node,
        options: &AgentOptions,
    ) -> Result<(ExitStatus, String)> {
        let mut command = command(options.program()?, topology, node, options)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = Process(command.spawn()?);
        let deadline = Instant::now() + patient(START_LIMIT);
        while process.0.try_wait()?.is_none() {
            if Instant::now() > deadline {
                bail!("the agent is still running: it was expected to exit with an error");
            }
            thread::sleep(Duration::from_millis(20));
        }
        let mut output = String::new();
        process.0.stdout.take().context("no standard output")?.read_to_string(&mut output)?;
        process.0.stderr.take().context("no standard error")?.read_to_string(&mut output)?;
        Ok((process.0.wait()?, output))
    }

    /// Waits until the agent has killed itself, see [`AgentOptions::kill_at`].
    pub fn wait_until_killed(self) -> Result<()> {
        self.daemon.wait_until_killed()
    }

    /// Returns the path of the log file, which the agents of a node share.
    pub fn log_path(&self) -> &Path {
        self.daemon.log_path()
    }

    /// Returns what this agent has logged, without the lines of earlier agents of its node.
    pub fn log(&self) -> Result<String> {
        self.daemon.log()
    }

    /// Returns the process id of the agent.
    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// Sends SIGTERM, as the kubelet does, and waits for the exit. The data path keeps working.
    /// Returns an error if the exit status is not 0.
    pub fn stop(self) -> Result<()> {
        self.daemon.stop()
    }

    /// Sends SIGKILL, as the kernel's OOM killer does. The data path keeps working.
    pub fn kill(self) {}

    /// Leaves the agent running when this process ends.
    pub fn keep(self) {
        std::mem::forget(self);
    }

    /// Runs `lb` on the agent's node and on the agent's maps. Returns its standard output.
    pub fn lb(&self, arguments: &[&str]) -> Result<String> {
        lb(&self.lb, &self.place, &self.bpffs, arguments)
    }

    /// Waits until `/healthz` returns 200: the initial sync is complete.
    pub fn wait_until_healthy(&mut self) -> Result<()> {
        self.daemon.wait_until_ready(&self.place, self.health, "/healthz")
    }
}

/// Returns the command that starts a node's agent.
fn command(lb: &Path, topology: &Topology, node: &Node, options: &AgentOptions) -> Result<Command> {
    let (source, path) = match &options.kubeconfig {
        Some(path) => ("--kubeconfig", path.as_path()),
        None => ("--manifests", topology.manifests.path()),
    };
    let (mode, tc_attach) = match topology.datapath {
        AttachMode::Tc => ("tc", "auto"),
        AttachMode::Clsact => ("tc", "clsact"),
        AttachMode::Xdp => ("xdp", "auto"),
    };
    let program = options.container.as_ref().map_or(lb, |container| container.program(lb));
    let mut command = node.host.place.command(program)?;
    command
        .arg("agent")
        .arg(source)
        .arg(path)
        .args(["--node-name", &node.host.name])
        .arg("--bpffs")
        .arg(&node.bpffs)
        .args(["--devices", topology.underlay.devices(), "--mode", mode, "--tc-attach", tc_attach])
        .args(["--cluster-cidr", CLUSTER_CIDRS])
        .args(["--health-bind", &options.health().to_string()])
        .args(&options.arguments)
        .envs(options.kill_at.map(|step| ("SLUICE_TEST_KILL_AT", step)))
        .envs(options.fail_at.as_ref().map(|path| ("SLUICE_TEST_FAIL_AT", path)))
        .envs(options.hold_sweep.as_ref().map(|path| ("SLUICE_TEST_HOLD_SWEEP", path)));
    let unmounted = if options.without_cgroup2 {
        cgroup2_mounts()?
    } else {
        command.arg("--cgroup").arg(node.host.place.cgroup());
        Vec::new()
    };
    command::hide(&mut command, &options.hidden, &unmounted)?;
    if let Some(container) = &options.container {
        command.arg("--sysctl-dir").arg(&container.sysctls);
        container.confine(&mut command)?;
    }
    Ok(command)
}

/// Runs `lb cleanup` on a node: it removes everything that agents installed there.
pub fn cleanup(node: &Node) -> Result<String> {
    lb(program()?, &node.host.place, &node.bpffs, &["cleanup"])
}

/// Runs `lb` on a node, with or without a running agent. Returns its standard output.
pub fn lb_on(node: &Node, arguments: &[&str]) -> Result<String> {
    lb(program()?, &node.host.place, &node.bpffs, arguments)
}

/// Returns the sum of the samples of a metric of a node's agent whose labels contain `label`.
pub fn metric(node: &Node, name: &str, label: &str) -> Result<f64> {
    let answer = http::get(&node.host.place, METRICS, "/metrics")?;
    let samples = answer.body.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        (series.split('{').next() == Some(name) && series.contains(label)).then(|| value.parse::<f64>())
    });
    let samples: Vec<f64> = samples.collect::<Result<_, _>>()?;
    ensure!(!samples.is_empty(), "no sample of {name} with {label}");
    Ok(samples.iter().sum())
}

/// Runs a command of `lb` that reads no maps. Returns its standard output.
pub fn lb_at(place: &Place, arguments: &[&str]) -> Result<String> {
    command::run(place.command(program()?)?.args(arguments))
}

fn lb(program: &Path, place: &Place, bpffs: &Path, arguments: &[&str]) -> Result<String> {
    let mut command = place.command(program)?;
    command::run(command.args(arguments).arg("--bpffs").arg(bpffs))
}

/// Returns the path of the `lb` program: the value of `SLUICE_LB`, or else a program that this
/// process builds once.
pub fn program() -> Result<&'static Path> {
    static PROGRAM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match PROGRAM.get_or_init(|| find_or_build(LB_VARIABLE, "lb", &[]).map_err(|error| format!("{error:#}")))
    {
        Ok(path) => Ok(path),
        Err(error) => bail!("{error}"),
    }
}

impl LbBuild {
    /// Returns the path of the program. Builds it if necessary.
    pub fn program(self) -> Result<&'static Path> {
        static OTHER_LAYOUT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
        match self {
            Self::Usual => program(),
            Self::OtherLayout => {
                let features = ["--features", "other-layout"];
                let build = || find_or_build("SLUICE_LB_OTHER_LAYOUT", "lb-other-layout", &features);
                match OTHER_LAYOUT.get_or_init(|| build().map_err(|error| format!("{error:#}"))) {
                    Ok(path) => Ok(path),
                    Err(error) => bail!("{error}"),
                }
            }
        }
    }
}

/// Returns the path in an environment variable, or else builds a binary of `lb-userspace`.
fn find_or_build(variable: &str, binary: &str, options: &[&str]) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        let path = PathBuf::from(path);
        if !path.is_file() {
            bail!("{variable}={} is not a file", path.display());
        }
        return Ok(path);
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = lb_build::without_package(&mut Command::new(cargo))
        .args(["build", "--quiet", "--package", "lb-userspace", "--bin", binary])
        .args(options)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .status()
        .context("start cargo to build lb")?;
    if !status.success() {
        bail!("cargo could not build {binary} ({status}); set {variable} to the path of a built program");
    }
    topology::sibling_program(binary)
}
