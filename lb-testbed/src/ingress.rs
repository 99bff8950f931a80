//! `lb ingress` as a child process in the network namespace of a host.

use std::fs::OpenOptions;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::agent::{program, tail};
use crate::check::eventually_within;
use crate::host::{Host, Process};
use crate::http;

/// Port of HTTP. The servers of the testbed's pods have the port of `deploy/ingress`.
pub const HTTP_PORT: u16 = 8180;
/// Address of `/readyz`, in the network namespace of the host.
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10254);

/// How long the proxy may take to read all objects.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A running proxy. Dropping it kills the process.
#[derive(Debug)]
pub struct IngressProxy {
    process: Process,
    log: PathBuf,
}

impl IngressProxy {
    /// Starts the proxy and waits until it is ready. `source` is the option that names the source
    /// of objects, `path` its value. The logs go to a file in `logs`.
    pub fn start(host: &Host, source: &str, path: &Path, logs: &Path) -> Result<Self> {
        let log = logs.join(format!("{}-ingress.log", host.name));
        let output = OpenOptions::new().create(true).append(true).open(&log)?;
        let mut command = host.place.command(program()?)?;
        command
            .args(["ingress", source])
            .arg(path)
            .args(["--http", &format!(":{HTTP_PORT}"), "--https", ":8543", "--admin", &ADMIN.to_string()])
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let child = command.spawn().context("start lb ingress")?;
        let proxy = Self { process: Process(child), log };
        eventually_within(START_LIMIT, || {
            let answer = http::get(&host.place, ADMIN, "/readyz")?;
            ensure!(answer.status == 200, "/readyz returns {}: {}", answer.status, answer.body);
            Ok(())
        })
        .map_err(|error| anyhow!("{error:#}\n{}", proxy.log_tail()))?;
        Ok(proxy)
    }

    /// Returns the last lines of the log, for a failure message.
    pub fn log_tail(&self) -> String {
        tail(&self.log)
    }

    /// Sends SIGTERM, as the kubelet does, and waits for the exit. Returns an error if the exit
    /// status is not 0.
    pub fn stop(mut self) -> Result<()> {
        let pid = Pid::from_child(&self.process.0);
        kill_process(pid, Signal::TERM).context("send SIGTERM to the proxy")?;
        let status = self.process.0.wait()?;
        ensure!(status.success(), "the proxy exited with {status} on SIGTERM\n{}", self.log_tail());
        Ok(())
    }
}
