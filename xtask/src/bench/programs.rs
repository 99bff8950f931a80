//! `cargo xtask bench programs`: runs the benchmark in `lb-testbed/benches/programs`, which
//! describes what it measures.

use std::ffi::OsString;

use anyhow::Result;

use super::run::{Benchmark, run_benchmark};
use crate::workspace;

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
    let mut arguments: Vec<OsString> = vec!["--rounds".into(), options.rounds.to_string().into()];
    if options.write_docs {
        arguments.extend(["--docs".into(), workspace::root().join("docs/benchmarks.md").into()]);
    }
    run_benchmark(Benchmark::new("programs"), arguments, &[])
}
