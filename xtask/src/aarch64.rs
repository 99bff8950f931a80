//! Builds for aarch64 on another architecture: the static target of the image for arm64.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{
    process::{cargo, command, text_of},
    workspace,
};

/// The target of the image for arm64.
pub const TARGET: &str = "aarch64-unknown-linux-musl";

/// Debian's compiler, which also links.
pub const COMPILER: &str = "aarch64-linux-gnu-gcc";

/// Returns the reason and the remedy if this machine cannot have the library of the target.
pub fn unavailable() -> Option<String> {
    text_of(command("rustup").arg("--version")).is_err().then(|| {
        format!("the library of {TARGET} comes from rustup\nremedy: install rustup (https://rustup.rs)")
    })
}

/// Returns a cargo command for the target. C code is compiled, and programs are linked, with
/// Debian's compiler.
pub fn cargo_for_target(subcommand: &str) -> Command {
    let variable = TARGET.replace('-', "_");
    let mut command = cargo();
    command
        .args([subcommand, "--target", TARGET])
        .env(format!("CC_{variable}"), COMPILER)
        .env(format!("CARGO_TARGET_{}_LINKER", variable.to_uppercase()), COMPILER);
    command
}

/// Adds the library of a target to the toolchain of this workspace.
pub fn add_target(target: &str) -> Result<()> {
    let rustup = |arguments: &[&str]| {
        let mut rustup = command("rustup");
        // The toolchain of this workspace, as cargo chose it.
        text_of(rustup.args(arguments).current_dir(workspace::root()))
    };
    let installed =
        rustup(&["target", "list", "--installed"]).context("list the targets of the toolchain")?;
    if installed.lines().any(|line| line == target) {
        return Ok(());
    }
    if let Err(error) = rustup(&["target", "add", target]) {
        bail!("cannot add {target}: {error:#}");
    }
    Ok(())
}
