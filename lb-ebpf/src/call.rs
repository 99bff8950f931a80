//! The decision about a call at a socket (`connect`, `sendmsg`). The socket programs and `lb
//! explain` (`explain.rs`) use it.

use lb_common::layout::{ServiceEntry, service_flags};
use lb_common::reason::Reason;

use crate::address::{is_loopback, known};
use crate::aligned::Aligned;
use crate::client::{self, Client};
use crate::maps::{Maps, NAMESPACES};
use crate::record;
use crate::select::{self, Choice, Eligible, Refusal, Selected};
use crate::service::{self, Destination};
use crate::settings::NODE_NETNS_COOKIE;

/// A socket that makes a call.
pub trait Caller {
    /// Returns the cookie of its network namespace.
    fn namespace(&self) -> u64;

    /// Returns whether the socket is in the node's own network namespace, the only one whose
    /// loopback addresses serve NodePorts.
    #[inline(always)]
    fn is_in_node_namespace(&self) -> bool {
        let node = NODE_NETNS_COOKIE.load();
        node != 0 && self.namespace() == node
    }
}

/// Classifies the destination of a call.
#[inline(always)]
fn destination<F: Maps, C: Caller>(caller: &C, addr: F::Addr, port: u16, protocol: u8) -> Destination {
    if is_loopback::<F>(&addr) {
        if caller.is_in_node_namespace()
            && let Some(service) = service::at_node_port::<F>(port, protocol)
        {
            return Destination::Service(service);
        }
        return Destination::Elsewhere;
    }
    match known::<F>(&addr) {
        Some(known) => service::at_known::<F>(known, addr, port, protocol),
        None => service::at_unknown::<F>(addr),
    }
}

/// Returns the service at the destination if the socket may use it, and the refusal if it may not.
/// Returns `None` if the destination is not one of Services.
#[inline(always)]
pub fn find<F: Maps, C: Caller>(
    caller: &C,
    addr: F::Addr,
    port: u16,
    protocol: u8,
) -> Option<Result<&'static ServiceEntry, Refusal>> {
    match destination::<F, C>(caller, addr, port, protocol) {
        Destination::Service(service) => {
            record::note_service(service);
            Some(if may_use::<F, C>(caller, service) {
                Ok(service)
            } else {
                Err(Refusal::Drop(Reason::SourceRange))
            })
        }
        Destination::UnknownPort => Some(Err(Refusal::Reject)),
        Destination::Unassigned => Some(Err(Refusal::Drop(Reason::UnassignedAddress))),
        Destination::Elsewhere => None,
    }
}

/// Applies `loadBalancerSourceRanges`. A socket that is not bound has no source address yet, so the
/// address of its pod or node is checked. The call is refused if that address is unknown.
#[inline(always)]
fn may_use<F: Maps, C: Caller>(caller: &C, service: &ServiceEntry) -> bool {
    if service.flags & service_flags::SOURCE_RANGES == 0 {
        return true;
    }
    let cookie = Aligned(caller.namespace());
    // SAFETY: the address is copied. The agent replaces entries; if the element is reused during
    // the copy, the address may be a mixture of two, and this call is judged by an address that no
    // pod has.
    match unsafe { NAMESPACES.get(&cookie.0) } {
        Some(addrs) => {
            let addr = F::namespace_addr(addrs);
            addr != F::UNSPECIFIED && client::is_allowed::<F>(service, addr)
        }
        None => false,
    }
}

/// Selects an endpoint for a socket that uses the address `destination`. `counted` is as in
/// [`select::select`].
#[inline(always)]
pub fn select<F: Maps, C: Caller>(
    caller: &C,
    service: &ServiceEntry,
    destination: F::Addr,
    counted: u8,
) -> Result<Selected<F::Addr>, Refusal> {
    let cookie = if select::depends_on_client(service) { caller.namespace() } else { 0 };
    let client = select::name_by_namespace::<F>(service, cookie);
    let eligible = Eligible::of(service, Client::Inside);
    select::note_eligible(Client::Inside, &eligible);
    let choice = Choice::for_call::<F>(service, &client.0, destination);
    select::select::<F>(service, &eligible, &client.0, choice, 0, counted)
}

/// Returns the reason that is counted when a call fails.
#[inline(always)]
pub fn reason(refusal: Refusal) -> Reason {
    match refusal {
        Refusal::Reject => Reason::SocketRefused,
        Refusal::Drop(reason) => reason,
    }
}
