//! End-to-end tests: real agents, sockets and servers in network namespaces. They need root.
//!
//! Every case runs with tc and default offloads, and with XDP. Some cases also run with clsact
//! filters. Cases whose traffic crosses nodes also run over a VXLAN overlay, and some with the
//! addresses of the nodes on a VLAN device, a bond or a bridge. Nearly all cases run with IPv4 and
//! IPv6. `cargo test -p lb-testbed --test e2e -- xdp::vxlan` runs some of them, `-- smoke` runs
//! those of [`SMOKE`], `-- devices` those about VLAN devices, bonds, bridges and VLAN tags,
//! `-- no_tc_filters` and `-- no_jit` those of [`LACKING`], `--list` lists all other names. A case
//! is ignored, with the reason, if the kernel lacks what it needs.

mod cases;
mod exposed;
mod world;

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{mem, thread};

use anyhow::bail;
use lb_testbed::kernel::Lacking;
use lb_testbed::patience::patient;
use lb_testbed::{AttachMode, Underlay, check, listed};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::cases::{CASES, Case, LACKING, Run, Underlays};
use crate::world::World;

/// The current clusters: one for XDP, one for tc. Cases with the same data path and underlay share
/// a cluster, one after another. The two clusters run side by side, because a case mostly waits.
static WORLDS: [Mutex<Option<World>>; 2] = [const { Mutex::new(None) }; 2];

/// Threads that take cases in their order. Those beyond the number of clusters wait for a cluster,
/// so that the next case of each cluster is nearly always ready.
const THREADS: usize = 2 * WORLDS.len();

/// The time after which the name of a running case is printed. If a case never ends, the log has
/// its name.
const SLOW: Duration = Duration::from_secs(90);

/// Cases that also run with clsact filters instead of links. The programs are the same, but are
/// attached differently.
const CLSACT_CASES: [&str; 12] = [
    "attached_as_configured",
    "outside_to_node_port_local",
    "outside_to_node_port_remote",
    "udp_outside_to_node_port",
    "doctor_finds_faults",
    "drift_of_programs",
    "drift_of_order",
    "drift_of_pins",
    "agent_restarts_under_load",
    "sizes_change_under_load",
    "vm_to_cluster_ip",
    "cleanup_removes_everything",
];

/// Cases that also run where the addresses of the nodes are on a VLAN device, a bond or a bridge.
const DEVICE_CASES: [&str; 8] = [
    "attached_as_configured",
    "pod_to_cluster_ip_other_node",
    "host_to_cluster_ip",
    "outside_to_node_port_local",
    "outside_to_node_port_remote",
    "udp_outside_to_node_port",
    "transfer_outside_to_node_port",
    "no_endpoint_is_refused_outside",
];

/// Cases about VLAN tags.
const TAG_CASES: [&str; 2] = ["priority_tags_are_ignored", "frames_of_other_vlans_are_ignored"];

/// Cases that run on emulated machines (`cargo xtask test kernels`): a few of every kind.
const SMOKE: [(AttachMode, &[&str]); 3] = [
    (
        AttachMode::Tc,
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
        AttachMode::Xdp,
        &[
            "attached_as_configured",
            "outside_to_node_port_local",
            "outside_to_node_port_remote",
            "udp_outside_to_node_port",
            "cleanup_removes_everything",
        ],
    ),
    (
        AttachMode::Clsact,
        &["attached_as_configured", "outside_to_node_port_local", "cleanup_removes_everything"],
    ),
];

/// How many cases are listed at the end, the slowest first.
const LISTED: usize = 10;

/// The cases that failed at first, and passed when they ran again, with the first error.
static UNSTABLE: Mutex<Vec<(String, String)>> = Mutex::new(Vec::new());

/// The cases that have ended, with the time that each took.
static TIMES: Mutex<Vec<(Duration, String)>> = Mutex::new(Vec::new());

