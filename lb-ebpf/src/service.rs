//! What a destination is: a Service, something that only looks like one, or none of ours; and the endpoints of Services.

use lb_common::layout::{Backend, Service, ServiceKey, address_flags, backend_flags, network_flags};

use crate::aligned::Aligned;
use crate::client::network;
use crate::maps::Maps;

/// What stands at an address and port.
#[derive(Copy, Clone)]
pub enum Destination {
    Service(&'static Service),
    /// A ClusterIP whose Service does not have this port.
    UnknownPort,
    /// An address inside a ServiceCIDR that no Service has.
    Unassigned,
    /// Nothing that Services know of.
    Elsewhere,
}

/// The service at exactly this address and port.
#[inline(always)]
fn at_address<F: Maps>(addr: F::Addr, port: u16, protocol: u8) -> Option<&'static Service> {
    let key = Aligned(ServiceKey { addr, port, protocol, pad: 0 });
    // SAFETY: entries are replaced whole, never changed in place; a removed one stays readable until this program ends (RCU).
    unsafe { F::services().get(&key.0) }
}

/// The NodePort service of this port, whatever the address.
#[inline(always)]
pub fn at_node_port<F: Maps>(port: u16, protocol: u8) -> Option<&'static Service> {
    at_address::<F>(F::UNSPECIFIED, port, protocol)
}

/// Bits of [`address_flags`] of a destination; zero when it is neither this node's nor a Service's. To be asked first: it
/// tells with one lookup what all other packets are, those that are none of ours.
#[inline(always)]
pub fn known<F: Maps>(addr: &F::Addr) -> u32 {
    // SAFETY: only flags, one aligned word, are read.
    match unsafe { F::addresses().get(addr) } {
        Some(entry) => entry.flags,
        None => 0,
    }
}

/// What a destination that is not [`known`] is.
#[inline(always)]
pub fn at_unknown<F: Maps>(addr: F::Addr) -> Destination {
    if network::<F>(addr) & network_flags::SERVICES != 0 {
        Destination::Unassigned
    } else {
        Destination::Elsewhere
    }
}

/// What stands at a destination that is [`known`] with `flags`.
#[inline(always)]
pub fn at_known<F: Maps>(flags: u32, addr: F::Addr, port: u16, protocol: u8) -> Destination {
    if flags & address_flags::SERVICE != 0
        && let Some(service) = at_address::<F>(addr, port, protocol)
    {
        return Destination::Service(service);
    }
    if flags & address_flags::NODE_PORTS != 0
        && let Some(service) = at_node_port::<F>(port, protocol)
    {
        return Destination::Service(service);
    }
    if flags & (address_flags::CLUSTER_IP | address_flags::NODE) == address_flags::CLUSTER_IP {
        Destination::UnknownPort
    } else {
        Destination::Elsewhere
    }
}

/// An endpoint that exists.
#[inline(always)]
pub fn backend<F: Maps>(id: u32) -> Option<&'static Backend<F::Addr>> {
    F::backends().get(id).filter(|backend| backend.flags & backend_flags::PRESENT != 0)
}

/// Whether the endpoint of a flow is still there, for protocols whose flows must move when it is not.
#[inline(always)]
pub fn still_serves<F: Maps>(backend_id: u32, service_id: u32) -> bool {
    match backend::<F>(backend_id) {
        Some(backend) => backend.service_id == service_id,
        None => false,
    }
}
