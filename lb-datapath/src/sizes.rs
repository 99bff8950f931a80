//! Sizes of the BPF maps, and their memory use.

use std::mem::size_of;

use lb_common::family::{Family, V4, V6};
use lb_common::layout;

use crate::apply::{Demand, MapUsage};

/// The capacity of each map, in entries. If there is one map for each IP family, both have this
/// size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapSizes {
    /// Service addresses and Service ports. A Service has one address for each port, IP family and
    /// kind.
    pub max_services: u32,
    /// Slots: one for each endpoint, for each Service port, traffic policy and IP family.
    pub max_slots: u32,
    /// Endpoints of Service ports.
    pub max_backends: u32,
    /// Connections that are translated packet by packet.
    pub max_flows: u32,
    /// Fragmented datagrams that have not arrived completely.
    pub max_fragments: u32,
    /// Service addresses that unconnected UDP sockets use, two entries for each.
    pub max_socket_peers: u32,
    /// Networks in the loadBalancerSourceRanges of all Service ports.
    pub max_source_ranges: u32,
    /// Clients of Service ports with session affinity, for both IP families together.
    pub max_affinity: u32,
}

/// No map has more entries than this.
pub const LARGEST_MAP: u32 = 1 << 24;

/// Selects one size.
type Field = fn(&mut MapSizes) -> &mut u32;
/// Selects the entries that are needed.
type Entries = fn(&Demand) -> u64;

/// The sizes of maps that grow, in the order in which they get memory.
const GROWING: [(Entries, Field); 4] = [
    (|demand| demand.services, |sizes| &mut sizes.max_services),
    (|demand| demand.backends, |sizes| &mut sizes.max_backends),
    (|demand| demand.slots, |sizes| &mut sizes.max_slots),
    (|demand| demand.source_ranges, |sizes| &mut sizes.max_source_ranges),
];

type A4 = <V4 as Family>::Addr;
type A6 = <V6 as Family>::Addr;

/// Returns the memory of one hash map entry in bytes: `struct htab_elem`, a bucket, key and value,
/// each rounded up to eight bytes (kernel/bpf/hashtab.c, `htab_map_mem_usage`).
const fn hash_entry(key: usize, value: usize) -> usize {
    const HTAB_ELEM: usize = 48;
    const BUCKET: usize = 16;
    HTAB_ELEM + BUCKET + key.next_multiple_of(8) + value.next_multiple_of(8)
}

/// Returns the memory of one array element, which is rounded up to eight bytes
/// (kernel/bpf/arraymap.c).
const fn array_entry(value: usize) -> usize {
    value.next_multiple_of(8)
}

/// Returns the maximal memory of one entry of a longest-prefix map in bytes: a node with key and
/// value, and an inner node without value (kernel/bpf/lpm_trie.c, `struct lpm_trie_node`). `data`
/// is the size of the key without its prefix length.
const fn lpm_entry(data: usize, value: usize) -> usize {
    const NODE: usize = 40;
    (NODE + data + value).next_multiple_of(8) + (NODE + data).next_multiple_of(8)
}

impl MapSizes {
    /// Returns the same size for all maps.
    pub const fn same(entries: u32) -> Self {
        Self {
            max_services: entries,
            max_slots: entries,
            max_backends: entries,
            max_flows: entries,
            max_fragments: entries,
            max_socket_peers: entries,
            max_source_ranges: entries,
            max_affinity: entries,
        }
    }

    /// The names of the fields, and the bytes for one entry in both families together.
    pub const ENTRY_BYTES: [(&str, usize); 8] = {
        use layout::*;
        let service = hash_entry(size_of::<ServiceKey<A4>>(), size_of::<ServiceEntry>())
            + hash_entry(size_of::<ServiceKey<A6>>(), size_of::<ServiceEntry>())
            + hash_entry(size_of::<u32>(), size_of::<ServiceName>())
            + hash_entry(size_of::<A4>(), size_of::<KnownAddress>())
            + hash_entry(size_of::<A6>(), size_of::<KnownAddress>());
        let backend = array_entry(size_of::<Backend<A4>>())
            + array_entry(size_of::<Backend<A6>>())
            + 2 * array_entry(size_of::<Load>());
        let index = hash_entry(size_of::<FlowKey<A4>>(), size_of::<FlowIndex>())
            + hash_entry(size_of::<FlowKey<A6>>(), size_of::<FlowIndex>());
        let flow = array_entry(size_of::<Flow<A4>>()) + array_entry(size_of::<Flow<A6>>()) + 2 * index;
        let fragment = hash_entry(size_of::<FragmentKey<A4>>(), size_of::<FragmentPorts>())
            + hash_entry(size_of::<FragmentKey<A6>>(), size_of::<FragmentPorts>());
        let peer = hash_entry(size_of::<SocketPeerKey<A4>>(), size_of::<SocketPeer<A4>>())
            + hash_entry(size_of::<SocketPeerKey<A6>>(), size_of::<SocketPeer<A6>>());
        let source_range = lpm_entry(size_of::<SourceRange<A4>>(), size_of::<u32>())
            + lpm_entry(size_of::<SourceRange<A6>>(), size_of::<u32>());
        [
            ("max_services", service),
            ("max_slots", array_entry(size_of::<u32>())),
            ("max_backends", backend),
            ("max_flows", flow),
            ("max_fragments", fragment),
            ("max_socket_peers", peer),
            ("max_source_ranges", source_range),
            ("max_affinity", hash_entry(size_of::<AffinityKey>(), size_of::<Affinity>())),
        ]
    };

