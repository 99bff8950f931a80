//! The time when a socket was connected, in two bytes: the number of an interval of about 17 s. The
//! numbers begin again after 13 days, which exceeds every maximum age.

use crate::SECOND;

/// An interval has 2^34 nanoseconds.
const INTERVAL_BITS: u32 = 34;

/// Returns the mark of a time of `CLOCK_MONOTONIC`. It is not 0.
#[inline(always)]
pub fn mark(now_ns: u64) -> u16 {
    let number = (now_ns >> INTERVAL_BITS) as u16;
    if number == 0 { 1 } else { number }
}

/// Returns the second in which the interval of a mark has ended, or the second of `now_ns` if it
/// has not: what was marked is at least as old. Returns `None` for the mark 0.
pub fn second_of(mark: u16, now_ns: u64) -> Option<u64> {
    if mark == 0 {
        return None;
    }
    let now = now_ns >> INTERVAL_BITS;
    // The mark 1 can also be that of the interval before.
    let ago = u64::from((now as u16).wrapping_sub(mark));
    let ago = if mark == 1 && ago == u64::from(u16::MAX) { 0 } else { ago };
    let end_ns = (now.saturating_sub(ago) + 1) << INTERVAL_BITS;
    Some(end_ns.min(now_ns) / SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL_NS: u64 = 1 << INTERVAL_BITS;

    #[test]
    fn a_mark_is_an_interval_that_is_not_longer_ago() {
        let week_ns = 7 * 24 * 3600 * SECOND;
        for opened_ns in [0, 5 * SECOND, INTERVAL_NS, 40 * SECOND, 65_535 * INTERVAL_NS, 3 * week_ns] {
            for later_ns in [0, SECOND, INTERVAL_NS - 1, INTERVAL_NS, 100 * SECOND, week_ns] {
                let now_ns = opened_ns + later_ns;
                let second = second_of(mark(opened_ns), now_ns).unwrap();
                let (opened_s, now_s) = (opened_ns / SECOND, now_ns / SECOND);
                // The mark of the first interval of a round is that of the second one.
                let most = opened_s + 2 * (INTERVAL_NS / SECOND) + 1;
                assert!(
                    (opened_s..=most.min(now_s)).contains(&second),
                    "opened at {opened_s}, now {now_s}: {second}"
                );
            }
        }
        assert_eq!(second_of(0, 50 * SECOND), None);
    }
}
