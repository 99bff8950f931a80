//! `lb monitor`: prints events of the kernel programs as they happen.
//!
//! The programs report while this process renews a time in their maps ([`EventReader`]). When it
//! ends, also by SIGKILL, they stop.

use std::collections::HashMap;
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use clap::builder::PossibleValuesParser;
use clap::{Args, ValueEnum};
use ipnet::IpNet;
use lb_common::layout::{self, ServiceName};
use lb_common::reason::{Outcome, Reason};
use lb_datapath::events::{EventEntry, EventError, EventKind, EventReader, RENEWAL, Unseen, end_labels};
use lb_datapath::{Pins, monotonic_ns};
use lb_model::IpFamily;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};

use super::get::{NO_MAPS, service_filter};
use super::pin_args::PinArgs;
use crate::preflight::{self, PreflightError};
use crate::view::NamedServicePort;
use crate::view::monitor::{
    EndpointFilter, EventFilter, EventNames, MonitorRow, Tally, monitor_heading, unseen_text,
};

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct MonitorArgs {
    /// Print only events of this Service: its name, or NAMESPACE/NAME
    #[arg(value_name = "SERVICE")]
    service: Option<String>,

    /// Print only events of Services in this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,

    /// Print only events of clients in this network, or with this address
    #[arg(long, value_name = "CIDR", value_parser = network)]
    client: Option<IpNet>,

    /// Print only events of this endpoint: an address, or an address with port
    #[arg(long, value_name = "IP[:PORT]", value_parser = endpoint)]
    endpoint: Option<EndpointFilter>,

    /// Print only events of these kinds
    #[arg(long, value_name = "KIND", value_enum, value_delimiter = ',')]
    kind: Vec<Kind>,

    /// Print only events with these reasons, for example idle or source_range
    #[arg(long, value_name = "REASON", value_delimiter = ',', hide_possible_values = true,
        value_parser = PossibleValuesParser::new(reasons()))]
    reason: Vec<String>,

    /// Print only events of this IP family
    #[arg(long, value_name = "FAMILY", value_enum)]
    family: Option<FamilyArg>,

    /// Print only events of this protocol
    #[arg(long, value_name = "PROTOCOL", value_enum)]
    protocol: Option<ProtocolArg>,

    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value = "table")]
    output: MonitorFormat,

    /// End after this number of events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// End after this time: a number with ms, s, m or h
    #[arg(long = "for", value_name = "TIME", value_parser = time)]
    time: Option<Duration>,

    #[command(flatten)]
    pins: PinArgs,
}

const EXAMPLES: &str = "\
Kinds of events:
  opened   A connection was opened, or a call at a socket was translated
  closed   A connection has ended: finished (both sides have closed), reset, idle (its time-out has
           passed), evicted or replaced (by a new connection), released (the process has closed the
           socket), drained (the time limit of a drain has passed), aged (the maximum age of
           connections of its Service has passed)
  refused  The client received an error
  dropped  A packet was dropped, for a reason of `sluice_packets_total`

The kernel programs report events only while this command runs. One process of a node can read them.
Each CPU reports at most 5,000 events of a kind in a second; the others are counted.
The last line is a summary, on standard error.

Examples:
  lb monitor                                     All events, until Ctrl-C
  lb monitor -n shop cart --kind closed          Connections of the Service cart that end
  lb monitor --kind refused,dropped --for 10s    What goes wrong in the next ten seconds
  lb monitor --client 192.0.2.0/24 --count 1     The next event of a client in this network
  lb monitor --reason source_range -o json       One JSON object for each event, on a line";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Opened,
    Closed,
    Refused,
    Dropped,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FamilyArg {
    Ipv4,
    Ipv6,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ProtocolArg {
    Tcp,
    Udp,
    Sctp,
}

/// Option `-o` of `lb monitor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum MonitorFormat {
    /// A line with columns for each event
    Table,
    /// A JSON object for each event, on a line of its own
    Json,
}

/// An error of `lb monitor`.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    #[error(transparent)]
    Events(#[from] EventError),
    #[error("cannot wait for events")]
    Wait(#[source] io::Error),
    #[error("cannot write JSON")]
    Json(#[from] serde_json::Error),
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
}

impl MonitorError {
    /// Returns the remedy, if there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Preflight(error) => Some(error.hint()),
            Self::Events(EventError::NoMaps(_)) => Some(NO_MAPS.into()),
            Self::Events(EventError::NoEvents) => Some("upgrade the agent of this node".into()),
            Self::Events(EventError::Busy(path)) => Some(format!(
                "end the other `lb monitor` or `lb top` first; `lsof {}` lists its process",
                path.display()
            )),
            _ => None,
        }
    }
}

fn network(text: &str) -> Result<IpNet, String> {
    let of_address = |ip: IpAddr| IpNet::from(ip);
    text.parse()
        .or_else(|_| text.parse().map(of_address))
        .map_err(|_| "neither a network, like 192.0.2.0/24, nor an address".to_owned())
}

