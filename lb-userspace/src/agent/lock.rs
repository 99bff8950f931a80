//! One agent per data path: a lock on the folder that holds all pins.
//!
//! The folder is `<bpffs>/sluice`, above the layout version: agents of two versions must not run side by side either.
//! The kernel releases the lock when the process ends, however it ends.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("{holder} already serves this node (it holds {})", path.display())]
    Held { path: PathBuf, holder: Holder },
    #[error("cannot lock {}: {source}", path.display())]
    Folder { path: PathBuf, source: io::Error },
}

/// Who holds the lock. The process id is not to be had from another PID namespace.
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

/// Held as long as it lives.
#[derive(Debug)]
pub struct NodeLock {
    _folder: File,
}

impl NodeLock {
    /// Takes the lock on `path`, a folder that is made if it is not there. Does not wait.
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
                let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
                Err(LockError::Held { path: path.to_owned(), holder: Holder(holder(&locks, inode)) })
            }
            Err(error) => Err(failed(error.into())),
        }
    }
}

/// The process that holds a `flock` on an inode, of the text of `/proc/locks` (proc_locks(5)):
/// `1: FLOCK  ADVISORY  WRITE 11772 00:27:20468 0 EOF`.
///
/// The device is not compared: on some file systems stat(2) gives another number than the kernel writes here.
fn holder(locks: &str, inode: u64) -> Option<u32> {
    locks.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (kind, _, _, pid, place) =
            (fields.next()?, fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let same = kind == "FLOCK" && place.rsplit(':').next()?.parse() == Ok(inode);
        same.then(|| pid.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_agent_is_told_the_process_id_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sluice");
        let first = NodeLock::acquire(&path).unwrap();
        match NodeLock::acquire(&path) {
            Err(LockError::Held { holder, .. }) => assert_eq!(holder, Holder(Some(std::process::id()))),
            other => panic!("{other:?}"),
        }
        drop(first);
        NodeLock::acquire(&path).unwrap();
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let error = NodeLock::acquire(Path::new("/nonexistent/sluice")).unwrap_err().to_string();
        assert!(error.starts_with("cannot lock /nonexistent/sluice: "), "{error}");
    }

    #[test]
    fn the_holder_is_found_by_inode_among_other_locks() {
        let locks = "1: POSIX  ADVISORY  WRITE 700 00:27:42 0 EOF\n\
                     1: -> FLOCK  ADVISORY  WRITE 701 00:27:42 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 702 00:27:142 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 703 00:27:42 0 EOF\n";
        assert_eq!(holder(locks, 42), Some(703));
        assert_eq!(holder(locks, 7), None);
    }
}
