//! Names and removes everything that a run creates.
//!
//! A run is named `slc-<pid>-<n>`. Its namespaces, its cgroup and its folder carry that name, so
//! removal needs only the name. It works on drop, in the signal handler, and in a later process if
//! the first one was killed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};
use std::{fmt, fs, process, thread};

use anyhow::{Context, Result, bail};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::command;
use crate::patience::patient;

/// First part of every name.
const PREFIX: &str = "slc";
/// Folders of all runs: pins, manifests, logs.
const RUNS_DIR: &str = "/run/sluice-testbed";
/// The folder in which `ip netns` stores its names.
pub(crate) const NETNS_DIR: &str = "/run/netns";
/// [`sweep_dead`] skips a run whose folder has a file of this name.
const KEEP_MARK: &str = "keep";

/// Runs of this process that still exist. The signal handler removes them.
static ALIVE: Mutex<Vec<RunId>> = Mutex::new(Vec::new());

/// Held while something is created. The signal handler takes it before it removes anything and
/// holds it until the process ends, so nothing can be created after the removal.
static CREATING: Mutex<()> = Mutex::new(());

/// Takes [`CREATING`]. Blocks forever once the signal handler has started to remove the runs.
pub(crate) fn creating() -> MutexGuard<'static, ()> {
    CREATING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Name of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunId(String);

impl RunId {
    /// Claims a name that no other run has. From now on Ctrl-C removes everything with this name.
    pub fn claim() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        static SIGNALS: Once = Once::new();
        let mut failed = None;
        SIGNALS.call_once(|| failed = remove_all_on_signal().err());
        if let Some(error) = failed {
            return Err(error.context("install the handler for Ctrl-C"));
        }
        let _creating = creating();
        let id = Self(format!("{PREFIX}-{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir_all(id.folder()).with_context(|| format!("create {}", id.folder().display()))?;
        alive().push(id.clone());
        Ok(id)
    }

    /// Returns the folder for pins, manifests and logs.
    pub fn folder(&self) -> PathBuf {
        Path::new(RUNS_DIR).join(&self.0)
    }

    /// Returns the run's directory in the cgroup-v2 hierarchy. Every process of the run is below
    /// it.
    pub fn cgroup(&self) -> Result<PathBuf> {
        Ok(cgroup2_root()?.join(&self.0))
    }

    /// Returns the name of the run's network namespace for `role`, for example `node1`.
    pub fn netns(&self, role: &str) -> String {
        format!("{}-{role}", self.0)
    }

    /// Keeps the run when this process ends, until [`remove_kept`] is called.
    pub fn keep(&self) -> Result<()> {
        fs::write(self.folder().join(KEEP_MARK), "").context("mark the run as kept")?;
        alive().retain(|other| other != self);
        Ok(())
    }

    fn is_kept(&self) -> bool {
        self.folder().join(KEEP_MARK).exists()
    }

    /// Returns the id of the process that created the run, taken from the name.
    fn pid(&self) -> Option<u32> {
        self.0.split('-').nth(1)?.parse().ok()
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn alive() -> MutexGuard<'static, Vec<RunId>> {
    ALIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes processes, mounts, namespaces, cgroups and files of a run. Continues after a failure,
/// and returns the first one.
pub fn remove_everything_of(id: &RunId) -> Result<()> {
    let mut result = Ok(());
    let mut note = |step: Result<()>| {
        if result.is_ok() {
            result = step;
        }
    };
    let cgroup = id.cgroup()?;
    if cgroup.exists() {
        note(kill_processes(&cgroup).context("kill the processes of the run"));
        note(remove_cgroup(&cgroup));
    }
    // The BPF file systems are private to the run. Unmounting them drops the pins, and thereby the
    // programs, links and maps.
    for mount in mounts_below(&id.folder())? {
        note(
            rustix::mount::unmount(&mount, UnmountFlags::DETACH)
                .with_context(|| format!("unmount {}", mount.display())),
        );
    }
    for name in names_in(Path::new(NETNS_DIR)).into_iter().filter(|name| belongs_to(name, id)) {
        note(command::run(Command::new("ip").args(["netns", "delete", &name])).map(drop));
    }
    if id.folder().exists() {
        note(fs::remove_dir_all(id.folder()).with_context(|| format!("remove {}", id.folder().display())));
    }
    // This succeeds for the last run only. A folder with other runs is not empty and stays.
    let _ = fs::remove_dir(RUNS_DIR);
    alive().retain(|other| other != id);
    result.with_context(|| format!("remove what {id} left"))
}

/// Removes the runs of processes that no longer exist: they were killed before they could clean up.
/// Kept runs stay.
pub fn sweep_dead() -> Result<()> {
    for id in existing() {
        let dead = id.pid().is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists());
        if dead && !id.is_kept() {
            sweep(&id)?;
        }
    }
    Ok(())
}

/// Removes a dead run. Two processes may sweep the same run at once: then steps of one fail that
/// the other one has done, until the folder is removed in the end.
fn sweep(id: &RunId) -> Result<()> {
    let deadline = Instant::now() + patient(Duration::from_secs(10));
    loop {
        match remove_everything_of(id) {
            Err(error) if id.folder().exists() && Instant::now() > deadline => return Err(error),
            Err(_) if id.folder().exists() => thread::sleep(Duration::from_millis(50)),
            _ => return Ok(()),
        }
    }
}

/// Removes the runs that were kept with [`RunId::keep`] and returns their names.
pub fn remove_kept() -> Result<Vec<RunId>> {
    let kept: Vec<_> = existing().into_iter().filter(RunId::is_kept).collect();
    for id in &kept {
        remove_everything_of(id)?;
    }
    Ok(kept)
}

/// Returns the runs of which anything exists. A run creates its folder first and removes it last.
fn existing() -> Vec<RunId> {
    let ours = |name: &String| name.split('-').count() == 3 && name.starts_with(&format!("{PREFIX}-"));
    names_in(Path::new(RUNS_DIR)).into_iter().filter(ours).map(RunId).collect()
}

fn belongs_to(netns: &str, id: &RunId) -> bool {
    netns.strip_prefix(&id.0).is_some_and(|rest| rest.starts_with('-'))
}

fn names_in(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Returns the mount point of the machine's cgroup-v2 hierarchy.
pub fn cgroup2_root() -> Result<PathBuf> {
    cgroup2_mounts()?
        .into_iter()
        .next()
        .context("no cgroup2 file system is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")
}

/// Returns all mount points of the machine's cgroup-v2 hierarchy.
pub(crate) fn cgroup2_mounts() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/mounts").context("read /proc/mounts")?;
    let of_type = |line: &str| {
        let mut fields = line.split(' ');
        let (path, kind) = (fields.nth(1)?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    };
    Ok(mounts.lines().filter_map(of_type).collect())
}

/// Returns the mount points below `folder`, the innermost first.
fn mounts_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/mounts").context("read /proc/mounts")?;
    let mut below: Vec<_> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1).map(PathBuf::from))
        .filter(|path| path.starts_with(folder))
        .collect();
    below.reverse();
    Ok(below)
}

