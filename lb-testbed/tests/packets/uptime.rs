//! The age of the machine. The tests let time pass by moving time stamps into the past, and no time
//! stamp can be before the start of the machine.

use std::thread;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The longest silence, in seconds, after which a case expects a connection to be over. Cases with
/// a longer one expect that a connection lasts.
const LONGEST_SILENCE: u64 = 310;

/// Returns the time since the start of the machine, without the time in which it was suspended.
pub fn uptime() -> Duration {
    Duration::from_secs(clock_gettime(ClockId::Monotonic).tv_sec as u64)
}

/// Sleeps until connections can have been silent for this many seconds. Only a machine that has
/// just been started sleeps.
pub fn wait_until_after(seconds: u64) {
    let needed = Duration::from_secs(seconds.min(LONGEST_SILENCE) + 1);
    thread::sleep(needed.saturating_sub(uptime()));
}
