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

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use lb_testbed::programs::world::World;
use libtest_mimic::{Arguments, Failed, Trial};

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
    let world = Arc::new(if arguments.list { None } else { Some(World::enter()?) });
    let mut trials = Vec::new();
    for (concern, case) in cases {
        let case = Arc::new(case);
        for &family in &case.families {
            for &mode in &case.modes {
                let (case, world) = (case.clone(), world.clone());
                let name = format!("{concern}: {} ({family}, {mode})", case.case);
                trials.push(Trial::test(name, move || {
                    result(world.as_ref().as_ref(), |world| run::run(&case, family, mode, world))
                }));
            }
        }
    }
    for mode in fuzz::MODES {
        let world = world.clone();
        trials.push(Trial::test(format!("fuzz: generated packets agree with the model ({mode})"), move || {
            result(world.as_ref().as_ref(), |world| fuzz::run(mode, world))
        }));
    }
    Ok(libtest_mimic::run(&arguments, trials).exit_code())
}

fn result(world: Option<&World>, run: impl FnOnce(&World) -> Result<()>) -> Result<(), Failed> {
    run(world.ok_or("cases are only listed")?).map_err(|error| format!("{error:#}").into())
}
