//! Programs that tasks run.

use std::{
    env,
    ffi::{OsStr, OsString},
    io::{BufRead as _, BufReader, Write as _, stdout},
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use lb_build::progress;

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
    command.current_dir(workspace::root());
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

/// Runs a command, shows its standard output as it comes and passes each line to `line`. Returns
/// true if it succeeded.
pub fn run_and_read(command: &mut Command, mut line: impl FnMut(&str)) -> Result<bool> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot run {program}"))?;
    if let Some(output) = child.stdout.take() {
        let mut output = BufReader::new(output);
        let mut bytes = Vec::new();
        while output.read_until(b'\n', &mut bytes)? > 0 {
            stdout().write_all(&bytes)?;
            line(String::from_utf8_lossy(&bytes).trim_end());
            bytes.clear();
        }
    }
    Ok(child.wait()?.success())
}
