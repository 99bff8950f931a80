//! Reads the flow table. Only the programs write it, and they decide when a connection ends.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;

use lb_common::connection::ConnectionState;
use lb_common::layout::{
    Affinity, AffinityKey, Flow, FlowIndex, FlowKey, FlowTimeouts, FragmentKey, FragmentPorts, SWEEP_HEADER,
    SWEEP_RECORDS, counted, flow_phase, sweep,
};
use lb_common::plain::Plain;
use lb_model::{IpFamily, PerFamily};

use crate::address::MapAddress;
use crate::apply::ReferencedIds;
use crate::apply::map_name::{MapName, MapUsage, TableError};
use crate::family_table::BackendArrays;
use crate::handles::MapHandles;
use crate::health;
use crate::loads;
use crate::overloaded;
use crate::table::{ArrayTable, Table};

/// A connection that is translated packet by packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowEntry {
    pub family: IpFamily,
    pub protocol: u8,
    /// The phase, and the state of each direction. See [`lb_common::connection`].
    pub state: ConnectionState,
    pub client: SocketAddr,
    /// The Service address that the client uses.
    pub service: SocketAddr,
    /// The source address that the endpoint sees: the client, or an address of this node.
    pub source: SocketAddr,
    pub backend: SocketAddr,
    pub backend_id: u32,
    pub service_id: u32,
    /// See [`lb_common::layout::deliver`].
    pub deliver: u8,
    /// `CLOCK_MONOTONIC` at the last packet of either direction, see [`crate::monotonic_ns`].
    pub last_seen_ns: u64,
    /// `CLOCK_MONOTONIC` at the first packet, in seconds.
    pub opened_s: u32,
}

impl FlowEntry {
    fn new<A: MapAddress>(flow: &Flow<A>) -> Self {
        let address = |addr: A, port: u16| SocketAddr::new(addr.to_ip(), port);
        Self {
            family: A::FAMILY,
            protocol: flow.protocol,
            state: flow.state(),
            client: address(flow.client_addr, flow.client_port),
            service: address(flow.service_addr, flow.service_port),
            source: address(flow.source_addr, flow.source_port),
            backend: address(flow.backend_addr, flow.backend_port),
            backend_id: flow.backend_id,
            service_id: flow.service_id,
            deliver: flow.deliver,
            last_seen_ns: flow.last_seen_ns,
            opened_s: flow.opened_s,
        }
    }

    /// Returns the seconds until the connection ends if no packet arrives.
    pub fn expires_in(&self, now_ns: u64, timeouts: &FlowTimeouts) -> u64 {
        let silent = now_ns.saturating_sub(self.last_seen_ns) / 1_000_000_000;
        u64::from(self.state.timeout(self.protocol, timeouts)).saturating_sub(silent)
    }
}

/// The content of the flow tables of both families.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FlowUsage {
    /// The ids to which connections refer.
    pub referenced: ReferencedIds,
    /// The number of connections that are not half-open.
    pub open: usize,
    pub half_open: usize,
    /// The usage of `FLOWS_V4` and `FLOWS_V6`.
    pub maps: Vec<MapUsage>,
    /// Connections that are over and still count at their endpoints, as words for `lb_sweep`.
    pub(crate) over: Vec<u64>,
}

/// Returns the packets with which `lb_sweep` ends these connections.
pub(crate) fn sweep_packets(over: &[u64]) -> impl Iterator<Item = Vec<u8>> {
    over.chunks(SWEEP_RECORDS).map(|records| {
        let mut packet = vec![0; SWEEP_HEADER];
        packet.extend(records.iter().flat_map(|record| record.to_ne_bytes()));
        packet
    })
}

/// Adds the endpoints that have connections, so that their ids are not used again. Connected
/// sockets are in no table, but they count.
pub(crate) fn add_counted(maps: &MapHandles, usage: &mut FlowUsage) -> io::Result<()> {
    for (family, id) in loads::read(maps)?.into_keys() {
        usage.referenced.backends[family].insert(id);
    }
    Ok(())
}

