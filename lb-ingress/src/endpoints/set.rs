//! The choice of an endpoint.

use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::endpoint::Endpoint;

/// The endpoints of one backend that may get new requests.
#[derive(Debug)]
pub struct EndpointSet<C> {
    endpoints: Box<[Arc<Endpoint<C>>]>,
    next: AtomicUsize,
}

/// A way to choose an endpoint.
#[derive(Debug, Clone, Copy)]
pub enum Choice<'a> {
    RoundRobin,
    /// Of two random endpoints, the one with fewer requests. The random numbers are arguments.
    LeastOfTwo(u32, u32),
    /// The same text gets the same endpoint. A change of the endpoints moves only the texts of
    /// those that came or went.
    Hash(&'a str),
    /// This endpoint (session affinity), or the hash of its address while it cannot be used.
    Address(SocketAddr),
}

impl<C> EndpointSet<C> {
    pub fn new(endpoints: impl IntoIterator<Item = Arc<Endpoint<C>>>, next: usize) -> Self {
        Self { endpoints: endpoints.into_iter().collect(), next: AtomicUsize::new(next) }
    }

    pub fn endpoints(&self) -> &[Arc<Endpoint<C>>] {
        &self.endpoints
    }

    /// Returns where the round robin continues.
    pub(super) fn position(&self) -> usize {
        self.next.load(Ordering::Relaxed)
    }

    /// Chooses an endpoint that was not tried. Prefers endpoints that are not ejected at `now`.
    pub fn choose(&self, choice: Choice<'_>, tried: &[SocketAddr], now: u64) -> Option<&Arc<Endpoint<C>>> {
        let untried = |endpoint: &&Arc<Endpoint<C>>| !tried.contains(&endpoint.address);
        let healthy = |endpoint: &&Arc<Endpoint<C>>| untried(endpoint) && !endpoint.is_ejected(now);
        self.among(choice, healthy).or_else(|| self.among(choice, untried))
    }

    fn among(
        &self,
        choice: Choice<'_>,
        usable: impl Fn(&&Arc<Endpoint<C>>) -> bool,
    ) -> Option<&Arc<Endpoint<C>>> {
        let count = self.endpoints.len();
        if count == 0 {
            return None;
        }
        let from = |start: usize| {
            let start = start % count;
            self.endpoints[start..].iter().chain(&self.endpoints[..start]).find(|endpoint| usable(endpoint))
        };
        match choice {
            Choice::RoundRobin => from(self.next.fetch_add(1, Ordering::Relaxed)),
            Choice::LeastOfTwo(first, second) => {
                let first = from(first as usize)?;
                let second = from(second as usize)?;
                Some(if second.in_flight() < first.in_flight() { second } else { first })
            }
            Choice::Hash(text) => self.rendezvous(text, usable),
            Choice::Address(address) => self
                .endpoints
                .iter()
                .find(|endpoint| endpoint.address == address && usable(endpoint))
                .or_else(|| self.rendezvous(&address.to_string(), usable)),
        }
    }

    /// Highest random weight (Thaler and Ravishankar, 1998).
    fn rendezvous(
        &self,
        text: &str,
        usable: impl Fn(&&Arc<Endpoint<C>>) -> bool,
    ) -> Option<&Arc<Endpoint<C>>> {
        let weight = |endpoint: &&Arc<Endpoint<C>>| {
            let mut hasher = DefaultHasher::new();
            (text, endpoint.address).hash(&mut hasher);
            hasher.finish()
        };
        self.endpoints.iter().filter(usable).max_by_key(weight)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn address(number: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, number], 80))
    }

    fn set(numbers: impl IntoIterator<Item = u8>) -> EndpointSet<()> {
        EndpointSet::new(numbers.into_iter().map(|number| Arc::new(Endpoint::new(address(number)))), 0)
    }

    fn chosen(set: &EndpointSet<()>, choice: Choice<'_>, tried: &[SocketAddr]) -> Option<SocketAddr> {
        set.choose(choice, tried, 0).map(|endpoint| endpoint.address)
    }

    #[test]
    fn round_robin_skips_tried_and_ejected_endpoints() {
        let set = set([1, 2, 3]);
        let turn = |tried: &[SocketAddr]| chosen(&set, Choice::RoundRobin, tried);
        assert_eq!([turn(&[]), turn(&[]), turn(&[])], [1, 2, 3].map(|number| Some(address(number))));
        assert_eq!(turn(&[address(1)]), Some(address(2)));
        set.endpoints()[2].failed(0, true);
        for _ in 0..10 {
            assert_ne!(turn(&[]), Some(address(3)));
        }
        assert_eq!(turn(&[address(1), address(2)]), Some(address(3)), "better than none");
        assert_eq!(turn(&[address(1), address(2), address(3)]), None);
        assert_eq!(chosen(&EndpointSet::new([], 0), Choice::RoundRobin, &[]), None);
    }

    #[test]
    fn the_less_loaded_of_two() {
        let set = set([1, 2]);
        let _busy = super::super::InFlight::new(set.endpoints()[0].clone());
        assert_eq!(chosen(&set, Choice::LeastOfTwo(0, 1), &[]), Some(address(2)));
        assert_eq!(chosen(&set, Choice::LeastOfTwo(1, 0), &[]), Some(address(2)));
        assert_eq!(chosen(&set, Choice::LeastOfTwo(0, 0), &[]), Some(address(1)));
    }

    #[test]
    fn a_hash_moves_only_what_it_must() {
        let (before, after) = (set(1..=10), set(1..=9));
        let mut shares: HashMap<SocketAddr, u32> = HashMap::new();
        for number in 0..10_000 {
            let text = number.to_string();
            let old = chosen(&before, Choice::Hash(&text), &[]).unwrap();
            let new = chosen(&after, Choice::Hash(&text), &[]).unwrap();
            assert!(old == new || old == address(10), "{text}");
            *shares.entry(old).or_default() += 1;
        }
        assert!(shares.values().all(|share| (850..1150).contains(share)), "{shares:?}");
    }

    #[test]
    fn affinity_lasts_while_the_endpoint_does() {
        let set = set([1, 2, 3]);
        assert_eq!(chosen(&set, Choice::Address(address(2)), &[]), Some(address(2)));
        let other = chosen(&set, Choice::Address(address(9)), &[]);
        assert!(other.is_some() && other == chosen(&set, Choice::Address(address(9)), &[]));
    }
}
