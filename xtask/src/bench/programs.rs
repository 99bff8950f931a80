//! `cargo xtask bench programs`: runs the benchmark in `lb-testbed/benches/programs`, which
//! describes what it measures.

use std::fs;

use anyhow::{Context as _, Result, bail};

use crate::{
    process::{cargo, is_root},
    workspace,
};

#[derive(clap::Args)]
pub struct Options {
    /// Number of rounds; the result is their median
    #[arg(long, default_value_t = 7)]
    rounds: u32,
    /// Write the table into docs/benchmarks.md
    #[arg(long)]
    write_docs: bool,
}

pub fn run(options: &Options) -> Result<()> {
    if !is_root() {
        bail!("the benchmark loads programs into the kernel: run `sudo -E cargo xtask bench programs`");
    }
    let folder = workspace::target().join("bench");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let mut command = cargo();
    // The measured programs run in the kernel: the profile of the measuring program makes no
    // difference.
    command.args(["bench", "--profile", "dev", "-p", "lb-testbed", "--bench", "programs"]);
    // Without the default features: the benchmark needs no Kubernetes client.
    command.args(["--no-default-features", "--features", "programs", "--"]);
    command.args(["--rounds", &options.rounds.to_string()]).arg("--json").arg(folder.join("programs.json"));
    if options.write_docs {
        command.arg("--docs").arg(workspace::root().join("docs/benchmarks.md"));
    }
    if !command.status()?.success() {
        bail!("the benchmark failed, see above");
    }
    Ok(())
}
