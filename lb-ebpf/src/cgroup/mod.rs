//! Socket programs: a process calls `connect` or `sendmsg` with a Service's address and is connected to an endpoint; it
//! is shown the Service's address again by `recvmsg` and `getpeername`. No packet is rewritten on this way.
//!
//! An IPv6 socket may use IPv4-mapped addresses (`::ffff:10.96.0.1`): those are IPv4 Services.

mod address;
pub mod bind;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval};
use aya_ebpf::programs::SockAddrContext;
use lb_common::family::{V4, V6};
use lb_common::layout::{ConnectedPeer, SCTP, SocketPeer, SocketPeerKey, TCP, UDP};
use lb_common::reason::Reason;

use self::address::{In4, In6, Mapped, SocketAddress, is_mapped};
use crate::aligned::Aligned;
use crate::call::{self, Caller};
use crate::client::Client;
use crate::count::count;
use crate::maps::{CONNECTED, Maps};
use crate::select::{Eligible, Refusal};
use crate::settings::{HAS_SET_RETVAL, HOST_SOCKETS_ONLY};

/// The call goes on, with the address as it stands now.
const ALLOW: i32 = 1;
/// The call fails.
const REFUSE: i32 = 0;
/// What a socket sees of a local firewall.
const EPERM: i32 = 1;
const ECONNREFUSED: i32 = 111;
const EHOSTUNREACH: i32 = 113;

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

pub fn recvmsg4(context: &SockAddrContext) -> i32 {
    recvmsg::<V4, In4>(context)
}

pub fn recvmsg6(context: &SockAddrContext) -> i32 {
    if is_mapped(context) { recvmsg::<V4, Mapped>(context) } else { recvmsg::<V6, In6>(context) }
}

pub fn getpeername4(context: &SockAddrContext) -> i32 {
    show_service::<In4>(context)
}

pub fn getpeername6(context: &SockAddrContext) -> i32 {
    if is_mapped(context) { show_service::<Mapped>(context) } else { show_service::<In6>(context) }
}

impl Caller for SockAddrContext {
    #[inline(always)]
    fn namespace(&self) -> u64 {
        // SAFETY: the context is the program's own.
        unsafe { bpf_get_netns_cookie(self.as_ptr()) }
    }
}

/// Whether a call of this socket is translated at all. What was translated before is shown as the Service in any case, so that
/// a socket does not change its peer when an agent starts that serves fewer.
#[inline(always)]
fn is_served(context: &SockAddrContext) -> bool {
    HOST_SOCKETS_ONLY.load() == 0 || context.is_in_node_namespace()
}

/// The transport protocol of the call, if Services know it.
#[inline(always)]
fn protocol(context: &SockAddrContext) -> Option<u8> {
    // SAFETY: a context field, always readable.
    match unsafe { (*context.sock_addr).protocol } {
        protocol if protocol == TCP as u32 || protocol == UDP as u32 || protocol == SCTP as u32 => {
            Some(protocol as u8)
        }
        _ => None,
    }
}

/// Fails the call with `errno` where the kernel lets a program choose it, else with `EPERM`.
#[inline(always)]
fn refuse(refusal: Refusal) -> i32 {
    let reason = call::reason(refusal);
    count(reason);
    let errno = match reason {
        Reason::SocketRefused => ECONNREFUSED,
        Reason::SourceRange => EPERM,
        _ => EHOSTUNREACH,
    };
    if HAS_SET_RETVAL.load() != 0 {
        // SAFETY: no preconditions; not reached on kernels without it.
        unsafe { bpf_set_retval(-errno) };
    }
    REFUSE
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
        Some(Err(refusal)) => return refuse(refusal),
        None => return ALLOW,
    };
    let (backend_id, backend) = match call::select::<F, _>(context, service) {
        Ok(selected) => selected,
        Err(refusal) => return refuse(refusal),
    };
    let mut peer = Aligned(ConnectedPeer {
        service_addr: S::widen(&addr),
        backend_addr: S::widen(&backend.addr),
        service_port: port,
        backend_port: backend.port,
        backend_id,
        service_id: service.service_id,
    });
    // SAFETY: the socket belongs to the context. An entry of an earlier connect stays as it is: replace its contents.
    unsafe {
        let stored = CONNECTED.get_or_insert_ptr_mut(context, Some(&mut peer.0));
        if !stored.is_null() {
            *stored = peer.0;
        }
    }
    S::set_address(context, backend.addr);
    address::set_port(context, backend.port);
    count(Reason::SocketTranslated);
    ALLOW
}

