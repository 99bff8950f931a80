//! `cargo xtask bench programs`: measures nanoseconds per packet for each path through the
//! programs, with `BPF_PROG_TEST_RUN`.
//!
//! The baseline is the floor program of the same object: it parses a packet, swaps the MAC
//! addresses and sends it back. Calls of the floor program and of the measured program alternate,
//! so that noise on the machine affects both. Each round yields one figure. The table shows the
//! median over the rounds, and their range.

mod paths;
mod report;

use anyhow::{Context, Result};
use clap::Parser;
use lb_testbed::measure::{Output, pin_to_last_cpu};
use lb_testbed::programs::Limits;
use lb_testbed::programs::Subject;
use lb_testbed::programs::world::World;

use crate::paths::{LoadedPrograms, Path};
use crate::report::{Figures, Report};

/// The two numbers of Services that are compared.
const FEW: usize = 1;
const MANY: usize = 100_000;

fn main() -> Result<()> {
    let options = Options::parse();
    pin_to_last_cpu()?;
    let world = World::enter()?;
    // The next repetition then handles a forwarded packet as a new one.
    world.turn_back("remote")?;
    let mut loaded = Vec::new();
    for services in [FEW, MANY] {
        eprintln!("loading the programs and {services} Services of each family and protocol");
        loaded.push(LoadedPrograms::new(Subject::load(&limits(), &world)?, &world, services)?);
    }
    let paths = Path::all();
    let mut figures: Vec<Figures> = Vec::new();
    for path in &paths {
        for services in [FEW, MANY] {
            figures.push(Figures::new(path, services));
        }
    }
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        for (i, path) in paths.iter().enumerate() {
            for (j, programs) in loaded.iter_mut().enumerate() {
                let sample = programs.measure(path).with_context(|| path.to_string())?;
                figures[2 * i + j].add(sample);
            }
        }
    }
    let statistics = loaded[0].statistics()?;
    let report = Report::new(options.rounds, figures, statistics)?;
    options.output.write(&report, &report.table(), |path| report.write_into(path))
}

/// The options that xtask passes.
#[derive(Parser)]
struct Options {
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    #[command(flatten)]
    output: Output,
}

fn limits() -> Limits {
    Limits {
        services: 1 << 19,
        backends: 1 << 19,
        slots: 1 << 20,
        flows: 65_536,
        snat_ports: 1024..=65_535,
        ..Limits::default()
    }
}
