//! Programs that tasks run.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    io::{BufRead as _, BufReader, Write as _, stdout},
    mem,
    path::PathBuf,
    process::{Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use lb_build::progress;
use rustix::process::{Pid, Signal, kill_process};

use crate::workspace;

/// Folders that a PATH may lack: that of Go's installer, and those of system programs.
const FOLDERS: [&str; 4] = ["/usr/local/go/bin", "/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Returns a command that finds programs of the system too.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    if let Ok(path) = env::join_paths(folders()) {
        command.env("PATH", path);
    }
    command
}

/// Returns the cargo that runs this task, in the root of the workspace.
pub fn cargo() -> Command {
    let mut command = command(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    lb_build::without_package(&mut command).current_dir(workspace::root());
    command
}

/// Returns true if [`command`] finds this program.
pub fn is_installed(program: &str) -> bool {
    folders().iter().any(|folder| folder.join(program).is_file())
}

fn folders() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<_> = env::split_paths(&path).collect();
    folders.extend(FOLDERS.iter().map(PathBuf::from));
    folders
}

/// Returns true if this process may load BPF programs and create network namespaces.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs a command and returns its standard output. An error contains its standard error.
pub fn text_of(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8_lossy(&bytes_of(command)?).into_owned())
}

/// Like [`text_of`], for output that is not text.
pub fn bytes_of(command: &mut Command) -> Result<Vec<u8>> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {program} (is it installed?)"))?;
    if !output.status.success() {
        let arguments: Vec<_> = command.get_args().map(|argument| argument.to_string_lossy()).collect();
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("`{program} {}`: {}\n{}", arguments.join(" "), output.status, errors.trim());
    }
    Ok(output.stdout)
}

/// Compiles with cargo. Shows warnings and errors as they come, and a line of progress every few
/// seconds.
pub fn compile(command: &mut Command) -> Result<()> {
    if !try_compile(command)? {
        bail!("the build failed, see above");
    }
    Ok(())
}

/// Like [`compile`], but returns false if the build failed.
pub fn try_compile(command: &mut Command) -> Result<bool> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = progress::watched_cargo("build", command).with_context(|| format!("cannot run {name}"))?;
    Ok(status.success())
}

/// A program that prints no line for this time hangs. The slowest single test takes two minutes.
const SILENCE: Duration = Duration::from_secs(15 * 60);

/// Runs a command, shows its standard output as it comes and passes each line to `line`. Returns
/// true if it succeeded.
///
/// # Errors
/// The command cannot be run, or has printed no line for 15 minutes. In the second case, it and the
/// programs that it started are ended.
pub fn run_and_read(command: &mut Command, line: impl FnMut(&str)) -> Result<bool> {
    run_and_read_within(SILENCE, command, line)
}

fn run_and_read_within(silence: Duration, command: &mut Command, mut line: impl FnMut(&str)) -> Result<bool> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot run {program}"))?;
    let (sender, lines) = mpsc::channel();
    if let Some(output) = child.stdout.take() {
        thread::spawn(move || {
            let mut output = BufReader::new(output);
            let mut bytes = Vec::new();
            while output.read_until(b'\n', &mut bytes).is_ok_and(|length| length > 0)
                && sender.send(mem::take(&mut bytes)).is_ok()
            {}
        });
    } else {
        drop(sender);
    }
    let mut last = String::new();
    loop {
        match lines.recv_timeout(silence) {
            Ok(bytes) => {
                stdout().write_all(&bytes)?;
                last = String::from_utf8_lossy(&bytes).trim_end().to_owned();
                line(&last);
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(child.wait()?.success()),
            Err(RecvTimeoutError::Timeout) => {
                end_with_descendants(child.id());
                child.wait()?;
                bail!(
                    "`{program}` printed nothing for {} s and was ended; its last line: `{last}`",
                    silence.as_secs()
                );
            }
        }
    }
}

/// Ends a child of this process and every process that descends from it. A child that was not
/// waited for keeps its id, so no other process is hit; the descendants are stopped before their
/// children are listed.
fn end_with_descendants(process: u32) {
    let Some(pid) = i32::try_from(process).ok().and_then(Pid::from_raw) else { return };
    // Errors are ignored: the process may have ended by itself.
    let _ = kill_process(pid, Signal::STOP);
    for child in children(process) {
        end_with_descendants(child);
    }
    let _ = kill_process(pid, Signal::KILL);
}

/// Returns the children of all threads of a process.
fn children(process: u32) -> Vec<u32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else { return Vec::new() };
    let lists =
        threads.flatten().filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<_>>())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_command_is_ended_with_its_children() {
        let mut shell = command("sh");
        shell.args(["-c", "sleep 1000 & echo $!; echo last; wait"]);
        let mut lines = Vec::new();
        let result =
            run_and_read_within(Duration::from_secs(5), &mut shell, |line| lines.push(line.to_owned()));
        let error = result.expect_err("the command does not end by itself").to_string();
        assert!(error.ends_with("its last line: `last`"), "{error}");
        // The child is gone, or a zombie until init has waited for it. A killed process may need a
        // moment.
        let runs = || {
            fs::read_to_string(format!("/proc/{}/stat", lines[0])).is_ok_and(|state| !state.contains(") Z "))
        };
        let ended = (0..1000).any(|_| {
            thread::sleep(Duration::from_millis(10));
            !runs()
        });
        assert!(ended, "{}", lines[0]);
    }
}