#[inline(always)]
fn cookie(context: &SockAddrContext) -> [u32; 2] {
    // SAFETY: the context is the program's own.
    let cookie = unsafe { bpf_get_socket_cookie(context.as_ptr()) };
    [cookie as u32, (cookie >> 32) as u32]
}

/// One datagram of an unconnected socket. The socket stays with the endpoint it was given while that takes new clients.
#[inline(always)]
fn sendmsg<F: Maps, S: SocketAddress<F>>(context: &SockAddrContext) -> i32 {
    if !is_served(context) {
        return ALLOW;
    }
    let (addr, port) = (S::address(context), address::port(context));
    let service = match call::find::<F, _>(context, addr, port, UDP) {
        Some(Ok(service)) => service,
        Some(Err(refusal)) => return refuse(refusal),
        None => return ALLOW,
    };
    let mut key = SocketPeerKey { cookie: cookie(context), addr, port, pad: [0; 2] };
    // SAFETY: copied at once; entries are written whole.
    if let Some(known) = unsafe { F::socket_peers().get(&key) }
        && let Some(backend) = Eligible::of(service, Client::Inside).get::<F>(service, known.backend_id)
        // Ids are used again: it must still be the endpoint that this socket was given.
        && backend.port == known.port
        && backend.addr == known.addr
    {
        S::set_address(context, known.addr);
        address::set_port(context, known.port);
        return ALLOW;
    }
    let (backend_id, backend) = match call::select::<F, _>(context, service) {
        Ok(selected) => selected,
        Err(refusal) => return refuse(refusal),
    };
    let mut peer = Aligned(SocketPeer {
        addr: backend.addr,
        port: backend.port,
        pad: 0,
        backend_id,
        service_id: service.service_id,
    });
    // If either insert fails the datagram still goes to a good endpoint; its reply then shows that endpoint's address.
    let _ = F::socket_peers().insert(&key, &peer.0, BPF_ANY as u64);
    key.addr = backend.addr;
    key.port = backend.port;
    peer.0.addr = addr;
    peer.0.port = port;
    let _ = F::socket_peers().insert(&key, &peer.0, BPF_ANY as u64);
    S::set_address(context, backend.addr);
    address::set_port(context, backend.port);
    count(Reason::SocketTranslated);
    ALLOW
}

/// A datagram came in: if its sender is an endpoint that this socket was given, show the service instead.
#[inline(always)]
fn recvmsg<F: Maps, S: SocketAddress<F>>(context: &SockAddrContext) -> i32 {
    let key = SocketPeerKey {
        cookie: cookie(context),
        addr: S::address(context),
        port: address::port(context),
        pad: [0; 2],
    };
    // SAFETY: copied at once; entries are written whole.
    if let Some(service) = unsafe { F::socket_peers().get(&key) } {
        S::set_address(context, service.addr);
        address::set_port(context, service.port);
        return ALLOW;
    }
    show_service::<S>(context)
}

/// If the address is the endpoint that this socket was connected to, show the service that it asked for.
#[inline(always)]
fn show_service<S: address::Wide>(context: &SockAddrContext) -> i32 {
    // SAFETY: the socket belongs to the context; a null pointer means that it was never connected to a service.
    let Some(peer) = (unsafe { CONNECTED.get_ptr_mut(context).as_ref() }) else { return ALLOW };
    if address::port(context) == peer.backend_port && S::wide(context) == peer.backend_addr {
        S::set_wide(context, &peer.service_addr);
        address::set_port(context, peer.service_port);
    }
    ALLOW
}
