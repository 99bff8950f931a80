//! Runs packets through the kernel programs, one at a time, with `BPF_PROG_TEST_RUN`.
//!
//! * `cases/`: cases as data. A case has packets and the expected verdicts, packets, counters and
//!   flow entries. See `cases/README.md`.
//! * [`tables`]: the agent reads back the entries that it writes to the maps.
//! * [`calls`]: the helper calls of each path stay within their limits.
//! * [`selection`]: the endpoints that new connections get.
//! * [`fuzz`]: generated packets. A model that shares no code with the programs returns the
//!   expected results.
//!
//! Needs root. The tests run in their own network namespace. Nothing is attached or pinned.

mod calls;
mod case;
mod fuzz;
mod model;
mod run;
mod selection;
mod tables;
mod text;
mod uptime;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use lb_testbed::programs::world::World;
use lb_testbed::programs::{Limits, Subject};
use lb_testbed::{listed, open_files};
use libtest_mimic::{Arguments, Failed, Trial};
use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};

/// The namespace, and the programs loaded in it once for each set of limits. All cases share it.
struct Environment {
    world: World,
    subjects: HashMap<Limits, Subject>,
}

impl Environment {
    /// Returns the programs for these limits, with empty maps.
    fn subject(&mut self, limits: Limits) -> Result<(&World, &mut Subject)> {
        let subject = match self.subjects.entry(limits) {
            Entry::Occupied(loaded) => loaded.into_mut(),
            Entry::Vacant(vacant) => {
                let subject = Subject::load(vacant.key(), &self.world)?;
                vacant.insert(subject)
            }
        };
        subject.clear()?;
        Ok((&self.world, subject))
    }
}

fn main() -> ExitCode {
    match trials() {
        Ok(conclusion) => conclusion,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn trials() -> Result<ExitCode> {
    let mut arguments = Arguments::from_args();
    // With one test thread, libtest-mimic runs every case on this thread, which is in the
    // namespace.
    arguments.test_threads = Some(1);
    let cases = case::read_all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/packets/cases"))?;
    stay_on_this_cpu()?;
    // Each set of limits has maps and programs of its own, about a hundred files.
    open_files::raise_limit();
    let environment = match arguments.list {
        true => None,
        false => Some(Environment { world: World::enter()?, subjects: HashMap::new() }),
    };
    let environment = Arc::new(Mutex::new(environment));
    let mut trials = Vec::new();
    for (concern, case) in cases {
        let case = Arc::new(case);
        for &family in &case.families {
            for &mode in &case.modes {
                let (case, environment) = (case.clone(), environment.clone());
                let name = format!("{concern}: {} ({family}, {mode})", case.case);
                trials.push(Trial::test(name, move || {
                    run_in(&environment, case.limits.to_program_limits(), |world, subject| {
                        run::run(&case, family, mode, world, subject)
                    })
                }));
            }
        }
    }
    let for_tables = environment.clone();
    trials.push(Trial::test("tables: entries written to the maps are read back", move || {
        run_in(&for_tables, Limits::default(), |_, _| tables::run())
    }));
    let for_calls = environment.clone();
    trials
        .push(Trial::test("calls: each path makes no more helper calls than calls.txt allows", move || {
            run_in(&for_calls, Limits::default(), calls::run)
        }));
    for (name, flows, test) in selection::TESTS {
        let environment = environment.clone();
        trials.push(Trial::test(format!("selection: {name}"), move || {
            run_in(&environment, selection::limits(flows), |world, subject| {
                selection::run(test, world, subject)
            })
        }));
    }
    for kind in fuzz::RoundKind::ALL {
        for mode in fuzz::MODES {
            let environment = environment.clone();
            trials.push(Trial::test(format!("fuzz: {} ({mode})", kind.name()), move || {
                run_in(&environment, kind.limits(), |world, subject| fuzz::run(kind, mode, world, subject))
            }));
        }
    }
    if let Some(listed) = listed::cases()? {
        trials.retain(|trial| listed.contains(trial.name()));
    }
    Ok(libtest_mimic::run(&arguments, trials).exit_code())
}

/// Keeps this thread on its CPU. A program runs on the CPU of its test run. Each CPU has its own
/// position in the search for a free record, and its own time at which a connection gave way. If a
/// case moved to another CPU, its results would depend on the scheduler.
fn stay_on_this_cpu() -> Result<()> {
    let mut cpu = CpuSet::new();
    cpu.set(sched_getcpu());
    sched_setaffinity(None, &cpu).context("keep the thread on its CPU")
}

/// Runs a case in the environment, on programs with these limits and empty maps.
fn run_in(
    environment: &Mutex<Option<Environment>>,
    limits: Limits,
    run: impl FnOnce(&World, &mut Subject) -> Result<()>,
) -> Result<(), Failed> {
    // A case that panicked leaves its entries in the maps. `Environment::subject` removes them.
    let mut environment = environment.lock().unwrap_or_else(PoisonError::into_inner);
    let environment = environment.as_mut().ok_or("cases are only listed")?;
    let result = environment.subject(limits).and_then(|(world, subject)| run(world, subject));
    result.map_err(|error| format!("{error:#}").into())
}
