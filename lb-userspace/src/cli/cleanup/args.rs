use std::path::PathBuf;

use clap::Args;

use crate::cli::pin_args::PinArgs;

#[derive(Debug, Args)]
pub struct CleanupArgs {
    /// Only say what would be removed
    #[arg(long)]
    pub dry_run: bool,

    /// Remove what a former kube-proxy left instead, in any of its modes; nothing of Sluice, an agent may run
    ///
    /// Rules and chains of iptables, tables of nftables, virtual servers, sets and the device of IPVS. It needs the node's
    /// iptables-save and -restore, nft, ipset, ipvsadm and ip; what cannot be looked at for lack of one is said. The
    /// kubelet's chains and everybody else's stay. Refuses while kube-proxy runs here.
    ///
    /// Tracked connections stay too. The kernel goes on translating them while somebody else on the node has NAT rules and
    /// rules that track connections, as most pod networks do; else those that kube-proxy opened end.
    #[arg(long)]
    pub kube_proxy: bool,

    /// In a container: where the node's root folder is, whose programs are used
    #[arg(long, value_name = "DIR", requires = "kube_proxy")]
    pub host_root: Option<PathBuf>,

    #[command(flatten)]
    pub pins: PinArgs,
}
