//! Is this address a Service's, and which endpoint is taken.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use lb_common::layout::{Backend, Service, ServiceKey, address_flags, backend_flags, service_flags};
use lb_common::reason::Reason;

use crate::aligned::Aligned;
use crate::maps::{Maps, SLOTS};

/// Who asks: decides which range of slots is used.
#[derive(Copy, Clone, PartialEq, Eq)]
pub enum Client {
    /// A packet from outside the cluster.
    Outside,
    /// A pod or this node.
    Inside,
}

/// Why no endpoint is taken.
#[derive(Copy, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Answer with an error.
    Reject,
    /// Say nothing.
    Drop(Reason),
}

/// The service at exactly this address and port.
#[inline(always)]
pub fn at_address<F: Maps>(addr: F::Addr, port: u16, protocol: u8) -> Option<&'static Service> {
    let key = Aligned(ServiceKey { addr, port, protocol, pad: 0 });
    // SAFETY: entries are replaced whole, never changed in place; a removed one stays readable until this program ends (RCU).
    unsafe { F::services().get(&key.0) }
}

/// The NodePort service of this port, whatever the address.
#[inline(always)]
pub fn at_node_port<F: Maps>(port: u16, protocol: u8) -> Option<&'static Service> {
    at_address::<F>(F::UNSPECIFIED, port, protocol)
}

/// Whether NodePorts are served at this address.
#[inline(always)]
pub fn takes_node_ports<F: Maps>(addr: &F::Addr) -> bool {
    // SAFETY: only flags, one aligned word, are read.
    match unsafe { F::addresses().get(addr) } {
        Some(entry) => entry.flags & address_flags::NODE_PORTS != 0,
        None => false,
    }
}

/// The service that a destination belongs to.
#[inline(always)]
pub fn find<F: Maps>(addr: F::Addr, port: u16, protocol: u8) -> Option<&'static Service> {
    if let Some(service) = at_address::<F>(addr, port, protocol) {
        return Some(service);
    }
    if takes_node_ports::<F>(&addr) { at_node_port::<F>(port, protocol) } else { None }
}

/// An endpoint that may be taken for a new connection.
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

/// Whether the endpoint that a client was given before, of this id and address, may be given to it again. The address is
/// compared because ids are used again, by another endpoint of the same service perhaps.
#[inline(always)]
pub fn takes_new<F: Maps>(backend_id: u32, service_id: u32, addr: F::Addr, port: u16) -> bool {
    match backend::<F>(backend_id) {
        Some(backend) => {
            backend.service_id == service_id
                && backend.flags & backend_flags::IN_CLUSTER != 0
                && backend.port == port
                && backend.addr == addr
        }
        None => false,
    }
}

/// Takes an endpoint for a new connection: its id and entry.
#[inline(always)]
pub fn select<F: Maps>(
    service: &Service,
    client: Client,
) -> Result<(u32, &'static Backend<F::Addr>), Refusal> {
    let (base, count, drop) = match client {
        Client::Outside => (service.outside_base, service.outside_count, service_flags::OUTSIDE_DROP),
        Client::Inside => (service.inside_base, service.inside_count, service_flags::INSIDE_DROP),
    };
    if count == 0 {
        return Err(if service.flags & drop != 0 {
            Refusal::Drop(Reason::NoEndpointDropped)
        } else {
            Refusal::Reject
        });
    }
    // SAFETY: the helper has no preconditions.
    let random = unsafe { bpf_get_prandom_u32() } as u64;
    // Multiply and shift instead of a division: uniform to within count / 2^32.
    let index = ((random * count as u64) >> 32) as u32;
    let id = *SLOTS.get(base.wrapping_add(index)).ok_or(Refusal::Drop(Reason::MapInconsistent))?;
    let backend = backend::<F>(id).ok_or(Refusal::Drop(Reason::MapInconsistent))?;
    Ok((id, backend))
}
