//! Programs that tasks run.

use std::{
    env,
    ffi::OsString,
    io::{BufRead as _, BufReader, Write as _, stdout},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};

/// The cargo that runs this task, in the root of the workspace.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.current_dir(crate::workspace());
    command
}

/// Whether this process may load BPF programs and make network namespaces.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs a command, shows its standard output as it comes and gives each line to `line`. True if it succeeded.
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
