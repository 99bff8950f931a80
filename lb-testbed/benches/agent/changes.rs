//! The time from a change of one EndpointSlice to the maps.
//!
//! A change replaces one endpoint of a Service by a new one. A reader looks the Service up in the
//! agent's maps until the new endpoint is among its slots. A second watch of the EndpointSlices
//! shows when the API server has sent the event.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::TryStreamExt as _;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ListParams, Patch, PatchParams, WatchEvent, WatchParams};
use kube::{Client, ResourceExt as _};
use lb_common::layout::ServiceEntry;
use lb_datapath::ServiceTables;
use lb_datapath::apply::tables::{ServiceAddress, Tables as _};
use lb_model::IpFamily;
use lb_testbed::agent::metric;
use lb_testbed::check::eventually;
use lb_testbed::host::FloodKind;
use lb_testbed::manifests::{ServiceManifest, ServicePort};
use lb_testbed::patience::patient;
use lb_testbed::{Agent, Family};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::bed::{Bed, CHURNED, Size, logged};

/// Time between two measured changes.
const PERIOD: Duration = Duration::from_millis(50);
/// Time between two looks of the reader.
const LOOK: Duration = Duration::from_micros(50);
/// No change takes this long.
const LIMIT: Duration = Duration::from_secs(30);
/// The nodePort that the flood is sent to.
const NODE_PORT: u16 = 30_080;
/// The network of the flood's sources.
const FLOOD_SOURCES: &str = "192.0.2.0/24";

/// What else happens during the changes.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Load {
    /// Changes a second of the other Services.
    pub churn: u32,
    /// Connections that are opened before, and stay in the flow table.
    pub flows: u32,
}

/// The changes that were measured under one load.
#[derive(Debug, Serialize)]
pub struct Phase {
    pub load: Load,
    /// Changes a second of the other Services that the API server has taken.
    pub churn: f64,
    /// Connections in the flow table after the changes.
    pub flows: f64,
    pub changes: Vec<Change>,
    /// The agent's own time for each update of the maps, of any Service, in milliseconds.
    pub updates: Vec<f64>,
}

impl Phase {
    pub fn describe(&self) -> String {
        match self.load {
            Load { churn: 0, flows: 0 } => "nothing else changes".to_owned(),
            Load { flows: 0, .. } => format!("{CHURNED} other Services change"),
            Load { .. } => format!("{CHURNED} other Services change, flows of a flood"),
        }
    }
}

/// Milliseconds until the reader has seen the new endpoint in the maps.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Change {
    /// Since the request was sent to the API server.
    pub since_request: f64,
    /// Since the API server's answer. The maps can be first: then it is negative.
    pub since_answer: f64,
    /// Since a second watch has received the event and parsed it. It can be negative, too.
    pub since_event: f64,
}

pub fn measure(bed: &Bed, agent: &Agent, load: Load, changes: u32) -> Result<Phase> {
    let filled = if load.flows > 0 { fill_flows(bed, load.flows)? } else { 0.0 };
    let tables = Arc::new(bed.maps()?.tables()?);
    let before = updates(agent)?.len();
    let begin = Instant::now();
    let size = bed.size;
    let (changes, churned) =
        bed.admin.call(async move |client| run(client, tables, size, load, changes).await)?;
    let churn = f64::from(churned) / begin.elapsed().as_secs_f64();
    let updates = updates(agent)?.split_off(before);
    ensure!(!updates.is_empty(), "the agent has logged no update of its maps");
    // The agent counts them every 10 s.
    let flows = flows(bed)?.max(filled);
    Ok(Phase { load, churn, flows, changes, updates })
}

/// Returns the agent's own times from the receipt of events to the written maps, in milliseconds.
fn updates(agent: &Agent) -> Result<Vec<f64>> {
    let micros = logged(agent, "updated service maps", "micros")?;
    Ok(micros.into_iter().map(|micros| micros / 1e3).collect())
}

/// Returns the connections that the agent has counted at its last sweep of the flow table.
fn flows(bed: &Bed) -> Result<f64> {
    metric(bed.node(), "sluice_flows", "state")
}

/// Opens connections that stay half-open. Returns how many the agent has counted by then.
fn fill_flows(bed: &Bed, count: u32) -> Result<f64> {
    // The endpoint drops the packets: it has no way back to their sources.
    let pod = &bed.topology.pods[0];
    pod.host.place.ip(&format!("route replace blackhole {FLOOD_SOURCES}\n"))?;
    let service = ServiceManifest {
        namespace: "default".to_owned(),
        name: "flood".to_owned(),
        cluster_ips: vec![Ipv4Addr::new(10, 96, 8, 1).into()],
        ports: vec![ServicePort::tcp("", 80, 8080).node_port(NODE_PORT)],
    };
    service.with_endpoints(&[pod]).iter().try_for_each(|object| bed.admin.apply(object))?;
    let target = bed.node().host.at(Family::V4, NODE_PORT);
    eventually(|| {
        bed.topology.client.flood(FloodKind::Syns, target, 1000)?;
        ensure!(flows(bed)? > 0.0, "the flood opens no connections");
        Ok(())
    })?;
    let before = flows(bed)?;
    bed.topology.client.flood(FloodKind::Syns, target, count)?;
    eventually(|| {
        ensure!(flows(bed)? > before, "the flood opens no more connections than {before}");
        Ok(())
    })?;
    flows(bed)
}

