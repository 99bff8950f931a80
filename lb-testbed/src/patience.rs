//! Time limits of the testbed.

use std::sync::OnceLock;
use std::time::Duration;

/// The environment variable with a factor for every time limit. An emulated processor is some
/// twenty times slower than a real one.
const VARIABLE: &str = "SLUICE_PATIENCE";

/// Returns a time limit, multiplied by `SLUICE_PATIENCE`.
pub fn patient(limit: Duration) -> Duration {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    let factor = FACTOR.get_or_init(|| {
        let value = std::env::var(VARIABLE).unwrap_or_else(|_| "1".to_owned());
        value.parse().unwrap_or_else(|_| panic!("{VARIABLE}={value} is not a number"))
    });
    limit * *factor
}
