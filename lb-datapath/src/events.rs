//! Reads the events of the programs, for `lb monitor`.
//!
//! There is one ring, so one process reads at a time: it holds a lock on the folder of the maps.
//! The programs report only until the time in `MONITOR`, which the reader renews
//! ([`EventReader::renew`]).

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aya::maps::{Map, MapData, RingBuf};
use lb_common::event::{Event, EventBudget, Monitor, event_end, event_kind, event_path};
use lb_common::layout::{NamespaceAddrs, ServiceEntry, ServiceName};
use lb_common::reason::Reason;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::apply::map_name::MapName;
use crate::apply::tables::ServiceAddress;
use crate::family_table::FamilyTable;
use crate::handles::MapHandles;
use crate::pins::Pins;
use crate::sys;
use crate::table::Table;

/// The name of the ring.
const EVENTS: &str = "EVENTS";
const BUDGETS: &str = "EVENT_BUDGETS";

/// The maps that a reader holds open. An agent that replaces maps keeps those that do not differ.
const HELD: [&str; 7] = [
    EVENTS,
    BUDGETS,
    MapName::MONITOR.name,
    MapName::SERVICES.v4.name,
    MapName::SERVICES.v6.name,
    MapName::SERVICE_NAMES.name,
    MapName::NAMESPACES.name,
];

/// The time for which the programs report after a renewal.
const LEASE: Duration = Duration::from_secs(3);

/// The pause after which [`EventReader::renew`] is called again.
pub const RENEWAL: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum EventError {
    #[error("there are no maps of Sluice in {}", .0.display())]
    NoMaps(PathBuf),
    #[error("the agent of this node is of a version that reports no events")]
    NoEvents,
    #[error("another process reads the events of this node (it holds a lock on {})", .0.display())]
    Busy(PathBuf),
    #[error("cannot read the events in {}", path.display())]
    Maps { path: PathBuf, source: io::Error },
}

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EventKind {
    Opened,
    Closed,
    Refused,
    Dropped,
}

impl EventKind {
    pub const ALL: [Self; event_kind::COUNT] = [Self::Opened, Self::Closed, Self::Refused, Self::Dropped];

    fn number(self) -> u8 {
        match self {
            Self::Opened => event_kind::OPENED,
            Self::Closed => event_kind::CLOSED,
            Self::Refused => event_kind::REFUSED,
            Self::Dropped => event_kind::DROPPED,
        }
    }

    pub const fn label(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Closed => "closed",
            Self::Refused => "refused",
            Self::Dropped => "dropped",
        }
    }
}

/// The hook that has reported an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventPath {
    /// The event is of no hook: the record of the connection was taken, for another connection or
    /// by a sweep.
    Record,
    Socket,
    Tc,
    Xdp,
}

/// Returns the reason of a closed connection as a word, or `None` for an unknown number.
fn end_label(end: u8) -> Option<&'static str> {
    END_LABELS.iter().find(|(number, _)| *number == end).map(|(_, label)| *label)
}

const END_LABELS: [(u8, &str); 8] = [
    (event_end::FINISHED, "finished"),
    (event_end::RESET, "reset"),
    (event_end::IDLE, "idle"),
    (event_end::EVICTED, "evicted"),
    (event_end::REPLACED, "replaced"),
    (event_end::RELEASED, "released"),
    (event_end::DRAINED, "drained"),
    (event_end::AGED, "aged"),
];

/// Returns the words for the end of a connection.
pub fn end_labels() -> impl Iterator<Item = &'static str> {
    END_LABELS.iter().map(|(_, label)| *label)
}

