//! `cargo xtask bench algorithms`: runs the benchmark in `lb-testbed/benches/algorithms`, which
//! describes what it measures.

use std::ffi::OsString;

use anyhow::Result;

use super::run::{Benchmark, Output, run_benchmark};
use crate::workspace;

#[derive(clap::Args)]
pub struct Options {
    /// Number of rounds of the figures of cost; the result is their median
    #[arg(long, default_value_t = 7)]
    rounds: u32,
    /// One round and few connections: shows in a minute whether everything works
    #[arg(long, conflicts_with = "rounds")]
    quick: bool,
    /// Format of the output
    #[arg(long, short, value_enum, default_value = "table")]
    output: Output,
    /// Write the tables and plots into docs
    #[arg(long)]
    write_docs: bool,
}

pub fn run(options: &Options) -> Result<()> {
    let [rounds, connections, each] =
        if options.quick { [1, 2_000, 5] } else { [options.rounds, 20_000, 20] };
    let mut arguments: Vec<OsString> = Vec::new();
    for (name, number) in [("--rounds", rounds), ("--connections", connections), ("--each", each)] {
        arguments.extend([name.into(), number.to_string().into()]);
    }
    if options.output == Output::Json {
        arguments.push("--print-json".into());
    }
    if options.write_docs {
        arguments.extend(["--docs".into(), workspace::root().join("docs").into()]);
    }
    run_benchmark(Benchmark::new("algorithms"), arguments, &[])
}
