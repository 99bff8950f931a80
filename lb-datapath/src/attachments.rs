//! Lists the programs at the hooks that Sluice uses: its own programs and those of others.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

pub use crate::filters::{FilterProgram, TcFilter, tc_filters};
use crate::hooks;
use crate::sys;

/// The programs at one hook, by name, in the order in which they run. The kernel truncates names to
/// 15 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookPrograms {
    /// The name of the hook. It is the name of the pin of a cgroup hook, and `tc-ingress` or
    /// `tc-egress` of a device.
    pub hook: &'static str,
    pub programs: Vec<String>,
}

/// Returns the tcx programs of a device. Fails on kernels without tcx.
pub fn tcx_programs(ifindex: u32) -> io::Result<Vec<HookPrograms>> {
    [("tc-ingress", hooks::TCX_INGRESS), ("tc-egress", hooks::TCX_EGRESS)]
        .into_iter()
        .map(|(hook, attach_type)| at_hook(hook, ifindex, attach_type, 0))
        .collect()
}

/// Returns the programs of each socket hook that run for processes in a cgroup. They include the
/// programs of the cgroups above it.
pub fn cgroup_programs(path: &Path) -> io::Result<Vec<HookPrograms>> {
    /// `BPF_F_QUERY_EFFECTIVE`.
    const EFFECTIVE: u32 = 1;
    let cgroup = File::open(path)?;
    let target = cgroup.as_raw_fd().cast_unsigned();
    hooks::CGROUP
        .into_iter()
        .map(|(_, attach_type, hook)| at_hook(hook, target, attach_type, EFFECTIVE))
        .collect()
}

fn at_hook(hook: &'static str, target: u32, attach_type: u32, flags: u32) -> io::Result<HookPrograms> {
    let programs = sys::query_programs(target, attach_type, flags)?;
    Ok(HookPrograms { hook, programs: programs.into_iter().map(program_name).collect() })
}

/// Returns the name of a loaded program. Returns its id in brackets if it has no name, or if it has
/// been removed.
pub fn program_name(id: u32) -> String {
    let info = sys::program_by_id(id).and_then(|program| sys::program_info(program.as_fd()));
    let name = info.map(|info| sys::program_name(&info)).unwrap_or_default();
    if name.is_empty() { format!("[{id}]") } else { name }
}

/// Returns whether this is the name of a program of Sluice at a hook.
pub fn is_own_program(name: &str) -> bool {
    // The kernel truncates names to 15 bytes.
    let own_socket_program = |(program, ..): &(&str, u32, &str)| program.get(..15).unwrap_or(program) == name;
    name.starts_with("lb_tc_") || name.starts_with("lb_xdp") || hooks::CGROUP.iter().any(own_socket_program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_programs_are_recognised_by_their_truncated_names() {
        for own in ["lb_tc_ingress", "lb_tc_ingress_l", "lb_xdp", "lb_connect4", "lb_getpeername6"] {
            assert!(is_own_program(own), "{own}");
        }
        for foreign in ["cil_from_netdev", "lb_something", "sd_fw_egress", "[12]"] {
            assert!(!is_own_program(foreign), "{foreign}");
        }
    }
}
