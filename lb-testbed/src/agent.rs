//! `lb agent` as a child process on a node.

use std::fs::{self, OpenOptions};
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::host::Process;
use crate::http;
use crate::place::Place;
use crate::topology::{self, CLUSTER_CIDRS, Datapath, Node, Topology};

/// `/healthz` of every agent, in its node's namespace.
const HEALTH: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10256);
/// `/metrics` of every agent, in its node's namespace: the default of `lb agent`.
pub const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);
/// An agent that has not synced by then has failed. Loading the programs takes seconds on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Tells which `lb` to run instead of building one.
const LB_VARIABLE: &str = "SLUICE_LB";

/// Options beyond those that the node determines.
#[derive(Debug, Clone, Default)]
pub struct AgentOptions {
    /// API server to take the objects from, in place of the testbed's manifests.
    pub kubeconfig: Option<PathBuf>,
    pub arguments: Vec<String>,
}

/// A running agent. Dropping it kills the process and leaves what it loaded, as a crash would.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    lb: PathBuf,
    place: Place,
    bpffs: PathBuf,
    log: PathBuf,
}

impl Agent {
    /// Starts the agent of a node and waits until it is synced and its maps are written.
    pub fn start(topology: &Topology, node: &Node, options: &AgentOptions) -> Result<Self> {
        let mut agent = Self::spawn(topology, node, options)?;
        agent.wait_until_healthy()?;
        Ok(agent)
    }

    /// Starts the agent of a node and does not wait.
    pub fn spawn(topology: &Topology, node: &Node, options: &AgentOptions) -> Result<Self> {
        let lb = program()?.to_owned();
        let log = topology.folder().join(format!("{}-agent.log", node.host.name));
        let output = OpenOptions::new().create(true).append(true).open(&log)?;
        let mut command = command(&lb, topology, node, options)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = command.spawn().with_context(|| format!("start {}", lb.display()))?;
        Ok(Self {
            process: Process(child),
            lb,
            place: node.host.place.clone(),
            bpffs: node.bpffs.clone(),
            log,
        })
    }

    /// Starts an agent that must not come up, and returns its exit status and what it said.
    pub fn start_refused(topology: &Topology, node: &Node) -> Result<(ExitStatus, String)> {
        let mut command = command(program()?, topology, node, &AgentOptions::default())?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = Process(command.spawn()?);
        let deadline = Instant::now() + START_LIMIT;
        while process.0.try_wait()?.is_none() {
            if Instant::now() > deadline {
                bail!("the second agent runs on instead of ending");
            }
            thread::sleep(Duration::from_millis(20));
        }
        let mut said = String::new();
        process.0.stdout.take().context("no standard output")?.read_to_string(&mut said)?;
        process.0.stderr.take().context("no standard error")?.read_to_string(&mut said)?;
        Ok((process.0.wait()?, said))
    }

    pub fn log(&self) -> &Path {
        &self.log
    }

    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// Ends it as Kubernetes does and waits. The data path goes on.
    pub fn stop(mut self) -> Result<()> {
        let pid = Pid::from_child(&self.process.0);
        kill_process(pid, Signal::TERM).context("send SIGTERM to the agent")?;
        let status = self.process.0.wait()?;
        if !status.success() {
            bail!("the agent ended with {status} on SIGTERM\n{}", tail(&self.log));
        }
        Ok(())
    }

    /// Ends it as the kernel does when memory is short. The data path goes on.
    pub fn kill(self) {}

    /// Lets it outlive this process.
    pub fn keep(self) {
        std::mem::forget(self);
    }

    /// Runs `lb` with these arguments on the agent's node, on its maps, and returns what it printed.
    pub fn lb(&self, arguments: &[&str]) -> Result<String> {
        lb(&self.lb, &self.place, &self.bpffs, arguments)
    }

    /// Waits until it is synced and its maps are written.
    pub fn wait_until_healthy(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if let Some(status) = self.process.0.try_wait()? {
                return Err(self.failed(&format!("ended at once with {status}")));
            }
            match http::get(&self.place, HEALTH, "/healthz") {
                Ok(answer) if answer.status == 200 => return Ok(()),
                Ok(answer) if Instant::now() > deadline => {
                    return Err(self.failed(&format!("answers /healthz with {} for a minute", answer.status)));
                }
                Err(error) if Instant::now() > deadline => {
                    return Err(self.failed(&format!("does not answer /healthz: {error:#}")));
                }
                _ => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn failed(&self, what: &str) -> anyhow::Error {
        anyhow!("the agent of {} {what}\n{}", self.place.netns(), tail(&self.log))
    }
}

/// The command line of a node's agent.
fn command(lb: &Path, topology: &Topology, node: &Node, options: &AgentOptions) -> Result<Command> {
    let (source, path) = match &options.kubeconfig {
        Some(path) => ("--kubeconfig", path.as_path()),
        None => ("--manifests", topology.manifests.path()),
    };
    let (mode, tc_attach) = match topology.datapath {
        Datapath::Tc => ("tc", "auto"),
        Datapath::Clsact => ("tc", "clsact"),
        Datapath::Xdp => ("xdp", "auto"),
    };
    let mut command = node.host.place.command(lb)?;
    command
        .arg("agent")
        .arg(source)
        .arg(path)
        .args(["--node-name", &node.host.name])
        .arg("--cgroup")
        .arg(node.host.place.cgroup())
        .arg("--bpffs")
        .arg(&node.bpffs)
        .args(["--devices", "auto", "--mode", mode, "--tc-attach", tc_attach])
        .args(["--cluster-cidr", CLUSTER_CIDRS])
        .args(["--health-bind", &HEALTH.to_string()])
        .args(&options.arguments);
    Ok(command)
}

/// Removes everything that agents put on a node: `lb cleanup`.
pub fn cleanup(node: &Node) -> Result<String> {
    lb(program()?, &node.host.place, &node.bpffs, &["cleanup"])
}

/// Runs `lb` with these arguments on a node, whether an agent runs there or not, and returns what it printed.
pub fn lb_on(node: &Node, arguments: &[&str]) -> Result<String> {
    lb(program()?, &node.host.place, &node.bpffs, arguments)
}

fn lb(program: &Path, place: &Place, bpffs: &Path, arguments: &[&str]) -> Result<String> {
    let mut command = place.command(program)?;
    crate::place::run(command.args(arguments).arg("--bpffs").arg(bpffs))
}

/// The last lines of a log, for a failure message.
pub fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_else(|error| format!("{}: {error}", log.display()));
    let lines: Vec<_> = text.lines().collect();
    let from = lines.len().saturating_sub(40);
    format!("--- {}\n{}\n---", log.display(), lines[from..].join("\n"))
}

/// The `lb` program: that of `SLUICE_LB`, else built once by this process.
pub fn program() -> Result<&'static Path> {
    static PROGRAM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match PROGRAM.get_or_init(|| find_or_build().map_err(|error| format!("{error:#}"))) {
        Ok(path) => Ok(path),
        Err(error) => bail!("{error}"),
    }
}

fn find_or_build() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(LB_VARIABLE) {
        let path = PathBuf::from(path);
        if !path.is_file() {
            bail!("{LB_VARIABLE}={} is not a file", path.display());
        }
        return Ok(path);
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--package", "lb-userspace", "--bin", "lb"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .status()
        .context("start cargo to build lb")?;
    if !status.success() {
        bail!("cargo could not build lb ({status}); {LB_VARIABLE}=PATH takes one that is built");
    }
    topology::sibling_program("lb")
}
