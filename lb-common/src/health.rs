//! Passive health: when an endpoint is left out, because it refuses clients or does not answer
//! them, and when it is tried again.

use crate::SECOND;

/// Value of `HEALTH`: an endpoint whose last connections have failed. An answer of the
/// endpoint removes the entry.
#[repr(C)]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct EndpointHealth {
    /// The clients whose connections have failed: a bit for each, by a hash. 0 if `level` is not.
    pub clients: u64,
    /// `CLOCK_MONOTONIC` from which on the endpoint is tried again, in nanoseconds.
    pub until_ns: u64,
    /// `CLOCK_MONOTONIC` at the last failure, in nanoseconds.
    pub failed_ns: u64,
    /// How often in succession the endpoint was left out. 0: it is not left out.
    pub level: u32,
    /// 1 while a connection tries the endpoint again.
    pub tried: u32,
}

/// The time after a failure during which failures of other clients add to it.
pub const WINDOW_NS: u64 = 30 * SECOND;

/// The greatest [`EndpointHealth::level`]: its time is the longest.
const MOST: u32 = 6;

/// Returns the time for which an endpoint is left out at a level: 1, 2, 4, 8, 16 and 30 seconds.
#[inline(always)]
pub fn pause_ns(level: u32) -> u64 {
    if level >= MOST { 30 * SECOND } else { SECOND << (level.saturating_sub(1)) }
}

/// Returns the bit of a client in [`EndpointHealth::clients`], from a hash of the client.
#[inline(always)]
pub fn client_bit(hash: u32) -> u64 {
    1 << (hash >> 26)
}

/// Returns whether a set has three members.
#[inline(always)]
fn has_three(bits: u64) -> bool {
    let without_first = bits & bits.wrapping_sub(1);
    without_first & without_first.wrapping_sub(1) != 0
}

/// Whether an endpoint gets a new connection.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It does.
    Yes,
    /// It does if [`EndpointHealth::try_again`] succeeds.
    Trial,
    /// It is left out.
    No,
}

impl EndpointHealth {
    /// Returns the entry after the first failure. `client` is of [`client_bit`].
    #[inline(always)]
    pub fn first_failure(client: u64, now: u64) -> Self {
        Self { clients: client, until_ns: 0, failed_ns: now, level: 0, tried: 0 }
    }

    /// Counts a failed connection of a client. Returns whether the endpoint is left out from now
    /// on.
    ///
    /// Three clients must fail, and no client may succeed meanwhile: an answer removes the entry.
    /// The connection that tries an endpoint again decides alone.
    #[inline(always)]
    pub fn fail(&mut self, client: u64, now: u64) -> bool {
        let is_late = now.wrapping_sub(self.failed_ns) > WINDOW_NS;
        self.failed_ns = now;
        if self.level != 0 {
            // Connections that were opened before may still fail.
            if self.tried == 0 && now < self.until_ns {
                return false;
            }
            self.level = if self.level < MOST { self.level + 1 } else { MOST };
        } else {
            self.clients = if is_late { client } else { self.clients | client };
            if !has_three(self.clients) {
                return false;
            }
            self.level = 1;
        }
        self.clients = 0;
        self.tried = 0;
        self.until_ns = now.wrapping_add(pause_ns(self.level));
        true
    }

    /// Returns whether the endpoint gets a new connection.
    #[inline(always)]
    pub fn admission(&self, now: u64) -> Admission {
        if self.level == 0 {
            Admission::Yes
        } else if now < self.until_ns {
            Admission::No
        } else {
            Admission::Trial
        }
    }

    /// Reserves the connection that tries the endpoint again. Returns whether this caller has it.
    /// If the connection has no result, the next one is tried after the same time.
    #[inline(always)]
    pub fn try_again(&mut self, now: u64) -> bool {
        if self.level == 0 {
            return true;
        }
        if now < self.until_ns {
            return false;
        }
        self.tried = 1;
        self.until_ns = now.wrapping_add(pause_ns(self.level));
        true
    }
}

/// Returns whether an endpoint may be left out. `less` slots of `all` belong to endpoints that are
/// left out and have a smaller id, and `own` slots to the endpoint. So endpoints with at most half
/// of the slots are left out at once, and they are the same ones for each connection.
#[inline(always)]
pub fn is_within_half(less: u32, own: u32, all: u32) -> bool {
    (less + own) * 2 <= all
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;

    fn entry() -> EndpointHealth {
        EndpointHealth::first_failure(client_bit(0), SECOND)
    }

    const OTHERS: [u64; 2] = [1 << 7, 1 << 63];

    #[test]
    fn three_clients_must_fail_within_the_window() {
        let mut health = entry();
        assert!(!health.fail(OTHERS[0], SECOND));
        assert!(!health.fail(OTHERS[0], SECOND), "the same client");
        assert_eq!(health.admission(SECOND), Admission::Yes);
        assert!(health.fail(OTHERS[1], SECOND));
        assert_eq!(health.admission(2 * SECOND - 1), Admission::No);
        assert_eq!(health.admission(2 * SECOND), Admission::Trial);

        let mut health = entry();
        assert!(!health.fail(OTHERS[0], SECOND));
        assert!(!health.fail(OTHERS[1], 2 * SECOND + WINDOW_NS), "too late: counting starts again");
        assert!(!health.fail(OTHERS[0], 2 * SECOND + WINDOW_NS));
        assert!(health.fail(client_bit(0), 2 * SECOND + WINDOW_NS));
    }

    #[test]
    fn one_connection_tries_again_and_each_failure_doubles_the_time() {
        let mut health = entry();
        let mut now = SECOND;
        health.fail(OTHERS[0], now);
        health.fail(OTHERS[1], now);
        let mut pauses = Vec::new();
        for _ in 0..7 {
            pauses.push((health.until_ns - now) / SECOND);
            assert!(!health.fail(OTHERS[0], now), "an older connection fails");
            assert!(!health.try_again(health.until_ns - 1));
            now = health.until_ns;
            assert!(health.try_again(now));
            assert!(!health.try_again(now), "one connection");
            assert_eq!(health.admission(now), Admission::No);
            assert!(health.fail(OTHERS[0], now), "one client is enough");
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
    }

    #[test]
    fn a_trial_without_result_is_repeated() {
        let mut health = EndpointHealth { level: 2, until_ns: SECOND, ..entry() };
        assert!(health.try_again(SECOND));
        assert_eq!(health.admission(3 * SECOND - 1), Admission::No);
        assert_eq!(health.admission(3 * SECOND), Admission::Trial);
        assert_eq!(health.level, 2);
    }

    #[test]
    fn at_most_half_is_left_out() {
        assert!(!is_within_half(0, 1, 1));
        assert!(is_within_half(0, 1, 2));
        assert!(!is_within_half(1, 1, 2));
        assert!(is_within_half(0, 1, 3));
        assert!(!is_within_half(1, 1, 3));
        assert!(is_within_half(7, 1, 16));
        assert!(!is_within_half(8, 1, 16));
    }
}