    /// Returns the sizes to which the maps of a running agent grow. A map with room for `demand`
    /// keeps its size. Of the others, half is used at most, so that they seldom grow. If the memory
    /// does not suffice for that, they are as small as possible.
    #[must_use]
    pub fn grown_for(self, demand: &Demand, most: usize) -> Self {
        let mut half_full = self;
        for (entries, field) in GROWING {
            let wished = (2 * entries(demand)).next_power_of_two().min(LARGEST_MAP.into());
            *field(&mut half_full) = u32::try_from(wished).unwrap_or(LARGEST_MAP);
        }
        self.with_room_for(demand, &half_full, most)
    }

    /// Returns the sizes with which an agent of these sizes starts on maps of the sizes `pinned`,
    /// which contain `demand`. A map for which the size of the agent is too small keeps its pinned
    /// size.
    #[must_use]
    pub fn kept_for(self, demand: &Demand, pinned: &Self, most: usize) -> Self {
        self.with_room_for(demand, pinned, most)
    }

    /// Returns sizes at which no map that grows is smaller than in `other`.
    #[must_use]
    pub fn no_smaller_than(self, other: &Self) -> Self {
        let (mut sizes, mut other) = (self, *other);
        for (_, field) in GROWING {
            let size = field(&mut sizes);
            *size = (*size).max(*field(&mut other));
        }
        sizes
    }

    /// Returns sizes at which less than [`MapUsage::NEARLY_FULL_PERCENT`] of the entries are used.
    /// A map that has room keeps its size. The others grow to a power of two, or to their size in
    /// `wished` if it is greater, as far as the memory of all maps stays within `most` bytes.
    fn with_room_for(self, demand: &Demand, wished: &Self, most: usize) -> Self {
        let (mut sizes, mut wished) = (self, *wished);
        for (entries, field) in GROWING {
            let before = *field(&mut sizes);
            let mut needed = before;
            while entries(demand) * 100 >= u64::from(needed) * MapUsage::NEARLY_FULL_PERCENT
                && needed < LARGEST_MAP
            {
                needed = (needed + 1).next_power_of_two();
            }
            *field(&mut sizes) = needed;
            while needed > before && sizes.memory() > most {
                needed = (needed / 2).max(before);
                *field(&mut sizes) = needed;
            }
        }
        // What maps need comes before what is wished.
        let mut before = self;
        for (_, field) in GROWING {
            let mut larger = sizes;
            *field(&mut larger) = (*field(&mut sizes)).max(*field(&mut wished));
            if *field(&mut sizes) > *field(&mut before) && larger.memory() <= most {
                sizes = larger;
            }
        }
        sizes
    }

    /// Returns the kernel memory of all maps when they are full, in bytes.
    pub fn memory(&self) -> usize {
        let sizes = [
            self.max_services,
            self.max_slots,
            self.max_backends,
            self.max_flows,
            self.max_fragments,
            self.max_socket_peers,
            self.max_source_ranges,
            self.max_affinity,
        ];
        sizes.iter().zip(Self::ENTRY_BYTES).map(|(&entries, (_, bytes))| entries as usize * bytes).sum()
    }
}

