//! The network namespaces of this node: its own, and those of its pods.
//!
//! * [`enumerate`]: those with a name below a folder (containerd and CRI-O bind-mount the namespace of each pod there, as `ip
//!   netns` does), and those of the processes that can be seen.
//! * [`inside`]: does something in one of them.
//! * [`follow`]: keeps up with them.
//!
//! **Invariant:** nothing here keeps a namespace open: its devices and addresses would outlive its pod.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub mod follow;

/// Where processes are seen.
const PROC: &str = "/proc";

/// What makes a namespace this one, whatever its names: device and inode of its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamespaceId {
    device: u64,
    inode: u64,
}

impl NamespaceId {
    fn of(file: &Metadata) -> Self {
        Self { device: file.dev(), inode: file.ino() }
    }
}

/// Every namespace that is named in `folder` or that a process lives in, with a path that leads there. The error is that of
/// the folder; processes are found all the same.
pub fn enumerate(folder: &Path) -> (BTreeMap<NamespaceId, PathBuf>, io::Result<()>) {
    let mut found = of_processes();
    let named = fs::read_dir(folder).and_then(|entries| {
        for entry in entries {
            let path = entry?.path();
            // A name is made first, as an empty file, and the namespace mounted over it a moment later.
            if rustix::fs::statfs(&path).is_ok_and(|fs| fs.f_type == libc::NSFS_MAGIC)
                && let Ok(file) = fs::metadata(&path)
            {
                found.insert(NamespaceId::of(&file), path);
            }
        }
        Ok(())
    });
    (found, named)
}

fn of_processes() -> BTreeMap<NamespaceId, PathBuf> {
    let is_process = |name: &str| name.bytes().all(|c| c.is_ascii_digit());
    let entries = fs::read_dir(PROC).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_str().is_some_and(is_process))
        .filter_map(|entry| {
            let path = entry.path().join("ns/net");
            // Processes come and go; those of others may be none of our business.
            let file = fs::metadata(&path).ok()?;
            Some((NamespaceId::of(&file), path))
        })
        .collect()
}

/// Does `work` on a thread of its own in the namespace that `path` leads to. The calling thread stays where it is, and no
/// thread of this process remains there.
pub fn inside<T: Send>(id: NamespaceId, path: &Path, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let file = File::open(path)?;
    if NamespaceId::of(&file.metadata()?) != id {
        return Err(io::Error::new(io::ErrorKind::NotFound, "another namespace has its name now"));
    }
    thread::scope(|scope| {
        let visitor = thread::Builder::new().name("visitor".to_owned()).spawn_scoped(scope, || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
            drop(file);
            Ok(work())
        })?;
        visitor.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use lb_datapath::namespace_cookie;

    use super::super::testing::other_namespace;
    use super::*;

    #[test]
    fn names_of_one_namespace_are_one_and_what_is_no_namespace_is_passed_over() {
        let folder = tempfile::tempdir().expect("a folder");
        let namespace = other_namespace();
        let target = format!("/proc/self/fd/{}", namespace.as_raw_fd());
        for name in ["a", "b"] {
            std::os::unix::fs::symlink(&target, folder.path().join(name)).expect("a name");
        }
        fs::write(folder.path().join("made-a-moment-ago"), "").expect("a file");
        std::os::unix::fs::symlink("nowhere", folder.path().join("dangling")).expect("a name");
        let (found, named) = enumerate(folder.path());
        named.expect("readable");
        let in_folder: Vec<_> = found.iter().filter(|(_, path)| path.starts_with(folder.path())).collect();
        let id = NamespaceId::of(&namespace.metadata().expect("open"));
        assert_eq!(in_folder.iter().map(|(id, _)| **id).collect::<Vec<_>>(), [id]);
        let own = fs::metadata("/proc/self/ns/net").expect("the own namespace");
        assert!(found.contains_key(&NamespaceId::of(&own)), "that of this process");
    }

    #[test]
    fn without_the_folder_those_of_processes_are_found() {
        let (found, named) = enumerate(Path::new("/nowhere/at/all"));
        assert!(!found.is_empty());
        assert_eq!(named.expect_err("no folder").kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_visit_leaves_the_caller_where_it_is() {
        let namespace = other_namespace();
        let path = PathBuf::from(format!("/proc/self/fd/{}", namespace.as_raw_fd()));
        let id = NamespaceId::of(&namespace.metadata().expect("open"));
        let here = namespace_cookie().expect("a cookie");
        let there = inside(id, &path, namespace_cookie).expect("entered").expect("a cookie");
        assert_ne!(here, there);
        assert_eq!(namespace_cookie().expect("a cookie"), here);
        let own = NamespaceId::of(&fs::metadata("/proc/self/ns/net").expect("the own namespace"));
        let error = inside(own, &path, namespace_cookie).expect_err("the name of another namespace");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
