//! `lb get`: reads the pinned maps and prints their entries.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use lb_datapath::inspect::AgentMaps;
use lb_datapath::{Pins, monotonic_ns};
use lb_model::IpFamily;

use super::pin_args::PinArgs;
use crate::preflight::{self, PreflightError};
use crate::view::{
    BackendsById, EndpointFacts, Names, OutputError, OutputFormat, Row, ServiceEntries, ServiceFilter, Slots,
    SourceRangesById, affinity_rows, backend_rows, flow_rows, render, service_rows,
};

#[derive(Debug, Subcommand)]
pub enum Get {
    /// List Service addresses, each with its number of endpoints
    ///
    /// A Service has one row per port, IP family and address: ClusterIP, NodePort, external IPs and
    /// load balancer IPs. MAX-AGE (-o wide) is the age at which TCP connections are reset at the
    /// latest (annotation lb.sluice.dev/max-connection-age).
    #[command(visible_aliases = ["service", "svc"])]
    Services(GetArgs),
    /// List the endpoints of Service ports, with their state
    ///
    /// `ready` endpoints get new connections. `draining` endpoints only keep the connections they
    /// have. `left-out` endpoints refuse or do not answer: they get no new connections for a while.
    /// LEFT-OUT (-o wide) is the time until the next attempt. ACTIVE is the number of open TCP and
    /// SCTP connections. INACTIVE is the number of UDP connections and of those that one side has
    /// closed. NO-SOURCE-PORT (-o wide) is the number of packets that opened no connection because
    /// no source port was free.
    #[command(visible_aliases = ["backend", "endpoints", "ep"])]
    Backends(GetArgs),
    /// List the connections that are translated packet by packet, with state and idle time
    ///
    /// These are mainly connections from outside the node. Connections of local processes are
    /// translated once, when they connect: they have no flow.
    #[command(visible_alias = "flow")]
    Flows(GetArgs),
    /// List the clients of Services with session affinity, each with its endpoint
    Affinity(GetArgs),
}

/// An error of `lb get`.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    #[error("{} has no maps of Sluice", .0.display())]
    NoMaps(PathBuf),
    #[error("cannot read the maps in {}", path.display())]
    Maps { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Output(#[from] OutputError),
}

/// The remedy if there are no maps.
pub(super) const NO_MAPS: &str = "no agent of this version has run on this node: start `lb agent`, or give \
                                  its --bpffs; `lb cleanup --dry-run` lists the maps of other versions";

impl ReadError {
    /// Returns the remedy, if there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Preflight(error) => Some(error.hint()),
            Self::NoMaps(_) => Some(NO_MAPS.into()),
            Self::Maps { .. } | Self::Output(_) => None,
        }
    }
}

impl Get {
    /// Reads the maps and returns the text to print.
    pub fn run(&self) -> Result<String, ReadError> {
        match self {
            Self::Services(args) => {
                let tables = args.read(service_tables)?;
                args.print(&service_rows(&tables, &args.filter()))
            }
            Self::Backends(args) => {
                let (backends, names, facts) =
                    args.read(|maps| Ok((backends(maps)?, names(maps)?, endpoint_facts(maps)?)))?;
                args.print(&backend_rows(&backends, &names, &facts, &args.filter()))
            }
            Self::Flows(args) => {
                let (flows, timeouts, names) =
                    args.read(|maps| Ok((maps.flows()?, maps.flow_timeouts()?, names(maps)?)))?;
                args.print(&flow_rows(&flows, &timeouts, &names, monotonic_ns(), &args.filter()))
            }
            Self::Affinity(args) => {
                let (entries, names, backends) =
                    args.read(|maps| Ok((maps.affinity()?, names(maps)?, backends(maps)?)))?;
                args.print(&affinity_rows(&entries, &names, &backends, monotonic_ns(), &args.filter()))
            }
        }
    }
}

pub(super) fn service_tables(maps: &AgentMaps) -> io::Result<ServiceEntries> {
    let services = maps.services()?;
    let mut slots = Slots::new();
    for (_, service) in &services {
        for range in
            [(service.inside_base, service.inside_count), (service.outside_base, service.outside_count)]
        {
            // Services with equal lists of endpoints share a range.
            if let Entry::Vacant(unread) = slots.entry(range) {
                unread.insert(maps.slots(range.0, range.1)?);
            }
        }
    }
    let mut source_ranges = SourceRangesById::new();
    for (service_id, network) in maps.source_ranges()? {
        source_ranges.entry(service_id).or_default().push(network);
    }
    Ok(ServiceEntries {
        services,
        names: names(maps)?,
        slots,
        backends: backends(maps)?,
        source_ranges,
        thresholds: maps.thresholds()?,
    })
}

pub(super) fn names(maps: &AgentMaps) -> io::Result<Names> {
    Ok(maps.service_names()?.into_iter().collect())
}

pub(super) fn backends(maps: &AgentMaps) -> io::Result<BackendsById> {
    let mut backends = HashMap::new();
    for family in IpFamily::BOTH {
        backends.extend(maps.backends(family)?.into_iter().map(|(id, entry)| ((family, id), entry)));
    }
    Ok(backends)
}

pub(super) fn endpoint_facts(maps: &AgentMaps) -> io::Result<EndpointFacts> {
    Ok(EndpointFacts {
        shortages: maps.port_shortages()?,
        left_out: maps.left_out()?,
        loads: maps.loads()?,
        thresholds: maps.thresholds()?,
        overloaded: maps.overloaded()?,
        now_ns: monotonic_ns(),
    })
}

/// Opens the pinned maps and reads them with `read`.
pub(super) fn read_maps<T>(
    pins: &PinArgs,
    read: impl FnOnce(&AgentMaps) -> io::Result<T>,
) -> Result<T, ReadError> {
    let pins = Pins::new(&pins.bpffs);
    let path = pins.root().to_owned();
    AgentMaps::open(&pins).and_then(|maps| read(&maps)).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => ReadError::NoMaps(path),
        _ => ReadError::Maps { path, source },
    })
}

#[derive(Debug, Args)]
pub struct GetArgs {
    /// List only this Service: its name, or NAMESPACE/NAME
    #[arg(value_name = "SERVICE")]
    service: Option<String>,

    /// List only Services in this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,

    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value = "table")]
    output: OutputFormat,

    #[command(flatten)]
    pins: PinArgs,
}

impl GetArgs {
    fn read<T>(&self, read: impl FnOnce(&AgentMaps) -> io::Result<T>) -> Result<T, ReadError> {
        preflight::may_read()?;
        preflight::check_bpffs(&self.pins.bpffs)?;
        read_maps(&self.pins, read)
    }

    fn print<R: Row>(&self, rows: &[R]) -> Result<String, ReadError> {
        Ok(render(rows, self.output)?)
    }

    fn filter(&self) -> ServiceFilter {
        service_filter(self.service.as_deref(), self.namespace.as_deref())
    }
}

/// Returns the filter for the arguments SERVICE and `--namespace`.
pub(super) fn service_filter(service: Option<&str>, namespace: Option<&str>) -> ServiceFilter {
    // The tables print `namespace/name`, so this form is accepted too.
    let (namespace, service) = match service.and_then(|service| service.split_once('/')) {
        Some((namespace, service)) => (Some(namespace), Some(service)),
        None => (namespace, service),
    };
    ServiceFilter { namespace: namespace.map(Into::into), service: service.map(Into::into) }
}
