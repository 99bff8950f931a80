//! Socket programs. A process calls `connect` or `sendmsg` with a Service's address, and the kernel
//! continues with the address of an endpoint. `recvmsg` and `getpeername` return the Service's
//! address. No packet is rewritten.
//!
//! An IPv6 socket may use IPv4-mapped addresses (`::ffff:10.96.0.1`), which reach IPv4 Services.

mod address;
pub mod bind;
mod context;
pub mod release;
mod report;

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::programs::SockAddrContext;
use lb_common::age::mark;
use lb_common::family::{V4, V6};
use lb_common::layout::{ConnectedPeer, CountedSocket, SocketPeer, SocketPeerKey, UDP, counted};
use lb_common::reason::Reason;

use self::address::{In4, In6, Mapped, SocketAddress, is_mapped};
pub use self::context::ALLOW;
use self::context::{cookie, is_served, protocol};
use crate::aligned::Aligned;
use crate::call;
use crate::client::Client;
use crate::clock::now;
use crate::count::count;
use crate::event::is_watched;
use crate::loads::recount_socket;
use crate::maps::{CONNECTED, COUNTED, Maps};
use crate::select::{Eligible, Selected};
use crate::settings::CONVERTING;

pub fn connect4(context: &SockAddrContext) -> i32 {
    connect::<V4, In4>(context)
}

pub fn connect6(context: &SockAddrContext) -> i32 {
    if is_mapped(context) { connect::<V4, Mapped>(context) } else { connect::<V6, In6>(context) }
}

pub fn sendmsg4(context: &SockAddrContext) -> i32 {
    sendmsg::<V4, In4>(context)
}

pub fn sendmsg6(context: &SockAddrContext) -> i32 {
    if is_mapped(context) { sendmsg::<V4, Mapped>(context) } else { sendmsg::<V6, In6>(context) }
}

/// Returns whether the sender is a Service, or the endpoint that this socket uses for a Service.
pub fn recvmsg4(context: &SockAddrContext) -> bool {
    recvmsg::<V4, In4>(context)
}

/// As [`recvmsg4`].
pub fn recvmsg6(context: &SockAddrContext) -> bool {
    if is_mapped(context) { recvmsg::<V4, Mapped>(context) } else { recvmsg::<V6, In6>(context) }
}

/// Returns whether the peer is the endpoint that this socket uses for a Service.
pub fn getpeername4(context: &SockAddrContext) -> bool {
    show_service::<In4>(context)
}

/// As [`getpeername4`].
pub fn getpeername6(context: &SockAddrContext) -> bool {
    if is_mapped(context) { show_service::<Mapped>(context) } else { show_service::<In6>(context) }
}

#[inline(always)]
fn connect<F: Maps, S: SocketAddress<F>>(context: &SockAddrContext) -> i32 {
    if !is_served(context) {
        return ALLOW;
    }
    let Some(protocol) = protocol(context) else { return ALLOW };
    let (addr, port) = (S::address(context), address::port(context));
    let service = match call::find::<F, _>(context, addr, port, protocol) {
        Some(Ok(service)) => service,
        Some(Err(refusal)) => return refuse::<S>(context, call::reason(refusal)),
        None => {
            leave(context);
            return ALLOW;
        }
    };
    // While an agent converts the maps of one that counts no sockets, the programs that see the end
    // of sockets may not be attached yet.
    let counted = match protocol {
        _ if CONVERTING.load() != 0 => counted::NONE,
        UDP => counted::INACTIVE,
        _ => counted::ACTIVE,
    };
    give_up(context);
    let Selected { id: backend_id, backend, is_counted } =
        match call::select::<F, _>(context, service, addr, counted) {
            Ok(selected) => selected,
            Err(refusal) => {
                // A UDP socket stays connected as it was. The others were not connected any more.
                if protocol == UDP {
                    take_back(context);
                }
                return refuse::<S>(context, call::reason(refusal));
            }
        };
    let mut peer = Aligned(ConnectedPeer {
        service_addr: S::widen(&addr),
        backend_addr: S::widen(&backend.addr),
        service_port: port,
        backend_port: backend.port,
        backend_id,
        service_id: service.service_id,
    });
    // SAFETY: the socket belongs to the context, and the entry to the socket. `get_or_insert`
    // returns the entry of an earlier connect unchanged, so it is overwritten. A concurrent reader
    // may see a mixture: the process called `connect` and `getpeername` on one socket at the same
    // time.
    unsafe {
        let stored = CONNECTED.get_or_insert_ptr_mut(context, Some(&mut peer.0));
        if !stored.is_null() {
            *stored = peer.0;
        }
    }
    count_socket::<F>(context, backend_id, counted, is_counted);
    report::opened::<F>(context, &peer.0);
    S::set_address(context, backend.addr);
    address::set_port(context, backend.port);
    count(Reason::SocketTranslated);
    ALLOW
}

