//! Reports calls at sockets for `lb monitor`, see [`crate::event`].
//!
//! A socket has no source address when it connects. Its client is the network namespace.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie};
use aya_ebpf::programs::{SockAddrContext, SockContext};
use lb_common::event::{Event, event_end, event_kind, event_path};
use lb_common::family::Family;
use lb_common::layout::ConnectedPeer;
use lb_common::reason::Reason;

use super::address::{self, Wide};
use super::context::entry_of_closed;
use crate::event::{is_watched, report};
use crate::maps::CONNECTED;

/// Reports that a call was translated. `peer` has the service and the endpoint.
#[inline(always)]
pub fn opened<F: Family>(context: &SockAddrContext, peer: &ConnectedPeer) {
    if is_watched() {
        report_opened(context, peer, F::IS_V6 as u64);
    }
}

/// Reports that a call fails. The context still has the address of the call.
#[inline(always)]
pub fn refused<S: Wide>(context: &SockAddrContext, reason: Reason) {
    if is_watched() {
        report_refused::<S>(context, reason as u64);
    }
}

/// Reports that a process has closed a socket that was connected to an endpoint.
#[inline(always)]
pub fn released(context: &SockContext, is_v6: u8) {
    if is_watched() {
        report_released(context, is_v6 as u64);
    }
}

/// Writes the socket and its protocol.
#[inline(always)]
fn set_socket(event: &mut Event, context: &impl EbpfContext, protocol: u32) {
    // SAFETY: the context is the program's own.
    unsafe {
        event.netns_cookie = bpf_get_netns_cookie(context.as_ptr());
        event.socket_cookie = bpf_get_socket_cookie(context.as_ptr());
    }
    (event.path, event.protocol) = (event_path::SOCKET, protocol as u8);
}

/// Writes the socket of a call.
#[inline(always)]
fn set_caller(event: &mut Event, context: &SockAddrContext) {
    // SAFETY: a context field, always readable.
    set_socket(event, context, unsafe { (*context.sock_addr).protocol });
}

#[inline(always)]
fn set_peer(event: &mut Event, peer: &ConnectedPeer) {
    (event.service_id, event.backend_id) = (peer.service_id, peer.backend_id);
    (event.service_port, event.backend_port) = (peer.service_port, peer.backend_port);
    (event.service_addr, event.backend_addr) = (peer.service_addr, peer.backend_addr);
}

#[inline(never)]
fn report_opened(context: &SockAddrContext, peer: &ConnectedPeer, is_v6: u64) {
    report(event_kind::OPENED, |event| {
        set_caller(event, context);
        set_peer(event, peer);
        event.is_v6 = is_v6 as u8;
    });
}

#[inline(never)]
fn report_refused<S: Wide>(context: &SockAddrContext, reason: u64) {
    report(event_kind::REFUSED, |event| {
        set_caller(event, context);
        event.is_v6 = S::IS_V6 as u8;
        event.reason = reason as u8;
        event.service_addr = S::wide(context);
        event.service_port = address::port(context);
    });
}

#[inline(never)]
fn report_released(context: &SockContext, is_v6: u64) {
    // SAFETY: null, or an entry that no other program uses.
    let Some(peer) = (unsafe { entry_of_closed(&CONNECTED, context).as_ref() }) else { return };
    report(event_kind::CLOSED, |event| {
        // SAFETY: a context field, always readable.
        set_socket(event, context, unsafe { (*context.sock).protocol });
        set_peer(event, peer);
        event.reason = event_end::RELEASED;
        event.is_v6 = is_v6 as u8;
    });
}
