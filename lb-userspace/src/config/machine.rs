//! Defaults that depend on the machine: its host name, the mount point of its cgroup-v2 hierarchy,
//! and its memory.

use std::path::{Path, PathBuf};

/// The values from which the defaults of `--node-name`, `--cgroup`, `--max-flows` and
/// `--max-map-memory` are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    pub host_name: String,
    /// `None` if cgroup-v2 is not mounted.
    pub cgroup_root: Option<PathBuf>,
    /// Bytes of memory that the kernel manages.
    pub memory: u64,
}

impl Machine {
    /// Reads the values of this machine.
    pub fn detect() -> Self {
        let host_name = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
        let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        // sysinfo(2) and not /proc/meminfo, which lxcfs replaces in containers.
        let system = rustix::system::sysinfo();
        let memory = (system.totalram as u64).saturating_mul(system.mem_unit.into());
        Self { host_name, cgroup_root: cgroup_root(&mountinfo, is_hierarchy_root), memory }
    }

    /// Returns the default of `--max-flows`: one connection for each 32 KiB of memory, rounded down
    /// to a power of two. This is 2 % of the memory. The default grows up to 262,144 connections,
    /// like the table of netfilter (net/netfilter/nf_conntrack_core.c, `nf_conntrack_init_start`).
    ///
    /// The kernel reports less memory than is installed, and the number can change with each boot.
    /// This function adds a quarter, so that such a change does not change the rounded result.
    /// Another size would make the agent convert its maps.
    pub fn max_flows(&self) -> u32 {
        const BYTES: u64 = 32 << 10;
        const SMALLEST: u64 = 1 << 14;
        const LARGEST: u64 = 1 << 18;
        let flows = (self.memory + self.memory / 4) / BYTES;
        1 << flows.clamp(SMALLEST, LARGEST).ilog2()
    }

    /// Returns the default of `--max-map-memory`: a quarter of the memory, in MiB.
    pub fn max_map_memory(&self) -> u32 {
        u32::try_from(self.memory >> 22).unwrap_or(u32::MAX)
    }
}

/// Returns whether this cgroup is the root of the hierarchy: only the root has no `cgroup.type`
/// file (Documentation/admin-guide/cgroup-v2.rst).
fn is_hierarchy_root(mount_point: &Path) -> bool {
    mount_point.join("cgroup.procs").exists() && !mount_point.join("cgroup.type").exists()
}

/// Returns the mount point of the cgroup-v2 hierarchy. `mountinfo` is the text of
/// `/proc/self/mountinfo` (proc_pid_mountinfo(5)). The crate `procfs` parses this file too, but
/// does not decode spaces in mount points, and returns nothing if it cannot parse one line.
///
/// The mount point is `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` beside v1 controllers, or
/// another folder. In a container, `/sys/fs/cgroup` can be the subtree of the container, so a mount
/// of the root of the hierarchy is preferred.
fn cgroup_root(mountinfo: &str, is_hierarchy_root: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let mounts: Vec<PathBuf> = mountinfo
        .lines()
        .filter_map(|line| {
            // 36 35 0:31 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw
            let (mount, filesystem) = line.split_once(" - ")?;
            let mount_point = mount.split(' ').nth(4)?;
            filesystem.starts_with("cgroup2 ").then(|| PathBuf::from(unescape(mount_point)))
        })
        .collect();
    mounts.iter().find(|mount| is_hierarchy_root(mount)).or(mounts.first()).cloned()
}

/// Decodes a mount point. The kernel writes space, tab, newline and backslash as octal numbers.
fn unescape(field: &str) -> String {
    field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 25 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / /sys/fs/cgroup/cpu rw,nosuid shared:11 - cgroup cgroup rw,cpu";

    const CONTAINER: &str = "\
812 790 0:31 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw
813 780 0:31 /../../.. /host/sys/fs\\040root/cgroup rw,nosuid - cgroup2 cgroup rw";

    #[test]
    fn the_table_of_connections_grows_with_the_memory() {
        let max_flows = |memory| Machine { host_name: String::new(), cgroup_root: None, memory }.max_flows();
        const MIB: u64 = 1 << 20;
        let sizes = [
            (0, 16_384),
            (512, 16_384),
            (1024, 32_768),
            (2048, 65_536),
            (3 * 1024, 65_536),
            (4 * 1024, 131_072),
            (6 * 1024, 131_072),
            (8 * 1024, 262_144),
            (u64::MAX / MIB / 2, 262_144),
        ];
        for (installed, flows) in sizes {
            // The kernel reports 82 to 100 % of the installed memory.
            for reported in [installed * MIB, installed * MIB / 100 * 82] {
                assert_eq!(max_flows(reported), flows, "{reported} of {installed} MiB");
            }
        }
    }

    #[test]
    fn beside_v1_controllers() {
        assert_eq!(cgroup_root(HYBRID, |_| true), Some("/sys/fs/cgroup/unified".into()));
    }

    #[test]
    fn the_hosts_root_is_preferred_to_the_containers_own() {
        let root = cgroup_root(CONTAINER, |mount| mount.starts_with("/host"));
        assert_eq!(root, Some("/host/sys/fs root/cgroup".into()));
    }

    #[test]
    fn a_subtree_is_the_last_resort() {
        assert_eq!(cgroup_root(CONTAINER, |_| false), Some("/sys/fs/cgroup".into()));
        assert_eq!(cgroup_root("25 1 8:1 / / rw - ext4 /dev/sda1 rw", |_| true), None);
    }
}
