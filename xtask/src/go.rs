//! The Go toolchain, which builds programs of others for the tests.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result};
use lb_build::progress::{report, timed, watched};

use crate::process;

pub const INSTALL: &str = "install Go 1.26 or later (https://go.dev/dl)";

pub fn is_installed() -> bool {
    process::is_installed("go")
}

/// Builds `package` with the versions of the module in the folder `module`, and writes the program
/// to `program`.
pub fn build(task: &str, module: &Path, package: &str, flags: &[&str], program: &Path) -> Result<()> {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    // The build writes to another name: an interrupted build must not leave a file that looks
    // complete.
    let unfinished = program.with_file_name(format!("{name}.unfinished"));
    let output = unfinished.display().to_string();
    let arguments = [&["build", "-v", "-trimpath"], flags, &["-o", &output, package]].concat();
    timed(task, &format!("built {name}"), || run(task, module, &arguments))?;
    fs::rename(&unfinished, program).with_context(|| format!("cannot write {}", program.display()))
}

/// Runs `go` in the folder of a module.
pub fn run(task: &str, module: &Path, arguments: &[&str]) -> Result<()> {
    watched(task, command(module).args(arguments))
        .with_context(|| format!("cannot run `go`\nremedy: {INSTALL}"))?
        .map_err(|failure| anyhow::anyhow!("`go {}` failed: {failure}", arguments.join(" ")))
}

/// Returns a command that runs `go` in the folder of a module.
pub fn command(module: &Path) -> Command {
    let mut command = process::command("go");
    command.current_dir(module).env("CGO_ENABLED", "0").env("GOFLAGS", "-mod=mod").env("GOWORK", "off");
    command
}

/// Reports that a program is about to be built.
pub fn report_build(task: &str, program: &str, takes: &str) {
    report(task, &format!("building {program} (once, {takes})"));
}
