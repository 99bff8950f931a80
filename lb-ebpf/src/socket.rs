//! Looks up the sockets of this node.

use core::mem::size_of;

use aya_ebpf::bindings::bpf_sock_tuple;
use aya_ebpf::helpers::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp};
use lb_common::layout::{FlowKey, SCTP, TCP};

use crate::frame::Frame;
use crate::maps::Maps;

/// The IPv4 or IPv6 part of `struct bpf_sock_tuple`: addresses and ports in network byte order.
#[repr(C)]
struct Tuple<A> {
    src_addr: A,
    dst_addr: A,
    src_port: u16,
    dst_port: u16,
}

/// `BPF_F_CURRENT_NETNS`.
const CURRENT_NETNS: u64 = -1i32 as u32 as u64;

/// Returns whether a socket of this network namespace would receive a packet with this tuple.
/// Returns false for SCTP, whose sockets no helper looks up: only the range of source ports keeps
/// connections of sockets and of Sluice apart.
#[inline(always)]
pub fn exists<F: Maps, K: Frame>(frame: &K, key: &FlowKey<F::Addr>) -> bool {
    if key.protocol == SCTP {
        return false;
    }
    let mut tuple = Tuple {
        src_addr: key.src_addr,
        dst_addr: key.dst_addr,
        src_port: key.src_port.to_be(),
        dst_port: key.dst_port.to_be(),
    };
    let pointer = (&raw mut tuple).cast::<bpf_sock_tuple>();
    let size = size_of::<Tuple<F::Addr>>() as u32;
    // SAFETY: the tuple is initialized and has the size given; a socket that is found is released
    // at once.
    unsafe {
        let socket = if key.protocol == TCP {
            bpf_skc_lookup_tcp(frame.context(), pointer, size, CURRENT_NETNS, 0).cast::<core::ffi::c_void>()
        } else {
            bpf_sk_lookup_udp(frame.context(), pointer, size, CURRENT_NETNS, 0).cast::<core::ffi::c_void>()
        };
        if socket.is_null() {
            return false;
        }
        bpf_sk_release(socket);
    }
    true
}
