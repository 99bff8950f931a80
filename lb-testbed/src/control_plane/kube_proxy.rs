//! A real kube-proxy as a child process on a node of the testbed.

use std::fmt;
use std::net::IpAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Signal;

use super::programs::program_named;
use crate::daemon::{START_LIMIT, spawn, tail};
use crate::host::Process;
use crate::patience::patient;
use crate::place::Place;
use crate::topology::{CLUSTER_CIDRS, Node};

/// A mode of kube-proxy. Its name is the value of `--proxy-mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KubeProxyMode {
    Iptables,
    Nftables,
}

impl fmt::Display for KubeProxyMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        })
    }
}

impl KubeProxyMode {
    /// Returns the rules of kube-proxy in the network namespace, or an empty text if there are
    /// none. The chain KUBE-FIREWALL does not count: the kubelet has it, too, and
    /// `kube-proxy --cleanup` leaves it.
    pub fn rules(self, place: &Place) -> Result<String> {
        match self {
            Self::Iptables => {
                let rules = [place.run("iptables-save", [""; 0])?, place.run("ip6tables-save", [""; 0])?];
                let of_kube_proxy = |line: &&str| line.contains("KUBE-") && !line.contains("KUBE-FIREWALL");
                Ok(rules.concat().lines().filter(of_kube_proxy).map(|line| format!("{line}\n")).collect())
            }
            Self::Nftables => {
                let tables = place.run("nft", ["list", "tables"])?;
                let of_kube_proxy = tables.lines().filter(|table| table.ends_with(" kube-proxy"));
                of_kube_proxy
                    .map(|table| {
                        place.run("nft", [&["list"][..], &table.split(' ').collect::<Vec<_>>()].concat())
                    })
                    .collect()
            }
        }
    }
}

/// A running kube-proxy. Dropping it kills the process. Its rules stay.
#[derive(Debug)]
pub struct KubeProxy {
    process: Process,
    mode: KubeProxyMode,
    place: Place,
    log: PathBuf,
}

impl KubeProxy {
    /// Starts kube-proxy on a node, with the settings of kubeadm. Its log is a file in `logs`.
    pub fn start(node: &Node, mode: KubeProxyMode, kubeconfig: &Path, logs: &Path) -> Result<Self> {
        let place = node.host.place.clone();
        let mut command = place.command(program_named("kube-proxy", "test takeover")?)?;
        command
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .arg(format!("--proxy-mode={mode}"))
            .arg(format!("--hostname-override={}", node.host.name))
            .arg(format!("--cluster-cidr={CLUSTER_CIDRS}"))
            // These are parameters of the whole machine.
            .args(["--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0"])
            .arg("--conntrack-tcp-timeout-close-wait=0");
        let log = logs.join(format!("{}-kube-proxy-{mode}.log", node.host.name));
        Ok(Self { process: spawn(&mut command, &log)?, mode, place, log })
    }

    /// Waits until the rules contain all these addresses.
    pub fn wait_until_served(&mut self, addresses: &[IpAddr]) -> Result<()> {
        let deadline = Instant::now() + patient(START_LIMIT);
        loop {
            if let Some(status) = self.process.0.try_wait()? {
                bail!("kube-proxy exited with {status}\n{}", tail(&self.log));
            }
            let rules = self.mode.rules(&self.place)?;
            let missing = addresses.iter().find(|address| !rules.contains(&address.to_string()));
            let Some(missing) = missing else { return Ok(()) };
            ensure!(
                Instant::now() < deadline,
                "kube-proxy has no rule for {missing}\n{rules}\n{}",
                tail(&self.log)
            );
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Sends SIGTERM, as the kubelet does, and waits for the exit. The rules stay.
    pub fn stop(mut self) -> Result<()> {
        self.process.signal(Signal::TERM).context("send SIGTERM to kube-proxy")?;
        let deadline = Instant::now() + patient(START_LIMIT);
        loop {
            match self.process.0.try_wait()? {
                // kube-proxy has no handler of signals.
                Some(status) if status.success() || status.signal() == Some(libc::SIGTERM) => return Ok(()),
                Some(status) => bail!("kube-proxy exited with {status}\n{}", tail(&self.log)),
                None if Instant::now() > deadline => bail!("kube-proxy does not end on SIGTERM"),
                None => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Returns the last lines of the log, for a failure message.
    pub fn log_tail(&self) -> String {
        tail(&self.log)
    }
}
