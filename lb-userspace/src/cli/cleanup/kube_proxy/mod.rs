//! `lb cleanup --kube-proxy`: removes what kube-proxy left in the kernel, in any of its modes.
//!
//! What is kube-proxy's is what its own `--cleanup` removes (pkg/proxy/{iptables,nftables,ipvs}/cleanup.go of Kubernetes
//! 1.37). The chains of the kubelet (KUBE-FIREWALL, KUBE-KUBELET-CANARY, KUBE-IPTABLES-HINT, KUBE-MARK-DROP), tracked
//! connections and sysctls stay, as they do there.
//!
//! One file per mode: pure functions from what the node's programs print to the calls that remove it.

mod iptables;
mod ipvs;
mod nftables;
mod programs;
mod running;

use std::io;
use std::path::Path;

use super::{CleanupArgs, CleanupError, Report};
use programs::{Call, ProgramError};

/// Things that one call removes together, or not at all.
#[derive(Debug, PartialEq, Eq)]
struct Removal {
    what: Vec<String>,
    call: Call,
}

impl Removal {
    /// A call that removes one thing and reads no input.
    fn one(what: impl Into<String>, program: &str, arguments: &[&str]) -> Self {
        Self { what: vec![what.into()], call: Call::new(program, arguments) }
    }
}

/// What kube-proxy left here.
#[derive(Debug, Default)]
struct Leftovers {
    /// In an order in which they can be removed: rules before the sets they name.
    removals: Vec<Removal>,
    /// What is here, or may be, and cannot be removed, with the reason.
    unreachable: Vec<(String, String)>,
    /// What stays, or was not looked at, with good reason.
    notes: Vec<String>,
    /// Some program could be asked.
    asked: bool,
}

enum Answer {
    Text(String),
    Failed,
    NotInstalled,
}

impl Leftovers {
    fn find() -> Self {
        let mut found = Self::default();
        iptables::find(&mut found);
        nftables::find(&mut found);
        ipvs::find(&mut found);
        found
    }

    /// What a program says about the kernel. That it could not say it is noted already.
    fn ask(&mut self, what: &str, call: &Call) -> Answer {
        let answer = match call.run() {
            Ok(text) => Answer::Text(text),
            Err(ProgramError::Missing(_)) => return Answer::NotInstalled,
            Err(error) => {
                self.unreachable.push((what.to_owned(), error.to_string()));
                Answer::Failed
            }
        };
        self.asked = true;
        answer
    }

    fn things(&self) -> usize {
        self.removals.iter().map(|removal| removal.what.len()).sum()
    }
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
    let found = Leftovers::find();
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
    let things = Leftovers::find().things();
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
