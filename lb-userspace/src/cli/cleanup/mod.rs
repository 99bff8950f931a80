//! `lb cleanup`: removes what an agent of any version put on this node.
//!
//! - Links and maps are alive because they are pinned: without its pin a link detaches its program.
//! - Filters on clsact queueing disciplines (kernels before 6.6) have no pin: they are found by the program's name.
//!   They are looked for in the network namespace that the command runs in.
//!
//! With `--kube-proxy` it removes what kube-proxy left there instead, see [`kube_proxy`].

mod args;
mod error;
mod filters;
mod item;
mod kube_proxy;
mod pins;
mod report;

use std::io;

pub use args::CleanupArgs;
pub use error::CleanupError;
use item::Item;
use report::Report;

use crate::agent::NodeLock;
use crate::preflight;

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
