//! `lb top`: a screen of Services by their connections.
//!
//! Open connections, endpoints and reasons are counts in the maps. The rates of Services come from
//! the events of the programs, as those of `lb monitor` do.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use lb_datapath::Pins;
use lb_datapath::events::{EventKind, EventReader, Unseen};
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use super::get::{ReadError, backends, endpoint_facts, names, read_maps};
use super::monitor::{MonitorError, note, renewals, wait_on};
use super::pin_args::PinArgs;
use super::terminal::{self, Terminal};
use crate::preflight;
use crate::view::top::{SortBy, TopEvents, TopReport, TopSample};
use crate::view::top_screen::TopScreen;

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct TopArgs {
    /// Print one table and end, also to a terminal
    #[arg(long)]
    once: bool,

    /// Time between two screens, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=60))]
    interval: u64,

    /// Column by which Services are sorted
    #[arg(long, value_name = "COLUMN", value_enum, default_value = "new")]
    sort: SortBy,

    /// Output format; json implies --once
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value = "table")]
    output: TopFormat,

    #[command(flatten)]
    pins: PinArgs,
}

const EXAMPLES: &str = "\
Keys: q quits, h shows all other keys. If standard input or output is no terminal, the command
prints one table, as with --once.

Open connections and reasons are counted by the kernel programs all the time. The rates of a Service
(NEW/S, REFUSED/S, DROPPED/S) come from events, which one process of a node can read: while
`lb monitor` runs, they are unknown.

Examples:
  lb top                                         The screen
  lb top --sort active                           Services with the most open connections first
  lb top --once                                  One table, after a second
  lb top --interval 10 -o json                   The rates of ten seconds as JSON";

/// Option `-o` of `lb top`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TopFormat {
    /// The screen, or a table
    Table,
    /// A JSON object
    Json,
}

/// An error of `lb top`.
#[derive(Debug, thiserror::Error)]
pub enum TopError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("the terminal cannot be used")]
    Terminal(#[source] io::Error),
}

impl TopError {
    /// Returns the remedy, if there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Read(error) => error.hint(),
            Self::Terminal(_) => Some("`lb top --once` needs no terminal".into()),
        }
    }
}

/// The maps and the events, with the last sample.
struct Source<'a> {
    args: &'a TopArgs,
    /// The error if this process does not read the events, for example because another one does.
    events: Result<(EventReader, AsyncFd<OwnedFd>), String>,
    /// From this time on, the events are complete.
    events_since: Instant,
    counted: TopEvents,
    unseen: Unseen,
    last: TopSample,
    last_at: Instant,
}

impl TopArgs {
    /// Shows the screen until it is ended. Returns the text to print.
    pub async fn run(&self) -> Result<String, TopError> {
        preflight::may_read().map_err(ReadError::from)?;
        preflight::check_bpffs(&self.pins.bpffs).map_err(ReadError::from)?;
        let mut source = Source::open(self)?;
        if self.once || self.output == TopFormat::Json || !terminal::is_there() {
            let report = source.report_after(Duration::from_secs(self.interval)).await?;
            let text = source.note(&report);
            if !text.is_empty() {
                note(&text);
            }
            return Ok(match self.output {
                TopFormat::Table => report.table(),
                TopFormat::Json => report.json().map_err(ReadError::from)?,
            });
        }
        self.show(&mut source).await?;
        Ok(String::new())
    }

    async fn show(&self, source: &mut Source<'_>) -> Result<(), TopError> {
        let failed = TopError::Terminal;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut hang_up = signal(SignalKind::hangup()).map_err(failed)?;
        let mut resized = signal(SignalKind::window_change()).map_err(failed)?;
        let mut screen = TopScreen::sorted_by(self.sort);
        let mut report = source.first_report(&screen);
        let terminal = Terminal::enter().map_err(failed)?;
        let mut keys = terminal::keys().map_err(failed)?;
        let mut tick = interval(Duration::from_secs(self.interval));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.tick().await;
        let mut renewals = renewals();
        loop {
            let (width, height) = terminal.size();
            let lines = screen.lines(&report, &source.note(&report), width, height);
            terminal.draw(&lines).map_err(failed)?;
            tokio::select! {
                _ = interrupt.recv() => break,
                _ = terminate.recv() => break,
                _ = hang_up.recv() => break,
                _ = resized.recv() => {}
                _ = renewals.tick() => source.renew(),
                _ = tick.tick() => {
                    let next = source.report(&screen)?;
                    if !screen.is_paused() {
                        report = next;
                    }
                }
                pressed = keys.recv() => {
                    let Some(pressed) = pressed else { break };
                    if pressed.into_iter().any(|key| screen.press(key, &mut report)) {
                        break;
                    }
                }
                () = source.readable() => source.count(),
            }
        }
        Ok(())
    }
}

