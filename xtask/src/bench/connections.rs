//! `cargo xtask bench connections`: runs the benchmark in `lb-testbed/benches/connections.rs`.

use anyhow::Result;

use super::run::{Benchmark, run_benchmark};

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
    let mut arguments = vec![
        "--seconds".to_owned(),
        options.seconds.to_string(),
        "--rate".to_owned(),
        options.rate.to_string(),
    ];
    if let Some(mode) = &options.mode {
        arguments.extend(["--mode".to_owned(), mode.clone()]);
    }
    run_benchmark(Benchmark::new("connections"), arguments.into_iter().map(Into::into), &[])
}