/// Kills all processes of a cgroup and of those below it.
fn kill_processes(cgroup: &Path) -> Result<()> {
    // One step, which includes forked processes (Linux 5.14).
    let kill = cgroup.join("cgroup.kill");
    if kill.exists() { Ok(fs::write(kill, "1")?) } else { kill_one_by_one(cgroup) }
}

/// Kills the processes that the kernel lists.
fn kill_one_by_one(cgroup: &Path) -> Result<()> {
    for entry in fs::read_dir(cgroup)?.flatten() {
        if entry.file_type()?.is_dir() {
            kill_one_by_one(&entry.path())?;
        }
    }
    for line in fs::read_to_string(cgroup.join("cgroup.procs"))?.lines() {
        if let Some(pid) = line.parse().ok().and_then(Pid::from_raw) {
            // A process may have exited since the list was read.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    Ok(())
}

/// Removes a cgroup and those below it. Removal fails with EBUSY until the killed processes have
/// left the cgroup, which takes a moment.
fn remove_cgroup(path: &Path) -> Result<()> {
    for entry in fs::read_dir(path)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    let deadline = Instant::now() + patient(Duration::from_secs(10));
    while let Err(error) = fs::remove_dir(path) {
        if Instant::now() > deadline {
            bail!("remove the cgroup {}: {error}", path.display());
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Installs a handler for SIGINT, SIGTERM and SIGHUP. It removes all runs and ends the process with
/// the exit status that a shell reports for the signal.
fn remove_all_on_signal() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            eprintln!("\ninterrupted: removing the testbed");
            let _creating = creating();
            let ids = alive().clone();
            for id in ids {
                if let Err(error) = remove_everything_of(&id) {
                    eprintln!("{error:#}");
                }
            }
            process::exit(128 + signal);
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_owns_only_namespaces_with_its_name() {
        let id = RunId("slc-12-1".to_owned());
        assert!(belongs_to("slc-12-1-node1", &id));
        assert!(!belongs_to("slc-12-10-node1", &id));
        assert!(!belongs_to("slc-12-1", &id));
    }

    #[test]
    fn the_process_id_is_read_from_the_name() {
        assert_eq!(RunId("slc-4711-2".to_owned()).pid(), Some(4711));
        assert_eq!(RunId("slc-x-2".to_owned()).pid(), None);
    }
}