/// Reports, counts and fails a call.
#[inline(always)]
fn refuse<S: address::Wide>(context: &SockAddrContext, reason: Reason) -> i32 {
    report::refused::<S>(context, reason);
    context::refuse(reason)
}

/// Counts a socket that connects to an endpoint. It counts at no other one, see [`give_up`].
/// `is_counted`: the endpoint has counted it already.
#[inline(always)]
fn count_socket<F: Maps>(context: &SockAddrContext, backend_id: u32, counted: u8, is_counted: bool) {
    let mut none = Aligned(CountedSocket { backend_id: 0, is_v6: 0, counted: counted::NONE, opened: 0 });
    // SAFETY: the socket belongs to the context, and the entry to the socket.
    if let Some(known) = unsafe { COUNTED.get_or_insert_ptr_mut(context, Some(&mut none.0)).as_mut() } {
        *known = CountedSocket { backend_id, is_v6: F::IS_V6 as u8, counted, opened: mark(now()) };
        if !is_counted {
            recount_socket::<F>(backend_id, counted::NONE, counted);
        }
    } else if is_counted {
        recount_socket::<F>(backend_id, counted, counted::NONE);
    }
}

/// Returns the entry of a socket that was counted before.
#[inline(always)]
fn counted_socket(context: &SockAddrContext) -> Option<&'static mut CountedSocket> {
    // SAFETY: the socket belongs to the context, and the entry to the socket. The kernel holds the
    // lock of the socket during the call.
    unsafe { COUNTED.get_ptr_mut(context).as_mut() }
}

/// Counts a socket that connects again no longer at its endpoint, so that it can get the same place
/// again. The entry keeps the endpoint, for [`take_back`].
#[inline(never)]
fn give_up(context: &SockAddrContext) {
    if let Some(known) = counted_socket(context) {
        uncount(known);
    }
}

/// Counts a UDP socket at its endpoint again: its connect fails. Its place may have been taken
/// meanwhile, so the endpoint can have one connection more than its upper threshold.
#[inline(never)]
fn take_back(context: &SockAddrContext) {
    if let Some(known) = counted_socket(context)
        && known.backend_id != 0
    {
        known.counted = counted::INACTIVE;
        if known.is_v6 != 0 {
            recount_socket::<V6>(known.backend_id, counted::NONE, counted::INACTIVE);
        } else {
            recount_socket::<V4>(known.backend_id, counted::NONE, counted::INACTIVE);
        }
    }
}

/// Counts a socket no longer: it connects to an address that is not one of Services.
#[inline(never)]
fn leave(context: &SockAddrContext) {
    if let Some(known) = counted_socket(context) {
        uncount(known);
        known.backend_id = 0;
    }
}

/// Counts a socket no longer at its endpoint.
#[inline(always)]
fn uncount(socket: &mut CountedSocket) {
    let CountedSocket { backend_id, is_v6, counted, .. } = *socket;
    if counted == counted::NONE {
        return;
    }
    socket.counted = counted::NONE;
    if is_v6 != 0 {
        recount_socket::<V6>(backend_id, counted, counted::NONE);
    } else {
        recount_socket::<V4>(backend_id, counted, counted::NONE);
    }
}

