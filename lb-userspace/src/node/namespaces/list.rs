//! Finds the network namespaces of this node, and runs code in them.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const PROC: &str = "/proc";

/// Identifies a namespace independently of its names: device and inode of its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamespaceId {
    device: u64,
    inode: u64,
}

impl NamespaceId {
    pub fn of(file: &Metadata) -> Self {
        Self { device: file.dev(), inode: file.ino() }
    }
}

/// Returns every namespace that has a name in `folder` or contains a process, with a path to it.
///
/// The result of reading `folder` is returned beside them: namespaces of processes are found even
/// if the folder cannot be read.
pub fn list(folder: &Path) -> (BTreeMap<NamespaceId, PathBuf>, io::Result<()>) {
    let mut found = of_processes();
    let named = fs::read_dir(folder).and_then(|entries| {
        for entry in entries {
            let path = entry?.path();
            // A name starts as an empty file. The namespace is mounted over it a moment later.
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
            // The process may have ended meanwhile, or may not be accessible.
            let file = fs::metadata(&path).ok()?;
            Some((NamespaceId::of(&file), path))
        })
        .collect()
}

/// Runs `work` in the namespace at `path`, on a thread that ends afterwards. The calling thread
/// does not change its namespace.
///
/// Fails with `NotFound` if `path` leads to another namespace than `id` now.
pub fn run_in<T: Send>(id: NamespaceId, path: &Path, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let file = File::open(path)?;
    if NamespaceId::of(&file.metadata()?) != id {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the path leads to another namespace now"));
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

    use super::super::super::testing::other_namespace;
    use super::*;

    #[test]
    fn a_namespace_with_two_names_is_listed_once_and_other_files_are_ignored() {
        let folder = tempfile::tempdir().expect("a folder");
        let namespace = other_namespace();
        let target = format!("/proc/self/fd/{}", namespace.as_raw_fd());
        for name in ["a", "b"] {
            std::os::unix::fs::symlink(&target, folder.path().join(name)).expect("a name");
        }
        fs::write(folder.path().join("created-a-moment-ago"), "").expect("a file");
        std::os::unix::fs::symlink("nowhere", folder.path().join("dangling")).expect("a name");
        let (found, named) = list(folder.path());
        named.expect("readable");
        let in_folder: Vec<_> = found.iter().filter(|(_, path)| path.starts_with(folder.path())).collect();
        let id = NamespaceId::of(&namespace.metadata().expect("open"));
        assert_eq!(in_folder.iter().map(|(id, _)| **id).collect::<Vec<_>>(), [id]);
        let own = fs::metadata("/proc/self/ns/net").expect("the own namespace");
        assert!(found.contains_key(&NamespaceId::of(&own)), "the namespace of this process is missing");
    }

    #[test]
    fn without_the_folder_namespaces_of_processes_are_found() {
        let (found, named) = list(Path::new("/nowhere/at/all"));
        assert!(!found.is_empty());
        assert_eq!(named.expect_err("no folder").kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn the_calling_thread_stays_in_its_namespace() {
        let namespace = other_namespace();
        let path = PathBuf::from(format!("/proc/self/fd/{}", namespace.as_raw_fd()));
        let id = NamespaceId::of(&namespace.metadata().expect("open"));
        let here = namespace_cookie().expect("a cookie");
        let there = run_in(id, &path, namespace_cookie).expect("entered").expect("a cookie");
        assert_ne!(here, there);
        assert_eq!(namespace_cookie().expect("a cookie"), here);
        let own = NamespaceId::of(&fs::metadata("/proc/self/ns/net").expect("the own namespace"));
        let error = run_in(own, &path, namespace_cookie).expect_err("the path leads to another namespace");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