/// Makes the changes one after the other. Returns them, and the number of changes of other
/// Services.
async fn run(
    client: Client,
    tables: Arc<ServiceTables>,
    size: Size,
    load: Load,
    changes: u32,
) -> Result<(Vec<Change>, u32)> {
    let slices: Api<EndpointSlice> = Api::default_namespaced(client);
    let events = Events::default();
    let churned = Arc::new(AtomicU32::new(0));
    // Dropping the set ends its tasks.
    let mut tasks = JoinSet::new();
    let version = slices.list_metadata(&ListParams::default().limit(1)).await?.metadata.resource_version;
    tasks.spawn(events.clone().follow(slices.clone(), version.context("the list has no version")?));
    if load.churn > 0 {
        tasks.spawn(churn(slices.clone(), size, load.churn, churned.clone()));
    }
    let mut period = interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut measured = Vec::new();
    for number in 0..changes {
        period.tick().await;
        let service = CHURNED + number % (size.services - CHURNED);
        let endpoint = new_endpoint();
        let reader = Reader::new(tables.clone(), Size::address(service), endpoint)?;
        let request = Instant::now();
        let reader = spawn_blocking(move || reader.wait());
        let slice = change(&slices, size, service, endpoint).await;
        let answer = Instant::now();
        let version = slice?.resource_version().context("the slice has no version")?;
        let written = reader.await??;
        measured.push((request, answer, written, version));
        if let Some(ended) = tasks.try_join_next() {
            ended??;
        }
    }
    let mut figures = Vec::new();
    for (request, answer, written, version) in measured {
        let event = events.wait_for(&version).await?;
        figures.push(Change {
            since_request: milliseconds(request, written),
            since_answer: milliseconds(answer, written),
            since_event: milliseconds(event, written),
        });
    }
    Ok((figures, churned.load(Ordering::Relaxed)))
}

/// Changes the other Services in turn, with a steady number of changes a second.
async fn churn(slices: Api<EndpointSlice>, size: Size, rate: u32, changed: Arc<AtomicU32>) -> Result<()> {
    let mut period = interval(Duration::from_secs(1) / rate);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        period.tick().await;
        let service = changed.fetch_add(1, Ordering::Relaxed) % CHURNED;
        change(&slices, size, service, new_endpoint()).await?;
    }
}

/// Returns an address that no endpoint has had.
fn new_endpoint() -> Ipv4Addr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 200, 0, 0)) + NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Replaces the first endpoint of a Service.
async fn change(
    slices: &Api<EndpointSlice>,
    size: Size,
    service: u32,
    endpoint: Ipv4Addr,
) -> kube::Result<EndpointSlice> {
    let mut endpoints = size.slices(service).swap_remove(0)["endpoints"].take();
    endpoints[0]["addresses"] = json!([endpoint.to_string()]);
    let patch: Patch<Value> = Patch::Merge(json!({ "endpoints": endpoints }));
    slices.patch(&format!("{}-1", Size::name(service)), &PatchParams::default(), &patch).await
}

/// When events of a watch arrived, by the version of the slice.
#[derive(Debug, Clone, Default)]
struct Events(Arc<Mutex<HashMap<String, Instant>>>);

impl Events {
    async fn follow(self, slices: Api<EndpointSlice>, mut version: String) -> Result<()> {
        // The API server ends a watch after some minutes.
        loop {
            let mut watch = pin!(slices.watch(&WatchParams::default(), &version).await?);
            while let Some(event) = watch.try_next().await? {
                let arrived = Instant::now();
                if let WatchEvent::Modified(slice) = event
                    && let Some(of_slice) = slice.resource_version()
                {
                    version.clone_from(&of_slice);
                    self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(of_slice, arrived);
                }
            }
        }
    }

    async fn wait_for(&self, version: &str) -> Result<Instant> {
        let begin = Instant::now();
        loop {
            if let Some(at) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(version) {
                return Ok(*at);
            }
            ensure!(begin.elapsed() < patient(LIMIT), "the watch did not receive the version {version}");
            sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Waits for an endpoint of a Service in the maps.
struct Reader {
    tables: Arc<ServiceTables>,
    service: ServiceAddress,
    endpoint: IpAddr,
    /// The entry before the change. A change of endpoints changes it.
    before: Option<ServiceEntry>,
}

impl Reader {
    fn new(tables: Arc<ServiceTables>, service: ServiceAddress, endpoint: Ipv4Addr) -> Result<Self> {
        let before = tables.service(service)?;
        ensure!(before.is_some(), "{service} is not in the maps");
        Ok(Self { tables, service, endpoint: endpoint.into(), before })
    }

    fn wait(mut self) -> Result<Instant> {
        let begin = Instant::now();
        loop {
            let entry = self.tables.service(self.service)?;
            let now = Instant::now();
            if entry != self.before && self.leads_to_the_endpoint(entry)? {
                return Ok(now);
            }
            self.before = entry;
            ensure!(
                begin.elapsed() < patient(LIMIT),
                "{} does not get the endpoint {}",
                self.service,
                self.endpoint
            );
            std::thread::sleep(LOOK);
        }
    }

    fn leads_to_the_endpoint(&self, entry: Option<ServiceEntry>) -> Result<bool> {
        let Some(entry) = entry else { return Ok(false) };
        for id in self.tables.read_slots(entry.inside_base, entry.inside_count)? {
            let backend = self.tables.backend(IpFamily::V4, id)?;
            if backend.is_some_and(|backend| backend.address.ip() == self.endpoint) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn milliseconds(from: Instant, to: Instant) -> f64 {
    match to.checked_duration_since(from) {
        Some(later) => later.as_secs_f64() * 1e3,
        None => -(from - to).as_secs_f64() * 1e3,
    }
}
