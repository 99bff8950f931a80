//! The first filter: recognizes most packets that are not for Sluice, without a hash lookup. A bit
//! that is not set proves that no entry of the maps, and no connection, needs the packet. A bit
//! that is set by chance costs the lookups that the filter saves.
//!
//! | a packet may belong to | if this bit is set |
//! |---|---|
//! | a Service, or a request of a connection | its destination is an address of Services |
//! | a NodePort, or a request of a connection | its destination port is a NodePort |
//! | a reply of a connection | its source address and port are an endpoint's |
//! | an address of Services that no Service has | its destination is in the network of a ServiceCIDR |
//! | a connection that replaces a closed one, see [`crate::flow::give_up_closed`] | its destination is an endpoint |
//!
//! The address of this node that a reply is addressed to does not matter, so the agent need not
//! know it.

use lb_common::filter::{Position, node_port};

use crate::handover;
use crate::maps::{FILTER, Maps};
use crate::packet::Packet;

/// Returns whether the bit is set.
#[inline(always)]
fn is_set(position: Position) -> bool {
    // Aligned words of an array. The agent sets a bit before the entry that needs it.
    FILTER.get(position.line).is_none_or(|line| position.is_set(line))
}

/// Returns whether a packet that arrives here may belong to a Service or a connection.
#[inline(always)]
pub fn may_be_ours<F: Maps>(packet: &Packet<F>) -> bool {
    let key = &packet.key;
    let destination = F::spread(key.dst_addr);
    is_set(destination.service())
        || may_be_reply(packet)
        || is_set(node_port(key.dst_port, key.protocol))
        || is_set(F::service_network(key.dst_addr))
        || (packet.opens() && !packet.is_datagram() && is_set(destination.endpoint(key.dst_port)))
}

/// Returns whether a packet that leaves may be an endpoint's reply, or a datagram from an address
/// and port of a Service, see [`crate::flow::keep_answer`].
#[inline(always)]
pub fn may_leave_as_ours<F: Maps>(packet: &Packet<F>) -> bool {
    let key = &packet.key;
    may_be_reply(packet)
        || (packet.is_datagram()
            && (is_set(node_port(key.src_port, key.protocol)) || is_set(F::spread(key.src_addr).service())))
}

/// Returns whether a Service may have this port at an address of this node, see
/// [`crate::service::has_port_of_node`].
#[inline(always)]
pub fn may_have_port_of_node<F: Maps>(addr: F::Addr, port: u16, protocol: u8) -> bool {
    handover::is_going_on() || is_set(node_port(port, protocol)) || is_set(F::spread(addr).service())
}

/// Returns whether a packet may be an endpoint's reply.
#[inline(always)]
fn may_be_reply<F: Maps>(packet: &Packet<F>) -> bool {
    // While the agent converts, the earlier maps may have entries whose bits are not set yet.
    handover::is_going_on() || is_set(F::spread(packet.key.src_addr).endpoint(packet.key.src_port))
}