/// Reads the whole table while the programs run. The cost is proportional to its size.
///
/// A connection that has ended at `now_ns` cannot be revived, so its ids are not collected.
/// `now_ns` must be a time before this call.
pub fn usage(maps: &MapHandles, now_ns: u64) -> io::Result<FlowUsage> {
    let mut usage = FlowUsage::default();
    let mut entries = PerFamily { v4: 0, v6: 0 };
    let mut over = Vec::new();
    for_each(maps, now_ns, &mut |word| over.push(word), |flow| {
        entries[flow.family] += 1;
        usage.referenced.add(flow.family, flow.service_id, flow.backend_id);
        if flow.state.is_half_open(flow.protocol) {
            usage.half_open += 1;
        } else {
            usage.open += 1;
        }
    })?;
    usage.over = over;
    for family in IpFamily::BOTH {
        usage.maps.extend(maps.usage(MapName::FLOWS[family], entries[family])?);
    }
    Ok(usage)
}

/// Returns all connections of both families that have not ended at `now_ns`.
pub fn read(maps: &MapHandles, now_ns: u64) -> io::Result<Vec<FlowEntry>> {
    let mut entries = Vec::new();
    for_each(maps, now_ns, &mut |_| {}, |flow| entries.push(flow))?;
    Ok(entries)
}