impl<'a> Source<'a> {
    fn open(args: &'a TopArgs) -> Result<Self, TopError> {
        let mut source = Self {
            args,
            events: Err(String::new()),
            events_since: Instant::now(),
            counted: TopEvents::default(),
            unseen: Unseen::default(),
            last: TopSample::default(),
            last_at: Instant::now(),
        };
        source.open_events();
        (source.last, source.last_at) = (sample(&args.pins)?, Instant::now());
        Ok(source)
    }

    fn open_events(&mut self) {
        const KINDS: [EventKind; 3] = [EventKind::Opened, EventKind::Refused, EventKind::Dropped];
        let reader = EventReader::open(&Pins::new(&self.args.pins.bpffs), &KINDS);
        self.unseen = Unseen::default();
        let opened = reader.map_err(MonitorError::from).and_then(|reader| {
            let readable = wait_on(&reader)?;
            Ok((reader, readable))
        });
        self.events = opened.map_err(|error| error.to_string());
        self.events_since = Instant::now();
    }

    /// Waits until there are events, and for ever if this process does not read them.
    async fn readable(&self) {
        if let Ok((_, readable)) = &self.events
            && let Ok(mut ready) = readable.readable().await
        {
            ready.clear_ready();
        } else {
            std::future::pending::<()>().await;
        }
    }

    /// Counts the events that have arrived.
    fn count(&mut self) {
        let Ok((reader, _)) = &mut self.events else { return };
        while let Some(event) = reader.next_event() {
            if let Some(id) = reader.service_of(&event) {
                let counts = self.counted.by_service.entry(id).or_default();
                match event.kind {
                    EventKind::Opened => counts.opened += 1,
                    EventKind::Refused => counts.refused += 1,
                    EventKind::Dropped => counts.dropped += 1,
                    EventKind::Closed => {}
                }
            }
        }
    }

    /// Makes the programs report for some more seconds. Opens the events if another process has
    /// read them.
    fn renew(&mut self) {
        let Ok((reader, readable)) = &mut self.events else { return self.open_events() };
        let result = reader.renew().map_err(MonitorError::from).and_then(|renewed| {
            if renewed.maps_replaced {
                *readable = wait_on(reader)?;
            }
            Ok(renewed)
        });
        match result {
            Ok(renewed) if !renewed.maps_replaced && !renewed.has_lapsed => {}
            // Events may be missing.
            Ok(_) => self.events_since = Instant::now(),
            Err(error) => self.events = Err(error.to_string()),
        }
    }

    /// Returns the report before the end of the first interval. It has no rates.
    fn first_report(&self, screen: &TopScreen) -> TopReport {
        let mut report = TopReport::new(&self.last, &self.last, None, 0.0);
        screen.arrange(&mut report);
        report
    }

    /// Returns the changes since the last report, in the order of the screen.
    fn report(&mut self, screen: &TopScreen) -> Result<TopReport, TopError> {
        self.count();
        let mut events = std::mem::take(&mut self.counted);
        if let Ok((reader, _)) = &self.events {
            let unseen = reader.unseen().unwrap_or(self.unseen);
            let new = unseen - self.unseen;
            events.unseen = new.limited + new.lost;
            self.unseen = unseen;
        }
        let (sample, now) = (sample(&self.args.pins)?, Instant::now());
        let seconds = (now - self.last_at).as_secs_f64();
        // The rate of a part of the interval would be too low.
        let is_complete = self.events.is_ok() && self.events_since <= self.last_at;
        let events = is_complete.then_some(&events);
        let mut report = TopReport::new(&self.last, &sample, events, seconds);
        screen.arrange(&mut report);
        (self.last, self.last_at) = (sample, now);
        Ok(report)
    }

    /// Returns the report of the next `time`, sorted as the arguments require.
    async fn report_after(&mut self, time: Duration) -> Result<TopReport, TopError> {
        let end = tokio::time::Instant::now() + time;
        let mut renewals = renewals();
        loop {
            tokio::select! {
                () = sleep_until(end) => break,
                _ = renewals.tick() => self.renew(),
                () = self.readable() => self.count(),
            }
        }
        self.report(&TopScreen::sorted_by(self.args.sort))
    }

    /// Returns a note that the last line of the screen shows in place of the keys, or an empty
    /// text.
    fn note(&self, report: &TopReport) -> String {
        match &self.events {
            Ok(_) if report.uncounted_events == 0 => String::new(),
            Ok(_) => {
                "rates of Services are too low: there are more events than the programs report".to_owned()
            }
            Err(error) => format!("rates of Services are unknown: {error}"),
        }
    }
}

fn sample(pins: &PinArgs) -> Result<TopSample, ReadError> {
    read_maps(pins, |maps| {
        Ok(TopSample {
            names: names(maps)?,
            backends: backends(maps)?,
            endpoints: endpoint_facts(maps)?,
            counters: maps.counters()?,
        })
    })
}
