//! What becomes of a call at a socket (`connect`, `sendmsg`). Decided here for the socket programs, and for `lb explain`: those
//! programs have no test run, so a recording packet program asks in their place.

use lb_common::layout::{Backend, FlowKey, Service, service_flags};
use lb_common::reason::Reason;

use crate::aligned::Aligned;
use crate::client::{self, Client};
use crate::count::count;
use crate::maps::{Maps, NAMESPACES};
use crate::record::{self, note};
use crate::select::{self, Eligible, Refusal};
use crate::service::{self, Destination};
use crate::settings::NODE_NETNS_COOKIE;
use crate::verdict::Verdict;

/// A socket that asks.
pub trait Caller {
    /// Cookie of its network namespace.
    fn namespace(&self) -> u64;

    /// Whether it lives in the node's own network namespace: the only one whose loopback serves NodePorts.
    #[inline(always)]
    fn is_in_node_namespace(&self) -> bool {
        let node = NODE_NETNS_COOKIE.load();
        node != 0 && self.namespace() == node
    }
}

/// Whether a host calls itself so.
#[inline(always)]
pub fn is_loopback<F: Maps>(addr: &F::Addr) -> bool {
    if F::IS_V6 { *addr == F::LOOPBACK } else { addr.as_ref().first() == Some(&127) }
}

/// What stands at a socket's destination.
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
    match service::known::<F>(&addr) {
        0 => service::at_unknown::<F>(addr),
        flags => service::at_known::<F>(flags, addr, port, protocol),
    }
}

/// The service that a socket may use at its destination; nothing when it is none of ours.
#[inline(always)]
pub fn find<F: Maps, C: Caller>(
    caller: &C,
    addr: F::Addr,
    port: u16,
    protocol: u8,
) -> Option<Result<&'static Service, Refusal>> {
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

/// `loadBalancerSourceRanges`: a socket that is not bound has no source yet, so the address of its pod or node counts. Where
/// that is not known nobody can say that it is allowed.
#[inline(always)]
fn may_use<F: Maps, C: Caller>(caller: &C, service: &Service) -> bool {
    if service.flags & service_flags::SOURCE_RANGES == 0 {
        return true;
    }
    let cookie = Aligned(caller.namespace());
    // SAFETY: entries are replaced whole.
    match unsafe { NAMESPACES.get(&cookie.0) } {
        Some(addrs) => {
            let addr = F::namespace_addr(addrs);
            addr != F::UNSPECIFIED && client::is_allowed::<F>(service, addr)
        }
        None => false,
    }
}

/// Takes an endpoint for a socket.
#[inline(always)]
pub fn select<F: Maps, C: Caller>(
    caller: &C,
    service: &Service,
) -> Result<(u32, &'static Backend<F::Addr>), Refusal> {
    let cookie = if service.affinity_seconds != 0 { caller.namespace() } else { 0 };
    let client = select::name_by_namespace::<F>(service, cookie);
    let eligible = Eligible::of(service, Client::Inside);
    record::note_eligible(Client::Inside, &eligible);
    select::select::<F>(service, &eligible, &client.0)
}

/// What is counted when a call fails.
#[inline(always)]
pub fn reason(refusal: Refusal) -> Reason {
    match refusal {
        Refusal::Reject => Reason::SocketRefused,
        Refusal::Drop(reason) => reason,
    }
}

/// The socket that a packet stands for, by its network namespace.
struct Recorded(u64);

impl Caller for Recorded {
    #[inline(always)]
    fn namespace(&self) -> u64 {
        self.0
    }
}

/// Writes down what becomes of a `connect` to a packet's destination. The packet stays as it is.
#[inline(always)]
pub fn record<F: Maps>(key: &FlowKey<F::Addr>, namespace: u64) -> Verdict {
    let caller = Recorded(namespace);
    let service = match find::<F, _>(&caller, key.dst_addr, key.dst_port, key.protocol) {
        Some(Ok(service)) => service,
        Some(Err(refusal)) => return refused(refusal),
        None => return Verdict::Pass,
    };
    match select::<F, _>(&caller, service) {
        Ok((backend_id, _)) => {
            note(|record| record.backend_id = backend_id);
            count(Reason::SocketTranslated);
            Verdict::Pass
        }
        Err(refusal) => refused(refusal),
    }
}

#[inline(always)]
fn refused(refusal: Refusal) -> Verdict {
    count(reason(refusal));
    Verdict::Pass
}
