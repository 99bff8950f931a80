//! `lb cleanup --kube-proxy`: removes what kube-proxy left behind in the kernel, in any of its
//! modes.
//!
//! It removes the same items as `kube-proxy --cleanup`
//! (pkg/proxy/{iptables,nftables,ipvs}/cleanup.go of Kubernetes 1.37). Like there, chains of the
//! kubelet (KUBE-FIREWALL, KUBE-KUBELET-CANARY, KUBE-IPTABLES-HINT, KUBE-MARK-DROP), entries of
//! connection tracking and sysctls stay.
//!
//! Each mode has one file. Its pure functions turn the output of the node's programs into the
//! commands that remove the items.

mod iptables;
mod ipvs;
mod leftovers;
mod nftables;
mod programs;
mod running;

use std::io;
use std::path::Path;

use self::leftovers::Leftovers;
use super::args::CleanupArgs;
use super::error::CleanupError;
use super::report::CleanupReport;
use crate::cli::host_root;

pub(crate) use self::programs::{NodeCommand, ProgramError};

/// The traces of kube-proxy on this node, for `lb doctor`.
pub(crate) struct Presence {
    /// How a running kube-proxy was found.
    pub running: Option<String>,
    pub leftovers: Vec<String>,
    /// The kinds of leftovers that could not be listed, with the reason.
    pub unchecked: Vec<String>,
}

/// Looks for a running kube-proxy and for leftovers. Changes nothing.
pub(crate) fn presence() -> Presence {
    let Leftovers { removals, unreachable, notes, .. } = find();
    let unreachable = unreachable.into_iter().map(|(item, reason)| format!("{item}: {reason}"));
    Presence {
        running: running::find(Path::new("/proc")),
        leftovers: removals.into_iter().flat_map(|removal| removal.items).collect(),
        unchecked: unreachable.chain(notes).collect(),
    }
}

/// Finds the leftovers of all modes.
fn find() -> Leftovers {
    let mut found = Leftovers::default();
    iptables::find(&mut found);
    nftables::find(&mut found);
    ipvs::find(&mut found);
    found
}

/// Removes the leftovers, and writes one line for each item to `out`.
pub(super) fn run(args: &CleanupArgs, out: &mut impl io::Write) -> Result<(), CleanupError> {
    if let Some(root) = &args.host_root {
        host_root::enter(root).map_err(|source| CleanupError::HostRoot { path: root.clone(), source })?;
    }
    if !args.dry_run
        && let Some(evidence) = running::find(Path::new("/proc"))
    {
        return Err(CleanupError::KubeProxyRuns(evidence));
    }
    let found = find();
    if !found.any_program_ran {
        return Err(CleanupError::NoPrograms);
    }
    let mut report = CleanupReport::new(args.dry_run, out);
    for removal in &found.removals {
        let result = if args.dry_run { Ok(()) } else { removal.command.run().map(drop) };
        for item in &removal.items {
            report.log_removal(item, &result);
        }
    }
    for (item, reason) in &found.unreachable {
        report.log_removal(item, &Err(reason));
    }
    for note in &found.notes {
        report.note(note);
    }
    report.finish()
}

/// Returns a hint for `lb cleanup`, if a former kube-proxy left rules on the node.
pub(super) fn hint() -> Option<String> {
    // A running kube-proxy needs its rules.
    if running::find(Path::new("/proc")).is_some() {
        return None;
    }
    let count = find().count();
    (count > 0).then(|| {
        format!(
            "a former kube-proxy left {count} items on this node: `lb cleanup --kube-proxy` removes \
             them; add --dry-run to list them"
        )
    })
}