/// An event, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventEntry {
    /// `CLOCK_MONOTONIC`, see [`crate::monotonic_ns`].
    pub time_ns: u64,
    pub kind: EventKind,
    pub path: EventPath,
    /// The end of a closed connection, or the label of a [`Reason`]. `None` for an opened one.
    pub reason: Option<&'static str>,
    pub protocol: u8,
    /// The source of the packet. `None` for a socket.
    pub client: Option<SocketAddr>,
    /// The destination that the client uses.
    pub service: SocketAddr,
    /// The source that the endpoint sees. `None` for a socket, and for packets that open nothing.
    pub source: Option<SocketAddr>,
    pub backend: Option<SocketAddr>,
    /// 0 if the programs did not look it up.
    pub service_id: u32,
    pub backend_id: u32,
    /// The cookie of the network namespace of a socket, and its own.
    pub netns_cookie: Option<u64>,
    pub socket_cookie: Option<u64>,
}

impl EventEntry {
    /// Decodes an event. Returns `None` if its kind is unknown.
    pub fn new(event: &Event) -> Option<Self> {
        let kind = *EventKind::ALL.iter().find(|kind| kind.number() == event.kind)?;
        let path = match event.path {
            event_path::SOCKET => EventPath::Socket,
            event_path::TC => EventPath::Tc,
            event_path::XDP => EventPath::Xdp,
            _ => EventPath::Record,
        };
        let reason = match kind {
            EventKind::Opened => None,
            EventKind::Closed => end_label(event.reason),
            _ => Reason::ALL.get(usize::from(event.reason)).map(|reason| reason.label()),
        };
        let is_socket = path == EventPath::Socket;
        let at = |addr, port| SocketAddr::new(address(addr, event.is_v6 != 0), port);
        let backend = (event.backend_id != 0).then(|| at(event.backend_addr, event.backend_port));
        Some(Self {
            time_ns: event.time_ns,
            kind,
            path,
            reason,
            protocol: event.protocol,
            client: (!is_socket).then(|| at(event.client_addr, event.client_port)),
            service: at(event.service_addr, event.service_port),
            source: (!is_socket && backend.is_some()).then(|| at(event.source_addr, event.source_port)),
            backend,
            service_id: event.service_id,
            backend_id: event.backend_id,
            netns_cookie: is_socket.then_some(event.netns_cookie),
            socket_cookie: is_socket.then_some(event.socket_cookie),
        })
    }
}

/// Returns the address in a field of [`Event`].
fn address(addr: [u8; 16], is_v6: bool) -> IpAddr {
    let v6 = Ipv6Addr::from(addr);
    if is_v6 || v6.to_ipv4_mapped().is_some() {
        return v6.to_canonical();
    }
    let [a, b, c, d, ..] = addr;
    Ipv4Addr::new(a, b, c, d).into()
}

/// The numbers of events that no reader has received.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unseen {
    /// The programs left them out because there were too many.
    pub limited: u64,
    /// They did not fit into the ring.
    pub lost: u64,
}

impl Unseen {
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }
}

impl std::ops::Sub for Unseen {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            limited: self.limited.saturating_sub(before.limited),
            lost: self.lost.saturating_sub(before.lost),
        }
    }
}

/// The maps of one generation.
struct Opened {
    ring: RingBuf<MapData>,
    /// The ids of [`HELD`].
    ids: [u32; HELD.len()],
    budgets: Arc<OwnedFd>,
    monitor: Table<u32, Monitor>,
    services: FamilyTable<ServiceAddress, ServiceEntry>,
    names: Table<u32, ServiceName>,
    namespaces: Table<u64, NamespaceAddrs>,
    cpus: usize,
    /// [`Unseen`] when the maps were opened.
    before: Unseen,
    /// Holds the lock.
    folder: File,
}

