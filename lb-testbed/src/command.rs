//! Runs the programs of the machine.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Runs a command to its end and returns its standard output. The error of a failed command has its
/// arguments and standard error.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {} (is it installed?)", command.get_program().display()))?;
    if !output.status.success() {
        let arguments: Vec<_> = command.get_args().map(|a| a.to_string_lossy()).collect();
        bail!(
            "{} {}: {}: {}",
            command.get_program().display(),
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Gives a command a mount namespace of its own, in which the folders `empty` are empty and nothing
/// is mounted at the folders `unmounted`.
pub fn hide(command: &mut Command, empty: &[PathBuf], unmounted: &[PathBuf]) -> Result<()> {
    let paths = |folders: &[PathBuf]| {
        folders
            .iter()
            .map(|folder| CString::new(folder.as_os_str().as_bytes()))
            .collect::<Result<Vec<_>, _>>()
    };
    let (empty, unmounted) = (paths(empty)?, paths(unmounted)?);
    if empty.is_empty() && unmounted.is_empty() {
        return Ok(());
    }
    // SAFETY: between fork and exec the closure makes system calls only. The paths were allocated
    // before the fork. Nothing else of the child depends on its mount namespace: it is about to
    // become another program.
    unsafe {
        command.pre_exec(move || {
            unshare_unsafe(UnshareFlags::NEWNS)?;
            mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
            for folder in &unmounted {
                unmount(folder, UnmountFlags::DETACH)?;
            }
            for folder in &empty {
                mount(c"none", folder, c"tmpfs", MountFlags::empty(), None)?;
            }
            Ok(())
        });
    }
    Ok(())
}
