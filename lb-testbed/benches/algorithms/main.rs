//! `cargo xtask bench algorithms`: what each algorithm of `docs/algorithms.md` costs, and how it
//! spreads connections, with the real programs and `BPF_PROG_TEST_RUN`.
//!
//! The figures of cost are ratios to `random` in the same round. The clients and connections of the
//! other figures are the same in each run; only the programs use random numbers.

mod balance;
mod bed;
mod clients;
mod cost;
mod report;
mod spread;

use anyhow::Result;
use clap::Parser;
use lb_testbed::measure::{Output, pin_to_last_cpu};
use lb_testbed::programs::world::World;

use crate::bed::Bed;
use crate::report::Report;

fn main() -> Result<()> {
    let options = Options::parse();
    let mut report = Report::new(options.connections, options.each)?;
    pin_to_last_cpu()?;
    let world = World::enter()?;
    // The next repetition then handles a forwarded packet as a new one.
    world.turn_back("remote")?;
    let mut bed = Bed::new(&world)?;
    report.spreads = spread::measure(&mut bed, options.connections)?;
    report.balances = balance::measure(&mut bed, options.each)?;
    report.models = balance::model(options.each)?;
    report.costs = cost::measure(&mut bed, options.rounds)?;
    options.output.write(&report, &report.tables(), |path| report.write_into(path))
}

/// The options that xtask passes.
#[derive(Parser)]
struct Options {
    #[arg(long)]
    rounds: usize,
    /// Connections of the figures of spread.
    #[arg(long)]
    connections: u32,
    /// Open connections for each endpoint of the figures of balance.
    #[arg(long)]
    each: usize,
    #[command(flatten)]
    output: Output,
}
