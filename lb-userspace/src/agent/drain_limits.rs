//! The time limits of endpoints that drain.
//!
//! The time of a drain begins when this process first plans it. An agent that starts begins to
//! measure again: no map and no object has the beginning.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lb_model::IpFamily;
use lb_plan::desired::{DesiredServicePort, ServicePortId};

/// The endpoints that drain with a time limit.
#[derive(Debug, Default)]
pub struct DrainLimits(BTreeMap<ServicePortId, BTreeMap<SocketAddr, Drain>>);

#[derive(Debug)]
struct Drain {
    since: Instant,
    limit: Duration,
    /// The end of the limit has been reported.
    reported: bool,
}

impl Drain {
    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= self.limit
    }
}

impl DrainLimits {
    /// Takes note of changed and removed Service ports. Returns whether one of them had an endpoint
    /// that drained with a time limit: its drain may have ended.
    pub fn update(
        &mut self,
        changed: &[DesiredServicePort],
        removed: &[ServicePortId],
        now: Instant,
    ) -> bool {
        let mut affected = false;
        for id in removed {
            affected |= self.0.remove(id).is_some();
        }
        for port in changed {
            let before = self.0.remove(&port.id);
            affected |= before.is_some();
            let mut before = before.unwrap_or_default();
            let endpoints =
                IpFamily::BOTH.into_iter().flat_map(|family| port.endpoints(family).endpoints.iter());
            let drains: BTreeMap<_, _> = endpoints
                .filter_map(|endpoint| {
                    let limit = endpoint.drain_limit?;
                    let known = before.remove(&endpoint.address);
                    let since = known.as_ref().map_or(now, |drain| drain.since);
                    let reported = known.is_some_and(|drain| drain.reported && drain.limit == limit);
                    Some((endpoint.address, Drain { since, limit, reported }))
                })
                .collect();
            if !drains.is_empty() {
                self.0.insert(port.id.clone(), drains);
            }
        }
        affected
    }

    /// Returns the endpoints whose limit has passed since the last call.
    pub fn report(&mut self, now: Instant) -> Vec<(ServicePortId, SocketAddr)> {
        let mut passed = Vec::new();
        for (id, drains) in &mut self.0 {
            for (address, drain) in drains {
                if drain.is_over(now) && !std::mem::replace(&mut drain.reported, true) {
                    passed.push((id.clone(), *address));
                }
            }
        }
        passed
    }

    /// Returns the endpoints whose limit has passed.
    pub fn overdue(&self, now: Instant) -> impl Iterator<Item = (ServicePortId, SocketAddr)> {
        self.0.iter().flat_map(move |(id, drains)| {
            let over = drains.iter().filter(move |(_, drain)| drain.is_over(now));
            over.map(|(address, _)| (id.clone(), *address))
        })
    }
}

#[cfg(test)]
mod tests {
    use lb_model::Weight;
    use lb_plan::desired::{DesiredEndpoint, EndpointLists};

    use super::*;
    use crate::testing::desired_port;

    fn port(limits: [Option<u64>; 2]) -> DesiredServicePort {
        let endpoint = |(last, limit): (u8, Option<u64>)| DesiredEndpoint {
            address: ([10, 0, 0, last], 80).into(),
            local: false,
            draining: limit.is_some(),
            weight: Weight::DEFAULT,
            drain_limit: limit.map(Duration::from_secs),
        };
        let endpoints = (1..).zip(limits).map(endpoint).collect();
        DesiredServicePort { v4: EndpointLists { endpoints, ..EndpointLists::default() }, ..desired_port() }
    }

    #[test]
    fn a_limit_counts_from_the_beginning_of_the_drain() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut limits = DrainLimits::default();
        let last = |list: Vec<(ServicePortId, SocketAddr)>| -> Vec<String> {
            list.into_iter().map(|(_, address)| address.ip().to_string()).collect()
        };
        assert!(!limits.update(&[port([Some(10), None])], &[], at(0)));
        // Another change of the Service does not begin the drain anew.
        assert!(limits.update(&[port([Some(10), Some(10)])], &[], at(5)));
        assert_eq!(last(limits.report(at(9))), [""; 0]);
        assert_eq!(last(limits.report(at(10))), ["10.0.0.1"]);
        limits.update(&[port([Some(10), Some(10)])], &[], at(11));
        assert_eq!(last(limits.report(at(11))), [""; 0], "reported once");
        assert_eq!(last(limits.report(at(15))), ["10.0.0.2"]);
        assert_eq!(last(limits.overdue(at(15)).collect()), ["10.0.0.1", "10.0.0.2"]);
        // The end of a drain, and a new one.
        limits.update(&[port([None, Some(10)])], &[], at(16));
        assert_eq!(last(limits.overdue(at(16)).collect()), ["10.0.0.2"]);
        limits.update(&[port([Some(10), Some(20)])], &[], at(17));
        assert_eq!(last(limits.overdue(at(20)).collect()), [""; 0]);
        limits.update(&[], &[port([None, None]).id], at(21));
        assert_eq!(last(limits.overdue(at(99)).collect()), [""; 0]);
    }
}