fn endpoint(text: &str) -> Result<EndpointFilter, String> {
    let with_port = |address: SocketAddr| EndpointFilter { ip: address.ip(), port: Some(address.port()) };
    let without = |ip: IpAddr| EndpointFilter { ip, port: None };
    text.parse().map(with_port).or_else(|_| text.parse().map(without)).map_err(|_| {
        "not an address, with or without port, like 10.244.1.2:8080 or [fd00::2]:8080".to_owned()
    })
}

fn time(text: &str) -> Result<Duration, String> {
    let wrong = || "not a time like 10s, 500ms, 5m or 1h".to_owned();
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(digits);
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    let number = number.parse::<u64>().ok().and_then(|number| number.checked_mul(milliseconds));
    number.filter(|number| *number > 0).map(Duration::from_millis).ok_or_else(wrong)
}

/// Returns the reasons that events have.
fn reasons() -> Vec<&'static str> {
    let of_packets = Reason::ALL
        .iter()
        .filter(|reason| matches!(reason.outcome(), Outcome::Rejected | Outcome::Dropped))
        .map(|reason| reason.label());
    end_labels().chain(of_packets).collect()
}

/// The number of events that are printed before the command looks for signals again.
const BATCH: usize = 512;

/// The result of a step of the output.
#[derive(PartialEq, Eq)]
enum Printed {
    /// There are no more events at the moment.
    All,
    /// There may be more.
    Some,
    /// The number of `--count` is reached, or the reader of the output is gone.
    End,
}

/// The state while the command runs.
struct Monitor<'a> {
    args: &'a MonitorArgs,
    filter: EventFilter,
    reader: EventReader,
    names: HashMap<u32, ServiceName>,
    tally: Tally,
    started: Instant,
    /// The difference between the time since 1970 and `CLOCK_MONOTONIC`.
    clock_offset_ns: u64,
    /// The unseen events that were reported.
    unseen: Unseen,
}

impl MonitorArgs {
    /// Prints events until a signal, a bound or the end of the output. Returns the summary.
    pub async fn run(&self) -> Result<String, MonitorError> {
        preflight::may_read()?;
        preflight::check_bpffs(&self.pins.bpffs)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(MonitorError::Wait)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(MonitorError::Wait)?;
        let reader = EventReader::open(&Pins::new(&self.pins.bpffs), &self.kinds())?;
        let mut readable = wait_on(&reader)?;
        let mut monitor = Monitor::new(self, reader);
        let mut renewals = renewals();
        let end = sleep(self.time.unwrap_or(Duration::MAX));
        tokio::pin!(end);
        if self.output == MonitorFormat::Table && !write_line(&monitor_heading())? {
            return Ok(monitor.summary());
        }
        loop {
            let printed = monitor.print()?;
            if printed == Printed::End {
                break;
            }
            tokio::select! {
                biased;
                _ = interrupt.recv() => break,
                _ = terminate.recv() => break,
                () = &mut end => break,
                _ = renewals.tick() => {
                    if monitor.renew()? {
                        readable = wait_on(&monitor.reader)?;
                    }
                }
                () = std::future::ready(()), if printed == Printed::Some => {}
                ready = readable.readable(), if printed == Printed::All => {
                    ready.map_err(MonitorError::Wait)?.clear_ready();
                }
            }
        }
        // The last events before the end.
        while monitor.print()? == Printed::Some {}
        Ok(monitor.summary())
    }

    fn kinds(&self) -> Vec<EventKind> {
        if self.kind.is_empty() {
            return EventKind::ALL.to_vec();
        }
        let kind = |kind: &Kind| match kind {
            Kind::Opened => EventKind::Opened,
            Kind::Closed => EventKind::Closed,
            Kind::Refused => EventKind::Refused,
            Kind::Dropped => EventKind::Dropped,
        };
        self.kind.iter().map(kind).collect()
    }

    fn filter(&self) -> EventFilter {
        EventFilter {
            service: service_filter(self.service.as_deref(), self.namespace.as_deref()),
            client: self.client,
            endpoint: self.endpoint,
            reasons: self.reason.clone(),
            family: self.family.map(|family| match family {
                FamilyArg::Ipv4 => IpFamily::V4,
                FamilyArg::Ipv6 => IpFamily::V6,
            }),
            protocol: self.protocol.map(|protocol| match protocol {
                ProtocolArg::Tcp => layout::TCP,
                ProtocolArg::Udp => layout::UDP,
                ProtocolArg::Sctp => layout::SCTP,
            }),
        }
    }
}

/// Returns the times at which a reader renews its lease.
pub(super) fn renewals() -> Interval {
    let mut renewals = interval(RENEWAL);
    renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
    renewals
}

