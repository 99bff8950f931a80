//! `cargo xtask mutants`: checks that the tests notice faults. It plants faults from a data file
//! into the kernel programs, one at a time, and runs unit tests, packet cases and, for the programs
//! of sockets, end-to-end cases. A fault that no test notices shows that a case is missing.
//!
//! Faults are planted into copies of the sources below `target/mutants/`, never into the sources.

mod built;
mod faults;
mod worker;

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use lb_build::progress::report;

use self::{
    built::Built,
    faults::Fault,
    worker::{FaultOutcome, Worker},
};
use crate::{process::is_root, task, workspace};

#[derive(clap::Args)]
pub struct Options {
    /// Plant these faults only
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    only: Vec<String>,
    /// Print the faults and plant none
    #[arg(long)]
    list: bool,
    /// Number of faults that are tested at the same time
    #[arg(long, default_value_t = 2)]
    jobs: usize,
}

/// A fault that was tested.
struct Tested<'a> {
    fault: &'a Fault,
    outcome: FaultOutcome,
    time: Duration,
}

pub fn run(options: &Options) -> Result<()> {
    let faults = selected(options)?;
    if options.list {
        for fault in &faults {
            println!("{:<28}{:<32}{}", fault.name, fault.file, fault.breaks);
        }
        return Ok(());
    }
    ensure!(is_root(), "loads kernel programs: run `sudo -E cargo xtask mutants`");
    for fault in &faults {
        fault.plant_in(workspace::root()).map_err(anyhow::Error::msg)?;
    }
    let folder = workspace::target().join("mutants");
    report(task::MUTANTS, "building the test programs");
    let built = Built::new(&folder)?;
    let jobs = options.jobs.clamp(1, faults.len().max(1));
    let workers = (0..jobs)
        .map(|number| Worker::new(folder.join(number.to_string()), &built))
        .collect::<Result<Vec<_>>>()?;
    report(task::MUTANTS, "running all packet cases without a fault");
    if let Some(test) = workers[0].without_fault()? {
        bail!("a test fails without a fault: {test}");
    }
    let tested = test_all(&faults, &workers)?;
    println!("\n{}", table(&tested));
    let missed = tested.iter().filter(|tested| !matches!(tested.outcome, FaultOutcome::Noticed(_))).count();
    if missed > 0 {
        bail!("{missed} of {} faults were not noticed: a case is missing for each", tested.len());
    }
    println!("all {} faults were noticed", tested.len());
    Ok(())
}

/// Returns the faults that `--only` selects.
fn selected(options: &Options) -> Result<Vec<Fault>> {
    let mut faults = faults::read(workspace::root()).map_err(anyhow::Error::msg)?;
    for name in &options.only {
        ensure!(faults.iter().any(|fault| fault.name == *name), "no fault is named {name}; see --list");
    }
    faults.retain(|fault| options.only.is_empty() || options.only.contains(&fault.name));
    Ok(faults)
}

/// Tests all faults. Each worker takes the next one until none is left.
fn test_all<'a>(faults: &'a [Fault], workers: &[Worker<'_>]) -> Result<Vec<Tested<'a>>> {
    let (next, tested) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = |worker: &Worker<'_>| -> Result<()> {
        while let Some(fault) = faults.get(next.fetch_add(1, Ordering::Relaxed)) {
            let start = Instant::now();
            let outcome = worker.run(fault)?;
            let time = start.elapsed();
            let mut tested = tested.lock().unwrap_or_else(PoisonError::into_inner);
            tested.push(Tested { fault, outcome, time });
            let Some(Tested { outcome, .. }) = tested.last() else { continue };
            report(
                task::MUTANTS,
                &format!("{}/{} {}: {}", tested.len(), faults.len(), fault.name, describe(outcome)),
            );
        }
        Ok(())
    };
    thread::scope(|scope| {
        let threads: Vec<_> = workers.iter().map(|worker| scope.spawn(|| work(worker))).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    let mut tested = tested.into_inner().unwrap_or_else(PoisonError::into_inner);
    tested.sort_by(|a, b| (&a.fault.file, &a.fault.name).cmp(&(&b.fault.file, &b.fault.name)));
    Ok(tested)
}

fn describe(outcome: &FaultOutcome) -> String {
    match outcome {
        FaultOutcome::Noticed(test) => test.clone(),
        FaultOutcome::Survived => "NOT NOTICED".to_owned(),
        FaultOutcome::Invalid(reason) => format!("INVALID: {reason}"),
    }
}

fn table(tested: &[Tested<'_>]) -> String {
    let mut text = format!("{:<28}{:<32}{:>8}  noticed by\n", "fault", "file", "seconds");
    for Tested { fault, outcome, time } in tested {
        text.push_str(&format!(
            "{:<28}{:<32}{:>8.1}  {}\n",
            fault.name,
            fault.file,
            time.as_secs_f64(),
            describe(outcome)
        ));
    }
    text
}
