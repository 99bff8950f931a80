//! `lb cleanup`: removes everything that agents of any version created on this node.
//!
//! - Pins keep links and maps alive. When the pin of a link is removed, the kernel detaches the
//!   program.
//! - Filters on clsact queueing disciplines (kernels before 6.6) have no pin. The command finds
//!   them by the name of their program, in the network namespace in which it runs.
//!
//! `lb cleanup --kube-proxy` removes the leftovers of kube-proxy instead, see [`kube_proxy`].

mod args;
mod error;
pub(crate) mod filters;
mod item;
pub(crate) mod kube_proxy;
mod pins;
mod report;

use std::io;

pub use args::CleanupArgs;
pub use error::CleanupError;
use item::Item;
use report::CleanupReport;

use crate::agent::NodeLock;
use crate::preflight;

/// Removes everything, and writes one line for each item to `out`.
pub async fn run(args: &CleanupArgs, out: &mut impl io::Write) -> Result<(), CleanupError> {
    preflight::may_load()?;
    if args.kube_proxy {
        return kube_proxy::run(args, out);
    }
    preflight::check_bpffs(&args.pins.bpffs)?;
    let root = args.pins.root();
    // A running agent would create everything again. It holds this lock.
    let _lock = match args.dry_run || !root.exists() {
        true => None,
        false => Some(NodeLock::acquire(&root)?),
    };

    let netlink = filters::Netlink::open().map_err(CleanupError::Filters)?;
    let (filters, qdiscs) = netlink.list().await.map_err(CleanupError::Filters)?;
    // Filters go first: they hold references to programs, and programs to maps.
    let mut items: Vec<Item> = filters.into_iter().map(Item::Filter).collect();
    items.extend(qdiscs.into_iter().map(Item::Qdisc));
    items.extend(pins::list(&root)?);

    let mut report = CleanupReport::new(args.dry_run, out);
    for item in &items {
        let result = match item {
            _ if args.dry_run => Ok(()),
            Item::Pin(path) => std::fs::remove_file(path),
            Item::Folder(path) => std::fs::remove_dir(path),
            Item::Filter(filter) => netlink.remove(filter).await,
            Item::Qdisc(qdisc) => netlink.remove_qdisc(qdisc).await,
        };
        report.log_removal(item, &result);
    }
    if let Some(hint) = kube_proxy::hint() {
        report.note(&hint);
    }
    report.finish()
}
