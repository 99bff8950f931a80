//! `cargo xtask bench ingress`: the CPU time of `lb ingress` for a request beside that of nginx and
//! HAProxy with the same rules, and what 10,000 Ingresses cost.
//!
//! All proxies have one worker thread on CPU 0. Client and endpoint run on CPU 1. Each round
//! measures each proxy once, so the proxies alternate.

mod load;
mod report;
mod scale;
mod subjects;

use anyhow::Result;
use clap::Parser;
use lb_testbed::IngressBed;
use lb_testbed::measure::Output;

use crate::load::{CASES, Sample, measure};
use crate::report::Report;
use crate::subjects::{Endpoint, SUBJECTS, prepare, start};

fn main() -> Result<()> {
    let options = Options::parse();
    let bed = IngressBed::build()?;
    let mut report = Report::default();
    {
        prepare(&bed)?;
        let _endpoint = Endpoint::start(&bed)?;
        let running = SUBJECTS.iter().map(|subject| start(&bed, *subject)).collect::<Result<Vec<_>>>()?;
        for round in 0..options.rounds {
            for case in &CASES {
                // The order changes: the first of a round has the warmest and the quietest CPU.
                let first = round as usize % running.len();
                for proxy in running[first..].iter().chain(&running[..first]) {
                    let sample: Sample = measure(&bed, case, proxy, options.seconds)?;
                    eprintln!("round {round}, {}, {:?}: {sample:?}", case.name, proxy.subject);
                    report.add(case, proxy.subject, sample);
                }
            }
        }
    }
    drop(bed);
    report.scale = Some(scale::measure(options.ingresses)?);
    options.output.write(&report, &report.table(), |path| report.write_into(path))
}

/// The options that xtask passes.
#[derive(Parser)]
struct Options {
    #[arg(long, default_value_t = 7)]
    rounds: u32,
    /// Duration of each load.
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    #[arg(long, default_value_t = 10_000)]
    ingresses: u32,
    #[command(flatten)]
    output: Output,
}
