//! The end of a socket, when the last descriptor of it is closed. The kernel runs this program for
//! every socket of the cgroup (`BPF_CGROUP_INET_SOCK_RELEASE`, Linux 5.9), so it does one lookup.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use aya_ebpf::programs::SockContext;
use lb_common::layout::{CountedSocket, counted};

use super::context::ALLOW;
use super::{report, uncount};
use crate::maps::COUNTED;

/// Counts the socket no longer at its endpoint.
pub fn release(context: &SockContext) -> i32 {
    // SAFETY: the map and the context are the program's own. Without a value, and without the flag
    // to create one, the helper only looks up.
    let counted = unsafe {
        bpf_sk_storage_get((&raw const COUNTED).cast_mut().cast(), context.as_ptr(), core::ptr::null_mut(), 0)
    }
    .cast::<CountedSocket>();
    // SAFETY: null, or the entry of the socket, which no one else uses any more.
    if let Some(counted) = unsafe { counted.as_mut() } {
        if counted.counted != counted::NONE {
            report::released(context, counted.is_v6);
        }
        uncount(counted);
    }
    ALLOW
}
