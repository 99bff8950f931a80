//! An agent converts the maps of another one: of another layout, or of other sizes. Or it makes its
//! own maps larger. No connection and no request fails.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use lb_testbed::agent::{AgentOptions, LbBuild, cleanup, metric};
use lb_testbed::check::{answered_by, eventually_within, without_failure};
use lb_testbed::host::{Held, Load, LoadKind};
use lb_testbed::{AttachMode, Family};

use super::scale::Thousand;
use crate::world::{Published, To, World};

/// The open connections during a conversion.
const CONNECTIONS: u32 = 2000;
/// New connections a second, over all clients.
const OUTSIDE_RATE: u32 = 150;
const INSIDE_RATE: u32 = 50;

const PODS: [usize; 2] = [1, 3];

/// Other sizes than the default ones. The connections of a case fit.
const SIZES: &[&str] = &[
    "--max-flows=65536",
    "--max-services=4096",
    "--max-slots=8192",
    "--max-backends=4096",
    "--max-affinity=4096",
    "--max-socket-peers=8192",
    "--max-fragments=1024",
    "--max-source-ranges=1024",
];

/// Programs are loaded twice while maps grow, which is slow on a busy machine.
pub const GROWN_WITHIN: Duration = Duration::from_secs(300);

/// Maps that have room for the Service of a case, and not for a thousand.
pub const SMALL: &[&str] =
    &["--max-services=64", "--max-slots=64", "--max-backends=64", "--max-source-ranges=16"];

/// The steps of a conversion (lb-datapath/src/step.rs).
const STEPS: [&str; 9] = [
    "maps-created",
    "maps-filled",
    "partly-attached",
    "attached",
    "copied",
    "opening",
    "done",
    "partly-published",
    "published",
];