/// Converts bytes to mebibytes, rounded up.
pub fn mebibytes(bytes: usize) -> usize {
    bytes.div_ceil(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_follow_the_kernels_rounding() {
        assert_eq!(hash_entry(20, 32), 48 + 16 + 24 + 32);
        assert_eq!(array_entry(4), 8);
        assert_eq!(mebibytes(1), 1);
        assert_eq!(mebibytes(3 << 20), 3);
    }

    #[test]
    fn a_map_grows_when_it_is_nearly_full() {
        let sizes = MapSizes { max_services: 100, max_slots: 100, ..MapSizes::same(64) };
        let demand = |services, slots| Demand { services, slots, ..Demand::default() };
        assert_eq!(sizes.grown_for(&demand(79, 79), usize::MAX), sizes);
        let grown = sizes.grown_for(&demand(80, 1000), usize::MAX);
        assert_eq!(grown, MapSizes { max_services: 256, max_slots: 2048, ..sizes }, "half is used at most");
        let most = sizes.grown_for(&demand(u64::from(u32::MAX), 0), usize::MAX);
        assert_eq!(most.max_services, LARGEST_MAP);
    }

    #[test]
    fn maps_grow_within_the_memory() {
        let sizes = MapSizes::same(64);
        let demand = Demand { services: 1000, slots: 1000, backends: 0, source_ranges: 64 };
        let bytes = |wanted: MapSizes| wanted.memory();
        let part = MapSizes { max_services: 512, max_slots: 128, ..sizes };
        // Services come first. What is left suffices for 128 slots, and for no source ranges.
        assert_eq!(sizes.grown_for(&demand, bytes(part) + 8), part);
        assert_eq!(sizes.grown_for(&demand, bytes(sizes) + 8), sizes);
        assert_eq!(sizes.grown_for(&demand, 0), sizes, "a map does not become smaller");
        // 1024 slots would be nearly full, 2048 Services are not half used.
        let needed = MapSizes { max_services: 2048, max_slots: 2048, max_source_ranges: 128, ..sizes };
        assert_eq!(sizes.grown_for(&demand, bytes(needed)), needed);
        let demand = Demand { services: 60, slots: 60, ..Demand::default() };
        let spare = MapSizes { max_services: 128, max_slots: 128, ..sizes };
        assert_eq!(sizes.grown_for(&demand, bytes(spare)), spare);
    }

    #[test]
    fn an_agent_keeps_larger_maps_that_it_needs() {
        let sizes = MapSizes::same(64);
        let pinned = MapSizes { max_services: 1024, max_slots: 512, max_flows: 256, ..sizes };
        let demand = |services| Demand { services, ..Demand::default() };
        assert_eq!(sizes.kept_for(&demand(50), &pinned, usize::MAX), sizes);
        let kept = MapSizes { max_services: 1024, ..sizes };
        assert_eq!(sizes.kept_for(&demand(60), &pinned, usize::MAX), kept, "slots have room");
        let larger = MapSizes { max_services: 2048, ..sizes };
        assert_eq!(sizes.kept_for(&demand(1000), &pinned, usize::MAX), larger, "pinned maps are nearly full");
        let finished = MapSizes { max_services: 1024, max_slots: 512, ..sizes };
        assert_eq!(sizes.no_smaller_than(&pinned), finished, "flows do not grow");
        assert_eq!(pinned.no_smaller_than(&sizes), pinned);
    }

    /// The defaults of `lb agent`, and 44,000 Services with NodePorts whose 250,000 endpoints have
    /// two ports each.
    #[test]
    fn a_large_cluster_fits_into_a_quarter_of_two_gibibytes() {
        let defaults = MapSizes {
            max_services: 65_536,
            max_slots: 1_048_576,
            max_backends: 262_144,
            max_flows: 65_536,
            max_fragments: 8_192,
            max_socket_peers: 65_536,
            max_source_ranges: 65_536,
            max_affinity: 65_536,
        };
        let demand = Demand { services: 88_000, slots: 500_000, backends: 500_000, source_ranges: 0 };
        let sizes = defaults.grown_for(&demand, 512 << 20);
        assert_eq!(
            (sizes.max_services, sizes.max_backends, sizes.max_slots),
            (262_144, 1_048_576, 1_048_576)
        );
        assert_eq!(sizes.grown_for(&demand, 512 << 20), sizes, "nothing is nearly full");
    }

    #[test]
    fn memory_is_the_sum_over_all_maps() {
        let sizes = MapSizes {
            max_services: 0,
            max_slots: 2,
            max_backends: 3,
            max_flows: 0,
            max_fragments: 0,
            max_socket_peers: 0,
            max_source_ranges: 5,
            max_affinity: 0,
        };
        assert_eq!(sizes.memory(), 2 * 8 + 3 * (16 + 32 + 2 * 16) + 5 * (56 + 48 + 64 + 64));
    }
}
