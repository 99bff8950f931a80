//! End-to-end tests: real agents, sockets and servers in network namespaces. They need root.
//!
//! Every case runs with tc and default offloads, and with XDP. Some cases also run with clsact
//! filters. Cases whose traffic crosses nodes also run over a VXLAN overlay. Nearly all cases run
//! with IPv4 and IPv6. `cargo test -p lb-testbed --test e2e -- xdp::vxlan` runs some of them,
//! `-- smoke` runs those of [`SMOKE`], `--list` lists all names.

mod cases;
mod exposed;
mod world;

use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use lb_testbed::{Datapath, Underlay, check};
use libtest_mimic::{Arguments, Failed, Trial};

use crate::cases::{CASES, Case, Run, Underlays};
use crate::world::World;

/// The current cluster. Cases with the same data path and underlay share it. Only one exists at a
/// time, to limit the load on the machine.
static WORLD: Mutex<Option<World>> = Mutex::new(None);

/// Cases that also run with clsact filters instead of links. The programs are the same, but are
/// attached differently.
const CLSACT_CASES: [&str; 7] = [
    "attached_as_configured",
    "outside_to_node_port_local",
    "outside_to_node_port_remote",
    "udp_outside_to_node_port",
    "agent_restarts_under_load",
    "vm_to_cluster_ip",
    "cleanup_removes_everything",
];

/// Cases that run on emulated machines (`cargo xtask test kernels`): a few of every kind.
const SMOKE: [(Datapath, &[&str]); 3] = [
    (
        Datapath::Tc,
        &[
            "attached_as_configured",
            "pod_to_cluster_ip_same_node",
            "pod_to_cluster_ip_other_node",
            "outside_to_node_port_local",
            "outside_to_node_port_remote",
            "udp_pod_to_cluster_ip",
            "udp_outside_to_node_port",
            "no_endpoint_is_refused",
            "no_endpoint_is_refused_outside",
            "affinity_keeps_the_endpoint",
            "agent_restarts",
            "vm_to_cluster_ip",
            "sockets_of_pods_are_not_translated",
            "no_sockets_are_translated",
            "cleanup_removes_everything",
        ],
    ),
    (
        Datapath::Xdp,
        &[
            "attached_as_configured",
            "outside_to_node_port_local",
            "outside_to_node_port_remote",
            "udp_outside_to_node_port",
            "cleanup_removes_everything",
        ],
    ),
    (
        Datapath::Clsact,
        &["attached_as_configured", "outside_to_node_port_local", "cleanup_removes_everything"],
    ),
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Cases cannot run in parallel: they share the cluster.
    arguments.test_threads = Some(1);
    let mut trials = Vec::new();
    for datapath in [Datapath::Tc, Datapath::Xdp] {
        for underlay in [Underlay::Routed, Underlay::Vxlan] {
            for case in CASES.iter().filter(|case| case.runs_on(underlay)) {
                trials.extend(trials_of(case, datapath, underlay));
            }
        }
    }
    for case in CASES.iter().filter(|case| CLSACT_CASES.contains(&case.name)) {
        trials.extend(trials_of(case, Datapath::Clsact, Underlay::Routed));
    }
    if arguments.filter.as_deref() == Some("smoke") {
        arguments.filter = None;
        trials.retain(|trial| is_in_smoke(trial.name()));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    // Rust does not drop statics.
    drop(WORLD.lock().unwrap_or_else(PoisonError::into_inner).take());
    conclusion.exit_code()
}

/// Returns whether a trial runs a case of [`SMOKE`] on the routed underlay.
fn is_in_smoke(trial: &str) -> bool {
    let mut parts = trial.split("::");
    let (datapath, underlay, case) = (parts.next(), parts.next(), parts.next());
    underlay == Some("routed")
        && SMOKE.iter().any(|(of, cases)| {
            datapath.is_some_and(|datapath| datapath.eq_ignore_ascii_case(&format!("{of:?}")))
                && case.is_some_and(|case| cases.contains(&case))
        })
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

/// Kinds of clusters that could not be built. The first case reports the error. Later cases fail at
/// once.
static BROKEN: Mutex<Vec<(Datapath, Underlay)>> = Mutex::new(Vec::new());

fn build(datapath: Datapath, underlay: Underlay, agents: &'static [&'static str]) -> Result<World, String> {
    let mut broken = BROKEN.lock().unwrap_or_else(PoisonError::into_inner);
    if broken.contains(&(datapath, underlay)) {
        return Err(
            "the cluster could not be built: see the first case with this data path and underlay".to_owned()
        );
    }
    World::build(datapath, underlay, agents).map_err(|error| {
        broken.push((datapath, underlay));
        format!("{error:#}")
    })
}

/// Runs a case in a cluster with its data path and underlay. After a failure the cluster is
/// removed, so that its state does not affect the next case.
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
        match self.underlays {
            Underlays::Routed => underlay == Underlay::Routed,
            Underlays::Vxlan => underlay == Underlay::Vxlan,
            Underlays::Both => true,
        }
    }
}
