//! The maximum age of connections (annotation `lb.sluice.dev/max-connection-age`): connections that
//! reach it are reset, so that their clients connect again and get an endpoint of now.
//!
//! Each connection has its own time between three quarters of the age and the whole age, by a hash.
//! So connections that were opened together are not reset together.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};

use lb_common::layout::ConnectedPeer;
use lb_datapath::{AgedFlow, FlowEntry, ServedSocket};
use lb_plan::desired::{DesiredServicePort, ServicePortId};

/// The greatest number of connections of each kind that are reset at once, which is at most once a
/// second for packets.
pub const MOST_RESETS: usize = 1024;

/// The maximum age of the connections of a Service port. Times are seconds of `CLOCK_MONOTONIC`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AgeLimit {
    age_s: u64,
    /// When this agent received the age.
    since_s: u64,
}

impl AgeLimit {
    /// Returns when a connection is reset. Connections that were too old when the agent received
    /// the age are spread over a quarter of the age, too.
    fn end_of(self, opened_s: u64, hash: u64) -> u64 {
        let spread = self.age_s / 4;
        let earliest = opened_s + self.age_s - spread;
        earliest.max(self.since_s) + hash % (spread + 1)
    }
}

/// The maximum ages by service id.
pub type AgeLimits = HashMap<u32, AgeLimit>;

/// A search for the connections in the flow table that reach their maximum age until a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgeSearch {
    /// The version of the limits and of the flow table.
    pub version: u64,
    pub limits: AgeLimits,
    pub until_s: u64,
}

/// The Service ports whose connections have a maximum age, and the connections in the flow table
/// that reach it soon.
#[derive(Debug, Default)]
pub struct ConnectionAges {
    limits: BTreeMap<ServicePortId, AgeLimit>,
    /// Changes when the result of an earlier [`AgeSearch`] is void.
    version: u64,
    /// The last one is reset first.
    scheduled: Vec<(u64, AgedFlow)>,
}

impl ConnectionAges {
    /// Takes note of changed and removed Service ports. Returns whether an age has changed.
    pub fn update(&mut self, changed: &[DesiredServicePort], removed: &[ServicePortId], now_s: u64) -> bool {
        let mut affected = false;
        for id in removed {
            affected |= self.limits.remove(id).is_some();
        }
        for port in changed {
            let before = self.limits.get(&port.id).map(|limit| limit.age_s);
            let after = port.max_connection_age.map(|age| age.as_secs());
            if before == after {
                continue;
            }
            affected = true;
            match after {
                Some(age_s) => self.limits.insert(port.id.clone(), AgeLimit { age_s, since_s: now_s }),
                None => self.limits.remove(&port.id),
            };
        }
        if affected {
            // They are scheduled again by the new ages.
            self.forget();
        }
        affected
    }

    /// Forgets the connections that were found, also those that a search finds at this moment. A
    /// new search must follow.
    pub fn forget(&mut self) {
        self.version += 1;
        self.scheduled.clear();
    }

    /// Returns the search for the connections that reach their age until a time. Service ports that
    /// are not in the maps have no connections.
    pub fn search(&self, service_id: impl Fn(&ServicePortId) -> Option<u32>, until_s: u64) -> AgeSearch {
        let limits = self.limits.iter().filter_map(|(id, limit)| Some((service_id(id)?, *limit))).collect();
        AgeSearch { version: self.version, limits, until_s }
    }

    /// Sets the connections that a search has found, each with the time when it reaches its age.
    /// The result of a search that is void changes nothing.
    pub fn schedule(&mut self, version: u64, mut flows: Vec<(u64, AgedFlow)>) {
        if version != self.version {
            return;
        }
        flows.sort_unstable_by(|a, b| b.cmp(a));
        self.scheduled = flows;
    }

    /// Returns the connections whose time has come, at most [`MOST_RESETS`]. Each is returned once.
    pub fn take_due(&mut self, now_s: u64) -> Vec<AgedFlow> {
        let due = self.scheduled.iter().rev().take_while(|(end_s, _)| *end_s <= now_s).count();
        let rest = self.scheduled.len() - due.min(MOST_RESETS);
        self.scheduled.split_off(rest).into_iter().map(|(_, flow)| flow).collect()
    }
}

/// Returns when a connection in the flow table is reset, if its Service port has a maximum age.
pub fn end_of_flow(limits: &AgeLimits, flow: &FlowEntry) -> Option<u64> {
    let limit = limits.get(&flow.service_id)?;
    Some(limit.end_of(flow.opened_s.into(), hash_of((flow.client, flow.service, flow.opened_s))))
}