fn main() -> ExitCode {
    match trials() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn trials() -> anyhow::Result<ExitCode> {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(THREADS);
    let mut trials = Vec::new();
    for datapath in [AttachMode::Tc, AttachMode::Xdp] {
        for underlay in [Underlay::Routed, Underlay::Vxlan] {
            for case in CASES.iter().filter(|case| case.runs_on(underlay)) {
                trials.extend(trials_of(case, datapath, underlay));
            }
        }
    }
    for case in CASES.iter().filter(|case| CLSACT_CASES.contains(&case.name)) {
        trials.extend(trials_of(case, AttachMode::Clsact, Underlay::Routed));
    }
    for underlay in [Underlay::Vlan, Underlay::Bond, Underlay::Bridge] {
        for datapath in [AttachMode::Tc, AttachMode::Xdp] {
            if datapath == AttachMode::Xdp && underlay.xdp_device().is_none() {
                continue;
            }
            for case in CASES.iter().filter(|case| DEVICE_CASES.contains(&case.name)) {
                trials.extend(trials_of(case, datapath, underlay));
            }
        }
    }
    let selected: Option<fn(&str) -> bool> = match arguments.filter.as_deref() {
        Some("smoke") => Some(is_in_smoke),
        Some("devices") => Some(is_about_devices),
        _ => None,
    };
    if let Some(is_selected) = selected {
        arguments.filter = None;
        trials.retain(|trial| is_selected(trial.name()));
    }
    if let Some(case) = LACKING.iter().find(|case| arguments.filter.as_deref() == Some(case.name)) {
        trials = trials_of(case, AttachMode::Clsact, Underlay::Routed);
    }
    if let Some(listed) = listed::cases()? {
        trials.retain(|trial| listed.contains(trial.name()));
    }
    if arguments.test_threads != Some(1) {
        alternate(&mut trials);
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    print_slowest();
    print_unstable();
    // Rust does not drop statics.
    for world in &WORLDS {
        drop(world.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
    Ok(conclusion.exit_code())
}

/// Returns the cluster that cases with this data path use.
fn world_of(datapath: AttachMode) -> &'static Mutex<Option<World>> {
    &WORLDS[usize::from(datapath == AttachMode::Xdp)]
}

/// Orders the cases so that those of the two clusters take turns. Those of one cluster keep their
/// order.
fn alternate(trials: &mut Vec<Trial>) {
    let is_xdp = |trial: &Trial| trial.name().starts_with("xdp::");
    let (xdp, tc): (Vec<_>, Vec<_>) = mem::take(trials).into_iter().partition(is_xdp);
    let rounds = tc.len().max(xdp.len());
    let (mut tc, mut xdp) = (tc.into_iter(), xdp.into_iter());
    trials.extend((0..rounds).flat_map(|_| [tc.next(), xdp.next()]).flatten());
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

/// Returns whether a trial is about the kind of the node's device, or about VLAN tags.
fn is_about_devices(trial: &str) -> bool {
    let underlay = trial.split("::").nth(1);
    underlay.is_some_and(|underlay| ["vlan", "bond", "bridge"].contains(&underlay))
        || TAG_CASES.iter().any(|case| trial.ends_with(case))
}

fn trials_of(case: &'static Case, datapath: AttachMode, underlay: Underlay) -> Vec<Trial> {
    let name = format!("{datapath:?}::{underlay:?}::{}", case.name).to_lowercase();
    match case.run {
        Run::Once(run) => {
            vec![Trial::ignorable_test(name.clone(), move || {
                in_world(&name, datapath, underlay, case.agents, run)
            })]
        }
        Run::EachFamily(run) => lb_testbed::Family::BOTH
            .into_iter()
            .map(|family| {
                let name = format!("{name}::{}", family.to_string().to_lowercase());
                Trial::ignorable_test(name.clone(), move || {
                    in_world(&name, datapath, underlay, case.agents, |world| run(world, family))
                })
            })
            .collect(),
    }
}

/// Kinds of clusters that could not be built. The first case reports the error. Later cases fail at
/// once.
static BROKEN: Mutex<Vec<(AttachMode, Underlay)>> = Mutex::new(Vec::new());

fn build(datapath: AttachMode, underlay: Underlay, agents: &'static [&'static str]) -> anyhow::Result<World> {
    let mut broken = BROKEN.lock().unwrap_or_else(PoisonError::into_inner);
    if broken.contains(&(datapath, underlay)) {
        bail!("the cluster could not be built: see the first case with this data path and underlay");
    }
    World::build(datapath, underlay, agents).inspect_err(|error| {
        if !error.is::<Lacking>() {
            broken.push((datapath, underlay));
        }
    })
}

/// Returns whether a cluster of this kind could not be built.
fn is_broken(datapath: AttachMode, underlay: Underlay) -> bool {
    BROKEN.lock().unwrap_or_else(PoisonError::into_inner).contains(&(datapath, underlay))
}

/// Returns the outcome of a case that ended with an error: it was ignored if the kernel lacks what
/// the case needs.
fn outcome(error: &anyhow::Error) -> Result<Completion, Failed> {
    match error.downcast_ref::<Lacking>() {
        Some(lacking) => Ok(Completion::ignored_with(lacking)),
        None => Err(format!("{error:#}").into()),
    }
}

/// Runs a case, and once more in a new cluster if it fails: a machine that stands still for some
/// seconds must not fail the tests. The summary names each case that needed that.
fn in_world(
    name: &str,
    datapath: AttachMode,
    underlay: Underlay,
    agents: &'static [&'static str],
    run: impl Fn(&mut World) -> anyhow::Result<()>,
) -> Result<Completion, Failed> {
    let first = run_once(name, datapath, underlay, agents, &run);
    let Err(failed) = first else { return first };
    if is_broken(datapath, underlay) {
        return Err(failed);
    }
    let error = failed.message().unwrap_or_default();
    eprintln!("{name} failed, and runs again in a new cluster: {error}");
    let second = run_once(name, datapath, underlay, agents, &run)?;
    let mut unstable = UNSTABLE.lock().unwrap_or_else(PoisonError::into_inner);
    unstable.push((name.to_owned(), error.lines().next().unwrap_or_default().to_owned()));
    Ok(second)
}

/// Runs a case in a cluster with its data path and underlay. After a failure the cluster is
/// removed, so that its state does not affect the next run.
fn run_once(
    name: &str,
    datapath: AttachMode,
    underlay: Underlay,
    agents: &'static [&'static str],
    run: impl Fn(&mut World) -> anyhow::Result<()>,
) -> Result<Completion, Failed> {
    let mut slot = world_of(datapath).lock().unwrap_or_else(PoisonError::into_inner);
    let start = Instant::now();
    if !slot.as_ref().is_some_and(|world| world.is(datapath, underlay)) {
        *slot = None;
        match build(datapath, underlay, agents) {
            Ok(world) => *slot = Some(world),
            Err(error) => return outcome(&error),
        }
    }
    let Some(world) = slot.as_mut() else { unreachable!("just built") };
    let run = || {
        world.restart_agents_with(agents)?;
        let ran = run(world);
        if ran.as_ref().is_err_and(|error| !error.is::<Lacking>()) {
            return ran;
        }
        world.reset()?;
        ran
    };
    let result = panic::catch_unwind(AssertUnwindSafe(|| named_if_slow(name, run)));
    let mut times = TIMES.lock().unwrap_or_else(PoisonError::into_inner);
    times.push((start.elapsed(), name.to_owned()));
    drop(times);
    let message = match result {
        Ok(Ok(())) => return Ok(Completion::Completed),
        Ok(Err(error)) if error.is::<Lacking>() => return outcome(&error),
        Ok(Err(error)) => format!("{error:#}\n{}", world.logs()),
        Err(panic) => message_of(&*panic),
    };
    *slot = None;
    Err(message.into())
}

/// Returns the text of a panic.
fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("the case panicked: {}", text.unwrap_or("see above"))
}

