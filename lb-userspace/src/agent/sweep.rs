//! The thread that reads the flow table and ends connections. The table may have a million entries,
//! so the main loop does not read it: it sends requests, and applies reports.
//!
//! The thread is the only part of the agent that reads the whole table after the start. The main
//! loop replaces the maps only when the thread has answered all requests ([`Sweeps::is_idle`]), and
//! sends the new maps as the next request. So no request meets two generations of maps.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use lb_datapath::{AgedFlow, DrainingEndpoints, FlowUsage, LeftOutEndpoint, Sweeper, monotonic_ns};
use lb_model::PerFamily;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tracing::{debug, warn};

use super::connection_ages::{AgeSearch, end_of_flow};
use super::error::AgentError;

/// The environment variable with the path of a file. While this file exists, sweeps are held: the
/// thread creates a file with the additional extension `held`, and waits. For tests: the main loop
/// must go on.
const HOLD: &str = "SLUICE_TEST_HOLD_SWEEP";

enum Request {
    /// Read the whole table, and the connections that reach their maximum age soon.
    Sweep(AgeSearch),
    FindAged(AgeSearch),
    FindDraining,
    /// End the connections of these endpoints, if they drain.
    Cut(PerFamily<BTreeSet<u32>>),
    /// End these connections, because of their age.
    EndAged(Vec<AgedFlow>),
    /// Use these maps from now on. There is no report.
    Use(Sweeper),
}

/// The result of a request.
pub enum Report {
    Swept(io::Result<Box<Sweep>>),
    FoundAged(io::Result<FoundAged>),
    FoundDraining(io::Result<DrainingEndpoints>),
    /// The number of connections that were ended.
    Cut(io::Result<usize>),
    /// As `Cut`.
    EndedAged(io::Result<usize>),
}

/// The content of the flow table, and of the maps that are compared with it.
pub struct Sweep {
    /// When it began.
    pub started: Instant,
    pub usage: FlowUsage,
    pub draining: DrainingEndpoints,
    pub aged: FoundAged,
    pub left_out: Vec<LeftOutEndpoint>,
    /// The number of endpoints that have too many connections to get new ones.
    pub overloaded: usize,
}

/// The connections that reach their maximum age soon, each with the time when it does.
pub struct FoundAged {
    /// The [`AgeSearch::version`].
    pub version: u64,
    pub flows: Vec<(u64, AgedFlow)>,
}

/// A handle of the thread. Dropping it waits until the thread has ended: the next agent must not
/// meet it.
pub struct Sweeps {
    /// `None` while this is dropped.
    requests: Option<Sender<Request>>,
    reports: UnboundedReceiver<Report>,
    /// The number of requests without a report.
    open: usize,
    thread: Option<JoinHandle<()>>,
}

impl Sweeps {
    /// Starts the thread.
    pub fn start(sweeper: Sweeper) -> io::Result<Self> {
        let (requests, receiver) = channel();
        let (sender, reports) = unbounded_channel();
        let thread = thread::Builder::new()
            .name("flow-table".into())
            .spawn(move || answer(sweeper, &receiver, &sender))?;
        Ok(Self { requests: Some(requests), reports, open: 0, thread: Some(thread) })
    }

    pub fn sweep(&mut self, search: AgeSearch) {
        self.request(Request::Sweep(search));
    }

    pub fn find_aged(&mut self, search: AgeSearch) {
        self.request(Request::FindAged(search));
    }

    pub fn find_draining(&mut self) {
        self.request(Request::FindDraining);
    }

    /// Ends connections of these endpoints, if they still drain then. One request ends a limited
    /// number of connections.
    pub fn cut(&mut self, backends: PerFamily<BTreeSet<u32>>) {
        self.request(Request::Cut(backends));
    }

    /// Ends those of the connections that are still established then.
    pub fn end_aged(&mut self, flows: Vec<AgedFlow>) {
        self.request(Request::EndAged(flows));
    }