/// Returns the current timeouts.
pub fn timeouts(maps: &MapHandles) -> io::Result<FlowTimeouts> {
    timeout_table(maps)?.get(&0)?.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Sets the timeouts. They apply to open connections too.
pub fn set_timeouts(maps: &MapHandles, timeouts: &FlowTimeouts) -> io::Result<()> {
    Ok(timeout_table(maps)?.put(&0, timeouts)?)
}

fn timeout_table(maps: &MapHandles) -> io::Result<Table<u32, FlowTimeouts>> {
    maps.table(MapName::FLOW_TIMEOUTS)
}

/// Calls `visit` with each connection of both families that has not ended at `now_ns`, and `over`
/// with the word for `lb_sweep` of each that has ended and still counts.
fn for_each(
    maps: &MapHandles,
    now_ns: u64,
    over: &mut impl FnMut(u64),
    mut visit: impl FnMut(FlowEntry),
) -> io::Result<()> {
    let timeouts = timeouts(maps)?;
    FlowTable::<[u8; 4]>::open(maps)?.for_each(now_ns, &timeouts, over, &mut visit)?;
    FlowTable::<[u8; 16]>::open(maps)?.for_each(now_ns, &timeouts, over, &mut visit)
}

/// Returns the connections to those of these endpoints that drain, at most `most`, as words for
/// `lb_sweep` that end them. `now_ns` must be a time before this call.
pub(crate) fn of_draining(
    maps: &MapHandles,
    backends: &PerFamily<BTreeSet<u32>>,
    (now_ns, most): (u64, usize),
) -> io::Result<Vec<u64>> {
    let timeouts = timeouts(maps)?;
    let mut found = PerFamily::<Vec<(u32, u64)>>::default();
    FlowTable::<[u8; 4]>::open(maps)?.of_backends(&backends.v4, (now_ns, &timeouts, most), &mut found.v4)?;
    let rest = most - found.v4.len();
    FlowTable::<[u8; 16]>::open(maps)?.of_backends(&backends.v6, (now_ns, &timeouts, rest), &mut found.v6)?;
    // The flags are read after the connections, and an endpoint has its flags before it gets
    // connections again: no connection that is returned is newer than the drain.
    let endpoints = BackendArrays::open(maps)?;
    let mut words = Vec::new();
    for family in IpFamily::BOTH {
        for (id, word) in &found[family] {
            if endpoints.get(family, *id)?.is_some_and(|endpoint| endpoint.drains()) {
                words.push(*word);
            }
        }
    }
    Ok(words)
}

/// The record of a connection, as a word for `lb_sweep` that ends it because of its age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct AgedFlow(u64);

impl AgedFlow {
    /// Returns a record with the generation of its connection.
    pub fn new(family: IpFamily, number: u32, generation: u16) -> Self {
        Self(word(family, number, generation) | sweep::CUT | sweep::AGED)
    }

    fn number(self) -> u32 {
        self.0 as u32
    }

    fn generation(self) -> u16 {
        (self.0 >> 32) as u16
    }
}

/// Returns a record as a word for `lb_sweep`.
fn word(family: IpFamily, number: u32, generation: u16) -> u64 {
    let family = if family == IpFamily::V6 { sweep::V6 } else { 0 };
    u64::from(number) | u64::from(generation) << 32 | family
}

/// Calls `visit` with each established connection of both families that no side has ended. `now_ns`
/// must be a time before this call.
pub(crate) fn for_each_established(
    maps: &MapHandles,
    now_ns: u64,
    visit: &mut impl FnMut(FlowEntry, AgedFlow),
) -> io::Result<()> {
    let timeouts = timeouts(maps)?;
    FlowTable::<[u8; 4]>::open(maps)?.for_each_established((now_ns, &timeouts), visit)?;
    FlowTable::<[u8; 16]>::open(maps)?.for_each_established((now_ns, &timeouts), visit)
}

/// Returns those of the connections that are still established, as words for `lb_sweep`.
pub(crate) fn still_established(maps: &MapHandles, flows: &[AgedFlow], now_ns: u64) -> io::Result<Vec<u64>> {
    let timeouts = timeouts(maps)?;
    let (v4, v6) = (FlowTable::<[u8; 4]>::open(maps)?, FlowTable::<[u8; 16]>::open(maps)?);
    let mut words = Vec::new();
    for flow in flows {
        let is_established = match flow.0 & sweep::V6 {
            0 => v4.is_still_established(*flow, (now_ns, &timeouts))?,
            _ => v6.is_still_established(*flow, (now_ns, &timeouts))?,
        };
        words.extend(is_established.then_some(flow.0));
    }
    Ok(words)
}

/// Makes all connections and session affinities older by some seconds, as if no packet had arrived.
/// The programs must not be attached.
pub fn age(maps: &MapHandles, seconds: u64) -> io::Result<()> {
    FlowTable::<[u8; 4]>::open(maps)?.age(seconds)?;
    FlowTable::<[u8; 16]>::open(maps)?.age(seconds)?;
    let affinities: Table<AffinityKey, Affinity> = maps.table(MapName::AFFINITY)?;
    let mut entries = Vec::new();
    affinities.for_each(|key, value| entries.push((*key, *value)))?;
    for (key, value) in entries {
        let last_used_ns = value.last_used_ns.saturating_sub(seconds * 1_000_000_000);
        affinities.put(&key, &Affinity { last_used_ns, ..value })?;
    }
    health::age(maps, seconds * 1_000_000_000)
}

/// Removes all connections, fragments and session affinities. The programs must not be attached.
pub fn forget(maps: &MapHandles) -> io::Result<()> {
    FlowTable::<[u8; 4]>::open(maps)?.forget()?;
    FlowTable::<[u8; 16]>::open(maps)?.forget()?;
    let PerFamily { v4, v6 } = loads::open(maps)?;
    [v4, v6].iter().try_for_each(loads::Loads::forget_flows)?;
    remove_all(&health::table(maps)?)?;
    remove_all(&overloaded::table(maps)?)?;
    Ok(remove_all(&maps.table::<AffinityKey, Affinity>(MapName::AFFINITY)?)?)
}

/// The maps of the connections of one family.
struct FlowTable<A> {
    records: ArrayTable<Flow<A>>,
    index: Table<FlowKey<A>, FlowIndex>,
    fragments: Table<FragmentKey<A>, FragmentPorts>,
}

impl<A: MapAddress> FlowTable<A> {
    fn open(maps: &MapHandles) -> io::Result<Self> {
        Ok(Self {
            records: maps.array(MapName::FLOWS[A::FAMILY])?,
            index: maps.table(MapName::FLOW_INDEX[A::FAMILY])?,
            fragments: maps.table(MapName::FRAGMENTS[A::FAMILY])?,
        })
    }

    fn for_each(
        &self,
        now_ns: u64,
        timeouts: &FlowTimeouts,
        over: &mut impl FnMut(u64),
        visit: &mut impl FnMut(FlowEntry),
    ) -> io::Result<()> {
        for number in 0..self.records.capacity() {
            let flow = self.records.read(number)?;
            if flow.phase == flow_phase::CLAIMED {
                continue;
            }
            if !flow.is_over(now_ns, timeouts) {
                visit(FlowEntry::new(&flow));
            } else if flow.counted != counted::NONE {
                over(word(A::FAMILY, number, flow.generation));
            }
        }
        Ok(())
    }

    fn of_backends(
        &self,
        backends: &BTreeSet<u32>,
        (now_ns, timeouts, most): (u64, &FlowTimeouts, usize),
        found: &mut Vec<(u32, u64)>,
    ) -> io::Result<()> {
        if backends.is_empty() {
            return Ok(());
        }
        for number in 0..self.records.capacity() {
            if found.len() >= most {
                break;
            }
            let flow = self.records.read(number)?;
            let is_open = flow.phase != flow_phase::CLAIMED
                && !flow.is_over(now_ns, timeouts)
                && !flow.state().has_ended();
            if is_open && backends.contains(&flow.backend_id) {
                found.push((flow.backend_id, word(A::FAMILY, number, flow.generation) | sweep::CUT));
            }
        }
        Ok(())
    }

    fn for_each_established(
        &self,
        at: (u64, &FlowTimeouts),
        visit: &mut impl FnMut(FlowEntry, AgedFlow),
    ) -> io::Result<()> {
        for number in 0..self.records.capacity() {
            let flow = self.records.read(number)?;
            if is_established(&flow, at) {
                visit(FlowEntry::new(&flow), AgedFlow::new(A::FAMILY, number, flow.generation));
            }
        }
        Ok(())
    }

    fn is_still_established(&self, flow: AgedFlow, at: (u64, &FlowTimeouts)) -> io::Result<bool> {
        let current = self.records.read(flow.number())?;
        Ok(current.generation == flow.generation() && is_established(&current, at))
    }

    fn age(&self, seconds: u64) -> io::Result<()> {
        for number in 0..self.records.capacity() {
            let flow = self.records.read(number)?;
            let last_seen_ns = flow.last_seen_ns.saturating_sub(seconds * 1_000_000_000);
            let opened_s = flow.opened_s.saturating_sub(seconds as u32);
            self.records.write(number, Flow { last_seen_ns, opened_s, ..flow })?;
        }
        Ok(())
    }

    fn forget(&self) -> io::Result<()> {
        for number in 0..self.records.capacity() {
            let flow = self.records.read(number)?;
            if flow.phase != flow_phase::FREE {
                let freed = Flow { phase: flow_phase::FREE, counted: counted::NONE, ..flow };
                self.records.write(number, freed)?;
            }
        }
        remove_all(&self.index)?;
        Ok(remove_all(&self.fragments)?)
    }
}

fn is_established<A: MapAddress>(flow: &Flow<A>, (now_ns, timeouts): (u64, &FlowTimeouts)) -> bool {
    flow.phase == flow_phase::ESTABLISHED && !flow.is_over(now_ns, timeouts) && !flow.state().has_ended()
}

fn remove_all<K: Plain, V: Plain>(table: &Table<K, V>) -> Result<(), TableError> {
    let mut keys = Vec::new();
    table.for_each(|key, _| keys.push(*key))?;
    for key in keys {
        table.remove(&key)?;
    }
    Ok(())
}
