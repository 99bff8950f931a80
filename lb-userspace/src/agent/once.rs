//! Writes the entries of an agent once, for `lb explain --manifests`.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use lb_datapath::Datapath;
use lb_datapath::apply::{Engine, ReferencedIds};
use lb_objects::manifests;
use lb_plan::Planner;

use super::desired_host::{DesiredHost, device_choices};
use super::error::AgentError;
use super::options::{GRACE, planner_settings, selection};
use super::reconciler::Reconciler;
use crate::config::Config;
use crate::node::namespaces::follow::{Visitor, follow};
use crate::node::watch;

/// The result of [`write`].
pub struct Written {
    /// Interface indices of the devices that an agent would attach to.
    pub devices: Vec<u32>,
    /// Problems that an agent would log: of the manifests, and of writes that failed.
    pub problems: Vec<String>,
}

/// Writes the entries for the manifests in `folder` and for this host to the maps of privately
/// loaded programs.
pub async fn write(datapath: &Datapath, config: &Config, folder: &Path) -> Result<Written, AgentError> {
    let events = manifests::load(folder, selection(config))?;
    let now = Instant::now();
    let engine = Engine::adopt(datapath.tables()?, &ReferencedIds::default(), GRACE, now)
        .map_err(|error| AgentError::Adopt(error.into()))?;
    let mut reconciler = Reconciler::new(Planner::new(planner_settings(config)), engine);
    let outcome = reconciler.apply(events, now);
    let mut problems: Vec<String> = outcome.changes.raised.iter().map(ToString::to_string).collect();
    problems.extend(outcome.failed);
    problems.extend(outcome.no_room);

    let state = watch::read_once().await?;
    let namespaces = follow(config.netns_dir.clone(), NoVisits).map_err(AgentError::Namespaces)?;
    let namespaces = Arc::clone(&namespaces.addresses.borrow());
    let choices = device_choices(config, &state);
    let desired = DesiredHost::new(config, &state, &choices, reconciler.planner(), namespaces);
    problems.extend(write_host(datapath, &desired));
    Ok(Written { devices: desired.attachments.into_keys().collect(), problems })
}

/// A visitor without work: `lb explain` closes no sockets.
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

/// Writes the host maps, and returns the errors. It attaches nothing.
fn write_host(datapath: &Datapath, desired: &DesiredHost) -> Vec<String> {
    let host = datapath.host();
    let devices = desired.devices.iter().map(|(ifindex, device)| host.set_device(*ifindex, Some(device)));
    let links = desired.links.iter().map(|(ifindex, link)| host.set_link(*ifindex, Some(link)));
    let addresses = desired.addresses.iter().map(|(ip, value)| host.set_address(*ip, Some(value)));
    let networks = desired.networks.iter().flatten();
    let networks = networks.map(|(network, flags)| host.set_network(*network, Some(*flags)));
    let namespaces = desired.namespaces.iter();
    let namespaces = namespaces.map(|(cookie, addresses)| host.set_namespace(*cookie, Some(addresses)));
    let results = devices.chain(links).chain(addresses).chain(networks).chain(namespaces);
    results.filter_map(Result::err).map(|error| error.to_string()).collect()
}
