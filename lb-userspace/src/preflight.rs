//! Checks of the host before a command starts: capabilities, the BPF file system, the cgroup
//! folder.

use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::thread::CapabilitySet;

/// `BPF_FS_MAGIC` and `CGROUP2_SUPER_MAGIC` (include/uapi/linux/magic.h).
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;

/// A requirement that this host or process does not meet.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    #[error("this process lacks {}", .0.join(", "))]
    Capabilities(Vec<&'static str>),
    #[error("{} cannot be used as the BPF file system: {source}", path.display())]
    NoBpffs { path: PathBuf, source: Errno },
    #[error("{} is not in a BPF file system", .0.display())]
    NotBpffs(PathBuf),
    #[error("{} cannot be used as the cgroup folder: {source}", path.display())]
    NoCgroup { path: PathBuf, source: Errno },
    #[error("{} is not in a cgroup-v2 file system", .0.display())]
    NotCgroup(PathBuf),
    #[error("no cgroup-v2 file system is mounted here")]
    CgroupUnmounted,
}

impl PreflightError {
    /// Returns the remedy.
    pub fn hint(&self) -> String {
        match self {
            Self::Capabilities(_) => "run it as root; in a container, add these capabilities".into(),
            Self::NoBpffs { path, .. } | Self::NotBpffs(path) => format!(
                "mount one there (`mount -t bpf bpf {}`) or name another with --bpffs; \
                 in a container, mount the host's",
                path.display()
            ),
            Self::NoCgroup { .. } | Self::NotCgroup(_) => "name a folder in a cgroup-v2 file system \
                 with --cgroup; `findmnt -t cgroup2` lists them"
                .into(),
            Self::CgroupUnmounted => "mount it (`mount -t cgroup2 none /sys/fs/cgroup/unified`, \
                 beside v1 controllers anywhere) and name it with --cgroup; \
                 in a container, mount the host's"
                .into(),
        }
    }
}

/// A capability and its name.
type Capability = (CapabilitySet, &'static str);
const NET_ADMIN: Capability = (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN");
const PERFMON: Capability = (CapabilitySet::PERFMON, "CAP_PERFMON");
const BPF: Capability = (CapabilitySet::BPF, "CAP_BPF");

/// Checks the capabilities for loading and attaching programs.
pub fn may_load() -> Result<(), PreflightError> {
    check_capabilities(&[BPF, PERFMON, NET_ADMIN])
}

/// Checks the capability for reading pinned maps.
pub fn may_read() -> Result<(), PreflightError> {
    check_capabilities(&[BPF])
}

fn check_capabilities(needed: &[Capability]) -> Result<(), PreflightError> {
    // If capget(2) fails, the kernel checks the privileges anyway when programs are loaded.
    let Ok(sets) = rustix::thread::capabilities(None) else { return Ok(()) };
    match missing(sets.effective, needed) {
        missing if missing.is_empty() => Ok(()),
        missing => Err(PreflightError::Capabilities(missing)),
    }
}

/// Returns the names of the capabilities in `needed` that `effective` does not grant.
///
/// CAP_SYS_ADMIN includes CAP_BPF and CAP_PERFMON, which Linux 5.8 split off it.
fn missing(effective: CapabilitySet, needed: &[Capability]) -> Vec<&'static str> {
    let granted = |capability: CapabilitySet| {
        effective.contains(capability)
            || (capability != CapabilitySet::NET_ADMIN && effective.contains(CapabilitySet::SYS_ADMIN))
    };
    needed.iter().filter(|(capability, _)| !granted(*capability)).map(|(_, name)| *name).collect()
}

/// Checks that `path` is in a BPF file system.
pub fn check_bpffs(path: &Path) -> Result<(), PreflightError> {
    match rustix::fs::statfs(path) {
        Ok(stat) if stat.f_type.cast_unsigned() == BPF_FS_MAGIC => Ok(()),
        Ok(_) => Err(PreflightError::NotBpffs(path.to_owned())),
        Err(source) => Err(PreflightError::NoBpffs { path: path.to_owned(), source }),
    }
}

/// Checks that `path` is in a cgroup-v2 file system, and returns it. `None` means that no folder
/// is configured and that no cgroup-v2 mount was found.
pub fn check_cgroup(path: Option<&Path>) -> Result<&Path, PreflightError> {
    let path = path.ok_or(PreflightError::CgroupUnmounted)?;
    match rustix::fs::statfs(path) {
        Ok(stat) if stat.f_type.cast_unsigned() == CGROUP2_SUPER_MAGIC => Ok(path),
        Ok(_) => Err(PreflightError::NotCgroup(path.to_owned())),
        Err(source) => Err(PreflightError::NoCgroup { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        let needed = [BPF, PERFMON, NET_ADMIN];
        assert!(missing(CapabilitySet::all(), &needed).is_empty());
        assert_eq!(missing(CapabilitySet::empty(), &needed), ["CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"]);
        // Kernels before 5.8 have SYS_ADMIN only.
        assert_eq!(missing(CapabilitySet::SYS_ADMIN, &needed), ["CAP_NET_ADMIN"]);
        assert_eq!(missing(CapabilitySet::BPF | CapabilitySet::NET_ADMIN, &needed), ["CAP_PERFMON"]);
    }

    #[test]
    fn other_file_systems_are_refused_with_a_remedy() {
        let proc = Path::new("/proc");
        let error = check_bpffs(proc).unwrap_err();
        assert!(matches!(error, PreflightError::NotBpffs(_)));
        assert!(error.hint().contains("mount -t bpf bpf /proc"));
        assert!(matches!(check_bpffs(Path::new("/nonexistent")), Err(PreflightError::NoBpffs { .. })));
        assert!(matches!(check_cgroup(Some(proc)), Err(PreflightError::NotCgroup(_))));
        assert!(matches!(check_cgroup(None), Err(PreflightError::CgroupUnmounted)));
    }
}