/// Translates one datagram of an unconnected socket. The socket keeps its endpoint while that takes
/// new connections, and while it terminates but still serves.
#[inline(always)]
fn sendmsg<F: Maps, S: SocketAddress<F>>(context: &SockAddrContext) -> i32 {
    if !is_served(context) {
        return ALLOW;
    }
    let (addr, port) = (S::address(context), address::port(context));
    let service = match call::find::<F, _>(context, addr, port, UDP) {
        Some(Ok(service)) => service,
        Some(Err(refusal)) => return refuse::<S>(context, call::reason(refusal)),
        None => return ALLOW,
    };
    let mut key = SocketPeerKey { cookie: cookie(context), addr, port, pad: [0; 2] };
    // SAFETY: the fields that are used are compared with the endpoint below. If the element is
    // evicted and reused meanwhile, they are not equal, or the endpoint is one of this service too.
    if let Some(known) = unsafe { F::socket_peers().get(&key) }
        && let Some(backend) = Eligible::of(service, Client::Inside).keep::<F>(service, known.backend_id)
        // The agent reuses ids: this must still be the endpoint of this socket.
        && backend.port == known.port
        && backend.addr == known.addr
    {
        let backend_id = known.backend_id;
        key.addr = backend.addr;
        key.port = backend.port;
        show_replies_as::<F>(&key, addr, port, backend_id, service.service_id);
        S::set_address(context, backend.addr);
        address::set_port(context, backend.port);
        return ALLOW;
    }
    let Selected { id: backend_id, backend, .. } =
        match call::select::<F, _>(context, service, addr, counted::NONE) {
            Ok(selected) => selected,
            Err(refusal) => return refuse::<S>(context, call::reason(refusal)),
        };
    let peer = Aligned(SocketPeer {
        addr: backend.addr,
        port: backend.port,
        pad: 0,
        backend_id,
        service_id: service.service_id,
    });
    // If the insert fails, the datagram reaches an endpoint all the same, and the next one perhaps
    // another.
    let _ = F::socket_peers().insert(&key, &peer.0, BPF_ANY as u64);
    if is_watched() {
        report::opened::<F>(
            context,
            &ConnectedPeer {
                service_addr: S::widen(&addr),
                backend_addr: S::widen(&backend.addr),
                service_port: port,
                backend_port: backend.port,
                backend_id,
                service_id: service.service_id,
            },
        );
    }
    key.addr = backend.addr;
    key.port = backend.port;
    show_replies_as::<F>(&key, addr, port, backend_id, service.service_id);
    S::set_address(context, backend.addr);
    address::set_port(context, backend.port);
    count(Reason::SocketTranslated);
    ALLOW
}

/// Makes replies of the endpoint in `key` show the service at `addr` and `port`. The entry may have
/// been evicted, or the socket may have sent to another service with the same endpoint in the
/// meantime. Replies show the service that the socket has sent to last.
#[inline(always)]
fn show_replies_as<F: Maps>(
    key: &SocketPeerKey<F::Addr>,
    addr: F::Addr,
    port: u16,
    backend_id: u32,
    service_id: u32,
) {
    // SAFETY: both fields are compared only. If the element is evicted and reused meanwhile, the
    // next datagram makes the entry again.
    if let Some(known) = unsafe { F::socket_peers().get(key) }
        && known.port == port
        && known.addr == addr
    {
        return;
    }
    let service = Aligned(SocketPeer { addr, port, pad: 0, backend_id, service_id });
    // If the insert fails, the reply has the endpoint's address.
    let _ = F::socket_peers().insert(key, &service.0, BPF_ANY as u64);
}

/// Replaces the sender of a received datagram by the service, if the sender is an endpoint that
/// this socket uses.
#[inline(always)]
fn recvmsg<F: Maps, S: SocketAddress<F>>(context: &SockAddrContext) -> bool {
    let key = SocketPeerKey {
        cookie: cookie(context),
        addr: S::address(context),
        port: address::port(context),
        pad: [0; 2],
    };
    // SAFETY: address and port are copied. If the element is evicted and reused during the copy,
    // the process sees a wrong sender of this one datagram.
    if let Some(service) = unsafe { F::socket_peers().get(&key) } {
        S::set_address(context, service.addr);
        address::set_port(context, service.port);
        return true;
    }
    show_service::<S>(context)
}

/// Replaces the address by the service that the socket was connected to, if the address is the
/// endpoint.
#[inline(always)]
fn show_service<S: address::Wide>(context: &SockAddrContext) -> bool {
    // SAFETY: the socket belongs to the context, and the entry to the socket. The pointer is null
    // if the socket was never connected to a service.
    let Some(peer) = (unsafe { CONNECTED.get_ptr_mut(context).as_ref() }) else { return false };
    if address::port(context) == peer.backend_port && S::wide(context) == peer.backend_addr {
        S::set_wide(context, &peer.service_addr);
        address::set_port(context, peer.service_port);
        return true;
    }
    false
}
