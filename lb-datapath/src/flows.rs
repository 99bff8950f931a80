//! The flow tables: reading them, and removing what is over.

use std::io;
use std::net::SocketAddr;

use lb_common::layout::{
    Affinity, AffinityKey, Flow, FlowKey, FragmentKey, FragmentPorts, SCTP, TCP, direction, tcp_flags,
};
use lb_common::plain::Plain;
use lb_model::IpFamily;

use crate::address::MapAddress;
use crate::apply::NamedByFlows;
use crate::apply::tables::ServiceAddress;
use crate::handles::MapHandles;
use crate::map_name::{MapName, TableError};
use crate::table::Table;

/// One entry of a flow table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowEntry {
    pub family: IpFamily,
    pub protocol: u8,
    /// The tuple as it arrives.
    pub src: SocketAddr,
    pub dst: SocketAddr,
    /// The tuple it leaves with.
    pub new_src: SocketAddr,
    pub new_dst: SocketAddr,
    pub backend_id: u32,
    pub service_id: u32,
    /// See [`lb_common::layout::direction`].
    pub direction: u8,
    /// See [`lb_common::layout::deliver`].
    pub deliver: u8,
    /// TCP flags seen in this direction, or what SCTP says in the same words.
    pub tcp_seen: u8,
    /// `CLOCK_MONOTONIC`, see [`crate::monotonic_ns`].
    pub last_seen_ns: u64,
    /// Not answered in both directions yet.
    pub half_open: bool,
}

impl FlowEntry {
    fn new<A: MapAddress>(key: &FlowKey<A>, flow: &Flow<A>, half_open: bool) -> Self {
        Self {
            family: A::FAMILY,
            protocol: key.protocol,
            src: SocketAddr::new(key.src_addr.to_ip(), key.src_port),
            dst: SocketAddr::new(key.dst_addr.to_ip(), key.dst_port),
            new_src: SocketAddr::new(flow.new_src_addr.to_ip(), flow.new_src_port),
            new_dst: SocketAddr::new(flow.new_dst_addr.to_ip(), flow.new_dst_port),
            backend_id: flow.backend_id,
            service_id: flow.service_id,
            direction: flow.direction,
            deliver: flow.deliver,
            tcp_seen: flow.tcp_seen,
            last_seen_ns: flow.last_seen_ns,
            half_open,
        }
    }
}

/// After how long without a packet a connection is over, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowTimeouts {
    /// TCP, open on both sides: as kube-proxy's `--conntrack-tcp-timeout-established`.
    pub tcp_established: u64,
    /// TCP, closed by one side: as kube-proxy's `--conntrack-tcp-timeout-close-wait`.
    pub tcp_half_closed: u64,
    /// SCTP that is not closed by both sides, as `net.netfilter.nf_conntrack_sctp_timeout_established`: an idle association sends a
    /// HEARTBEAT every 30 s (RFC 9260 8.3) and is given up after some without an answer.
    pub sctp: u64,
    /// TCP and SCTP, closed by both sides, reset or aborted: long enough for a last retransmission.
    pub closed: u64,
    /// UDP: as `net.netfilter.nf_conntrack_udp_timeout_stream`.
    pub datagrams: u64,
}

impl Default for FlowTimeouts {
    fn default() -> Self {
        Self { tcp_established: 24 * 3600, tcp_half_closed: 3600, sctp: 210, closed: 20, datagrams: 120 }
    }
}

impl FlowTimeouts {
    /// Seconds that a connection may be silent. `request` and `reply`: flags seen in each direction.
    fn allowed(&self, protocol: u8, request: u8, reply: u8) -> u64 {
        let (established, half_closed) = match protocol {
            TCP => (self.tcp_established, self.tcp_half_closed),
            SCTP => (self.sctp, self.sctp),
            _ => return self.datagrams,
        };
        let closed = |seen: u8| seen & tcp_flags::FIN != 0;
        if (request | reply) & tcp_flags::RST != 0 || (closed(request) && closed(reply)) {
            self.closed
        } else if closed(request) || closed(reply) {
            half_closed
        } else {
            established
        }
    }
}

/// What a sweep found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FlowSweep {
    /// Ids that flows still name, half-open ones too.
    pub named: NamedByFlows,
    /// Entries that stay in the flow tables, both families.
    pub open: usize,
    /// Entries in the half-open tables, both families.
    pub half_open: usize,
    /// Entries removed: silent for too long, or not served any more.
    pub expired: usize,
}

/// One pass over all flow tables. The cost is proportional to the number of flows; the programs go on meanwhile.
///
/// `serves`: whether a service port is still served at an address. Connections of one that is not end here.
pub fn sweep(
    maps: &MapHandles,
    now_ns: u64,
    timeouts: &FlowTimeouts,
    serves: &impl Fn(u32, ServiceAddress) -> bool,
) -> io::Result<FlowSweep> {
    let mut sweep = FlowSweep::default();
    sweep_family::<[u8; 4]>(maps, now_ns, timeouts, serves, &mut sweep)?;
    sweep_family::<[u8; 16]>(maps, now_ns, timeouts, serves, &mut sweep)?;
    Ok(sweep)
}

/// The address that the client of a connection uses.
fn service_address<A: MapAddress>(key: &FlowKey<A>, flow: &Flow<A>) -> ServiceAddress {
    let (addr, port) = match flow.direction {
        direction::REPLY => (flow.new_src_addr, flow.new_src_port),
        _ => (key.dst_addr, key.dst_port),
    };
    ServiceAddress { ip: addr.to_ip(), port, protocol: key.protocol }
}

