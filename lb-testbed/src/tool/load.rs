//! Requests at a steady rate. A late answer delays later requests only if all of them use one
//! connection or socket.

use std::io::Read;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use lb_testbed::host::LoadKind;
use lb_testbed::patience::patient;
use lb_testbed::pattern;
use lb_testbed::report::{LoadReport, RequestAnswer, RequestFailure};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::REQUEST_LIMIT;
use super::datagrams::{self, ANSWER_LIMIT, any_address};
use super::get::{self, Connection};

/// How many failures the report describes.
const EXAMPLES: usize = 5;

#[derive(Args)]
pub struct Options {
    #[arg(long)]
    kind: LoadKind,
    /// Requests per second
    #[arg(long)]
    rate: u32,
    target: SocketAddr,
}

pub async fn run(options: &Options) -> Result<LoadReport> {
    ensure!(options.rate > 0, "--rate must be at least 1");
    let report = Arc::new(Mutex::new(LoadReport::default()));
    let recorder = Recorder { report: report.clone(), start: Instant::now() };
    let stop = standard_input_ended();
    let mut ticks = interval(Duration::from_secs(1) / options.rate);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    match options.kind {
        LoadKind::NewConnections | LoadKind::NewSockets => {
            independent(options, ticks, stop, &recorder).await?;
        }
        LoadKind::OneConnection => one_connection(options.target, ticks, stop, &recorder).await,
        LoadKind::OneSocket => one_socket(options.target, ticks, stop, &recorder).await,
    }
    let report = report.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok(report)
}

async fn independent(
    options: &Options,
    mut ticks: tokio::time::Interval,
    mut stop: watch::Receiver<bool>,
    recorder: &Recorder,
) -> Result<()> {
    let (target, kind) = (options.target, options.kind);
    let mut requests = JoinSet::new();
    signal_start();
    loop {
        tokio::select! {
            _ = stop.changed() => break,
            _ = ticks.tick() => {}
        }
        let recorder = recorder.clone();
        requests.spawn(async move {
            let begin = Instant::now();
            let answer = match kind {
                LoadKind::NewSockets => datagram_on_new_socket(target).await,
                _ => timeout(patient(REQUEST_LIMIT), get::request(target))
                    .await
                    .unwrap_or_else(|_| Err(get::timed_out())),
            };
            recorder.record(begin, answer);
        });
        while requests.try_join_next().is_some() {}
    }
    while let Some(joined) = requests.join_next().await {
        joined?;
    }
    Ok(())
}

async fn one_connection(
    target: SocketAddr,
    mut ticks: tokio::time::Interval,
    mut stop: watch::Receiver<bool>,
    recorder: &Recorder,
) {
    let begin = Instant::now();
    let mut connection = match Connection::open(target).await {
        Ok(connection) => connection,
        Err(failure) => {
            signal_start();
            return recorder.record(begin, Err(failure));
        }
    };
    signal_start();
    while !stop_or_tick(&mut stop, &mut ticks).await {
        let begin = Instant::now();
        let answer = timeout(patient(REQUEST_LIMIT), connection.request()).await;
        recorder.record(begin, answer.unwrap_or_else(|_| Err(get::timed_out())));
    }
}

async fn one_socket(
    target: SocketAddr,
    mut ticks: tokio::time::Interval,
    mut stop: watch::Receiver<bool>,
    recorder: &Recorder,
) {
    let begin = Instant::now();
    let socket = match connected(target).await {
        Ok(socket) => socket,
        Err(failure) => {
            signal_start();
            return recorder.record(begin, Err(failure));
        }
    };
    signal_start();
    while !stop_or_tick(&mut stop, &mut ticks).await {
        recorder.record(Instant::now(), datagram(&socket).await);
    }
}

async fn stop_or_tick(stop: &mut watch::Receiver<bool>, ticks: &mut tokio::time::Interval) -> bool {
    tokio::select! {
        _ = stop.changed() => true,
        _ = ticks.tick() => false,
    }
}

async fn datagram_on_new_socket(target: SocketAddr) -> Result<RequestAnswer, RequestFailure> {
    datagram(&connected(target).await?).await
}

async fn connected(target: SocketAddr) -> Result<UdpSocket, RequestFailure> {
    let socket = UdpSocket::bind(any_address(target)).await?;
    socket.connect(target).await?;
    Ok(socket)
}

async fn datagram(socket: &UdpSocket) -> Result<RequestAnswer, RequestFailure> {
    let begin = Instant::now();
    let mut answer = [0; 2048];
    let mut payload = [0; 32];
    pattern::fill(&mut payload, 0);
    socket.send(&payload).await?;
    let left = patient(ANSWER_LIMIT).saturating_sub(begin.elapsed());
    let length = timeout(left, socket.recv(&mut answer)).await.map_err(|_| get::timed_out())??;
    datagrams::parse(&answer[..length], socket.peer_addr()?)
}

/// Signals the parent process that requests are sent from now on, or that connecting failed.
fn signal_start() {
    println!("running");
}

/// Returns a receiver whose value changes when the parent process closes standard input or exits.
fn standard_input_ended() -> watch::Receiver<bool> {
    let (sender, receiver) = watch::channel(false);
    thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0]);
        // Sending fails only if the requests have ended by themselves and the receiver is gone.
        let _ = sender.send(true);
    });
    receiver
}

#[derive(Clone)]
struct Recorder {
    report: Arc<Mutex<LoadReport>>,
    start: Instant,
}

impl Recorder {
    fn record(&self, begin: Instant, answer: Result<RequestAnswer, RequestFailure>) {
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        report.requests += 1;
        let took = begin.elapsed().as_millis() as u64;
        report.slowest_milliseconds = report.slowest_milliseconds.max(took);
        match answer {
            Ok(answer) => *report.by_pod.entry(answer.greeting.pod).or_default() += 1,
            Err(failure) => {
                report.failures += 1;
                if report.examples.len() < EXAMPLES {
                    let after = begin.duration_since(self.start).as_secs_f32();
                    report.examples.push(format!("after {after:.2} s: {failure}"));
                }
            }
        }
    }
}