fn hash_of(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// What the main loop and the thread of the namespaces share.
#[derive(Debug, Default)]
pub struct SocketAges {
    /// The main loop writes them.
    pub limits: AgeLimits,
    /// When the next socket reaches its age. The thread writes it.
    pub next_s: Option<u64>,
}

pub type SharedSocketAges = Arc<Mutex<SocketAges>>;

/// Connected sockets with the time when they were connected. If that is not known, it is the time
/// when this agent first saw them.
#[derive(Debug, Default)]
pub struct SeenSockets(HashMap<u64, u64>);

impl SeenSockets {
    /// Returns the sockets that have reached their age, at most [`MOST_RESETS`], and when the next
    /// one will. `sockets` are all connected sockets by their cookie.
    ///
    /// The age of a socket that is returned begins again. The entry of a socket that was reset
    /// stays until its process closes it, or the process may connect it again.
    pub fn due(
        &mut self,
        sockets: HashMap<u64, ServedSocket>,
        limits: &AgeLimits,
        now_s: u64,
    ) -> (HashMap<u64, ConnectedPeer>, Option<u64>) {
        let before = std::mem::take(&mut self.0);
        let (mut due, mut next_s) = (HashMap::new(), None::<u64>);
        for (cookie, ServedSocket { peer, opened_s }) in sockets {
            let Some(limit) = limits.get(&peer.service_id) else { continue };
            let mut seen_s = before.get(&cookie).copied().or(opened_s).unwrap_or(now_s);
            let end_s = limit.end_of(seen_s, hash_of(cookie));
            if end_s > now_s || due.len() == MOST_RESETS {
                next_s = Some(next_s.map_or(end_s, |next| next.min(end_s)));
            } else {
                seen_s = now_s;
                due.insert(cookie, peer);
            }
            self.0.insert(cookie, seen_s);
        }
        (due, next_s)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lb_model::IpFamily;

    use super::*;
    use crate::testing::desired_port;

    const HOUR: AgeLimit = AgeLimit { age_s: 3600, since_s: 0 };

    fn seconds_of(limit: AgeLimit, connections: u64, opened_s: u64) -> BTreeMap<u64, usize> {
        let mut seconds = BTreeMap::new();
        for number in 0..connections {
            // As for connections from ports that follow each other, and for sockets.
            *seconds.entry(limit.end_of(opened_s, hash_of(number))).or_default() += 1;
        }
        seconds
    }

    #[test]
    fn connections_of_the_same_age_are_spread() {
        let seconds = seconds_of(HOUR, 1_000, 50);
        let (first, last) = (seconds.keys().min().unwrap(), seconds.keys().max().unwrap());
        assert!(*first >= 50 + 2_700 && *last <= 50 + 3_600, "from {first} to {last}");
        assert!(last - first > 850, "from {first} to {last}");
        // At random, a second of 901 has more than eight of 1,000 once in 100,000 times.
        assert!(*seconds.values().max().unwrap() <= 8, "{seconds:?}");

        // The least age that is valid has three seconds.
        let seconds = seconds_of(AgeLimit { age_s: 10, since_s: 0 }, 1_000, 50);
        assert_eq!(seconds.keys().copied().collect::<Vec<_>>(), [58, 59, 60]);
        assert!(seconds.values().all(|count| (250..=420).contains(count)), "{seconds:?}");
    }

    #[test]
    fn connections_that_are_older_than_a_new_age_are_spread_too() {
        let limit = AgeLimit { age_s: 3600, since_s: 100_000 };
        let seconds = seconds_of(limit, 1_000, 50);
        let (first, last) = (seconds.keys().min().unwrap(), seconds.keys().max().unwrap());
        assert!(*first >= 100_000 && *last <= 100_900, "from {first} to {last}");
        assert!(*seconds.values().max().unwrap() <= 8, "{seconds:?}");
    }

    #[test]
    fn an_age_counts_from_its_last_change() {
        let port = |age: Option<u64>| DesiredServicePort {
            max_connection_age: age.map(Duration::from_secs),
            ..desired_port()
        };
        let id = port(None).id;
        let mut ages = ConnectionAges::default();
        let limit = |ages: &ConnectionAges| ages.search(|_| Some(7), 0).limits.get(&7).copied();
        assert!(!ages.update(&[port(None)], &[], 10));
        assert!(ages.update(&[port(Some(60))], &[], 20));
        assert!(!ages.update(&[port(Some(60))], &[], 30), "another change of the Service");
        assert_eq!(limit(&ages), Some(AgeLimit { age_s: 60, since_s: 20 }));
        assert!(ages.update(&[port(Some(90))], &[], 40));
        assert_eq!(limit(&ages), Some(AgeLimit { age_s: 90, since_s: 40 }));
        assert!(ages.search(|_| None, 0).limits.is_empty(), "not in the maps");
        assert!(ages.update(&[], &[id], 50));
        assert_eq!(limit(&ages), None);
        assert!(ages.update(&[port(Some(90))], &[], 60) && ages.update(&[port(None)], &[], 70));
        assert_eq!(limit(&ages), None);
    }

    #[test]
    fn the_result_of_a_void_search_resets_nothing() {
        let aged = DesiredServicePort {
            max_connection_age: Some(Duration::from_secs(HOUR.age_s)),
            ..desired_port()
        };
        let found = || vec![(200, flow(2)), (100, flow(1))];
        let mut ages = ConnectionAges::default();
        ages.update(&[aged], &[], 10);
        let search = ages.search(|_| Some(7), 300);
        ages.schedule(search.version, found());
        assert_eq!(ages.take_due(150), [flow(1)]);

        // The age is removed while the thread searches.
        ages.update(&[desired_port()], &[], 160);
        ages.schedule(search.version, found());
        assert_eq!(ages.take_due(300), []);

        // The flow table is replaced: its records have other numbers.
        let search = ages.search(|_| Some(7), 300);
        ages.schedule(search.version, found());
        ages.forget();
        assert_eq!(ages.take_due(300), []);
        ages.schedule(search.version, found());
        assert_eq!(ages.take_due(300), []);
    }

    fn flow(number: u32) -> AgedFlow {
        AgedFlow::new(IpFamily::V4, number, 1)
    }

    fn peer(service_id: u32) -> ConnectedPeer {
        ConnectedPeer {
            service_addr: [0; 16],
            backend_addr: [0; 16],
            service_port: 80,
            backend_port: 8080,
            backend_id: 1,
            service_id,
        }
    }

    fn socket(service_id: u32, opened_s: Option<u64>) -> ServedSocket {
        ServedSocket { peer: peer(service_id), opened_s }
    }

    #[test]
    fn the_age_of_a_socket_does_not_depend_on_the_start_of_the_agent() {
        let limits = AgeLimits::from([(1, AgeLimit { age_s: 100, since_s: 0 })]);
        let sockets = |opened_s| HashMap::from([(11, socket(1, opened_s))]);
        let end_s = |opened_s, now_s| {
            SeenSockets::default().due(sockets(opened_s), &limits, now_s).1.expect("it is not due")
        };
        assert_eq!(end_s(Some(1_000), 1_000), end_s(Some(1_000), 1_070));
        assert_eq!(end_s(None, 1_000) + 70, end_s(None, 1_070), "not known: the age begins now");
        assert_eq!(SeenSockets::default().due(sockets(Some(1_000)), &limits, 1_100).0.len(), 1);
    }

    #[test]
    fn sockets_are_due_at_their_age_and_those_of_other_services_never() {
        let limits = AgeLimits::from([(1, AgeLimit { age_s: 100, since_s: 0 })]);
        let sockets = || HashMap::from([(11, socket(1, None)), (12, socket(2, None))]);
        let mut seen = SeenSockets::default();
        let (due, next_s) = seen.due(sockets(), &limits, 1_000);
        let end_s = next_s.unwrap();
        assert!(due.is_empty() && (1_075..=1_100).contains(&end_s), "{due:?}, {end_s}");
        assert_eq!(seen.due(sockets(), &limits, end_s - 1), (HashMap::new(), Some(end_s)));
        let (due, next_s) = seen.due(sockets(), &limits, end_s);
        assert_eq!((due, next_s), (HashMap::from([(11, peer(1))]), None));
        // The process has not closed it: it is due again after its age, not with each visit.
        let (due, next_s) = seen.due(sockets(), &limits, end_s + 1);
        assert!(due.is_empty() && next_s.is_some_and(|next_s| next_s >= end_s + 75), "{next_s:?}");
        // Without ages, nothing is remembered.
        assert_eq!(seen.due(sockets(), &AgeLimits::default(), end_s + 2), (HashMap::new(), None));
        assert!(seen.0.is_empty());
    }

    #[test]
    fn a_visit_closes_a_limited_number_of_sockets() {
        let limits = AgeLimits::from([(1, AgeLimit { age_s: 10, since_s: 0 })]);
        let sockets = || (0..3_000).map(|cookie| (cookie, socket(1, None))).collect::<HashMap<_, _>>();
        let mut seen = SeenSockets::default();
        assert!(seen.due(sockets(), &limits, 0).0.is_empty());
        let (due, next_s) = seen.due(sockets(), &limits, 10);
        assert_eq!(due.len(), MOST_RESETS);
        assert!(next_s.is_some_and(|next_s| next_s <= 10), "{next_s:?}");
    }
}
