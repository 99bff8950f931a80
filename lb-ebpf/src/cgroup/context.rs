//! A call at a socket: the caller, the protocol, and the end of the call. The entries of a socket
//! that a process has closed.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::generated::{
    bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval, bpf_sk_storage_get,
};
use aya_ebpf::programs::{SockAddrContext, SockContext};
use lb_common::layout::{SCTP, TCP, UDP};
use lb_common::reason::Reason;

use crate::call::Caller;
use crate::count::count;
use crate::settings::{HAS_SET_RETVAL, HOST_SOCKETS_ONLY};

/// The call continues, with the address that the context has now.
pub const ALLOW: i32 = 1;
/// The call fails.
const REFUSE: i32 = 0;

impl Caller for SockAddrContext {
    #[inline(always)]
    fn namespace(&self) -> u64 {
        // SAFETY: the context is the program's own.
        unsafe { bpf_get_netns_cookie(self.as_ptr()) }
    }
}

/// Returns whether calls of this socket are translated. Addresses that were translated before are
/// shown as the Service's in any case: a socket does not change its peer when an agent starts that
/// serves fewer sockets.
#[inline(always)]
pub fn is_served(context: &SockAddrContext) -> bool {
    HOST_SOCKETS_ONLY.load() == 0 || context.is_in_node_namespace()
}

/// Returns the transport protocol of the call, if Services have it.
#[inline(always)]
pub fn protocol(context: &SockAddrContext) -> Option<u8> {
    // SAFETY: a context field, always readable.
    match unsafe { (*context.sock_addr).protocol } {
        protocol if protocol == TCP as u32 || protocol == UDP as u32 || protocol == SCTP as u32 => {
            Some(protocol as u8)
        }
        _ => None,
    }
}

/// Returns the cookie of the socket, low and high half.
#[inline(always)]
pub fn cookie(context: &SockAddrContext) -> [u32; 2] {
    // SAFETY: the context is the program's own.
    let cookie = unsafe { bpf_get_socket_cookie(context.as_ptr()) };
    [cookie as u32, (cookie >> 32) as u32]
}

/// Counts the reason and fails the call. The error is that of the reason if the kernel lets a
/// program choose it, otherwise `EPERM`.
#[inline(always)]
pub fn refuse(reason: Reason) -> i32 {
    count(reason);
    if HAS_SET_RETVAL.load() != 0 {
        // SAFETY: the helper has no preconditions; it is not reached on kernels without it.
        unsafe { bpf_set_retval(-reason.errno().number()) };
    }
    REFUSE
}

/// Returns the entry of a socket that a process has closed. Null if it has none. Only this program
/// uses the entry.
#[inline(always)]
pub fn entry_of_closed<T>(map: &SkStorage<T>, context: &SockContext) -> *mut T {
    // SAFETY: the map and the context are the program's own. Without a value, and without the flag
    // to create one, the helper only looks up.
    unsafe {
        bpf_sk_storage_get((&raw const *map).cast_mut().cast(), context.as_ptr(), core::ptr::null_mut(), 0)
    }
    .cast()
}
