//! `lb ingress` as a child process in the network namespace of a host.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::agent::program;
use crate::daemon::{Daemon, tail};
use crate::host::Host;
use crate::http;
use crate::place::Place;

/// Port of HTTP. The servers of the testbed's pods have the port of `deploy/ingress`.
pub const HTTP_PORT: u16 = 8180;
/// Port of HTTPS.
pub const HTTPS_PORT: u16 = 8543;
/// Address of `/readyz` and `/metrics`, in the network namespace of the proxy.
pub(crate) const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10254);

/// A running proxy. Dropping it kills the process.
#[derive(Debug)]
pub struct IngressProxy(Daemon);

impl IngressProxy {
    /// Starts the proxy and waits until it is ready. `source` is the option that names the source
    /// of objects, `path` its value. The logs go to a file in `logs`.
    pub fn start(host: &Host, source: &str, path: &Path, logs: &Path) -> Result<Self> {
        Self::start_with(host, source, path, &[], logs)
    }

    /// Starts the proxy with more arguments.
    pub fn start_with(
        host: &Host,
        source: &str,
        path: &Path,
        arguments: &[&str],
        logs: &Path,
    ) -> Result<Self> {
        let log = logs.join(format!("{}-ingress.log", host.name));
        Self::start_in(&host.place, source, path, arguments, log)
    }

    /// Starts the proxy in the network namespace of a place.
    pub(crate) fn start_in(
        place: &Place,
        source: &str,
        path: &Path,
        arguments: &[&str],
        log: PathBuf,
    ) -> Result<Self> {
        let mut command = place.command(program()?)?;
        command.args(["ingress", source]).arg(path).args([
            "--http",
            &format!(":{HTTP_PORT}"),
            "--https",
            &format!(":{HTTPS_PORT}"),
            "--admin",
            &ADMIN.to_string(),
        ]);
        command.args(arguments);
        let name = format!("the ingress proxy of {}", place.netns());
        let mut daemon = Daemon::spawn(name, &mut command, log)?;
        daemon.wait_until_ready(place, ADMIN, "/readyz")?;
        Ok(Self(daemon))
    }

    pub fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// Returns the body of `/metrics`. `host` is that of [`Self::start`].
    pub fn metrics(host: &Host) -> Result<String> {
        Ok(http::get(&host.place, ADMIN, "/metrics")?.body)
    }

    /// Returns what this proxy has logged, without the lines of earlier ones.
    pub fn log(&self) -> Result<String> {
        self.0.log()
    }

    /// Returns the last lines of the log, for a failure message.
    pub fn log_tail(&self) -> String {
        tail(self.0.log_path())
    }

    /// Sends SIGTERM, which begins the grace period. A second one ends it.
    pub fn terminate(&self) -> Result<()> {
        self.0.terminate()
    }

    /// Sends SIGTERM, as the kubelet does, and waits for the exit. Returns an error if the exit
    /// status is not 0.
    pub fn stop(self) -> Result<()> {
        self.0.stop()
    }
}
