//! `lb get`: reads the pinned maps and prints them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use lb_datapath::inspect::Maps;
use lb_datapath::{Pins, monotonic_ns};
use lb_model::IpFamily;

use super::pin_args::PinArgs;
use crate::preflight::{self, PreflightError};
use crate::view::{
    Backends, Filter, Names, Output, OutputError, Row, Slots, SourceRanges, affinity_rows, backend_rows,
    flow_rows, render, service_rows,
};

#[derive(Debug, Subcommand)]
pub enum Get {
    /// Service addresses and how many endpoints each has
    #[command(visible_aliases = ["service", "svc"])]
    Services(GetArgs),
    /// Endpoints of Service ports, with their state
    #[command(visible_aliases = ["backend", "endpoints", "ep"])]
    Backends(GetArgs),
    /// Connections that are translated packet by packet, with state and idle time
    ///
    /// Connections from processes on this node are translated once, at their socket, and have no flow.
    #[command(visible_alias = "flow")]
    Flows(GetArgs),
    /// Clients of Services with session affinity, and the endpoint each was given
    Affinity(GetArgs),
}

/// Why nothing can be shown.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    #[error("there are no maps of Sluice in {}", .0.display())]
    NoMaps(PathBuf),
    #[error("cannot read the maps in {}", path.display())]
    Maps { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Output(#[from] OutputError),
}

impl ReadError {
    /// What a person can do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Preflight(error) => Some(error.hint()),
            Self::NoMaps(_) => Some(
                "no agent of this version has run here: start `lb agent`, or give its --bpffs; \
                 `lb cleanup --dry-run` lists what other versions left"
                    .into(),
            ),
            Self::Maps { .. } | Self::Output(_) => None,
        }
    }
}

impl Get {
    /// The text to print.
    pub fn run(&self) -> Result<String, ReadError> {
        match self {
            Self::Services(args) => {
                let (services, names, slots, backends, source_ranges) = args.read(|maps| {
                    let services = maps.services()?;
                    let mut slots = Slots::new();
                    for (_, service) in &services {
                        for range in [
                            (service.inside_base, service.inside_count),
                            (service.outside_base, service.outside_count),
                        ] {
                            if let Entry::Vacant(unread) = slots.entry(range) {
                                unread.insert(maps.slots(range.0, range.1)?);
                            }
                        }
                    }
                    let mut source_ranges = SourceRanges::new();
                    for (service_id, network) in maps.source_ranges()? {
                        source_ranges.entry(service_id).or_default().push(network);
                    }
                    Ok((services, names(maps)?, slots, backends(maps)?, source_ranges))
                })?;
                args.print(&service_rows(
                    &services,
                    &names,
                    &slots,
                    &backends,
                    &source_ranges,
                    &args.filter(),
                ))
            }
            Self::Backends(args) => {
                let (backends, names) = args.read(|maps| Ok((backends(maps)?, names(maps)?)))?;
                args.print(&backend_rows(&backends, &names, &args.filter()))
            }
            Self::Flows(args) => {
                let (flows, timeouts, names) =
                    args.read(|maps| Ok((maps.flows()?, maps.flow_timeouts()?, names(maps)?)))?;
                args.print(&flow_rows(&flows, &timeouts, (&names, &args.filter()), monotonic_ns()))
            }
            Self::Affinity(args) => {
                let (entries, names, backends) =
                    args.read(|maps| Ok((maps.affinity()?, names(maps)?, backends(maps)?)))?;
                args.print(&affinity_rows(&entries, &names, &backends, monotonic_ns(), &args.filter()))
            }
        }
    }
}

fn names(maps: &Maps) -> io::Result<Names> {
    Ok(maps.service_names()?.into_iter().collect())
}

fn backends(maps: &Maps) -> io::Result<Backends> {
    let mut backends = HashMap::new();
    for family in IpFamily::BOTH {
        backends.extend(maps.backends(family)?.into_iter().map(|(id, entry)| ((family, id), entry)));
    }
    Ok(backends)
}

#[derive(Debug, Args)]
pub struct GetArgs {
    /// Only this Service
    #[arg(value_name = "SERVICE")]
    service: Option<String>,

    /// Only Services of this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,

    /// Format
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value = "table")]
    output: Output,

    #[command(flatten)]
    pins: PinArgs,
}

impl GetArgs {
    fn read<T>(&self, read: impl FnOnce(&Maps) -> io::Result<T>) -> Result<T, ReadError> {
        preflight::may_read()?;
        preflight::check_bpffs(&self.pins.bpffs)?;
        let pins = Pins::new(&self.pins.bpffs);
        let path = pins.root().to_owned();
        Maps::open(&pins).and_then(|maps| read(&maps)).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => ReadError::NoMaps(path),
            _ => ReadError::Maps { path, source },
        })
    }

    fn print<R: Row>(&self, rows: &[R]) -> Result<String, ReadError> {
        Ok(render(rows, self.output)?)
    }

    fn filter(&self) -> Filter {
        // `namespace/name` as in the tables.
        match self.service.as_deref().and_then(|service| service.split_once('/')) {
            Some((namespace, service)) => {
                Filter { namespace: Some(namespace.to_owned()), service: Some(service.to_owned()) }
            }
            None => Filter { namespace: self.namespace.clone(), service: self.service.clone() },
        }
    }
}
