//! `cargo xtask build-ebpf`: builds the kernel programs and lists them.

use std::{env, fs, path::PathBuf};

use anyhow::{Context as _, Result};
use lb_build::{Build, BuiltObject, Programs};

use crate::workspace;

#[derive(clap::Args)]
pub struct Options {
    /// Copy the object to this file too
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Architecture of the machine that will load the programs
    #[arg(long, default_value = env::consts::ARCH)]
    arch: String,
    /// Build the programs that `cargo xtask bench forward` measures with, not those of the agent
    #[arg(long)]
    bench: bool,
}

/// Builds the programs before a task compiles the agent, which contains them. The agent's build
/// script would build them too, but cargo shows no progress of build scripts.
pub fn ensure() -> Result<()> {
    build(Programs::Agent, env::consts::ARCH).map(drop)
}

/// Builds the programs that benchmarks measure with, for this machine. Returns the object.
pub fn for_benchmarks() -> Result<PathBuf> {
    Ok(build(Programs::Bench, env::consts::ARCH)?.object)
}

pub fn run(options: &Options) -> Result<()> {
    let programs = if options.bench { Programs::Bench } else { Programs::Agent };
    let programs = build(programs, &options.arch)?;
    if let Some(output) = &options.output {
        fs::copy(&programs.object, output).with_context(|| format!("cannot write {}", output.display()))?;
    }
    let size = fs::metadata(&programs.object)?.len();
    let state = if programs.rebuilt { "built" } else { "up to date" };
    println!("{} ({} KiB, {state})", programs.object.display(), size / 1024);
    for (name, section) in lb_build::check::programs(&programs.object)? {
        println!("  {section:<20} {name}");
    }
    Ok(())
}

fn build(programs: Programs, arch: &str) -> Result<BuiltObject> {
    Ok(Build { workspace: workspace::root().to_owned(), arch: arch.to_owned(), programs }.run()?)
}
