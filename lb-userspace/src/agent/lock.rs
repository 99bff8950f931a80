//! One agent for each data path: a lock on the folder that contains all pins.
//!
//! The folder is `<bpffs>/sluice`, above the layout version: agents of different versions must not
//! run side by side either. The kernel releases the lock when the process ends.

use std::fs::{DirBuilder, File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use procfs::{Lock, LockType};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::geteuid;
use tracing::{info, warn};

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
    folder: File,
    path: PathBuf,
}

impl NodeLock {
    /// Takes the lock on the folder `path`, which is created if it is missing. Does not wait.
    ///
    /// Afterwards the folder belongs to the user of this process, and no other user has access.
    pub fn acquire(path: &Path) -> Result<Self, LockError> {
        let failed = |source: io::Error| LockError::Folder { path: path.to_owned(), source };
        let folder = own_folder(path).map_err(failed)?;
        match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { folder, path: path.to_owned() }),
            Err(Errno::WOULDBLOCK) => {
                let inode = folder.metadata().map_err(failed)?.ino();
                let holder = procfs::locks().ok().and_then(|locks| holder(&locks, inode));
                Err(LockError::Held { path: path.to_owned(), holder: Holder(holder) })
            }
            Err(error) => Err(failed(error.into())),
        }
    }

    /// Takes the lock again if its folder was removed or replaced. Returns whether it was.
    pub fn renew(&mut self) -> Result<bool, LockError> {
        let identity = |metadata: Metadata| (metadata.dev(), metadata.ino());
        let held = self.folder.metadata().map(identity).ok();
        if held.is_some() && self.path.symlink_metadata().map(identity).ok() == held {
            return Ok(false);
        }
        *self = Self::acquire(&self.path)?;
        Ok(true)
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

/// Opens a folder that belongs to the user of this process and that no other user can enter.
/// Creates it if it is missing.
///
/// Every user can create files in a BPF file system that is mounted without options. The lock of
/// another user would prevent the agent from starting, so the file of another user is renamed.
fn own_folder(path: &Path) -> io::Result<File> {
    const NO_OTHERS: u32 = 0o700;
    match DirBuilder::new().mode(NO_OTHERS).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let found = path.symlink_metadata()?;
    if !found.is_dir() || found.uid() != geteuid().as_raw() {
        let aside = path.with_file_name(format!("sluice-of-user-{}-{}", found.uid(), found.ino()));
        std::fs::rename(path, &aside)?;
        warn!(
            "{} belonged to user {}: it is {} now. Mount the BPF file system with mode=0700",
            path.display(),
            found.uid(),
            aside.display()
        );
        DirBuilder::new().mode(NO_OTHERS).create(path)?;
    }
    // Only the owner of a folder in a file system with the sticky bit can replace it.
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let folder = File::options().read(true).custom_flags(flags).open(path)?;
    let metadata = folder.metadata()?;
    if metadata.uid() != geteuid().as_raw() {
        return Err(io::Error::other(format!("it belongs to user {}", metadata.uid())));
    }
    if metadata.mode() & 0o777 != NO_OTHERS {
        folder.set_permissions(Permissions::from_mode(NO_OTHERS))?;
    }
    Ok(folder)
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
    fn a_folder_that_was_replaced_is_locked_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sluice");
        let mut lock = NodeLock::acquire(&path).unwrap();
        assert!(!lock.renew().unwrap(), "nothing has changed");
        std::fs::remove_dir(&path).unwrap();
        assert!(lock.renew().unwrap());
        assert!(path.is_dir());
        std::fs::rename(&path, dir.path().join("moved")).unwrap();
        let other = NodeLock::acquire(&path).unwrap();
        assert!(matches!(lock.renew(), Err(LockError::Held { .. })), "another agent has started");
        drop(other);
    }

    #[test]
    fn no_other_user_has_access_to_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sluice");
        let mode = || path.symlink_metadata().unwrap().mode() & 0o777;
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
        drop(NodeLock::acquire(&path).unwrap());
        assert_eq!(mode(), 0o700);
        // A link to a folder of another user.
        std::fs::remove_dir(&path).unwrap();
        std::os::unix::fs::symlink(dir.path(), &path).unwrap();
        drop(NodeLock::acquire(&path).unwrap());
        assert!(path.symlink_metadata().unwrap().is_dir() && mode() == 0o700);
        let aside = std::fs::read_dir(dir.path()).unwrap().flatten();
        assert!(
            aside
                .map(|entry| entry.file_name())
                .any(|name| { name.to_string_lossy().starts_with("sluice-of-user-") })
        );
    }

    #[test]
    fn a_folder_of_another_user_is_put_aside() {
        if !geteuid().is_root() {
            panic!("this test needs root: it creates a folder of another user");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sluice");
        std::fs::create_dir(&path).unwrap();
        std::os::unix::fs::chown(&path, Some(65_534), Some(65_534)).unwrap();
        let foreign = File::open(&path).unwrap();
        flock(&foreign, FlockOperation::NonBlockingLockExclusive).unwrap();
        drop(NodeLock::acquire(&path).unwrap());
        assert_eq!(path.symlink_metadata().unwrap().uid(), 0);
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
