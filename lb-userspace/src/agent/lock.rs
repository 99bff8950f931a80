//! One agent for each data path: a lock on the folder that contains all pins.
//!
//! The folder is `<bpffs>/sluice`, above the layout version: agents of different versions must not
//! run side by side either. The kernel releases the lock when the process ends.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use procfs::{Lock, LockType};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tracing::info;

use super::stop::Stop;
use crate::config::Config;

/// Pause between two attempts to take a lock that another agent holds.
const RETRY: Duration = Duration::from_millis(200);

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("{holder} already serves this node (it holds {})", path.display())]
    Held { path: PathBuf, holder: Holder },
    #[error("cannot lock {}: {source}", path.display())]
    Folder { path: PathBuf, source: io::Error },
}

/// The process that holds the lock. `None` if it runs in another PID namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder(Option<u32>);

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(pid) => write!(f, "the agent with process id {pid}"),
            None => f.write_str("another agent"),
        }
    }
}

/// The lock. Dropping it releases it.
#[derive(Debug)]
pub struct NodeLock {
    _folder: File,
}

impl NodeLock {
    /// Takes the lock on the folder `path`, which is created if it is missing. Does not wait.
    pub fn acquire(path: &Path) -> Result<Self, LockError> {
        let failed = |source: io::Error| LockError::Folder { path: path.to_owned(), source };
        match std::fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
        let folder = File::open(path).map_err(failed)?;
        match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { _folder: folder }),
            Err(Errno::WOULDBLOCK) => {
                let inode = folder.metadata().map_err(failed)?.ino();
                let holder = procfs::locks().ok().and_then(|locks| holder(&locks, inode));
                Err(LockError::Held { path: path.to_owned(), holder: Holder(holder) })
            }
            Err(error) => Err(failed(error.into())),
        }
    }

    /// Takes the lock of this node. With `--wait-lock` it waits until another agent has released
    /// it. Returns `None` if a signal comes while it waits.
    pub async fn acquire_or_wait(config: &Config, stop: &mut Stop) -> Result<Option<Self>, LockError> {
        let path = config.bpffs.join("sluice");
        let mut waiting = false;
        loop {
            match Self::acquire(&path) {
                Ok(lock) => return Ok(Some(lock)),
                Err(LockError::Held { holder, .. }) if config.wait_lock => {
                    if !waiting {
                        info!("waiting for {holder} to end");
                        waiting = true;
                    }
                }
                Err(error) => return Err(error),
            }
            tokio::select! {
                signal = stop.requested() => {
                    info!("{signal}: ending while waiting for the lock");
                    return Ok(None);
                }
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }
}

/// Returns the process that holds a `flock` on an inode, from `/proc/locks` (proc_locks(5)).
/// A process that waits for a lock is listed after the holder.
///
/// The device is not compared: for some file systems stat(2) returns another device number than
/// `/proc/locks` has.
fn holder(locks: &[Lock], inode: u64) -> Option<u32> {
    let lock = locks.iter().find(|lock| lock.lock_type == LockType::FLock && lock.inode == inode)?;
    lock.pid.and_then(|pid| u32::try_from(pid).ok())
}

#[cfg(test)]
mod tests {
    use procfs::{FromRead, Locks};

    use super::*;

    #[test]
    fn a_second_agent_gets_the_process_id_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sluice");
        let first = NodeLock::acquire(&path).unwrap();
        match NodeLock::acquire(&path) {
            Err(LockError::Held { holder, .. }) => assert_eq!(holder, Holder(Some(std::process::id()))),
            other => panic!("{other:?}"),
        }
        drop(first);
        // Other tests start processes. A child that is forked while `first` exists has the lock too
        // until it executes its program.
        let again = (0..500).find_map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            NodeLock::acquire(&path).ok()
        });
        assert!(again.is_some(), "the lock is not released");
    }

    #[test]
    fn the_error_names_a_folder_that_cannot_be_created() {
        let error = NodeLock::acquire(Path::new("/nonexistent/sluice")).unwrap_err().to_string();
        assert!(error.starts_with("cannot lock /nonexistent/sluice: "), "{error}");
    }

    #[test]
    fn the_holder_is_found_by_inode_among_other_locks() {
        let locks = "1: POSIX  ADVISORY  WRITE 700 00:27:42 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 702 00:27:142 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 703 00:27:42 0 EOF\n\
                     3: -> FLOCK  ADVISORY  WRITE 704 00:27:42 0 EOF\n";
        let Locks(locks) = Locks::from_read(locks.as_bytes()).unwrap();
        assert_eq!(holder(&locks, 42), Some(703));
        assert_eq!(holder(&locks, 7), None);
    }
}
