//! How long the testbed waits.

use std::sync::OnceLock;
use std::time::Duration;

/// Multiplies every time limit: an emulated processor is slower than any limit allows that makes
/// sense elsewhere.
const VARIABLE: &str = "SLUICE_PATIENCE";

/// A time limit, multiplied by `SLUICE_PATIENCE`.
pub fn patient(limit: Duration) -> Duration {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    let factor = FACTOR.get_or_init(|| {
        let value = std::env::var(VARIABLE).unwrap_or_else(|_| "1".to_owned());
        value.parse().unwrap_or_else(|_| panic!("{VARIABLE}={value} is not a number"))
    });
    limit * *factor
}
