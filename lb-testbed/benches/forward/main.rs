//! `cargo xtask bench forward`: the CPU time of a packet that comes from outside to a nodePort and
//! goes to an endpoint on another node.
//!
//! Each subject has a cluster of its own, and all exist at the same time. The kernel puts frames
//! into the link of the first node (`BPF_F_TEST_XDP_LIVE_FRAMES`). At the same place, a program
//! counts and drops what the node sends. The node handles its packets in one kernel thread on a CPU
//! of its own: the figure is the run time of that thread, divided by the number of packets that
//! left the node. So other work on the machine hardly changes it.
//!
//! Before the measurement, each connection is opened in both directions, and the checksums of its
//! frames are verified. The subjects take turns, and another one begins in each round.

mod bed;
mod frames;
mod report;
mod traffic;

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use lb_common::traffic::{Counts, FRAMES, SEEN};
use lb_testbed::Family;
use lb_testbed::measure::Output;

use crate::bed::{Bed, PRIORITY, Subject, one_cpu};
use crate::frames::Frame;
use crate::report::{Figure, Report};
use crate::traffic::{Batch, Traffic};

/// Indices of frames.
const REQUESTS: u32 = 0;
const REPLIES: u32 = REQUESTS + SEEN;
const NEW: u32 = REPLIES + SEEN;
/// Packets of a measurement that are sent. Many are lost: the generator is faster than any node.
const NEW_CONNECTIONS: u32 = 120_000;
const PACKETS: u32 = 1_500_000;
/// Attempts to open all connections.
const ATTEMPTS: u32 = 10;

const _: () = assert!(NEW + NEW_CONNECTIONS <= FRAMES);

fn main() -> Result<()> {
    let options = Options::parse();
    let mut traffic = Traffic::load(&options.programs)?;
    let subjects = Subject::ALL.into_iter();
    let subjects = subjects.filter(|subject| !options.without_kube_proxy || subject.kube_proxy().is_none());
    let mut beds = Vec::new();
    for (device, subject) in (0..).zip(subjects) {
        eprintln!("building the cluster of {}", subject.name());
        beds.push(Bed::build(subject, device, &mut traffic).with_context(|| subject.name())?);
    }
    rustix::thread::sched_setaffinity(None, &one_cpu(false)?).context("pin the generator")?;
    rustix::process::setpriority_process(None, PRIORITY).context("raise the priority of the generator")?;
    let mut report = Report::new()?;
    let mut opened = 0;
    for round in 0..options.rounds {
        eprintln!("round {} of {}", round + 1, options.rounds);
        for family in Family::BOTH {
            for turn in 0..beds.len() {
                let bed = &beds[(turn + round) % beds.len()];
                measure(bed, family, opened, &mut traffic, &mut report)
                    .with_context(|| format!("{}, {family}", bed.subject.name()))?;
            }
            opened += SEEN + NEW_CONNECTIONS;
        }
    }
    options.output.write(&report, &report.table(), |path| report.write_into(path))
}

/// Measures all figures of one subject and family. `opened` is the number of clients that the
/// earlier rounds had.
fn measure(bed: &Bed, family: Family, opened: u32, traffic: &mut Traffic, report: &mut Report) -> Result<()> {
    let target = bed.target(family);
    let requests: Vec<Frame> =
        (0..SEEN).map(|number| Frame::request(&target, opened + number, number)).collect::<Result<_>>()?;
    let requests = traffic.store(REQUESTS, &requests)?;
    let replies = open(bed, requests, traffic)?;
    let mut add = |figure, (nanoseconds, packets): (u64, u64)| {
        ensure!(packets > 0, "nothing left the node");
        report.add(figure, family, bed.subject, nanoseconds as f64 / packets as f64);
        Ok(())
    };
    let (time, counts) = timed(bed, || traffic.flood(bed.device, requests, PACKETS))?;
    add(Figure::Requests, (time, counts.requests))?;
    let (time, counts) = timed(bed, || traffic.flood(bed.device, replies, PACKETS))?;
    add(Figure::Replies, (time, counts.replies))?;
    let first = opened + SEEN;
    let new: Vec<Frame> = (first..first + NEW_CONNECTIONS)
        .map(|client| Frame::request(&target, client, client))
        .collect::<Result<_>>()?;
    let new = traffic.store(NEW, &new)?;
    let (time, counts) = timed(bed, || traffic.flood(bed.device, new, NEW_CONNECTIONS))?;
    add(Figure::NewConnections, (time, counts.requests))
}

/// Opens all connections, in both directions. Returns the replies.
fn open(bed: &Bed, requests: Batch, traffic: &mut Traffic) -> Result<Batch> {
    traffic.forget()?;
    let mut kept = Vec::new();
    for _ in 0..ATTEMPTS {
        traffic.send_gently(bed.device, requests, true)?;
        kept = traffic.kept()?;
        if !kept.iter().any(Frame::is_empty) {
            break;
        }
    }
    let missing = kept.iter().filter(|frame| frame.is_empty()).count();
    ensure!(missing == 0, "the requests of {missing} connections did not leave the node");
    kept.iter().try_for_each(Frame::check)?;
    let replies: Vec<Frame> =
        kept.iter().map(|frame| frame.reply(bed.next_node_mac, bed.node_mac)).collect::<Result<_>>()?;
    let replies = traffic.store(REPLIES, &replies)?;
    for _ in 0..ATTEMPTS {
        if traffic.send_gently(bed.device, replies, false)?.replies >= u64::from(replies.count) {
            return Ok(replies);
        }
    }
    anyhow::bail!("replies did not leave the node")
}

/// Returns how long the node's thread ran, in nanoseconds, and the result of the work.
fn timed(bed: &Bed, work: impl FnOnce() -> Result<Counts>) -> Result<(u64, Counts)> {
    let start = bed.run_time()?;
    let counts = work()?;
    Ok((bed.run_time()? - start, counts))
}

/// The options that xtask passes.
#[derive(Parser)]
struct Options {
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    #[arg(long)]
    without_kube_proxy: bool,
    /// The object with the programs that measure.
    #[arg(long, env = "SLUICE_BENCH_PROGRAMS")]
    programs: PathBuf,
    #[command(flatten)]
    output: Output,
}
