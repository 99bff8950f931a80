//! The Go toolchain, which builds programs of others for the tests.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use lb_build::progress::{report, timed, watched};

use crate::process;

pub const INSTALL: &str = "install Go 1.26 or later (https://go.dev/dl)";

pub fn is_installed() -> bool {
    process::is_installed("go")
}

/// A program that is built from a package of a Go module.
pub struct Program {
    pub name: &'static str,
    pub package: String,
}

/// A folder with programs: `bin` has them, `module` has the Go module with their versions.
pub struct Programs<'a> {
    pub task: &'a str,
    /// Its name has the versions of the programs, so that other versions are built again.
    pub root: PathBuf,
    pub flags: &'a [&'a str],
    /// The duration of a build, for people.
    pub takes: &'a str,
}

impl Programs<'_> {
    /// Returns the folder with the programs. Builds those that are missing. `write_module` writes
    /// the files of the module.
    pub fn provide(
        &self,
        programs: &[Program],
        write_module: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let bin = self.root.join("bin");
        if missing(&self.root, programs).is_empty() {
            return Ok(bin);
        }
        let module = self.root.join("module");
        for folder in [&bin, &module] {
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let lock = fs::File::create(self.root.join("lock"))?;
        lock.lock()?;
        write_module(&module)?;
        // Another process may have built some of them until the lock was free.
        for program in missing(&self.root, programs) {
            report(self.task, &format!("building {} (once, {})", program.name, self.takes));
            build(self.task, &module, &program.package, self.flags, &bin.join(program.name))?;
        }
        Ok(bin)
    }
}

/// Returns the programs that the folder of [`Programs`] does not have.
pub fn missing<'a>(root: &Path, programs: &'a [Program]) -> Vec<&'a Program> {
    programs.iter().filter(|program| !root.join("bin").join(program.name).is_file()).collect()
}

/// Writes the files of a module, and resolves its dependencies, unless that was done before.
/// `go_mod` returns the go.mod.
pub fn resolve(
    task: &str,
    module: &Path,
    programs: &[Program],
    go_mod: impl FnOnce() -> Result<String>,
) -> Result<()> {
    if module.join("go.sum").is_file() {
        return Ok(());
    }
    fs::write(module.join("go.mod"), go_mod()?)?;
    fs::write(module.join("tools.go"), tools_go(programs))?;
    timed(task, "resolved the modules", || run(task, module, &["mod", "tidy"]))
}

/// Returns a Go file that imports all programs, so that one `go mod tidy` resolves the dependencies
/// of each.
fn tools_go(programs: &[Program]) -> String {
    let imports: String = programs.iter().map(|program| format!("\t_ \"{}\"\n", program.package)).collect();
    format!("//go:build tools\n\npackage tools\n\nimport (\n{imports})\n")
}

/// Builds `package` with the versions of the module in the folder `module`, and writes the program
/// to `program`.
fn build(task: &str, module: &Path, package: &str, flags: &[&str], program: &Path) -> Result<()> {
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
fn run(task: &str, module: &Path, arguments: &[&str]) -> Result<()> {
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
