//! Limits for each client address: `limit-*`.

use super::reader::Reader;
use crate::routes::policy::Limits;

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
        // ingress-nginx counts in KiB.
        rate: u64::from(reader.number("limit-rate", 0, MOST).unwrap_or(0)) << 10,
        rate_after: u64::from(reader.number("limit-rate-after", 0, MOST).unwrap_or(0)) << 10,
    }
}
