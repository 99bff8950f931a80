//! One endpoint, and its counters.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// An endpoint. A request holds it: an endpoint that was removed finishes its requests, and its
/// connections `C` close after the last one.
#[derive(Debug)]
pub struct Endpoint<C> {
    pub address: SocketAddr,
    pub connections: C,
    in_flight: AtomicU32,
    /// Failures since the last success.
    failures: AtomicU32,
    /// Milliseconds of the caller's clock.
    ejected_until: AtomicU64,
}

/// Failures in a row after which an endpoint is ejected.
const FAILURES: u32 = 3;
/// The first ejection. Each further failure doubles it.
const EJECTION_MS: u64 = 1_000;
const MAX_EJECTION_MS: u64 = 30_000;

impl<C: Default> Endpoint<C> {
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            connections: C::default(),
            in_flight: AtomicU32::new(0),
            failures: AtomicU32::new(0),
            ejected_until: AtomicU64::new(0),
        }
    }
}

impl<C> Endpoint<C> {
    /// Returns the number of requests that wait for the end of their response.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// The endpoint has answered.
    pub fn succeeded(&self) {
        if self.failures.load(Ordering::Relaxed) > 0 {
            self.failures.store(0, Ordering::Relaxed);
            self.ejected_until.store(0, Ordering::Relaxed);
        }
    }

    /// The endpoint has failed at `now`. An endpoint that cannot be connected to is ejected at
    /// once.
    pub fn failed(&self, now: u64, connecting: bool) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let beyond = if connecting { failures - 1 } else { failures.saturating_sub(FAILURES) };
        if connecting || failures >= FAILURES {
            let time = MAX_EJECTION_MS.min(EJECTION_MS << beyond.min(16));
            self.ejected_until.store(now + time, Ordering::Relaxed);
        }
    }

    /// Returns whether requests should avoid the endpoint at `now`.
    pub fn is_ejected(&self, now: u64) -> bool {
        now < self.ejected_until.load(Ordering::Relaxed)
    }
}

/// Counts one request of an endpoint as long as it lives.
#[derive(Debug)]
pub struct InFlight<C>(Arc<Endpoint<C>>);

impl<C> InFlight<C> {
    pub fn new(endpoint: Arc<Endpoint<C>>) -> Self {
        endpoint.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(endpoint)
    }

    pub fn endpoint(&self) -> &Arc<Endpoint<C>> {
        &self.0
    }
}

impl<C> Drop for InFlight<C> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_eject_for_longer_and_longer() {
        let endpoint: Endpoint<()> = Endpoint::new("10.0.0.1:80".parse().unwrap());
        endpoint.failed(0, false);
        endpoint.failed(0, false);
        assert!(!endpoint.is_ejected(0), "two failures are no reason");
        endpoint.failed(0, false);
        assert!(endpoint.is_ejected(999) && !endpoint.is_ejected(1_000));
        endpoint.failed(1_000, false);
        assert!(endpoint.is_ejected(2_999) && !endpoint.is_ejected(3_000));
        for _ in 0..80 {
            endpoint.failed(0, true);
        }
        assert!(endpoint.is_ejected(29_999) && !endpoint.is_ejected(30_000));
        endpoint.succeeded();
        assert!(!endpoint.is_ejected(0));
        endpoint.failed(0, true);
        assert!(endpoint.is_ejected(999), "no connection: at once");
    }
}
