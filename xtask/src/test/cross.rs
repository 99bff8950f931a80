//! The part `cross`: the agent and the kernel programs compile for aarch64.

use anyhow::{Context as _, Result, bail};

use crate::{
    process::{cargo, command, text_of, try_compile},
    setup,
    tally::Tally,
    workspace,
};

/// The target of the image for arm64.
const TARGET: &str = "aarch64-unknown-linux-musl";

pub fn unavailable() -> Option<String> {
    text_of(command("rustup").arg("--version")).is_err().then(|| {
        format!("the library of {TARGET} comes from rustup\nremedy: install rustup (https://rustup.rs)")
    })
}

/// Checks the agent, whose build script compiles the kernel programs for the same architecture.
/// Nothing is linked.
pub fn run() -> Result<Tally> {
    add_target()?;
    let mut check = cargo();
    check
        .args(["check", "-p", "lb-userspace", "--bin", "lb", "--target", TARGET])
        .env(format!("CC_{}", TARGET.replace('-', "_")), setup::Program::Aarch64Compiler.name());
    let mut tally = Tally::default();
    tally.count(try_compile(&mut check)?);
    Ok(tally)
}

fn add_target() -> Result<()> {
    let rustup = |arguments: &[&str]| {
        let mut rustup = command("rustup");
        // The toolchain of this workspace, as cargo chose it.
        text_of(rustup.args(arguments).current_dir(workspace::root()))
    };
    let installed =
        rustup(&["target", "list", "--installed"]).context("list the targets of the toolchain")?;
    if installed.lines().any(|target| target == TARGET) {
        return Ok(());
    }
    if let Err(error) = rustup(&["target", "add", TARGET]) {
        bail!("cannot add {TARGET}: {error:#}");
    }
    Ok(())
}
