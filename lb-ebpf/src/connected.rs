//! Lists what connected sockets were given: the agent reads it to find those whose endpoint is gone. The entries of a socket
//! storage can be read in no other way by somebody who does not have the sockets.

use aya_ebpf::bindings::seq_file;
use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_seq_write};
use lb_common::layout::ConnectedPeer;

/// `struct bpf_iter__bpf_sk_storage_map` of the kernel (net/core/bpf_sk_storage.c): for each socket with an entry in the map.
#[repr(C)]
pub struct Context {
    meta: *const Meta,
    map: *const c_void,
    /// Null at the end.
    socket: *mut c_void,
    value: *const ConnectedPeer,
}

/// `struct bpf_iter_meta` (include/linux/bpf.h).
#[repr(C)]
struct Meta {
    output: *mut seq_file,
}

/// Writes the cookie of the socket and its entry: a `lb_common::layout::ConnectedSocket`.
#[inline(always)]
pub fn show(context: *const Context) -> i32 {
    // SAFETY: the kernel hands over its context; the loads are checked against the kernel's types by the verifier.
    let (output, socket, value) = unsafe { ((*(*context).meta).output, (*context).socket, (*context).value) };
    if socket.is_null() || value.is_null() {
        return 0;
    }
    // SAFETY: a socket, as checked above.
    let cookie = unsafe { bpf_get_socket_cookie(socket) };
    // What does not fit is written again by the kernel, whole, into the next buffer.
    // SAFETY: the sizes are those of what is pointed to.
    unsafe {
        bpf_seq_write(output, (&raw const cookie).cast(), size_of::<u64>() as u32);
        bpf_seq_write(output, value.cast(), size_of::<ConnectedPeer>() as u32);
    }
    0
}
