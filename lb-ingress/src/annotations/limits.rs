//! Limits for each client address, and the speed of responses: `limit-*`.

use super::reader::Reader;
use crate::routes::policy::{Limits, Rate};

const MOST: u32 = 1_000_000;

pub(super) fn read(reader: &mut Reader<'_>) -> Limits {
    let mut limit = |name| reader.number(name, 0, MOST).filter(|limit| *limit > 0);
    let (requests_per_second, requests_per_minute) = (limit("limit-rps"), limit("limit-rpm"));
    let connections = limit("limit-connections");
    let old_name = reader.networks("limit-whitelist");
    Limits {
        requests_per_second,
        requests_per_minute,
        connections,
        burst_multiplier: reader
            .number("limit-burst-multiplier", 1, 1000)
            .unwrap_or(Limits::default().burst_multiplier),
        exempt: reader.networks("limit-allowlist").or(old_name).unwrap_or_default(),
    }
}

/// Returns the speed of a response. ingress-nginx counts in KiB.
pub(super) fn rate(reader: &mut Reader<'_>) -> Option<Rate> {
    let mut bytes = |name| u64::from(reader.number(name, 0, MOST).unwrap_or(0)) << 10;
    let (rate, after) = (bytes("limit-rate"), bytes("limit-rate-after"));
    (rate > 0).then_some(Rate { bytes: rate, after })
}