/// Returns a descriptor of the ring to wait for.
pub(super) fn wait_on(reader: &EventReader) -> Result<AsyncFd<OwnedFd>, MonitorError> {
    let fd = reader.as_fd().try_clone_to_owned().map_err(MonitorError::Wait)?;
    // SAFETY: the `AsyncFd` owns the descriptor, and nothing else closes it.
    unsafe { AsyncFd::register(fd) }.map_err(|error| MonitorError::Wait(error.into()))
}

/// Writes a line to standard output. Returns false if its reader is gone.
fn write_line(line: &str) -> Result<bool, MonitorError> {
    let mut output = io::stdout().lock();
    match output
        .write_all(line.as_bytes())
        .and_then(|()| output.write_all(b"\n"))
        .and_then(|()| output.flush())
    {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(MonitorError::Output(error)),
    }
}

/// Writes a note to standard error. Its reader may be gone.
pub(super) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "note: {text}");
}

impl<'a> Monitor<'a> {
    fn new(args: &'a MonitorArgs, reader: EventReader) -> Self {
        let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let unix_ns = since_1970.map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(0));
        Self {
            args,
            filter: args.filter(),
            reader,
            names: HashMap::new(),
            tally: Tally::default(),
            started: Instant::now(),
            clock_offset_ns: unix_ns.saturating_sub(monotonic_ns()),
            unseen: Unseen::default(),
        }
    }

    /// Prints the events that have arrived, up to [`BATCH`].
    fn print(&mut self) -> Result<Printed, MonitorError> {
        for _ in 0..BATCH {
            if self.args.count.is_some_and(|count| self.tally.total() >= count) {
                return Ok(Printed::End);
            }
            let Some(event) = self.reader.next_event() else { return Ok(Printed::All) };
            let names = self.names_of(&event);
            if !self.filter.accepts(&event, &names) {
                continue;
            }
            let row = MonitorRow::new(&event, names, event.time_ns + self.clock_offset_ns);
            let line = match self.args.output {
                MonitorFormat::Table => row.line(),
                MonitorFormat::Json => serde_json::to_string(&row)?,
            };
            if !write_line(&line)? {
                return Ok(Printed::End);
            }
            self.tally.add(event.kind);
        }
        Ok(Printed::Some)
    }

    /// Looks up the names of an event. The name of a deleted Service is found if it had an event
    /// before.
    fn names_of(&mut self, event: &EventEntry) -> EventNames {
        let service = self.reader.service_of(event).map(|id| {
            if let Some(name) = self.reader.service_name(id) {
                self.names.insert(id, name);
            }
            NamedServicePort::of(id, &self.names)
        });
        let client = event.netns_cookie.and_then(|cookie| {
            let addresses = self.reader.namespace(cookie)?;
            let ip: IpAddr = match event.service {
                SocketAddr::V4(_) => addresses.addr_v4.into(),
                SocketAddr::V6(_) => addresses.addr_v6.into(),
            };
            (!ip.is_unspecified()).then_some(ip)
        });
        EventNames { service, client }
    }

    /// Makes the programs report for some more seconds. Prints a note about missed events. Returns
    /// whether the maps were replaced.
    fn renew(&mut self) -> Result<bool, MonitorError> {
        let renewed = self.reader.renew()?;
        if renewed.maps_replaced {
            note("another agent has replaced the maps: events of the last second may be missing");
        }
        if renewed.has_lapsed {
            note("the output was not read, or this process was stopped: events of that time are missing");
        }
        let unseen = self.reader.unseen()?;
        if unseen != self.unseen {
            note(&unseen_text(unseen - self.unseen));
            self.unseen = unseen;
        }
        Ok(renewed.maps_replaced)
    }

    fn summary(&self) -> String {
        let unseen = self.reader.unseen().unwrap_or(self.unseen);
        self.tally.summary(self.started.elapsed(), unseen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_options_are_parsed() {
        assert_eq!(time("1500ms"), Ok(Duration::from_millis(1_500)));
        assert_eq!(["2s", "3m", "1h"].map(|text| time(text).unwrap().as_secs()), [2, 180, 3_600]);
        assert!(["", "10", "s", "1d", "0s", "-1s", "1.5s"].iter().all(|text| time(text).is_err()));
        assert_eq!(network("192.0.2.7").unwrap(), "192.0.2.7/32".parse().unwrap());
        assert_eq!(network("fd00::/8").unwrap(), "fd00::/8".parse().unwrap());
        assert!(network("web").is_err());
        let ip = "fd00::2".parse().unwrap();
        assert_eq!(endpoint("[fd00::2]:80"), Ok(EndpointFilter { ip, port: Some(80) }));
        assert_eq!(endpoint("fd00::2"), Ok(EndpointFilter { ip, port: None }));
        assert!(endpoint("web:80").is_err());
    }

    #[test]
    fn reasons_are_ends_and_reasons_of_refusals_and_drops() {
        let reasons = reasons();
        assert!(["idle", "socket_no_endpoint", "source_range"].iter().all(|it| reasons.contains(it)));
        assert!(!reasons.contains(&"delivered"));
    }
}
