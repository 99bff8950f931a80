//! `cargo xtask build-ebpf`: builds the kernel programs and lists them.

use std::{env, fs, path::PathBuf};

use anyhow::{Context as _, Result};
use lb_build::{Build, BuiltObject};

use crate::workspace;

#[derive(clap::Args)]
pub struct Options {
    /// Copy the object to this file too
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Architecture of the machine that will load the programs
    #[arg(long, default_value = env::consts::ARCH)]
    arch: String,
}

/// Builds the programs before a task compiles the agent, which contains them. The agent's build
/// script would build them too, but cargo shows no progress of build scripts.
pub fn ensure() -> Result<()> {
    build(env::consts::ARCH).map(drop)
}

pub fn run(options: &Options) -> Result<()> {
    let programs = build(&options.arch)?;
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

fn build(arch: &str) -> Result<BuiltObject> {
    Ok(Build { workspace: workspace::root().to_owned(), arch: arch.to_owned(), other_layout: false }.run()?)
}
