//! The arguments of `lb cleanup`.

use std::path::PathBuf;

use clap::Args;

use crate::cli::pin_args::PinArgs;

#[derive(Debug, Args)]
pub struct CleanupArgs {
    /// List what would be removed, and remove nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Remove the rules that a former kube-proxy left behind, and leave Sluice alone
    ///
    /// Use it after kube-proxy has ended and the agent serves the node. The agent may be running.
    /// The command refuses to run while kube-proxy runs on this node.
    ///
    /// It removes what kube-proxy creates in any of its modes: chains and rules of iptables, tables
    /// of nftables, and virtual servers, ipsets and the device kube-ipvs0 of IPVS. Chains of the
    /// kubelet and of other programs stay. The command runs the node's own iptables-save,
    /// iptables-restore, nft, ipset, ipvsadm and ip. It reports what it cannot check because a
    /// program is missing.
    ///
    /// Entries of the kernel's connection tracking stay. Connections that kube-proxy translated go
    /// on if another program on the node, for example the pod network, has NAT rules and rules that
    /// track connections. Otherwise these connections break.
    #[arg(long)]
    pub kube_proxy: bool,

    /// Root folder of the node, if the command runs in a container: it runs the programs found
    /// there
    #[arg(long, value_name = "DIR", requires = "kube_proxy")]
    pub host_root: Option<PathBuf>,

    #[command(flatten)]
    pub pins: PinArgs,
}
