//! `cargo xtask bench connections`: runs the benchmark in `lb-testbed/benches/connections.rs`.

use std::fs;

use anyhow::{Context as _, Result, bail};

use crate::{
    process::{cargo, is_root},
    workspace,
};

#[derive(clap::Args)]
pub struct Options {
    /// Duration of the load with each kind of program
    #[arg(long, default_value_t = 300)]
    seconds: u32,
    /// New TCP connections and new UDP flows in a second
    #[arg(long, default_value_t = 2000)]
    rate: u32,
    /// Run with these programs only
    #[arg(long, value_parser = ["xdp", "tc"])]
    mode: Option<String>,
}

pub fn run(options: &Options) -> Result<()> {
    if !is_root() {
        bail!("the benchmark creates network namespaces: run `sudo -E cargo xtask bench connections`");
    }
    let folder = workspace::target().join("bench");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let mut command = cargo();
    command.args(["bench", "--profile", "dev", "-p", "lb-testbed", "--bench", "connections", "--"]);
    command.args(["--seconds", &options.seconds.to_string(), "--rate", &options.rate.to_string()]);
    command.arg("--json").arg(folder.join("connections.json"));
    if let Some(mode) = &options.mode {
        command.args(["--mode", mode]);
    }
    if !command.status()?.success() {
        bail!("the benchmark failed, see above");
    }
    Ok(())
}
