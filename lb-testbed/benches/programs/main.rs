//! `cargo xtask bench programs`: nanoseconds per packet of each path through the programs, by
//! `BPF_PROG_TEST_RUN`.
//!
//! Every figure is measured against the floor program of the same object (parse, swap MAC
//! addresses, send back), call by call in turns, so that what slows the machine slows both. A round
//! gives one figure, the median over the rounds counts, and the table shows how far they were
//! apart.

mod paths;
mod report;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use lb_testbed::programs::Limits;
use lb_testbed::programs::Subject;
use lb_testbed::programs::world::World;

use crate::paths::{Path, Stage};
use crate::report::{Figures, Report};

/// Services loaded in the two halves of the comparison.
const FEW: usize = 1;
const MANY: usize = 100_000;

fn main() -> Result<()> {
    let options = Options::read()?;
    pin_to_last_cpu()?;
    let world = World::enter()?;
    let mut stages = Vec::new();
    for services in [FEW, MANY] {
        eprintln!("loading the programs and {services} Services of each family and protocol");
        stages.push(Stage::new(Subject::load(&limits(), &world)?, &world, services)?);
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
            for (j, stage) in stages.iter_mut().enumerate() {
                let sample = stage.measure(path).with_context(|| path.to_string())?;
                figures[2 * i + j].add(sample);
            }
        }
    }
    let statistics = stages[0].statistics()?;
    let report = Report::new(options.rounds, figures, statistics)?;
    print!("{}", report.table());
    if let Some(path) = &options.json {
        std::fs::write(path, report.json()?).with_context(|| path.display().to_string())?;
        eprintln!("written: {}", path.display());
    }
    if let Some(path) = &options.docs {
        report.write_into(path)?;
        eprintln!("written: {}", path.display());
    }
    Ok(())
}

/// What xtask passes on.
struct Options {
    rounds: usize,
    json: Option<PathBuf>,
    docs: Option<PathBuf>,
}

impl Options {
    fn read() -> Result<Self> {
        let mut options = Self { rounds: 7, json: None, docs: None };
        // `cargo bench` adds --bench.
        let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
        while let Some(argument) = arguments.next() {
            let value = arguments.next().with_context(|| format!("{argument}: a value is missing"))?;
            match argument.as_str() {
                "--rounds" => options.rounds = value.parse().context("--rounds: want a number")?,
                "--json" => options.json = Some(value.into()),
                "--docs" => options.docs = Some(value.into()),
                _ => bail!("{argument}: want --rounds N, --json FILE or --docs FILE"),
            }
        }
        Ok(options)
    }
}

fn limits() -> Limits {
    Limits {
        services: 1 << 19,
        backends: 1 << 19,
        slots: 1 << 20,
        flows: 65_536,
        half_open: 65_536,
        snat_ports: 1024..=65_535,
    }
}

/// Keeps the measurement on one CPU, away from the first, which most interrupts go to.
fn pin_to_last_cpu() -> Result<()> {
    let allowed = rustix::thread::sched_getaffinity(None).context("sched_getaffinity")?;
    let last =
        (0..rustix::thread::CpuSet::MAX_CPU).rev().find(|cpu| allowed.is_set(*cpu)).context("no CPU")?;
    let mut one = rustix::thread::CpuSet::new();
    one.set(last);
    rustix::thread::sched_setaffinity(None, &one).context("sched_setaffinity")
}
