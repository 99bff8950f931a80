//! What an agent would write, once: for `lb explain --manifests`.

use std::io;
use std::path::Path;
use std::time::Instant;

use lb_datapath::Datapath;
use lb_datapath::apply::{Engine, NamedByFlows};
use lb_objects::manifests;
use lb_plan::Planner;

use super::reconciler::Reconciler;
use super::{AgentError, GRACE, planner_settings, wanted};
use crate::config::Config;
use crate::node::addresses::device_table;
use crate::node::devices::{Choice, Programs};
use crate::node::namespaces::follow::{Visitor, follow};
use crate::node::{NodeState, watch};

/// What was written, and what is to be said about it.
pub struct Written {
    /// Devices that an agent would attach to, by interface index.
    pub devices: Vec<u32>,
    /// What an agent would log: problems of the manifests, and what does not fit into the maps.
    pub problems: Vec<String>,
}

/// Writes everything that the manifests in `folder` and this host ask for to the maps of privately loaded programs.
pub async fn write(datapath: &Datapath, config: &Config, folder: &Path) -> Result<Written, AgentError> {
    let events = manifests::load(folder, &config.node_name)?;
    let now = Instant::now();
    let engine = Engine::adopt(datapath.tables()?, &NamedByFlows::default(), GRACE, now)
        .map_err(|error| AgentError::Adopt(error.into()))?;
    let mut reconciler = Reconciler::new(Planner::new(planner_settings(config)), engine);
    let outcome = reconciler.absorb(events, now);
    let mut problems: Vec<String> = outcome.raised.iter().map(ToString::to_string).collect();
    problems.extend(outcome.failed);
    let state = watch::read_once().await?;
    let namespaces = follow(config.netns_dir.clone(), NoVisits).map_err(AgentError::Namespaces)?;
    for (cookie, addresses) in namespaces.addresses.borrow().iter() {
        problems.extend(datapath.put_namespace(*cookie, addresses).err().map(|error| error.to_string()));
    }
    let choices = wanted::choices(config, &state);
    problems.extend(write_host(datapath, config, &state, &choices, reconciler.planner()));
    let devices = choices.iter().filter(|choice| choice.programs != Programs::None);
    Ok(Written { devices: devices.map(|choice| choice.index).collect(), problems })
}

/// Nothing is to be done in the namespaces: nobody's connections are ours.
struct NoVisits;

impl Visitor for NoVisits {
    const TASK: &'static str = "visit network namespaces";

    fn prepare(&mut self) -> io::Result<bool> {
        Ok(false)
    }

    fn visit(&self) -> io::Result<()> {
        Ok(())
    }
}

/// What the programs know of this host. Returns what could not be written.
fn write_host(
    datapath: &Datapath,
    config: &Config,
    state: &NodeState,
    choices: &[Choice],
    planner: &Planner,
) -> Vec<String> {
    let devices = device_table(state, choices);
    let devices = devices.iter().map(|(ifindex, device)| datapath.put_device(*ifindex, device));
    let addresses = wanted::addresses(config, state, planner);
    let addresses = addresses.iter().map(|(address, value)| datapath.put_node_address(*address, value));
    let networks = wanted::networks(config, planner).unwrap_or_default();
    let networks = networks.into_iter().map(|(network, flags)| datapath.put_network(network, flags));
    devices.chain(addresses).chain(networks).filter_map(Result::err).map(|error| error.to_string()).collect()
}