impl Opened {
    fn open(pins: &Pins) -> Result<Self, EventError> {
        let path = pins.maps();
        let folder = File::open(&path).map_err(|error| failed(&path, error))?;
        match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(EventError::Busy(path)),
            Err(error) => return Err(failed(&path, error.into())),
        }
        let open = || {
            let maps = MapHandles::open(&path)?;
            let ring = maps.get(EVENTS)?;
            let data = MapData::from_fd(ring.try_clone()?).map_err(io::Error::other)?;
            let ring = Map::from_map_data(data).and_then(RingBuf::try_from).map_err(io::Error::other)?;
            let mut opened = Self {
                ring,
                ids: ids_of_held(|name| maps.fd(name))?,
                budgets: maps.get(BUDGETS)?,
                monitor: maps.table(MapName::MONITOR)?,
                services: FamilyTable::open(&maps, MapName::SERVICES)?,
                names: maps.table(MapName::SERVICE_NAMES)?,
                namespaces: maps.table(MapName::NAMESPACES)?,
                cpus: sys::possible_cpus()?,
                before: Unseen::default(),
                folder,
            };
            opened.before = opened.total()?;
            // Events that an earlier reader has left.
            while opened.ring.next().is_some() {}
            Ok(opened)
        };
        open().map_err(|error: io::Error| match error.kind() {
            // The folder exists, but not this map.
            io::ErrorKind::NotFound => EventError::NoEvents,
            _ => failed(&path, error),
        })
    }

    /// Returns the unseen events of all readers until now.
    fn total(&self) -> io::Result<Unseen> {
        let mut total = Unseen::default();
        for kind in EventKind::ALL {
            let key = u32::from(kind.number()).to_ne_bytes();
            let bytes = sys::lookup_bytes(self.budgets.as_fd(), &key, size_of::<EventBudget>() * self.cpus)?;
            for budget in sys::values::<EventBudget>(&bytes.unwrap_or_default()) {
                total.limited += budget.limited;
                total.lost += budget.lost;
            }
        }
        Ok(total)
    }
}

/// Returns the ids of [`HELD`]. `open` returns the descriptor of a map.
fn ids_of_held<F: AsFd>(open: impl Fn(&str) -> io::Result<F>) -> io::Result<[u32; HELD.len()]> {
    let mut ids = [0; HELD.len()];
    for (id, name) in ids.iter_mut().zip(HELD) {
        *id = sys::map_info(open(name)?.as_fd())?.id;
    }
    Ok(ids)
}

fn failed(path: &Path, source: io::Error) -> EventError {
    match source.kind() {
        io::ErrorKind::NotFound => EventError::NoMaps(path.to_owned()),
        _ => EventError::Maps { path: path.to_owned(), source },
    }
}

/// The result of [`EventReader::renew`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renewed {
    /// Another agent has replaced the maps. The descriptor of the reader is another one now.
    pub maps_replaced: bool,
    /// The renewal was late. The programs reported nothing in the meantime.
    pub has_lapsed: bool,
}

/// The reader of the events of this node. Its descriptor (`AsFd`) is readable when there are
/// events. Dropping it ends the reports.
pub struct EventReader {
    pins: Pins,
    kinds: u32,
    opened: Opened,
    /// The time until which the programs report, in nanoseconds of `CLOCK_MONOTONIC`.
    lease_ends_ns: u64,
    /// The unseen events of the maps that were replaced.
    earlier: Unseen,
}

impl EventReader {
    /// Opens the ring and makes the programs report events of these kinds.
    pub fn open(pins: &Pins, kinds: &[EventKind]) -> Result<Self, EventError> {
        let kinds = kinds.iter().fold(0, |bits, kind| bits | 1 << kind.number());
        let opened = Opened::open(pins)?;
        let lease_ends_ns = sys::monotonic_ns() + LEASE.as_nanos() as u64;
        let reader = Self { pins: pins.clone(), kinds, opened, lease_ends_ns, earlier: Unseen::default() };
        reader.set_lease(lease_ends_ns)?;
        Ok(reader)
    }

    /// Makes the programs report for some more seconds. Call it every [`RENEWAL`]. Opens the maps
    /// again if another agent has replaced one of them.
    pub fn renew(&mut self) -> Result<Renewed, EventError> {
        let pinned = ids_of_held(|name| sys::open_pin(&self.pins.map(name)));
        let is_same = pinned.map_err(|error| failed(&self.pins.maps(), error))? == self.opened.ids;
        if !is_same {
            self.earlier = self.unseen().unwrap_or(self.earlier);
            // The folder stays the same, and its lock belongs to the descriptor of this reader.
            let unlocked = flock(&self.opened.folder, FlockOperation::Unlock);
            unlocked.map_err(|error| failed(&self.pins.maps(), error.into()))?;
            self.opened = Opened::open(&self.pins)?;
        }
        let now_ns = sys::monotonic_ns();
        let has_lapsed = now_ns > self.lease_ends_ns;
        self.lease_ends_ns = now_ns + LEASE.as_nanos() as u64;
        self.set_lease(self.lease_ends_ns)?;
        Ok(Renewed { maps_replaced: !is_same, has_lapsed })
    }

