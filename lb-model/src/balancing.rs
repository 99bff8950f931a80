//! The algorithms, weights and annotations by which endpoints are selected.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroU64;
use std::time::Duration;

use lb_common::layout::scheduler;
pub use lb_common::threshold::Thresholds;

/// How an endpoint is selected for a new connection. The names are those of the IPVS schedulers
/// (`net/netfilter/ipvs/ip_vs_*.c`), and `random`.
///
/// The numbers are those of the map entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
#[repr(u8)]
pub enum Algorithm {
    /// Each endpoint has a probability in proportion to its weight.
    #[default]
    Random = scheduler::RANDOM,
    /// `rr`: one after the other. Weights do not matter.
    RoundRobin = scheduler::RR,
    /// `wrr`: one after the other, in proportion to the weights, interleaved.
    WeightedRoundRobin = scheduler::WRR,
    /// `sh`: 256 buckets in proportion to the weights; a hash of the client selects the bucket.
    SourceHash = scheduler::SH,
    /// `dh`: 256 buckets; a hash of the address that the client uses selects the bucket.
    DestinationHash = scheduler::DH,
    /// `mh`: Maglev. A hash of the client selects an entry of a table that changes little when
    /// endpoints come and go (Eisenbud et al., NSDI 2016).
    Maglev = scheduler::MH,
    /// `fo`: the endpoint with the greatest weight.
    Failover = scheduler::FO,
    /// `lc`: the endpoint with the fewest connections. An active one counts as 256 inactive ones.
    LeastConnections = scheduler::LC,
    /// `wlc`: the same, for the weight.
    WeightedLeastConnections = scheduler::WLC,
    /// `sed`: the shortest expected delay: active connections and the new one, for the weight.
    ShortestExpectedDelay = scheduler::SED,
    /// `nq`: an endpoint without active connections, otherwise as `sed`.
    NeverQueue = scheduler::NQ,
    /// `ovf`: the greatest weight among the endpoints with no more active connections than their
    /// weight.
    Overflow = scheduler::OVF,
    /// `twos`: of two endpoints at random, the one with fewer connections for the weight.
    TwoChoices = scheduler::TWOS,
}

impl Algorithm {
    pub const ALL: [Self; 13] = [
        Self::Random,
        Self::RoundRobin,
        Self::WeightedRoundRobin,
        Self::SourceHash,
        Self::DestinationHash,
        Self::Maglev,
        Self::Failover,
        Self::LeastConnections,
        Self::WeightedLeastConnections,
        Self::ShortestExpectedDelay,
        Self::NeverQueue,
        Self::Overflow,
        Self::TwoChoices,
    ];

    /// Returns the value of the annotation `lb.sluice.dev/algorithm`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::RoundRobin => "rr",
            Self::WeightedRoundRobin => "wrr",
            Self::SourceHash => "sh",
            Self::DestinationHash => "dh",
            Self::Maglev => "mh",
            Self::Failover => "fo",
            Self::LeastConnections => "lc",
            Self::WeightedLeastConnections => "wlc",
            Self::ShortestExpectedDelay => "sed",
            Self::NeverQueue => "nq",
            Self::Overflow => "ovf",
            Self::TwoChoices => "twos",
        }
    }

    /// Returns the algorithm of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    /// Returns the algorithm that replaces an IPVS scheduler which balances over the destination
    /// addresses of one virtual service: `lblc` or `lblcr`. A Service has one address for a client,
    /// so these schedulers would keep to one endpoint (`ip_vs_lblc.c`). Both select by `wlc` when
    /// they leave it.
    pub fn substitute(name: &str) -> Option<Self> {
        matches!(name, "lblc" | "lblcr").then_some(Self::WeightedLeastConnections)
    }

    /// Returns the algorithm with this number.
    pub fn numbered(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| *algorithm as u8 == number)
    }

    /// Returns whether the algorithm compares the open connections of endpoints.
    pub fn compares_connections(self) -> bool {
        matches!(
            self,
            Self::LeastConnections
                | Self::WeightedLeastConnections
                | Self::ShortestExpectedDelay
                | Self::NeverQueue
                | Self::Overflow
                | Self::TwoChoices
        )
    }

    /// Returns whether a hash selects the endpoint.
    pub fn is_by_hash(self) -> bool {
        self.hashes_the_client() || self == Self::DestinationHash
    }

    /// Returns whether [`HashInput`] matters.
    pub fn hashes_the_client(self) -> bool {
        matches!(self, Self::SourceHash | Self::Maglev)
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The part of a new connection that `sh` and `mh` hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub enum HashInput {
    /// The client's address.
    #[default]
    Source,
    /// The client's address and port.
    SourcePort,
    /// The address that the client uses.
    Destination,
}

impl HashInput {
    pub const ALL: [Self; 3] = [Self::Source, Self::SourcePort, Self::Destination];

    /// Returns the value of the annotation `lb.sluice.dev/hash`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::SourcePort => "source-port",
            Self::Destination => "destination",
        }
    }

    /// Returns the hash input of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|input| input.name() == name)
    }
}

