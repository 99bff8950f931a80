//! The clock of flow and affinity time stamps.

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;

/// Returns `CLOCK_MONOTONIC` at tick resolution, in nanoseconds. Reading it takes a few
/// nanoseconds.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_coarse_ns() }
}
