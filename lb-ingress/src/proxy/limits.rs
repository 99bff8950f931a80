//! The limits of a client at a route: requests a second or minute, and requests at a time.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use lb_model::ObjectName;

use crate::routes::policy::Limits;

/// Clients that are remembered. Beyond it, those whose limits are unused are forgotten.
const CLIENTS: usize = 65_536;

/// Counts the requests of each client and Ingress.
#[derive(Debug, Default)]
pub struct Limiter(Arc<Mutex<HashMap<(ObjectName, IpAddr), Usage>>>);

/// Two leaky buckets, and the requests at a time. A request adds 1000 to a bucket.
#[derive(Debug, Default, Clone, Copy)]
struct Usage {
    second: u64,
    minute: u64,
    /// The time at which the buckets had these levels, in milliseconds.
    at: u64,
    open: u32,
}

/// A request that is counted while it lives.
#[derive(Debug)]
pub struct Permit(Option<(Limiter, (ObjectName, IpAddr))>);

impl Limiter {
    /// Counts a request at `now` (milliseconds). Returns `None` if it exceeds a limit.
    pub fn admit(&self, ingress: &ObjectName, limits: &Limits, client: IpAddr, now: u64) -> Option<Permit> {
        let Limits { requests_per_second, requests_per_minute, burst_multiplier, connections, exempt } =
            limits;
        let unlimited =
            requests_per_second.is_none() && requests_per_minute.is_none() && connections.is_none();
        let client = client.to_canonical();
        if unlimited || exempt.iter().any(|range| range.contains(&client)) {
            return Some(Permit(None));
        }
        let key = (ingress.clone(), client);
        let mut usages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if usages.len() >= CLIENTS {
            usages.retain(|_, usage| usage.open > 0 || now.saturating_sub(usage.at) < 60_000);
            if usages.len() >= CLIENTS && !usages.contains_key(&key) {
                return None;
            }
        }
        let usage = usages.entry(key.clone()).or_default();
        let passed = now.saturating_sub(usage.at);
        usage.at = now;
        let mut admitted = connections.is_none_or(|connections| usage.open < connections);
        let mut fill = |level: &mut u64, rate: Option<u32>, period: u64| {
            let Some(rate) = rate.map(u64::from) else { return };
            *level = level.saturating_sub(passed.saturating_mul(rate) * 1000 / period);
            admitted &= *level <= rate * u64::from(*burst_multiplier) * 1000;
        };
        fill(&mut usage.second, *requests_per_second, 1_000);
        fill(&mut usage.minute, *requests_per_minute, 60_000);
        if !admitted {
            return None;
        }
        usage.second += 1000;
        usage.minute += 1000;
        usage.open += 1;
        Some(Permit(Some((Self(self.0.clone()), key))))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some((limiter, key)) = self.0.take()
            && let Some(usage) = limiter.0.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&key)
        {
            usage.open = usage.open.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_connections() {
        let (limiter, ingress) = (Limiter::default(), ObjectName::new("a", "web"));
        let [one, two]: [IpAddr; 2] = ["10.0.0.1", "10.0.0.2"].map(|text| text.parse().unwrap());
        let limits = Limits { requests_per_second: Some(2), burst_multiplier: 3, ..Limits::default() };
        let admit = |client, now| limiter.admit(&ingress, &limits, client, now).is_some();
        assert_eq!((0..10).filter(|_| admit(one, 0)).count(), 7, "the burst, and one more");
        assert!(admit(two, 0), "each client by itself");
        assert!(!admit(one, 400) && admit(one, 500));
        assert!(admit(one, 60_000));

        let limits = Limits { connections: Some(1), ..Limits::default() };
        let first = limiter.admit(&ingress, &limits, one, 0);
        assert!(first.is_some() && limiter.admit(&ingress, &limits, one, 0).is_none());
        drop(first);
        assert!(limiter.admit(&ingress, &limits, one, 0).is_some());

        let limits = Limits { exempt: ["10.0.0.0/8".parse().unwrap()].into(), ..limits };
        let all: Vec<_> = (0..3).map(|_| limiter.admit(&ingress, &limits, one, 0)).collect();
        assert!(all.iter().all(Option::is_some));
    }
}
