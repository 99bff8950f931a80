//! Classifies destinations (a Service, an address of Services without this port or without a
//! Service, or another address), and finds the endpoints of Services.

use lb_common::layout::{
    Backend, NODE, ServiceEntry, ServiceKey, address_flags, backend_flags, network_flags, node_flags,
};
use lb_common::reason::Reason;

use crate::address::{Known, network};
use crate::aligned::Aligned;
use crate::handover;
use crate::maps::{DEVICES, Maps};
use crate::verdict::Verdict;

/// The meaning of an address and port.
#[derive(Copy, Clone)]
pub enum Destination {
    Service(&'static ServiceEntry),
    /// A ClusterIP whose Service does not have this port.
    UnknownPort,
    /// An address inside a ServiceCIDR that no Service has.
    Unassigned,
    /// Not a destination of Services.
    Elsewhere,
}

/// Returns the service at exactly this address and port.
#[inline(always)]
fn at_address<F: Maps>(addr: F::Addr, port: u16, protocol: u8) -> Option<&'static ServiceEntry> {
    let key = Aligned(ServiceKey { addr, port, protocol, pad: 0 });
    // SAFETY: the agent replaces entries and never changes one in place. The memory of a replaced
    // element can be reused for another entry of this map while this program reads it. All fields
    // are plain numbers; a mixture of two services is noticed when an endpoint is chosen, because
    // the endpoint then belongs to another service id (`select.rs`).
    unsafe { F::services().get(&key.0) }
}

/// Returns the NodePort service of this port, at any address.
#[inline(always)]
pub fn at_node_port<F: Maps>(port: u16, protocol: u8) -> Option<&'static ServiceEntry> {
    at_address::<F>(F::UNSPECIFIED, port, protocol)
}

/// Returns whether a Service has this port at an address of this node: a NodePort, or an external
/// IP that the node has.
#[inline(always)]
pub fn has_port_of_node<F: Maps>(addr: F::Addr, port: u16, protocol: u8) -> bool {
    at_node_port::<F>(port, protocol).is_some() || at_address::<F>(addr, port, protocol).is_some()
}

/// Classifies a destination that is not [`crate::address::known`].
#[inline(always)]
pub fn at_unknown<F: Maps>(addr: F::Addr) -> Destination {
    if network::<F>(addr) & network_flags::SERVICES != 0 {
        Destination::Unassigned
    } else {
        Destination::Elsewhere
    }
}

/// Returns the verdict for a packet to an address that is not [`crate::address::known`].
#[inline(always)]
pub fn to_unknown<F: Maps>(addr: F::Addr) -> Verdict {
    match at_unknown::<F>(addr) {
        Destination::Unassigned => Verdict::Drop(Reason::UnassignedAddress),
        _ => handover::unknown(),
    }
}

/// Classifies a destination whose address is known. A local process serves a ClusterIP that this
/// node has itself (NodeLocal DNSCache).
#[inline(always)]
pub fn at_known<F: Maps>(known: Known, addr: F::Addr, port: u16, protocol: u8) -> Destination {
    if known.has(address_flags::CLUSTER_IP) && known.has(address_flags::NODE) {
        return Destination::Elsewhere;
    }
    if known.has(address_flags::SERVICE)
        && let Some(service) = at_address::<F>(addr, port, protocol)
    {
        return Destination::Service(service);
    }
    if known.takes_node_ports()
        && let Some(service) = at_node_port::<F>(port, protocol)
    {
        return Destination::Service(service);
    }
    if known.has(address_flags::CLUSTER_IP) { Destination::UnknownPort } else { Destination::Elsewhere }
}

/// Returns whether no other proxy has connections to Services on this node: kube-proxy has left
/// nothing here.
#[inline(always)]
pub fn are_all_served() -> bool {
    // SAFETY: only `flags` is read, one aligned word, which is never removed.
    unsafe { DEVICES.get(&NODE) }.is_some_and(|node| node.flags & node_flags::NO_KUBE_PROXY != 0)
}

/// Returns the endpoint with this id, if it exists.
///
/// Elements of an array are never freed. The agent clears an entry before it fills it for another
/// endpoint, and only after a grace period: the fields that are read after `flags` belong to one
/// endpoint.
#[inline(always)]
pub fn backend<F: Maps>(id: u32) -> Option<&'static Backend<F::Addr>> {
    F::backends().get(id).filter(|backend| backend.flags & backend_flags::PRESENT != 0)
}

/// Returns whether the endpoint of a flow still exists. Datagram flows move to another endpoint
/// when it does not.
#[inline(always)]
pub fn still_serves<F: Maps>(backend_id: u32, service_id: u32) -> bool {
    match backend::<F>(backend_id) {
        Some(backend) => backend.service_id == service_id,
        None => false,
    }
}
