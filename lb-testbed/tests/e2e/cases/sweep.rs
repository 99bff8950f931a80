//! The agent reads the flow table in a thread of its own. A test holds this thread.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lb_testbed::Family;
use lb_testbed::agent::{AgentOptions, HEALTH, metric};
use lb_testbed::check::eventually_within;
use lb_testbed::http;
use serde_json::Value;

use super::conversion::{GROWN_WITHIN, SMALL, remove_maps};
use crate::world::{To, World};

const PODS: [usize; 2] = [1, 3];

/// A sweep begins ten seconds after the last one.
const LIMIT: Duration = Duration::from_secs(60);

/// Holds the sweeps of an agent until it is dropped.
struct Hold(PathBuf);

impl Hold {
    fn new(path: &Path) -> Result<Self> {
        fs::write(path, "")?;
        let hold = Self(path.to_owned());
        let held = path.with_added_extension("held");
        eventually_within(LIMIT, || {
            ensure!(held.exists(), "no sweep has begun");
            Ok(())
        })?;
        Ok(hold)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // If this fails, the case fails, because the sweep does not go on.
        let _ = fs::remove_file(&self.0);
    }
}

/// While the agent reads the flow table, its main loop goes on: changes are served, health is
/// published, changes of other programs are repaired. Maps that become larger are used when the
/// table has been read. The agent ends only after the thread.
pub fn sweeps_delay_nothing(world: &mut World) -> Result<()> {
    let service = world.publish(&PODS)?;
    remove_maps(world)?;
    let path = world.topology.folder().join("hold-sweep");
    let arguments = world.arguments().chain(SMALL.iter().copied()).chain(["--log-level=debug"]);
    let arguments = arguments.map(ToString::to_string).collect();
    let options = AgentOptions { arguments, hold_sweep: Some(path.clone()), ..AgentOptions::default() };
    world.start_agent_as(0, &options)?;

    let hold = Hold::new(&path)?;
    world.set_endpoints(&service, &[4])?;
    world.wait_until_served(&service, &[4])?;
    // Without changes, only the ticks of the main loop publish it.
    let before = last_updated(world)?;
    eventually_within(LIMIT, || {
        ensure!(last_updated(world)? != before, "the main loop does not go on");
        Ok(())
    })?;
    let client = world.client().address(Family::V4);
    let outside = service.node_port(world.node(0), Family::V4, To::Http);
    world.client().get(&[outside], 1)?;
    ensure!(world.flows(client, outside)? > 0, "the connection is not in the flow table");
    let counted = |world: &World| metric(world.node(0), "sluice_flows", "");
    ensure!(counted(world)? == 0.0, "the sweep that is held has counted the connection");

    // Each of these needs 32 slots.
    let fillers = [world.new_service(), world.new_service()];
    for filler in &fillers {
        world.set_endpoints(filler, &[1, 2, 3, 4])?;
    }
    eventually_within(GROWN_WITHIN, || {
        let log = world.agent(0)?.log()?;
        ensure!(log.contains("loaded the programs for larger maps"), "there are no larger maps");
        Ok(())
    })?;
    let growths = || metric(world.node(0), "sluice_map_growths_total", "");
    ensure!(growths()? == 0.0, "the maps are replaced while a thread reads them");
    drop(hold);
    eventually_within(GROWN_WITHIN, || {
        ensure!(growths()? >= 1.0, "the maps have not grown");
        Ok(())
    })?;
    for filler in &fillers {
        world.wait_until_served(filler, &[1, 2, 3, 4])?;
    }

    // The thread reads the larger maps now.
    drop(Hold::new(&path)?);
    world.client().get(&[outside], 1)?;
    eventually_within(LIMIT, || {
        ensure!(counted(world)? > 0.0, "the connections are not counted");
        Ok(())
    })?;
    world.take_agent(0)?.stop()?;
    world.start_agent(0)
}

/// Returns when an agent was last up to date.
fn last_updated(world: &World) -> Result<String> {
    let answer = http::get(&world.node(0).host.place, HEALTH, "/healthz")?;
    let body: Value = serde_json::from_str(&answer.body)?;
    Ok(body["lastUpdated"].as_str().context("no lastUpdated")?.to_owned())
}
