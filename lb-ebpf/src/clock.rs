//! The clock of flow and affinity time stamps.

use aya_ebpf::helpers::generated::{bpf_ktime_get_coarse_ns, bpf_ktime_get_ns};

use crate::settings::HAS_COARSE_CLOCK;

/// The time for which a program uses what it has looked up: a route, or the MAC address of a
/// device. Changes of routes, neighbours, addresses and links have their effect after this time at
/// the latest.
pub const REMEMBER_NS: u64 = 100_000_000;

/// Returns `CLOCK_MONOTONIC` in nanoseconds, at tick resolution if the kernel has a helper for
/// that. Reading it takes a few nanoseconds then.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helpers have no preconditions.
    unsafe { if HAS_COARSE_CLOCK.load() != 0 { bpf_ktime_get_coarse_ns() } else { bpf_ktime_get_ns() } }
}
