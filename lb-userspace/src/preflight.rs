//! What must be true of the host before anything can be done: privileges, the BPF file system, the cgroup folder.

use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// `BPF_FS_MAGIC` and `CGROUP2_SUPER_MAGIC` (include/uapi/linux/magic.h).
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;

/// The host is not as it must be.
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
    /// What a person can do.
    pub fn hint(&self) -> String {
        match self {
            Self::Capabilities(_) => "run it as root; in a container, make it privileged".into(),
            Self::NoBpffs { path, .. } | Self::NotBpffs(path) => format!(
                "mount one there (`mount -t bpf bpf {}`) or name another with --bpffs; in a container, mount the host's",
                path.display()
            ),
            Self::NoCgroup { .. } | Self::NotCgroup(_) => {
                "name a folder in a cgroup-v2 file system with --cgroup; `findmnt -t cgroup2` lists them".into()
            }
            Self::CgroupUnmounted => {
                "mount it (`mount -t cgroup2 none /sys/fs/cgroup/unified`, beside v1 controllers anywhere) and name it \
                 with --cgroup; in a container, mount the host's"
                    .into()
            }
        }
    }
}

/// A capability: its number (include/uapi/linux/capability.h) and name.
type Capability = (u32, &'static str);
const CAP_NET_ADMIN: Capability = (12, "CAP_NET_ADMIN");
/// Includes CAP_BPF and CAP_PERFMON, which were split off it in Linux 5.8.
const CAP_SYS_ADMIN: Capability = (21, "CAP_SYS_ADMIN");
const CAP_PERFMON: Capability = (38, "CAP_PERFMON");
const CAP_BPF: Capability = (39, "CAP_BPF");

/// What loading and attaching needs.
pub fn may_load() -> Result<(), PreflightError> {
    check_capabilities(&[CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN])
}

/// What reading pinned maps needs.
pub fn may_read() -> Result<(), PreflightError> {
    check_capabilities(&[CAP_BPF])
}

fn check_capabilities(needed: &[Capability]) -> Result<(), PreflightError> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    match missing(&status, needed) {
        missing if missing.is_empty() => Ok(()),
        missing => Err(PreflightError::Capabilities(missing)),
    }
}

/// Which of `needed` are not effective, of the text of `/proc/self/status`.
fn missing(status: &str, needed: &[Capability]) -> Vec<&'static str> {
    let Some(effective) = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
    else {
        // No /proc: the kernel itself will say no.
        return Vec::new();
    };
    let has = |(bit, _): Capability| effective & (1 << bit) != 0;
    let included = |capability: Capability| capability != CAP_NET_ADMIN && has(CAP_SYS_ADMIN);
    needed.iter().copied().filter(|&c| !has(c) && !included(c)).map(|(_, name)| name).collect()
}

pub fn check_bpffs(path: &Path) -> Result<(), PreflightError> {
    match rustix::fs::statfs(path) {
        Ok(stat) if stat.f_type.cast_unsigned() == BPF_FS_MAGIC => Ok(()),
        Ok(_) => Err(PreflightError::NotBpffs(path.to_owned())),
        Err(source) => Err(PreflightError::NoBpffs { path: path.to_owned(), source }),
    }
}

/// Returns the folder, which is the one that was found if none was configured.
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
        let needed = [CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN];
        assert!(missing("Name:\tlb\nCapEff:\t000001ffffffffff\n", &needed).is_empty());
        assert_eq!(
            missing("CapEff:\t0000000000000000\n", &needed),
            ["CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"]
        );
        // SYS_ADMIN alone (kernels before 5.8 know no other).
        assert_eq!(missing("CapEff:\t0000000000200000\n", &needed), ["CAP_NET_ADMIN"]);
        assert_eq!(missing("CapEff:\t0000008000001000\n", &needed), ["CAP_PERFMON"]);
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
