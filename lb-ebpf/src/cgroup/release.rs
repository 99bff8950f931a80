//! The end of a socket, when the last descriptor of it is closed. The kernel runs this program for
//! every socket of the cgroup (`BPF_CGROUP_INET_SOCK_RELEASE`, Linux 5.9), so it does one lookup.

use aya_ebpf::programs::SockContext;
use lb_common::layout::counted;

use super::context::{ALLOW, entry_of_closed};
use super::{report, uncount};
use crate::maps::COUNTED;

/// Counts the socket no longer at its endpoint.
pub fn release(context: &SockContext) -> i32 {
    // SAFETY: null, or an entry that no other program uses.
    if let Some(counted) = unsafe { entry_of_closed(&COUNTED, context).as_mut() } {
        if counted.counted != counted::NONE {
            report::released(context, counted.is_v6);
        }
        uncount(counted);
    }
    ALLOW
}
