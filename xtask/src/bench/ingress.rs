//! `cargo xtask bench ingress`: builds `lb` optimised, fetches nginx and HAProxy from Debian, and
//! runs the benchmark in `lb-testbed/benches/ingress`, which describes what it measures.

use std::ffi::OsString;

use anyhow::{Result, bail};

use super::run::{Benchmark, run_benchmark};
use crate::{
    kernels,
    process::{cargo, compile, is_root},
    setup::{self, InstallOptions, Need, Program},
    workspace,
};

#[derive(clap::Args)]
pub struct Options {
    /// Number of rounds; the result is their median
    #[arg(long, default_value_t = 7)]
    rounds: u32,
    /// Duration of each load
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Number of Ingresses in the measurement of memory and changes
    #[arg(long, default_value_t = 10_000)]
    ingresses: u32,
    /// Write the table into docs/benchmarks.md
    #[arg(long)]
    write_docs: bool,
    #[command(flatten)]
    setup: InstallOptions,
}

pub fn run(options: &Options) -> Result<()> {
    if !is_root() {
        bail!("the benchmark creates a network namespace: run `sudo -E cargo xtask bench ingress`");
    }
    let programs = [Program::Compiler, Program::Ip, Program::Openssl, Program::Wrk, Program::H2load];
    setup::provide(&programs.map(Need::Program), options.setup)?;
    let servers = kernels::http_servers(&workspace::target().join("ingress-bench"))?;
    compile(cargo().args(["build", "--release", "-p", "lb-userspace", "--bin", "lb"]))?;
    let mut arguments: Vec<OsString> = Vec::new();
    let numbers = [options.rounds, options.seconds, options.ingresses];
    for (name, number) in ["--rounds", "--seconds", "--ingresses"].into_iter().zip(numbers) {
        arguments.extend([name.into(), number.to_string().into()]);
    }
    if options.write_docs {
        arguments.extend(["--docs".into(), workspace::root().join("docs/benchmarks.md").into()]);
    }
    let lb = workspace::target().join("release/lb");
    run_benchmark(
        Benchmark::new("ingress"),
        arguments,
        &[("SLUICE_LB", lb), ("SLUICE_BENCH_SERVERS", servers)],
    )
}