fn sweep_family<A: MapAddress>(
    maps: &MapHandles,
    now_ns: u64,
    timeouts: &FlowTimeouts,
    serves: &impl Fn(u32, ServiceAddress) -> bool,
    sweep: &mut FlowSweep,
) -> io::Result<()> {
    let open: Table<FlowKey<A>, Flow<A>> = maps.table(MapName::FLOWS[A::FAMILY])?;
    let half_open: Table<FlowKey<A>, Flow<A>> = maps.table(MapName::HALF_OPEN[A::FAMILY])?;
    // The shortest time-out spares most entries the look at their other half.
    let shortest = timeouts.closed.min(timeouts.datagrams);
    let silent_for = |flow: &Flow<A>| now_ns.saturating_sub(flow.last_seen_ns) / 1_000_000_000;
    let mut over = Vec::new();
    let mut error = None;
    open.for_each(|key, flow| {
        sweep.open += 1;
        if !serves(flow.service_id, service_address(key, flow)) {
            over.push((*key, flow.other_key(key.protocol)));
            return;
        }
        let silent = silent_for(flow);
        if silent >= shortest {
            let other = flow.other_key(key.protocol);
            let expired = match open.get(&other) {
                // A connection is as young as its last packet in either direction.
                Ok(Some(peer)) => {
                    silent.min(silent_for(&peer))
                        >= timeouts.allowed(key.protocol, flow.tcp_seen, peer.tcp_seen)
                }
                Ok(None) => true,
                Err(source) => {
                    error.get_or_insert(source);
                    false
                }
            };
            if expired {
                over.push((*key, other));
                return;
            }
        }
        sweep.named.add(A::FAMILY, flow.service_id, flow.backend_id);
    })?;
    if let Some(error) = error {
        return Err(error.into());
    }
    for (key, other) in over {
        for key in [key, other] {
            if open.remove(&key)? {
                sweep.expired += 1;
                sweep.open -= 1;
            }
        }
    }
    let mut unserved = Vec::new();
    half_open.for_each(|key, flow| {
        if serves(flow.service_id, service_address(key, flow)) {
            sweep.half_open += 1;
            sweep.named.add(A::FAMILY, flow.service_id, flow.backend_id);
        } else {
            unserved.push(*key);
        }
    })?;
    for key in unserved {
        sweep.expired += usize::from(half_open.remove(&key)?);
    }
    Ok(())
}

/// Empties the flow tables, and what is remembered of fragments and of clients. Connections that are translated break.
pub fn forget(maps: &MapHandles) -> io::Result<()> {
    forget_family::<[u8; 4]>(maps)?;
    forget_family::<[u8; 16]>(maps)?;
    Ok(remove_all(&maps.table::<AffinityKey, Affinity>(MapName::AFFINITY)?)?)
}

fn forget_family<A: MapAddress>(maps: &MapHandles) -> io::Result<()> {
    for names in [MapName::FLOWS, MapName::HALF_OPEN] {
        remove_all(&maps.table::<FlowKey<A>, Flow<A>>(names[A::FAMILY])?)?;
    }
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

/// Every entry of the flow tables of both families.
pub fn read(maps: &MapHandles) -> io::Result<Vec<FlowEntry>> {
    let mut entries = Vec::new();
    read_family::<[u8; 4]>(maps, &mut entries)?;
    read_family::<[u8; 16]>(maps, &mut entries)?;
    Ok(entries)
}

fn read_family<A: MapAddress>(maps: &MapHandles, entries: &mut Vec<FlowEntry>) -> io::Result<()> {
    for (names, half_open) in [(MapName::FLOWS, false), (MapName::HALF_OPEN, true)] {
        let table: Table<FlowKey<A>, Flow<A>> = maps.table(names[A::FAMILY])?;
        table.for_each(|key, flow| entries.push(FlowEntry::new(key, flow, half_open)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcp_is_kept_as_long_as_its_state_deserves() {
        let timeouts = FlowTimeouts::default();
        let (syn_ack, fin, rst) =
            (tcp_flags::SYN | tcp_flags::ACK, tcp_flags::FIN | tcp_flags::ACK, tcp_flags::RST);
        assert_eq!(timeouts.allowed(TCP, syn_ack, syn_ack), timeouts.tcp_established);
        assert_eq!(timeouts.allowed(TCP, fin, syn_ack), timeouts.tcp_half_closed);
        assert_eq!(timeouts.allowed(TCP, syn_ack, fin), timeouts.tcp_half_closed);
        assert_eq!(timeouts.allowed(TCP, fin, fin), timeouts.closed);
        assert_eq!(timeouts.allowed(TCP, syn_ack, rst), timeouts.closed);
    }

    #[test]
    fn sctp_is_kept_while_it_sends_heartbeats() {
        let timeouts = FlowTimeouts::default();
        let (open, shutdown, abort) =
            (tcp_flags::SYN | tcp_flags::ACK, tcp_flags::FIN | tcp_flags::ACK, tcp_flags::RST);
        assert_eq!(timeouts.allowed(SCTP, open, open), timeouts.sctp);
        assert_eq!(timeouts.allowed(SCTP, shutdown, open), timeouts.sctp);
        assert_eq!(timeouts.allowed(SCTP, shutdown, shutdown), timeouts.closed);
        assert_eq!(timeouts.allowed(SCTP, open, abort), timeouts.closed);
    }

    #[test]
    fn datagrams_say_nothing_and_are_kept_for_a_while() {
        let timeouts = FlowTimeouts::default();
        assert_eq!(timeouts.allowed(lb_common::layout::UDP, 0, 0), timeouts.datagrams);
    }
}
