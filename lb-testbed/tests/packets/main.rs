//! Packets through the kernel programs, one at a time, by `BPF_PROG_TEST_RUN`.
//!
//! * `cases/`: packet in; verdict, packet, counters and flow entries out, as data. See `cases/README.md`.
//! * [`fuzz`]: generated packets, against a model of what should happen that shares nothing with the programs.
//!
//! Needs root. Runs in a network namespace of its own; nothing is attached and nothing is pinned.

mod case;
mod fuzz;
mod model;
mod run;
mod text;

use std::collections::HashMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use lb_testbed::programs::Subject;
use lb_testbed::programs::world::World;
use libtest_mimic::{Arguments, Failed, Trial};

use crate::case::Limits;

/// The namespace and the programs in it, loaded once for each set of limits. All cases take turns.
struct Stage {
    world: World,
    subjects: HashMap<Limits, Subject>,
}

impl Stage {
    fn subject(&mut self, limits: &Limits) -> Result<(&World, &mut Subject)> {
        if !self.subjects.contains_key(limits) {
            let limits_of_maps = lb_testbed::programs::Limits {
                flows: limits.flows,
                half_open: limits.half_open,
                snat_ports: limits.first_snat_port..=limits.last_snat_port,
                ..Default::default()
            };
            self.subjects.insert(limits.clone(), Subject::load(&limits_of_maps, &self.world)?);
        }
        let subject = self.subjects.get_mut(limits).context("inserted above")?;
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
    // The cases share programs and counters.
    arguments.test_threads = Some(1);
    let cases = case::read_all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/packets/cases"))?;
    let stage = if arguments.list { None } else { Some(Stage { world: World::enter()?, subjects: HashMap::new() }) };
    let stage = Arc::new(Mutex::new(stage));
    let mut trials = Vec::new();
    for (concern, case) in cases {
        let case = Arc::new(case);
        for &family in &case.families {
            for &mode in &case.modes {
                let (case, stage) = (case.clone(), stage.clone());
                let name = format!("{concern}: {} ({family}, {mode})", case.case);
                trials.push(Trial::test(name, move || {
                    on_stage(&stage, |stage| {
                        let (world, subject) = stage.subject(&case.limits)?;
                        run::run(&case, family, mode, world, subject)
                    })
                }));
            }
        }
    }
    for mode in fuzz::MODES {
        let stage = stage.clone();
        trials.push(Trial::test(format!("fuzz: generated packets agree with the model ({mode})"), move || {
            on_stage(&stage, |stage| {
                let (world, subject) = stage.subject(&fuzz::limits())?;
                fuzz::run(mode, world, subject)
            })
        }));
    }
    Ok(libtest_mimic::run(&arguments, trials).exit_code())
}

fn on_stage(stage: &Mutex<Option<Stage>>, action: impl FnOnce(&mut Stage) -> Result<()>) -> Result<(), Failed> {
    // A case that panicked says so itself; the maps are cleared before the next one.
    let mut stage = stage.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let stage = stage.as_mut().ok_or("cases are only listed")?;
    action(stage).map_err(|error| format!("{error:#}").into())
}
