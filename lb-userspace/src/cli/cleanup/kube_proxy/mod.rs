//! `lb cleanup --kube-proxy`: removes what kube-proxy left in the kernel, in any of its modes.
//!
//! What is kube-proxy's is what its own `--cleanup` removes (pkg/proxy/{iptables,nftables,ipvs}/cleanup.go of Kubernetes
//! 1.37). The chains of the kubelet (KUBE-FIREWALL, KUBE-KUBELET-CANARY, KUBE-IPTABLES-HINT, KUBE-MARK-DROP), tracked
//! connections and sysctls stay, as they do there.
//!
//! One file per mode: pure functions from what the node's programs print to the calls that remove it.

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
use super::report::Report;

fn find() -> Leftovers {
    let mut found = Leftovers::default();
    iptables::find(&mut found);
    nftables::find(&mut found);
    ipvs::find(&mut found);
    found
}

/// Writes one line for each thing to `out` as it is removed.
pub(super) fn run(args: &CleanupArgs, out: &mut impl io::Write) -> Result<(), CleanupError> {
    if let Some(root) = &args.host_root {
        enter(root)?;
    }
    if !args.dry_run
        && let Some(who) = running::kube_proxy(Path::new("/proc"))
    {
        return Err(CleanupError::KubeProxyRuns(who));
    }
    let found = find();
    if !found.asked {
        return Err(CleanupError::NoPrograms);
    }
    let mut report = Report::new(args.dry_run, out);
    for removal in &found.removals {
        let result = if args.dry_run { Ok(()) } else { removal.call.run().map(drop) };
        for what in &removal.what {
            report.tell(what, &result);
        }
    }
    for (what, reason) in &found.unreachable {
        report.tell(what, &Err(reason));
    }
    for note in &found.notes {
        report.note(note);
    }
    report.finish()
}

/// For people who remove Sluice from a node on which a former kube-proxy left rules.
pub(super) fn hint() -> Option<String> {
    // On the way back to kube-proxy its rules are no leftovers.
    if running::kube_proxy(Path::new("/proc")).is_some() {
        return None;
    }
    let things = find().things();
    (things > 0).then(|| {
        format!(
            "a former kube-proxy left things here, {things} in all: `lb cleanup --kube-proxy` removes them, with --dry-run \
             it lists them"
        )
    })
}

/// From here on, programs and their lock files are those of the node.
fn enter(root: &Path) -> Result<(), CleanupError> {
    rustix::process::chroot(root)
        .and_then(|()| rustix::process::chdir("/"))
        .map_err(|source| CleanupError::HostRoot { path: root.to_owned(), source: source.into() })
}