/// Connections and requests that must not fail.
struct Traffic {
    held: Vec<(&'static str, Held)>,
    loads: Vec<(&'static str, Load)>,
}

impl Traffic {
    fn start(world: &World, service: &Published, family: Family, connections: u32) -> Result<Self> {
        let outside = |to| service.node_port(world.node(0), family, to);
        let inside = |to| service.cluster_ip(family, to);
        let (pod, client) = (&world.pod(2).host, world.client());
        let held = vec![
            ("outside, open connections", client.hold_many(connections, outside(To::Http))?),
            ("pod, open connection", pod.hold_http(inside(To::Http))?),
            ("pod, connected socket", pod.hold_udp(inside(To::Udp))?),
            ("outside, connected socket", client.hold_udp(outside(To::Udp))?),
        ];
        let loads = vec![
            (
                "outside, new connections",
                client.start_load(LoadKind::NewConnections, outside(To::Http), OUTSIDE_RATE)?,
            ),
            (
                "pod, new connections",
                pod.start_load(LoadKind::NewConnections, inside(To::Http), INSIDE_RATE)?,
            ),
            ("outside, one connection", client.start_load(LoadKind::OneConnection, outside(To::Http), 100)?),
            ("outside, new sockets", client.start_load(LoadKind::NewSockets, outside(To::Udp), 100)?),
            ("outside, one socket", client.start_load(LoadKind::OneSocket, outside(To::Udp), 100)?),
            ("pod, one socket", pod.start_load(LoadKind::OneSocket, inside(To::Udp), 100)?),
        ];
        let mut traffic = Self { held, loads };
        traffic.check_held()?;
        Ok(traffic)
    }

    /// Sends a request on each open connection and socket.
    fn check_held(&mut self) -> Result<()> {
        for (what, held) in &mut self.held {
            answered_by(&[held.request()?], &PODS).map_err(|error| error.context(*what))?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        self.check_held()?;
        for (what, load) in self.loads {
            without_failure(what, &load.finish()?)?;
        }
        Ok(())
    }
}

/// Returns how many connections the agents of a node have copied in each conversion so far.
fn copied(world: &World, node: usize) -> Result<Vec<u32>> {
    let log = world.topology.folder().join(format!("{}-agent.log", world.node(node).host.name));
    let log = fs::read_to_string(log)?;
    let counts = log.lines().filter_map(|line| {
        let (_, rest) = line.split_once("converted the maps: ")?;
        let (copied, rest) = rest.split_once(" connections copied, ")?;
        let lost = rest.split_once(" lost")?.0;
        (lost == "0").then(|| copied.parse().ok()).flatten()
    });
    Ok(counts.collect())
}

/// An agent with another layout takes over, and then one with the usual layout again.
pub fn layout_changes_under_load(world: &mut World, family: Family) -> Result<()> {
    LbBuild::OtherLayout.program()?;
    converts_under_load(world, family, [(&[], LbBuild::OtherLayout), (&[], LbBuild::Usual)])
}

/// An agent with other sizes takes over, and then one with the usual sizes again.
pub fn sizes_change_under_load(world: &mut World, family: Family) -> Result<()> {
    converts_under_load(world, family, [(SIZES, LbBuild::Usual), (&[], LbBuild::Usual)])
}

/// An agent replaces its maps by larger ones while it runs: first for one Service more, then for a
/// thousand.
pub fn maps_grow_under_load(world: &mut World, family: Family) -> Result<()> {
    let service = world.publish(&PODS)?;
    remove_maps(world)?;
    world.start_agent_with(0, SMALL)?;
    let capacity = |world: &World| metric(world.node(0), "sluice_map_capacity", "map=\"BACKENDS_V4\"");
    let growths = |world: &World| metric(world.node(0), "sluice_map_growths_total", "");
    let mut traffic = Traffic::start(world, &service, family, CONNECTIONS)?;
    // Each of these needs 32 slots.
    for _ in 0..2 {
        let filler = world.new_service();
        world.set_endpoints(&filler, &[1, 2, 3, 4])?;
    }
    eventually_within(GROWN_WITHIN, || {
        ensure!(growths(world)? >= 1.0, "the maps have not grown");
        Ok(())
    })?;
    traffic.check_held()?;
    let thousand = Thousand::publish(world, family)?;
    thousand.wait_until_served(world)?;
    traffic.check_held()?;
    ensure!(growths(world)? >= 2.0, "the maps have grown once");
    // The metrics are updated once a second.
    eventually_within(GROWN_WITHIN, || {
        let now = capacity(world)?;
        ensure!(now > 1000.0, "room for {now} endpoints");
        Ok(())
    })?;
    only_one_generation(world)?;
    // Another agent keeps the larger maps, because the entries need them.
    let before = capacity(world)?;
    world.take_agent(0)?.stop()?;
    world.start_agent_with(0, SMALL)?;
    thousand.wait_until_served(world)?;
    ensure!(growths(world)? == 0.0, "maps with room for everything have grown");
    eventually_within(GROWN_WITHIN, || {
        let now = capacity(world)?;
        ensure!(now == before, "room for {now} endpoints, not for {before}");
        Ok(())
    })?;
    traffic.finish()?;
    thousand.remove(world)?;
    world.set_endpoints(&service, &[4])?;
    world.wait_until_served(&service, &[4])?;
    world.take_agent(0)?.stop()?;
    world.start_agent(0)
}

/// Maps do not grow beyond the memory that they may take. What does not fit is reported and not
/// served, the rest is served.
pub fn maps_grow_within_their_memory(world: &mut World) -> Result<()> {
    let service = world.publish(&PODS)?;
    remove_maps(world)?;
    world.start_agent_with(0, &[SMALL, &["--max-map-memory=0"]].concat())?;
    let thousand = Thousand::publish(world, Family::V4)?;
    // On a busy machine, the agent needs a minute to read a thousand Services.
    eventually_within(GROWN_WITHIN, || {
        let log = world.agent(0)?.log()?;
        ensure!(log.contains("entries): raise --max-map-memory"), "no remedy in the log");
        Ok(())
    })?;
    world.wait_until_served(&service, &PODS)?;
    ensure!(metric(world.node(0), "sluice_map_growths_total", "")? == 0.0, "the maps have grown");
    // With the memory that they need, an agent serves all of them. It is healthy when its maps have
    // grown, which may take longer than an agent may take to start.
    world.take_agent(0)?.stop()?;
    world.spawn_agent_with(0, SMALL)?;
    thousand.wait_until_served(world)?;
    thousand.remove(world)?;
    world.take_agent(0)?.stop()?;
    world.start_agent(0)
}

/// A growth fails. Before the new programs open connections, the agent returns to its maps and
/// programs, serves with them, and tries again later. After that it ends, and the next agent
/// continues.
pub fn maps_do_not_grow(world: &mut World) -> Result<()> {
    let service = world.publish(&PODS)?;
    remove_maps(world)?;
    let fail_at = world.topology.folder().join("fail-at");
    let arguments = world.arguments().chain(SMALL.iter().copied()).map(ToString::to_string).collect();
    let options = AgentOptions { arguments, fail_at: Some(fail_at.clone()), ..AgentOptions::default() };
    world.start_agent_as(0, &options)?;
    // The agent reads either the old or the new name.
    let fail = |step: &str| {
        let new = fail_at.with_extension("new");
        fs::write(&new, step)?;
        fs::rename(new, &fail_at)
    };
    let mut traffic = Traffic::start(world, &service, Family::V4, CONNECTIONS / 10)?;
    fail("maps-created")?;
    let thousand = Thousand::publish(world, Family::V4)?;
    for step in ["maps-created", "copied"] {
        fail(step)?;
        wait_for_failure(world, step)?;
        let failed = |error: anyhow::Error| error.context(format!("failed at {step}"));
        traffic.check_held().map_err(failed)?;
        ensure!(metric(world.node(0), "sluice_map_growths_total", "")? == 0.0, "the maps have grown");
        world.wait_until_served(&service, &PODS).map_err(failed)?;
        // Each attempt makes a second folder for some seconds. The pauses between them are longer.
        eventually_within(GROWN_WITHIN, || only_one_generation(world))?;
    }
    fail("opening")?;
    wait_for_failure(world, "opening")?;
    world.take_agent(0)?.kill();
    traffic.check_held().map_err(|error| error.context("interrupted at opening"))?;
    // It keeps the larger maps that it finds, although most Services are not in them yet.
    world.start_agent_with(0, SMALL)?;
    traffic.check_held().map_err(|error| error.context("continued after opening"))?;
    only_one_generation(world)?;
    thousand.wait_until_served(world)?;
    ensure!(metric(world.node(0), "sluice_map_growths_total", "")? == 0.0, "the maps have grown again");
    traffic.finish()?;
    thousand.remove(world)?;
    world.take_agent(0)?.stop()?;
    world.start_agent(0)
}

/// Stops the agent and removes its maps. The maps of the next agent have the configured sizes. An
/// agent that finds maps keeps their sizes if ids or slots are used that are beyond its own.
pub fn remove_maps(world: &mut World) -> Result<()> {
    world.take_agent(0)?.stop()?;
    cleanup(world.node(0)).map(drop)
}

/// Waits until an attempt to make maps larger has failed at this step.
fn wait_for_failure(world: &World, step: &str) -> Result<()> {
    let failure = format!("the step {step} fails for a test");
    eventually_within(GROWN_WITHIN, || {
        ensure!(world.agent(0)?.log()?.contains(&failure), "no attempt has failed at {step}");
        Ok(())
    })
}

/// Starts one agent after the other, with these arguments and builds, under load. Each converts the
/// maps of the one before.
fn converts_under_load(world: &mut World, family: Family, agents: [(&[&str], LbBuild); 2]) -> Result<()> {
    let service = world.publish(&PODS)?;
    let before = copied(world, 0)?.len();
    let mut traffic = Traffic::start(world, &service, family, CONNECTIONS)?;
    for (arguments, build) in agents {
        world.take_agent(0)?.stop()?;
        world.start_agent_of_build(0, arguments, build)?;
        traffic.check_held()?;
    }
    traffic.finish()?;
    let copied = copied(world, 0)?.split_off(before);
    ensure!(
        copied.len() == 2 && copied.iter().all(|count| *count >= CONNECTIONS),
        "not every connection was copied: {copied:?}"
    );
    only_one_generation(world)?;
    // The agent applies changes to the converted maps.
    world.set_endpoints(&service, &[4])?;
    world.wait_until_served(&service, &[4])
}

/// An agent is killed at each step of a change of layout. The next one finishes it.
pub fn layout_change_is_killed(world: &mut World) -> Result<()> {
    LbBuild::OtherLayout.program()?;
    killed_at_each_step(world, |usual| match usual {
        true => (&[], LbBuild::OtherLayout),
        false => (&[], LbBuild::Usual),
    })
}

/// An agent is killed at each step of a change of sizes. The next one finishes it.
pub fn size_change_is_killed(world: &mut World) -> Result<()> {
    killed_at_each_step(world, |usual| if usual { (SIZES, LbBuild::Usual) } else { (&[], LbBuild::Usual) })
}

/// Kills an agent at each step of a conversion, and checks that the next agent finishes it. `next`
/// returns the arguments and the build of the next agent. Its argument is true if the maps have the
/// usual layout and sizes.
fn killed_at_each_step(
    world: &mut World,
    next: impl Fn(bool) -> (&'static [&'static str], LbBuild),
) -> Result<()> {
    if world.topology.datapath != AttachMode::Tc {
        // The steps do not depend on the data path.
        return Ok(());
    }
    let service = world.publish(&PODS)?;
    let mut traffic = Traffic::start(world, &service, Family::V4, CONNECTIONS / 10)?;
    let mut usual = true;
    for step in STEPS {
        let (arguments, build) = next(usual);
        world.take_agent(0)?.kill();
        world.run_agent_until(0, arguments, build, step)?;
        traffic.check_held().map_err(|error| error.context(format!("killed at {step}")))?;
        world.start_agent_of_build(0, arguments, build)?;
        traffic.check_held().map_err(|error| error.context(format!("continued after {step}")))?;
        only_one_generation(world).map_err(|error| error.context(format!("continued after {step}")))?;
        usual = !usual;
    }
    if !usual {
        let (arguments, build) = next(usual);
        world.take_agent(0)?.stop()?;
        world.start_agent_of_build(0, arguments, build)?;
    }
    traffic.finish()
}

/// There is one folder of pins. Every link has a pin, and a folder has one pin for each hook.
fn only_one_generation(world: &World) -> Result<()> {
    let folders: Vec<_> = fs::read_dir(world.node(0).bpffs.join("sluice"))?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    ensure!(folders.len() == 1, "folders of several versions: {folders:?}");
    Ok(())
}
