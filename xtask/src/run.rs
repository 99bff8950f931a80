//! `cargo xtask run`: builds `lb` and runs one of its commands as root.

use std::{os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, Result};

use crate::{
    build_ebpf,
    process::{cargo, compile, is_root},
    workspace,
};

#[derive(clap::Args)]
pub struct Options {
    /// Build with optimizations
    #[arg(long)]
    release: bool,
    /// Arguments of `lb`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true, value_name = "ARGS")]
    args: Vec<String>,
}

pub fn run(options: &Options) -> Result<()> {
    build_ebpf::ensure()?;
    let profile = if options.release { "release" } else { "dev" };
    compile(cargo().args(["build", "-p", "lb-userspace", "--bin", "lb", "--profile", profile]))?;
    let lb = workspace::target().join(if options.release { "release" } else { "debug" }).join("lb");
    let mut command = if is_root() {
        Command::new(&lb)
    } else {
        let mut sudo = Command::new("sudo");
        sudo.arg(&lb);
        sudo
    };
    // lb replaces this process, so that it receives signals and its exit code is returned. exec
    // returns only if it fails.
    let error = command.args(&options.args).exec();
    Err(error).with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))
}
