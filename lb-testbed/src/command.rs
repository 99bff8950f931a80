//! Runs programs, with a time limit.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;
use std::{fs, io, thread};

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::patience::patient;

/// The time after which a child process is killed. No command of the testbed takes as long.
const LIMIT: Duration = Duration::from_secs(120);

/// Kills a child process when a time limit has passed, unless this value is dropped before. Without
/// it, a faulty program would stop the whole test run: a read of its output has no end.
#[derive(Debug)]
pub struct TimeLimit {
    /// `None` if the process had ended before.
    _ended: Option<Sender<()>>,
}

impl TimeLimit {
    pub fn of(child: &Child) -> io::Result<Self> {
        Self::after(child, patient(LIMIT))
    }

    fn after(child: &Child, limit: Duration) -> io::Result<Self> {
        // Unlike a process id, it never means another process.
        let process = match pidfd_open(Pid::from_child(child), PidfdFlags::empty()) {
            Ok(process) => process,
            Err(Errno::SRCH) => return Ok(Self { _ended: None }),
            Err(error) => return Err(error.into()),
        };
        let id = child.id();
        let (sender, ended) = channel();
        thread::Builder::new().name("time limit".to_owned()).spawn(move || {
            if ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                let arguments = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
                let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
                eprintln!("killed after {} s: {arguments}", limit.as_secs());
                // It may have ended in the meantime.
                let _ = pidfd_send_signal(process, Signal::KILL);
            }
        })?;
        Ok(Self { _ended: Some(sender) })
    }
}

/// Runs a command to its end and returns its status and output. Its standard input is empty.
pub fn output(command: &mut Command) -> io::Result<Output> {
    output_within(LIMIT, command)
}

/// Does the same as [`output`], with another time limit.
pub fn output_within(limit: Duration, command: &mut Command) -> io::Result<Output> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let _limit = TimeLimit::after(&child, patient(limit))?;
    child.wait_with_output()
}

/// Waits for the end of a child process. Returns its status, and its output if that is a pipe.
pub fn finish(child: Child) -> io::Result<Output> {
    let _limit = TimeLimit::of(&child)?;
    child.wait_with_output()
}

/// Runs a command to its end and returns its standard output. The error of a failed command has its
/// arguments and standard error.
pub fn run(command: &mut Command) -> Result<String> {
    let output = output(command)
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

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn a_process_is_killed_after_its_limit_and_not_before() {
        let sleep = |seconds| Command::new("sleep").arg(seconds).stdout(Stdio::piped()).spawn().unwrap();
        let endless = sleep("3600");
        let _limit = TimeLimit::after(&endless, Duration::from_millis(10)).unwrap();
        assert_eq!(endless.wait_with_output().unwrap().status.signal(), Some(libc::SIGKILL));
        // The limit is longer than any delay between the two steps, and shorter than the process.
        let short = sleep("6");
        drop(TimeLimit::after(&short, Duration::from_secs(5)).unwrap());
        assert!(finish(short).unwrap().status.success());
        let mut ended = sleep("0");
        ended.wait().unwrap();
        assert!(finish(ended).unwrap().status.success());
    }
}
