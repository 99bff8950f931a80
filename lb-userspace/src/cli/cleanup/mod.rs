//! `lb cleanup`: removes what an agent of any version put on this node.
//!
//! - Links and maps are alive because they are pinned: without its pin a link detaches its program.
//! - Filters on clsact queueing disciplines (kernels before 6.6) have no pin: they are found by the program's name.
//!   They are looked for in the network namespace that the command runs in.
//!
//! With `--kube-proxy` it removes what kube-proxy left there instead, see [`kube_proxy`].

mod filters;
mod kube_proxy;
mod pins;

use std::fmt;
use std::io;
use std::path::PathBuf;

use clap::Args;

use super::PinArgs;
use crate::agent::{LockError, NodeLock};
use crate::preflight::{self, PreflightError};

#[derive(Debug, Args)]
pub struct CleanupArgs {
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,

    /// Remove what a former kube-proxy left instead, in any of its modes; nothing of Sluice, an agent may run
    ///
    /// Rules and chains of iptables, tables of nftables, virtual servers, sets and the device of IPVS. It needs the node's
    /// iptables-save and -restore, nft, ipset, ipvsadm and ip; what cannot be looked at for lack of one is said. The
    /// kubelet's chains and everybody else's stay. Refuses while kube-proxy runs here.
    ///
    /// Tracked connections stay too. The kernel goes on translating them while somebody else on the node has NAT rules and
    /// rules that track connections, as most pod networks do; else those that kube-proxy opened end.
    #[arg(long)]
    kube_proxy: bool,

    /// In a container: where the node's root folder is, whose programs are used
    #[arg(long, value_name = "DIR", requires = "kube_proxy")]
    host_root: Option<PathBuf>,

    #[command(flatten)]
    pins: PinArgs,
}

#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("cannot list {}", path.display())]
    List { path: PathBuf, source: io::Error },
    #[error("cannot list the filters of the network devices")]
    Filters(#[source] io::Error),
    #[error("kube-proxy runs on this node: {0}")]
    KubeProxyRuns(String),
    #[error("cannot use {} as the root folder", path.display())]
    HostRoot { path: PathBuf, source: io::Error },
    #[error("neither iptables-save nor nft is installed here, so nothing of kube-proxy can be found")]
    NoPrograms,
    #[error("{failed} of {total} could not be removed, see above; the first: {first}")]
    Incomplete { failed: usize, total: usize, first: String },
}

impl CleanupError {
    /// What a person can do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Preflight(error) => Some(error.hint()),
            Self::Lock(LockError::Held { .. }) => Some("end it first: it would put everything back".into()),
            Self::KubeProxyRuns(_) => Some(
                "end it first: it would put everything back; --dry-run lists what it has here meanwhile".into(),
            ),
            Self::NoPrograms => Some(
                "in a container, name the folder where the node's root is with --host-root; where the node has \
                 neither, run `kube-proxy --cleanup` from kube-proxy's image"
                    .into(),
            ),
            _ => None,
        }
    }
}

/// Something that is there because an agent put it there.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Item {
    /// A pinned link, map or program.
    Pin(PathBuf),
    Folder(PathBuf),
    Filter(filters::Filter),
    Qdisc(filters::Qdisc),
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pin(path) => write!(f, "pin    {}", path.display()),
            Self::Folder(path) => write!(f, "folder {}", path.display()),
            Self::Filter(filter) => write!(f, "filter {filter}"),
            Self::Qdisc(qdisc) => write!(f, "qdisc  {qdisc}"),
        }
    }
}

/// Tells of each thing as it is removed, and counts.
struct Report<'a, W> {
    out: &'a mut W,
    dry_run: bool,
    total: usize,
    failed: Vec<String>,
}

impl<'a, W: io::Write> Report<'a, W> {
    fn new(dry_run: bool, out: &'a mut W) -> Self {
        Self { out, dry_run, total: 0, failed: Vec::new() }
    }

    fn tell(&mut self, thing: impl fmt::Display, result: &Result<(), impl fmt::Display>) {
        self.total += 1;
        match result {
            Ok(()) if self.dry_run => self.line(format_args!("would remove {thing}")),
            Ok(()) => self.line(format_args!("removed {thing}")),
            Err(error) => {
                self.line(format_args!("not removed {thing}: {error}"));
                self.failed.push(format!("{thing}: {error}"));
            }
        }
    }

    fn note(&mut self, note: &str) {
        self.line(format_args!("note: {note}"));
    }

    fn line(&mut self, line: fmt::Arguments) {
        // Nobody may be reading: removing goes on.
        let _ = writeln!(self.out, "{line}");
    }

    fn finish(mut self) -> Result<(), CleanupError> {
        if self.total == 0 {
            self.line(format_args!("nothing to remove"));
        }
        match self.failed.first() {
            None => Ok(()),
            Some(first) => Err(CleanupError::Incomplete {
                failed: self.failed.len(),
                total: self.total,
                first: first.clone(),
            }),
        }
    }
}

/// Writes one line for each thing to `out` as it is removed.
pub async fn run(args: &CleanupArgs, out: &mut impl io::Write) -> Result<(), CleanupError> {
    preflight::may_load()?;
    if args.kube_proxy {
        return kube_proxy::run(args, out);
    }
    preflight::check_bpffs(&args.pins.bpffs)?;
    let root = args.pins.root();
    // An agent that runs would put everything back, piece by piece.
    let _lock = match args.dry_run || !root.exists() {
        true => None,
        false => Some(NodeLock::acquire(&root)?),
    };

    let netlink = filters::Netlink::open().map_err(CleanupError::Filters)?;
    let (filters, qdiscs) = netlink.ours().await.map_err(CleanupError::Filters)?;
    // Filters first: they hold programs, which hold maps.
    let mut items: Vec<Item> = filters.into_iter().map(Item::Filter).collect();
    items.extend(qdiscs.into_iter().map(Item::Qdisc));
    items.extend(pins::below(&root)?);

    let mut report = Report::new(args.dry_run, out);
    for item in &items {
        let result = match item {
            _ if args.dry_run => Ok(()),
            Item::Pin(path) => std::fs::remove_file(path),
            Item::Folder(path) => std::fs::remove_dir(path),
            Item::Filter(filter) => netlink.remove(filter).await,
            Item::Qdisc(qdisc) => netlink.remove_qdisc(qdisc).await,
        };
        report.tell(item, &result);
    }
    if let Some(hint) = kube_proxy::hint() {
        report.note(&hint);
    }
    report.finish()
}
