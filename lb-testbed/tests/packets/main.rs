//! Packets through the kernel programs, one at a time, by `BPF_PROG_TEST_RUN`.
//!
//! * `cases/`: packet in; verdict, packet, counters and flow entries out, as data. See `cases/README.md`.
//! * [`tables`]: what the agent writes to the maps, it reads back.
//! * [`fuzz`]: generated packets, against a model of what should happen that shares nothing with the programs.
//!
//! Needs root. Runs in a network namespace of its own; nothing is attached and nothing is pinned.

mod case;
mod fuzz;
mod model;
mod run;
mod tables;
mod text;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use lb_testbed::programs::world::World;
use lb_testbed::programs::{Limits, Subject};
use libtest_mimic::{Arguments, Failed, Trial};

/// The namespace and the programs in it, loaded once for each set of limits. All cases take turns.
struct Stage {
    world: World,
    subjects: HashMap<Limits, Subject>,
}

impl Stage {
    /// The programs with empty maps.
    fn subject(&mut self, limits: Limits) -> Result<(&World, &mut Subject)> {
        let subject = match self.subjects.entry(limits) {
            Entry::Occupied(loaded) => loaded.into_mut(),
            Entry::Vacant(place) => {
                let subject = Subject::load(place.key(), &self.world)?;
                place.insert(subject)
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
    // libtest-mimic then runs every case on this thread, which is in the namespace.
    arguments.test_threads = Some(1);
    let cases = case::read_all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/packets/cases"))?;
    let stage =
        if arguments.list { None } else { Some(Stage { world: World::enter()?, subjects: HashMap::new() }) };
    let stage = Arc::new(Mutex::new(stage));
    let mut trials = Vec::new();
    for (concern, case) in cases {
        let case = Arc::new(case);
        for &family in &case.families {
            for &mode in &case.modes {
                let (case, stage) = (case.clone(), stage.clone());
                let name = format!("{concern}: {} ({family}, {mode})", case.case);
                trials.push(Trial::test(name, move || {
                    on_stage(&stage, case.limits.of_programs(), |world, subject| {
                        run::run(&case, family, mode, world, subject)
                    })
                }));
            }
        }
    }
    let maps = stage.clone();
    trials.push(Trial::test("tables: what is written to the maps is read back", move || {
        on_stage(&maps, Limits::default(), |_, _| tables::run())
    }));
    for mode in fuzz::MODES {
        let stage = stage.clone();
        trials
            .push(Trial::test(format!("fuzz: generated packets agree with the model ({mode})"), move || {
                on_stage(&stage, Limits::default(), |world, subject| fuzz::run(mode, world, subject))
            }));
    }
    Ok(libtest_mimic::run(&arguments, trials).exit_code())
}

fn on_stage(
    stage: &Mutex<Option<Stage>>,
    limits: Limits,
    run: impl FnOnce(&World, &mut Subject) -> Result<()>,
) -> Result<(), Failed> {
    // A case that panicked leaves its entries in the maps; they are cleared before the next.
    let mut stage = stage.lock().unwrap_or_else(PoisonError::into_inner);
    let stage = stage.as_mut().ok_or("cases are only listed")?;
    let run = stage.subject(limits).and_then(|(world, subject)| run(world, subject));
    run.map_err(|error| format!("{error:#}").into())
}
