//! Runs a benchmark of `lb-testbed/benches`.

use std::{ffi::OsString, fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::{
    process::{cargo, is_root},
    workspace,
};

/// The format in which a benchmark prints its figures.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    Table,
    Json,
}

/// A benchmark of `lb-testbed/benches`.
pub struct Benchmark {
    pub name: &'static str,
    /// The features of lb-testbed that it needs. Only `control-plane` brings a Kubernetes client.
    pub features: &'static str,
}

impl Benchmark {
    /// A benchmark without a Kubernetes client.
    pub fn new(name: &'static str) -> Self {
        Self { name, features: "programs" }
    }
}

/// Runs a benchmark, which writes its figures to `target/bench/NAME.json`. `variables` are set in
/// its environment.
pub fn run_benchmark(
    benchmark: Benchmark,
    arguments: impl IntoIterator<Item = OsString>,
    variables: &[(&str, PathBuf)],
) -> Result<()> {
    let Benchmark { name, features } = benchmark;
    if !is_root() {
        bail!(
            "the benchmark loads kernel programs and creates network namespaces: run \
             `sudo -E cargo xtask bench {name}`"
        );
    }
    let folder = workspace::target().join("bench");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let mut command = cargo();
    command.envs(variables.iter().map(|(name, path)| (name, path)));
    // The measured programs run in the kernel: the profile of the measuring program makes no
    // difference.
    command.args(["bench", "--profile", "dev", "-p", "lb-testbed", "--bench", name]);
    command.args(["--no-default-features", "--features", features, "--"]).args(arguments);
    command.arg("--json").arg(folder.join(format!("{name}.json")));
    if !command.status()?.success() {
        bail!("the benchmark failed, see above");
    }
    Ok(())
}
