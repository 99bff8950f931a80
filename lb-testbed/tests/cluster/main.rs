//! Tests of the agent with a real Kubernetes API server. The cases create, change and delete
//! objects through the API and check real connections. The agent has only the rights of
//! `deploy/rbac.yaml`. The tests need root, etcd, and kube-apiserver, which
//! `cargo xtask test --only cluster` builds.
//!
//! The `e2e` tests cover packets. These tests cover changes of objects, with a few connections of
//! each kind.
//!
//! `cargo test -p lb-testbed --test cluster -- takeover` runs the cases of [`takeover`] instead,
//! which need kube-proxy, too.

mod cases;
mod takeover;
mod world;

use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use libtest_mimic::{Arguments, Failed, Trial};

use crate::cases::{CASES, Run};
use crate::world::World;

/// The cluster that the cases share, or the error of building it. A failed case removes it.
static WORLD: Mutex<Option<Result<World, String>>> = Mutex::new(None);

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // The cases share one API server.
    arguments.test_threads = Some(1);
    let cases = match arguments.filter.as_deref() {
        Some(filter) if filter.starts_with("takeover") => takeover::CASES,
        _ => CASES,
    };
    let trials = cases.iter().map(|(name, run)| Trial::test(*name, move || in_world(*run)));
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    // Rust does not drop statics.
    drop(WORLD.lock().unwrap_or_else(PoisonError::into_inner).take());
    conclusion.exit_code()
}

/// Runs a case. After a failure the cluster is removed, so that its state does not affect the next
/// case.
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
