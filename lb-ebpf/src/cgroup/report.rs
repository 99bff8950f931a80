//! Reports calls at sockets for `lb monitor`, see [`crate::event`].
//!
//! A socket has no source address when it connects. Its client is the network namespace.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_sk_storage_get};
use aya_ebpf::programs::{SockAddrContext, SockContext};
use lb_common::event::{Event, event_end, event_kind, event_path};
use lb_common::family::Family;
use lb_common::layout::{ConnectedPeer, UDP};
use lb_common::reason::Reason;

use super::address::{self, Wide};
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

/// Writes the socket of the call and its protocol.
#[inline(always)]
fn set_caller(event: &mut Event, context: &SockAddrContext) {
    // SAFETY: the context is the program's own; the protocol is a field that is always readable.
    unsafe {
        event.netns_cookie = bpf_get_netns_cookie(context.as_ptr());
        event.socket_cookie = bpf_get_socket_cookie(context.as_ptr());
        event.protocol = (*context.sock_addr).protocol as u8;
    }
    event.path = event_path::SOCKET;
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
        if event.protocol == 0 {
            // `sendmsg` of a datagram socket.
            event.protocol = UDP;
        }
        event.is_v6 = S::IS_V6 as u8;
        event.reason = reason as u8;
        event.service_addr = S::wide(context);
        event.service_port = address::port(context);
    });
}

#[inline(never)]
fn report_released(context: &SockContext, is_v6: u64) {
    // SAFETY: the map and the context are the program's own. Without a value, and without the flag
    // to create one, the helper only looks up.
    let peer = unsafe {
        bpf_sk_storage_get(
            (&raw const CONNECTED).cast_mut().cast(),
            context.as_ptr(),
            core::ptr::null_mut(),
            0,
        )
    }
    .cast::<ConnectedPeer>();
    // SAFETY: null, or the entry of the socket, which no one else uses any more.
    let Some(peer) = (unsafe { peer.as_ref() }) else { return };
    report(event_kind::CLOSED, |event| {
        // SAFETY: the context is the program's own; the protocol is a field that is always
        // readable.
        unsafe {
            event.netns_cookie = bpf_get_netns_cookie(context.as_ptr());
            event.socket_cookie = bpf_get_socket_cookie(context.as_ptr());
            event.protocol = (*context.sock).protocol as u8;
        }
        set_peer(event, peer);
        (event.path, event.reason) = (event_path::SOCKET, event_end::RELEASED);
        event.is_v6 = is_v6 as u8;
    });
}
