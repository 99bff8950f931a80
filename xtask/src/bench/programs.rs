//! `cargo xtask bench programs`. What is measured, and how, stands in `lb-testbed/benches/programs`.

use std::fs;

use anyhow::{Context as _, Result, bail};

use crate::process::{cargo, is_root};

#[derive(clap::Args)]
pub struct Options {
    /// Rounds; the median of them counts
    #[arg(long, default_value_t = 7)]
    rounds: u32,
    /// Put the table into docs/benchmarks.md
    #[arg(long)]
    write_docs: bool,
}

pub fn run(options: &Options) -> Result<()> {
    if !is_root() {
        bail!("the programs are loaded into the kernel and run there: start this as root");
    }
    let folder = crate::target().join("bench");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let mut command = cargo();
    // What is measured runs in the kernel: the profile of the measuring program makes no difference.
    command.args(["bench", "--profile", "dev", "-p", "lb-testbed", "--bench", "programs", "--"]);
    command.args(["--rounds", &options.rounds.to_string()]).arg("--json").arg(folder.join("programs.json"));
    if options.write_docs {
        command.arg("--docs").arg(crate::workspace().join("docs/benchmarks.md"));
    }
    if !command.status()?.success() {
        bail!("the benchmark failed, see above");
    }
    Ok(())
}
