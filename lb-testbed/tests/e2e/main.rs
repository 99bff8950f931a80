//! End to end: real agents, real sockets, real servers, in network namespaces. Needs root.
//!
//! Every case runs with tc and default offloads, and with XDP, some also with clsact filters; those
//! that cross nodes also over a VXLAN overlay; nearly all with IPv4 and IPv6. `cargo test -p
//! lb-testbed --test e2e -- xdp::vxlan` runs a part, `--list` names them all.

mod cases;
mod exposed;
mod world;

use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use lb_testbed::{Datapath, Underlay, check};
use libtest_mimic::{Arguments, Failed, Trial};

use crate::cases::{CASES, Case, Run, Where};
use crate::world::World;

/// The cluster of the case before: cases that can share it do. One at a time, for the machine's
/// sake.
static WORLD: Mutex<Option<World>> = Mutex::new(None);

/// Cases that also run with filters in place of links: the programs are the same, attaching them is
/// not.
const OF_CLSACT: [&str; 7] = [
    "attached_as_asked",
    "outside_to_node_port_local",
    "outside_to_node_port_remote",
    "udp_outside_to_node_port",
    "agent_restarts_under_load",
    "vm_to_cluster_ip",
    "cleanup_removes_everything",
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Parallel cases would only tear down each other's cluster.
    arguments.test_threads = Some(1);
    let mut trials = Vec::new();
    for datapath in [Datapath::Tc, Datapath::Xdp] {
        for underlay in [Underlay::Routed, Underlay::Vxlan] {
            for case in CASES.iter().filter(|case| case.runs_on(underlay)) {
                trials.extend(trials_of(case, datapath, underlay));
            }
        }
    }
    for case in CASES.iter().filter(|case| OF_CLSACT.contains(&case.name)) {
        trials.extend(trials_of(case, Datapath::Clsact, Underlay::Routed));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    // Statics are not dropped by themselves.
    drop(WORLD.lock().unwrap_or_else(PoisonError::into_inner).take());
    conclusion.exit_code()
}

fn trials_of(case: &'static Case, datapath: Datapath, underlay: Underlay) -> Vec<Trial> {
    let name = format!("{datapath:?}::{underlay:?}::{}", case.name).to_lowercase();
    match case.run {
        Run::Once(run) => {
            vec![Trial::test(name, move || in_world(datapath, underlay, case.agents, run))]
        }
        Run::EachFamily(run) => lb_testbed::Family::BOTH
            .into_iter()
            .map(|family| {
                let name = format!("{name}::{}", family.to_string().to_lowercase());
                Trial::test(name, move || {
                    in_world(datapath, underlay, case.agents, |world| run(world, family))
                })
            })
            .collect(),
    }
}

/// Clusters that could not be built: the first case says why, the others need not wait for the
/// same.
static BROKEN: Mutex<Vec<(Datapath, Underlay)>> = Mutex::new(Vec::new());

fn build(datapath: Datapath, underlay: Underlay, agents: &'static [&'static str]) -> Result<World, String> {
    let mut broken = BROKEN.lock().unwrap_or_else(PoisonError::into_inner);
    if broken.contains(&(datapath, underlay)) {
        return Err("the cluster could not be built, see the first case of this kind".to_owned());
    }
    World::build(datapath, underlay, agents).map_err(|error| {
        broken.push((datapath, underlay));
        format!("{error:#}")
    })
}

/// Runs a case in the cluster it needs. After a failure the cluster is thrown away, so that it
/// cannot spoil the next case.
fn in_world(
    datapath: Datapath,
    underlay: Underlay,
    agents: &'static [&'static str],
    run: impl FnOnce(&mut World) -> anyhow::Result<()>,
) -> Result<(), Failed> {
    let mut slot = WORLD.lock().unwrap_or_else(PoisonError::into_inner);
    if !slot.as_ref().is_some_and(|world| world.is(datapath, underlay)) {
        *slot = None;
        *slot = Some(build(datapath, underlay, agents)?);
    }
    let Some(world) = slot.as_mut() else { unreachable!("just built") };
    let result = panic::catch_unwind(AssertUnwindSafe(|| {
        world.restart_agents_with(agents)?;
        run(world)?;
        world.reset()
    }));
    let message = match result {
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

impl Case {
    fn runs_on(&self, underlay: Underlay) -> bool {
        match self.place {
            Where::Routed => underlay == Underlay::Routed,
            Where::Vxlan => underlay == Underlay::Vxlan,
            Where::Both => true,
        }
    }
}
