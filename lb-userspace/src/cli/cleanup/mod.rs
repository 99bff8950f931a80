//! `lb cleanup`: removes what an agent of any version put on this node.
//!
//! - Links and maps are alive because they are pinned: without its pin a link detaches its program.
//! - Filters on clsact queueing disciplines (kernels before 6.6) have no pin: they are found by the program's name.
//!   They are looked for in the network namespace that the command runs in.

mod filters;
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
    #[error("{failed} of {total} could not be removed, see above; the first: {first}")]
    Incomplete { failed: usize, total: usize, first: String },
}

impl CleanupError {
    /// What a person can do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Preflight(error) => Some(error.hint()),
            Self::Lock(LockError::Held { .. }) => Some("end it first: it would put everything back".into()),
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

/// Writes one line for each thing to `out` as it is removed.
pub async fn run(args: &CleanupArgs, out: &mut impl io::Write) -> Result<(), CleanupError> {
    preflight::may_load()?;
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

    let mut failed: Vec<String> = Vec::new();
    for item in &items {
        let result = match item {
            _ if args.dry_run => Ok(()),
            Item::Pin(path) => std::fs::remove_file(path),
            Item::Folder(path) => std::fs::remove_dir(path),
            Item::Filter(filter) => netlink.remove(filter).await,
            Item::Qdisc(qdisc) => netlink.remove_qdisc(qdisc).await,
        };
        // Nobody may be reading: removing goes on.
        let _ = match (&result, args.dry_run) {
            (Ok(()), true) => writeln!(out, "would remove {item}"),
            (Ok(()), false) => writeln!(out, "removed {item}"),
            (Err(error), _) => writeln!(out, "not removed {item}: {error}"),
        };
        if let Err(error) = result {
            failed.push(format!("{item}: {error}"));
        }
    }
    if items.is_empty() {
        let _ = writeln!(out, "nothing to remove");
    }
    match failed.first() {
        None => Ok(()),
        Some(first) => {
            Err(CleanupError::Incomplete { failed: failed.len(), total: items.len(), first: first.clone() })
        }
    }
}
