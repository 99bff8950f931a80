//! `cargo xtask run`: the agent or any other command of `lb`, built and run as root.

use std::{os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{
    build_ebpf,
    process::{cargo, is_root},
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
    if !cargo().args(["build", "-p", "lb-userspace", "--bin", "lb", "--profile", profile]).status()?.success()
    {
        bail!("lb could not be built, see above");
    }
    let lb = crate::target().join(if options.release { "release" } else { "debug" }).join("lb");
    let mut command = if is_root() {
        Command::new(&lb)
    } else {
        let mut sudo = Command::new("sudo");
        sudo.arg(&lb);
        sudo
    };
    // exec returns only if it failed: signals and the exit code are lb's own.
    let error = command.args(&options.args).exec();
    Err(error).with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))
}