/// The annotations of a Service about the selection of endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Balancing {
    /// `None`: the default of this node.
    pub algorithm: Option<Algorithm>,
    pub hash: HashInput,
    /// A TCP client that repeats its SYN gets another endpoint.
    pub failover: bool,
    /// An endpoint that refuses clients or does not answer them is left out for a while.
    pub passive_health: bool,
    /// When an endpoint has too many connections to get new ones. `None`: never.
    pub thresholds: Option<Thresholds>,
    /// With an algorithm by a hash, a client whose endpoint is overloaded gets another one instead
    /// of a refusal.
    pub fallback: bool,
    /// The time after which the open connections to an endpoint that terminates, that has weight 0
    /// or whose node drains are reset. `None`: they stay.
    pub drain_timeout: Option<Duration>,
    /// The age at which open TCP connections are reset, so that their clients connect again.
    /// `None`: they stay.
    pub max_connection_age: Option<Duration>,
    /// Weights of the endpoints in a zone or on a node, by [`PlaceHash`], sorted.
    pub weights: Box<[(PlaceHash, Weight)]>,
}

impl Balancing {
    /// Returns the weight of an endpoint. `annotated` is that of its Pod, or else of its
    /// EndpointSlice, which takes precedence. Then the weight of its node applies, then that of its
    /// zone, and then 1.
    pub fn weight_of(
        &self,
        annotated: Option<Weight>,
        node: Option<PlaceHash>,
        zone: Option<PlaceHash>,
    ) -> Weight {
        let listed = |place: Option<PlaceHash>| {
            let index = self.weights.binary_search_by_key(&place?, |(place, _)| *place).ok()?;
            Some(self.weights[index].1)
        };
        annotated.or_else(|| listed(node)).or_else(|| listed(zone)).unwrap_or(Weight::DEFAULT)
    }
}

/// The share of an endpoint. An endpoint with weight 0 keeps its connections and gets no new ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Weight(u16);

impl Weight {
    pub const DEFAULT: Self = Self(1);
    /// The greatest weight, as that of IPVS.
    pub const MAX: u16 = u16::MAX;

    pub fn new(weight: u16) -> Self {
        Self(weight)
    }

    pub fn get(self) -> u16 {
        self.0
    }
}

/// A hash of the name of a node or zone. A cluster has thousands of nodes and hundreds of thousands
/// of endpoints: each endpoint stores the hash of its node, not the name. Two names with the same
/// hash share their weights. The hash is not seeded. It is compared inside one process only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PlaceHash(NonZeroU64);

impl PlaceHash {
    pub fn of(name: &str) -> Self {
        Self(hash_of(name))
    }
}

/// Returns a hash of a name that is the same in all programs.
pub(crate) fn hash_of(name: impl Hash) -> NonZeroU64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    NonZeroU64::MIN | hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_lead_back() {
        for algorithm in Algorithm::ALL {
            assert_eq!(Algorithm::named(algorithm.name()), Some(algorithm));
            assert_eq!(Algorithm::numbered(algorithm as u8), Some(algorithm));
        }
        for input in HashInput::ALL {
            assert_eq!(HashInput::named(input.name()), Some(input));
        }
        assert_eq!(Algorithm::named("RR"), None);
        assert_eq!(Algorithm::substitute("lblcr"), Some(Algorithm::WeightedLeastConnections));
        assert!(Algorithm::ALL.iter().all(|algorithm| Algorithm::substitute(algorithm.name()).is_none()));
    }

    #[test]
    fn an_annotated_weight_precedes_that_of_the_node_which_precedes_that_of_the_zone() {
        let [node, zone, other] = ["node-1", "zone-a", "node-2"].map(PlaceHash::of);
        let mut weights = [(node, Weight(0)), (zone, Weight(3))];
        weights.sort_unstable();
        let balancing = Balancing { weights: weights.into(), ..Balancing::default() };
        let weight = |own: Option<u16>, node, zone| balancing.weight_of(own.map(Weight), node, zone).0;
        assert_eq!(weight(Some(7), Some(node), Some(zone)), 7);
        assert_eq!(weight(Some(0), Some(other), Some(zone)), 0);
        assert_eq!(weight(None, Some(node), Some(zone)), 0);
        assert_eq!(weight(None, Some(other), Some(zone)), 3);
        assert_eq!(weight(None, Some(other), None), 1);
    }
}
