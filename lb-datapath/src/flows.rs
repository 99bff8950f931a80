//! Reads the flow table. Only the programs write it, and they decide when a connection ends.

use std::io;
use std::net::SocketAddr;

use lb_common::connection::State;
use lb_common::layout::{
    Affinity, AffinityKey, Flow, FlowIndex, FlowKey, FlowTimeouts, FragmentKey, FragmentPorts,
};
use lb_common::plain::Plain;
use lb_model::IpFamily;

use crate::address::MapAddress;
use crate::apply::ReferencedIds;
use crate::apply::map_name::{MapName, TableError};
use crate::handles::MapHandles;
use crate::table::{ArrayTable, Table};

/// A connection that is translated packet by packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowEntry {
    pub family: IpFamily,
    pub protocol: u8,
    /// The phase, and the state of each direction. See [`lb_common::connection`].
    pub state: State,
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
}

/// Reads the whole table while the programs run. The cost is proportional to its size.
///
/// A connection that has ended at `now_ns` cannot be revived, so its ids are not collected.
/// `now_ns` must be a time before this call.
pub fn usage(maps: &MapHandles, now_ns: u64) -> io::Result<FlowUsage> {
    let mut usage = FlowUsage::default();
    let timeouts = timeouts(maps)?;
    let mut count = |family, flow: &FlowState| {
        usage.referenced.add(family, flow.service_id, flow.backend_id);
        if flow.state.is_half_open(flow.protocol) {
            usage.half_open += 1;
        } else {
            usage.open += 1;
        }
    };
    for_each::<[u8; 4]>(maps, now_ns, &timeouts, |flow| count(IpFamily::V4, &FlowState::of(flow)))?;
    for_each::<[u8; 16]>(maps, now_ns, &timeouts, |flow| count(IpFamily::V6, &FlowState::of(flow)))?;
    Ok(usage)
}

/// The fields of a record that do not depend on its IP family.
struct FlowState {
    protocol: u8,
    state: State,
    service_id: u32,
    backend_id: u32,
}

impl FlowState {
    fn of<A: Copy>(flow: &Flow<A>) -> Self {
        let &Flow { protocol, service_id, backend_id, .. } = flow;
        Self { protocol, state: flow.state(), service_id, backend_id }
    }
}

/// Returns all connections of both families that have not ended at `now_ns`.
pub fn read(maps: &MapHandles, now_ns: u64) -> io::Result<Vec<FlowEntry>> {
    let mut entries = Vec::new();
    let timeouts = timeouts(maps)?;
    for_each::<[u8; 4]>(maps, now_ns, &timeouts, |flow| entries.push(FlowEntry::new(flow)))?;
    for_each::<[u8; 16]>(maps, now_ns, &timeouts, |flow| entries.push(FlowEntry::new(flow)))?;
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

fn for_each<A: MapAddress>(
    maps: &MapHandles,
    now_ns: u64,
    timeouts: &FlowTimeouts,
    mut visit: impl FnMut(&Flow<A>),
) -> io::Result<()> {
    let records: ArrayTable<Flow<A>> = maps.array(MapName::FLOWS[A::FAMILY])?;
    for number in 0..records.capacity() {
        let flow = records.read(number)?;
        if flow.phase != lb_common::layout::flow_phase::CLAIMED && !flow.is_over(now_ns, timeouts) {
            visit(&flow);
        }
    }
    Ok(())
}

/// Makes all connections older by some seconds, as if no packet had arrived. The programs must not
/// be attached.
pub fn age(maps: &MapHandles, seconds: u64) -> io::Result<()> {
    age_family::<[u8; 4]>(maps, seconds)?;
    age_family::<[u8; 16]>(maps, seconds)
}

fn age_family<A: MapAddress>(maps: &MapHandles, seconds: u64) -> io::Result<()> {
    let records: ArrayTable<Flow<A>> = maps.array(MapName::FLOWS[A::FAMILY])?;
    for number in 0..records.capacity() {
        let flow = records.read(number)?;
        let last_seen_ns = flow.last_seen_ns.saturating_sub(seconds * 1_000_000_000);
        let opened_s = flow.opened_s.saturating_sub(seconds as u32);
        records.write(number, Flow { last_seen_ns, opened_s, ..flow })?;
    }
    Ok(())
}

/// Removes all connections, fragments and session affinities. The programs must not be attached.
pub fn forget(maps: &MapHandles) -> io::Result<()> {
    forget_family::<[u8; 4]>(maps)?;
    forget_family::<[u8; 16]>(maps)?;
    Ok(remove_all(&maps.table::<AffinityKey, Affinity>(MapName::AFFINITY)?)?)
}

fn forget_family<A: MapAddress>(maps: &MapHandles) -> io::Result<()> {
    let records: ArrayTable<Flow<A>> = maps.array(MapName::FLOWS[A::FAMILY])?;
    for number in 0..records.capacity() {
        let flow = records.read(number)?;
        if flow.phase != lb_common::layout::flow_phase::FREE {
            records.write(number, Flow { phase: lb_common::layout::flow_phase::FREE, ..flow })?;
        }
    }
    remove_all(&maps.table::<FlowKey<A>, FlowIndex>(MapName::FLOW_INDEX[A::FAMILY])?)?;
    Ok(remove_all(&maps.table::<FragmentKey<A>, FragmentPorts>(MapName::FRAGMENTS[A::FAMILY])?)?)
}

fn remove_all<K: Plain, V: Plain>(table: &Table<K, V>) -> Result<(), TableError> {
    let mut keys = Vec::new();
    table.for_each(|key, _| keys.push(*key))?;
    for key in keys {
        table.remove(&key)?;
    }
    Ok(())
}