    /// Continues on other maps. All requests must have been answered.
    pub fn move_to(&mut self, sweeper: Sweeper) {
        debug_assert!(self.is_idle(), "a request meets two generations of maps");
        self.send(Request::Use(sweeper));
    }

    /// Returns whether all requests have been answered. Then the thread uses no map.
    pub fn is_idle(&self) -> bool {
        self.open == 0
    }

    /// Waits for the next report. Fails if the thread has ended.
    pub async fn report(&mut self) -> Result<Report, AgentError> {
        let report = self.reports.recv().await.ok_or(AgentError::SweepsEnded)?;
        self.open -= 1;
        Ok(report)
    }

    fn request(&mut self, request: Request) {
        self.open += 1;
        self.send(request);
    }

    fn send(&self, request: Request) {
        // If the thread has ended, `report` fails.
        let _ = self.requests.as_ref().map(|requests| requests.send(request));
    }
}

impl Drop for Sweeps {
    fn drop(&mut self) {
        self.requests = None;
        // A panic of the thread was printed.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Answers requests until there is no handle of the thread.
fn answer(mut sweeper: Sweeper, requests: &Receiver<Request>, reports: &UnboundedSender<Report>) {
    for request in requests {
        let report = match request {
            Request::Sweep(search) => Report::Swept(sweep(&sweeper, &search).map(Box::new)),
            Request::FindAged(search) => Report::FoundAged(find_aged(&sweeper, &search)),
            Request::FindDraining => Report::FoundDraining(sweeper.draining_endpoints()),
            Request::Cut(backends) => Report::Cut(sweeper.cut_connections(&backends)),
            Request::EndAged(flows) => Report::EndedAged(sweeper.end_aged(&flows)),
            Request::Use(other) => {
                sweeper = other;
                continue;
            }
        };
        if reports.send(report).is_err() {
            return;
        }
    }
}

fn sweep(sweeper: &Sweeper, search: &AgeSearch) -> io::Result<Sweep> {
    let started = Instant::now();
    sweeper.forget_gone_endpoints()?;
    let usage = sweeper.flow_usage(monotonic_ns())?;
    hold_for_test();
    let maps = sweeper.maps();
    let sweep = Sweep {
        started,
        usage,
        draining: sweeper.draining_endpoints()?,
        aged: find_aged(sweeper, search)?,
        left_out: maps.left_out()?,
        overloaded: maps.overloaded()?.len(),
    };
    debug!(
        open = sweep.usage.open,
        half_open = sweep.usage.half_open,
        micros = started.elapsed().as_micros(),
        "read the flow table"
    );
    tidy_filter(sweeper);
    Ok(sweep)
}

fn find_aged(sweeper: &Sweeper, search: &AgeSearch) -> io::Result<FoundAged> {
    let AgeSearch { version, limits, until_s } = search;
    let mut flows = Vec::new();
    if !limits.is_empty() {
        sweeper.for_each_established(|flow, record| {
            let end = end_of_flow(limits, &flow).filter(|end| end <= until_s);
            flows.extend(end.map(|end| (end, record)));
        })?;
    }
    Ok(FoundAged { version: *version, flows })
}

/// Clears the bits of the first filter that no entry and no connection needs any more.
fn tidy_filter(sweeper: &Sweeper) {
    if !sweeper.is_filter_due(Instant::now()) {
        return;
    }
    match sweeper.tidy_filter(monotonic_ns()) {
        Ok(tidied) => debug!(cleared = tidied.cleared, "compared the first filter"),
        Err(error) => warn!("cannot compare the first filter, trying again: {error}"),
    }
}

/// Waits while a test holds the sweep.
fn hold_for_test() {
    let Some(path) = std::env::var_os(HOLD).map(PathBuf::from) else { return };
    let held = path.with_added_extension("held");
    while path.exists() {
        // If this fails, the test fails.
        let _ = std::fs::write(&held, "");
        thread::sleep(Duration::from_millis(10));
    }
    let _ = std::fs::remove_file(held);
}