    fn set_lease(&self, until_ns: u64) -> Result<(), EventError> {
        let monitor = Monitor { until_ns, kinds: self.kinds, pad: 0 };
        self.opened.monitor.put(&0, &monitor).map_err(|error| failed(&self.pins.maps(), error.into()))
    }

    /// Returns the next event, or `None` if there is none at the moment.
    pub fn next_event(&mut self) -> Option<EventEntry> {
        while let Some(bytes) = self.opened.ring.next() {
            if let Some(event) = sys::values::<Event>(&bytes).next().as_ref().and_then(EventEntry::new) {
                return Some(event);
            }
        }
        None
    }

    /// Returns the numbers of events since the start that this reader has not received.
    pub fn unseen(&self) -> Result<Unseen, EventError> {
        let total = self.opened.total().map_err(|error| failed(&self.pins.maps(), error))?;
        let now = total - self.opened.before;
        Ok(Unseen { limited: self.earlier.limited + now.limited, lost: self.earlier.lost + now.lost })
    }

    /// Returns the id of the service port of an event.
    pub fn service_of(&self, event: &EventEntry) -> Option<u32> {
        match event.service_id {
            0 => self.service_at(event.service, event.protocol),
            id => Some(id),
        }
    }

    /// Returns the id of the service port that has an address, or whose NodePort it is.
    fn service_at(&self, address: SocketAddr, protocol: u8) -> Option<u32> {
        let any = match address {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let find = |ip| {
            let address = ServiceAddress { ip, port: address.port(), protocol };
            self.opened.services.get(address).ok()?.map(|service| service.service_id)
        };
        find(address.ip()).or_else(|| find(any))
    }

    /// Returns the name of a service port, if the maps have it.
    pub fn service_name(&self, service_id: u32) -> Option<ServiceName> {
        self.opened.names.get(&service_id).ok()?
    }

    /// Returns the addresses of a network namespace, if the maps have them.
    pub fn namespace(&self, cookie: u64) -> Option<NamespaceAddrs> {
        self.opened.namespaces.get(&cookie).ok()?
    }
}

impl AsFd for EventReader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.opened.ring.as_fd()
    }
}

impl Drop for EventReader {
    fn drop(&mut self) {
        // On failure the lease ends by itself.
        let _ = self.set_lease(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_all_kinds_of_sockets_are_decoded() {
        let v4: IpAddr = "192.0.2.7".parse().unwrap();
        let v6: Ipv6Addr = "2001:db8::7".parse().unwrap();
        let mut first = [0; 16];
        first[..4].copy_from_slice(&[192, 0, 2, 7]);
        let mapped = Ipv4Addr::new(192, 0, 2, 7).to_ipv6_mapped().octets();
        assert_eq!(address(first, false), v4);
        assert_eq!([address(mapped, false), address(mapped, true)], [v4; 2]);
        assert_eq!(address(v6.octets(), true), IpAddr::V6(v6));
    }

    #[test]
    fn every_kind_and_end_is_decoded() {
        for kind in EventKind::ALL {
            let event = Event { kind: kind.number(), ..Event::default() };
            assert_eq!(EventEntry::new(&event).map(|event| event.kind), Some(kind));
        }
        assert_eq!(EventEntry::new(&Event { kind: 4, ..Event::default() }), None);
        let closed = |reason| Event { kind: event_kind::CLOSED, reason, ..Event::default() };
        let ends: Vec<_> = (1..=8).filter_map(|end| EventEntry::new(&closed(end))?.reason).collect();
        assert_eq!(ends, end_labels().collect::<Vec<_>>());
    }
}