/// Prints the cases that passed only when they ran again. `cargo xtask test` reads these lines.
fn print_unstable() {
    for (name, error) in mem::take(&mut *UNSTABLE.lock().unwrap_or_else(PoisonError::into_inner)) {
        println!("passed only when it ran again: {name}: {error}");
    }
}

/// Prints the slowest cases with their times. The first case of a cluster includes its start.
fn print_slowest() {
    let mut times = mem::take(&mut *TIMES.lock().unwrap_or_else(PoisonError::into_inner));
    times.sort_unstable_by(|(left, _), (right, _)| right.cmp(left));
    for (time, name) in times.iter().take(LISTED) {
        println!("{:>7.1} s  {name}", time.as_secs_f64());
    }
}

/// Runs a case, and prints its name if it takes longer than [`SLOW`].
fn named_if_slow<T>(name: &str, run: impl FnOnce() -> T) -> T {
    let (ended, watched) = channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            let limit = patient(SLOW);
            if watched.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                eprintln!("{name} has run for {} s", limit.as_secs());
            }
        });
        // Also dropped by a panic.
        let _ended = ended;
        run()
    })
}

impl Case {
    fn runs_on(&self, underlay: Underlay) -> bool {
        match self.underlays {
            Underlays::Routed => underlay == Underlay::Routed,
            Underlays::Vxlan => underlay == Underlay::Vxlan,
            Underlays::Both => matches!(underlay, Underlay::Routed | Underlay::Vxlan),
        }
    }
}
