//! Sizes of the BPF maps, and what they cost.

use std::mem::size_of;

use lb_common::family::{Family, V4, V6};
use lb_common::layout;

/// How many entries each map can hold. Where a map exists per family, each of the two gets this
/// size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapSizes {
    /// Service addresses (a Service has one per port, family and kind), and Service ports by name
    pub max_services: u32,
    /// Slots: the endpoints of all Service ports, counted once per Service port, policy and family;
    /// allow for as many again while they change
    pub max_slots: u32,
    /// Endpoints of all Service ports
    pub max_backends: u32,
    /// Connections that are translated packet by packet
    pub max_flows: u32,
    /// Datagrams whose fragments are under way
    pub max_fragments: u32,
    /// Service addresses that unconnected UDP sockets talk to, two entries each
    pub max_socket_peers: u32,
    /// Networks in the loadBalancerSourceRanges of all Service ports; while they change, old and
    /// new ones are counted
    pub max_source_ranges: u32,
    /// Clients of Service ports with session affinity, both families together; the ones that were
    /// silent longest leave
    pub max_affinity: u32,
}

type A4 = <V4 as Family>::Addr;
type A6 = <V6 as Family>::Addr;

/// Bytes that one entry of a hash map takes: `struct htab_elem` and a bucket beside key and value,
/// each rounded up to eight (kernel/bpf/hashtab.c, `htab_map_mem_usage`).
const fn hash_entry(key: usize, value: usize) -> usize {
    const HTAB_ELEM: usize = 48;
    const BUCKET: usize = 16;
    HTAB_ELEM + BUCKET + key.next_multiple_of(8) + value.next_multiple_of(8)
}

/// Elements of an array map are rounded up to eight bytes (kernel/bpf/arraymap.c).
const fn array_entry(value: usize) -> usize {
    value.next_multiple_of(8)
}

/// Bytes that one entry of a longest-prefix map can take: a node with key and value, and an inner
/// node without value (kernel/bpf/lpm_trie.c, `struct lpm_trie_node`). `data`: the key without its
/// prefix length.
const fn lpm_entry(data: usize, value: usize) -> usize {
    const NODE: usize = 40;
    (NODE + data + value).next_multiple_of(8) + (NODE + data).next_multiple_of(8)
}

impl MapSizes {
    /// Room for as many entries in every map.
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

    /// Names of the fields and the bytes that one of each costs, both families together.
    pub const ENTRY_BYTES: [(&str, usize); 8] = {
        use layout::*;
        let service = hash_entry(size_of::<ServiceKey<A4>>(), size_of::<Service>())
            + hash_entry(size_of::<ServiceKey<A6>>(), size_of::<Service>())
            + hash_entry(size_of::<u32>(), size_of::<ServiceName>())
            + hash_entry(size_of::<A4>(), size_of::<KnownAddress>())
            + hash_entry(size_of::<A6>(), size_of::<KnownAddress>());
        let backend = array_entry(size_of::<Backend<A4>>()) + array_entry(size_of::<Backend<A6>>());
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

    /// Kernel memory of all maps when they are full, in bytes.
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

/// Rounded up.
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
        assert_eq!(sizes.memory(), 2 * 8 + 3 * (16 + 24) + 5 * (56 + 48 + 64 + 64));
    }
}
