//! Lists the endpoints of connected sockets. The agent reads the list to find sockets whose
//! endpoint is gone, and those that have reached their maximum age. A process that does not own the
//! sockets cannot read the entries of a socket storage in another way.

use aya_ebpf::bindings::seq_file;
use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_seq_write, bpf_sk_storage_get};
use lb_common::layout::{ConnectedPeer, CountedSocket};

use crate::maps::COUNTED;

/// `struct bpf_iter__bpf_sk_storage_map` of the kernel (net/core/bpf_sk_storage.c), for each socket
/// with an entry in the map.
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

/// Writes a `lb_common::layout::ConnectedSocket`: the cookie of the socket, its entry, and when it
/// was connected.
#[inline(always)]
pub fn show(context: *const Context) -> i32 {
    // SAFETY: the context is the kernel's; the verifier checks the loads against the kernel's
    // types.
    let (output, socket, value) = unsafe { ((*(*context).meta).output, (*context).socket, (*context).value) };
    if socket.is_null() || value.is_null() {
        return 0;
    }
    // SAFETY: a socket, as checked above.
    let cookie = unsafe { bpf_get_socket_cookie(socket) };
    // SAFETY: the same socket. Without a value, and without the flag to create one, the helper only
    // looks up: it returns null, or the socket's entry.
    let opened = unsafe {
        let map = (&raw const COUNTED).cast_mut();
        let counted = bpf_sk_storage_get(map.cast(), socket, core::ptr::null_mut(), 0);
        counted.cast::<CountedSocket>().as_ref().map_or(0, |counted| u32::from(counted.opened))
    };
    // When the buffer is full, the kernel discards this socket's bytes and runs the program again
    // with an empty buffer.
    // SAFETY: the sizes are those of the values.
    unsafe {
        bpf_seq_write(output, (&raw const cookie).cast(), size_of::<u64>() as u32);
        bpf_seq_write(output, value.cast(), size_of::<ConnectedPeer>() as u32);
        bpf_seq_write(output, (&raw const opened).cast(), size_of::<u32>() as u32);
    }
    0
}
