//! `cargo xtask bench agent`: what an agent costs that watches a real API server with many
//! Services: start, memory, CPU time, and the time from a change to the maps.
//!
//! Each size gets a cluster of its own. Nothing listens at the endpoints: only the agent and the
//! API server work. The measured Services are ClusterIP Services of IPv4 with one port.

mod bed;
mod changes;
mod report;

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Parser;
use lb_testbed::measure::{Output, cpu_time, memory};

use crate::bed::{Bed, Size};
use crate::changes::Load;
use crate::report::{Figures, Memory, Report, Start};

/// The time after a start before the agent is idle: it has swept the flow table once.
const SETTLE: Duration = Duration::from_secs(12);

fn main() -> Result<()> {
    let options = Options::parse();
    let mut report = Report::new()?;
    for size in &options.sizes {
        report.sizes.push(measure(*size, &options).with_context(|| format!("measure {size}"))?);
    }
    options.output.write(&report, &report.table(), |path| report.write_into(path))
}

fn measure(size: Size, options: &Options) -> Result<Figures> {
    eprintln!("{size}: writing the objects to the API server");
    let bed = Bed::build(size)?;
    let mut starts = Vec::new();
    let agent = loop {
        let begin = Instant::now();
        let agent = bed.start_agent()?;
        let seconds = begin.elapsed().as_secs_f64();
        let start = Start { seconds, cpu: cpu_time(agent.pid())?, load: bed.load_time(&agent)? };
        eprintln!("{size}: {start:?}");
        starts.push(start);
        if starts.len() >= options.starts as usize {
            break agent;
        }
        bed.remove_agent(agent)?;
    };
    let memory = Memory {
        resident: memory(agent.pid(), "VmRSS")?,
        peak: memory(agent.pid(), "VmHWM")?,
        anonymous: memory(agent.pid(), "RssAnon")?,
    };
    sleep(SETTLE);
    let (begin, before) = (Instant::now(), cpu_time(agent.pid())?);
    sleep(Duration::from_secs(options.idle.into()));
    let idle = (cpu_time(agent.pid())? - before) * 100.0 / begin.elapsed().as_secs_f64();
    eprintln!("{size}: {memory:?}, idle {idle:.3} %");

    bed.log_updates()?;
    let alone = Load { churn: 0, flows: 0 };
    let busy = Load { churn: options.churn, flows: 0 };
    let full = Load { flows: options.flows, ..busy };
    let mut phases = Vec::new();
    for load in [alone, busy, full] {
        let phase = changes::measure(&bed, &agent, load, options.changes)?;
        eprintln!("{size}: {} changes measured, {}", phase.changes.len(), phase.describe());
        phases.push(phase);
    }
    agent.stop()?;
    Ok(Figures { size, starts, memory, idle, phases })
}

/// The options that xtask passes.
#[derive(Parser)]
struct Options {
    /// Services and endpoints of each, for example `10000x10`.
    #[arg(long = "size", required = true)]
    sizes: Vec<Size>,
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    starts: u32,
    /// Seconds.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    idle: u32,
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    changes: u32,
    /// Changes a second of the other Services.
    #[arg(long)]
    churn: u32,
    #[arg(long)]
    flows: u32,
    #[command(flatten)]
    output: Output,
}
