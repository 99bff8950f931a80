//! The agent against a real Kubernetes API server: objects are created, changed and deleted through
//! the API, and real connections follow. The agent has the rights that `deploy/rbac.yaml` gives it
//! and no others. Needs root, etcd, and kube-apiserver: `cargo xtask test --only cluster` builds
//! it.
//!
//! What happens to packets is the matter of the `e2e` tests; here are a few connections of each
//! kind, and many changes.

mod cases;
mod world;

use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use libtest_mimic::{Arguments, Failed, Trial};

use crate::cases::{CASES, Run};
use crate::world::World;

/// The cluster of all cases until one of them fails, or why there is none.
static WORLD: Mutex<Option<Result<World, String>>> = Mutex::new(None);

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // The cases share one API server.
    arguments.test_threads = Some(1);
    let trials = CASES.iter().map(|(name, run)| Trial::test(*name, move || in_world(*run)));
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    // Statics are not dropped by themselves.
    drop(WORLD.lock().unwrap_or_else(PoisonError::into_inner).take());
    conclusion.exit_code()
}

/// Runs a case. After a failure the cluster is thrown away, so that it cannot spoil the next case.
fn in_world(run: Run) -> Result<(), Failed> {
    let mut slot = WORLD.lock().unwrap_or_else(PoisonError::into_inner);
    let world = slot.get_or_insert_with(|| World::build().map_err(|error| format!("{error:#}")));
    let world = world.as_mut().map_err(|error| error.clone())?;
    let message = match panic::catch_unwind(AssertUnwindSafe(|| run(world).and_then(|()| world.reset()))) {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => format!("{error:#}\n{}", world.logs()),
        Err(panic) => {
            *slot = None;
            panic::resume_unwind(panic)
        }
    };
    *slot = None;
    Err(message.into())
}
