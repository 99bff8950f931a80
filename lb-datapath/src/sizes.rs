//! Sizes of the BPF maps, and their memory use.

use std::mem::size_of;

use lb_common::family::{Family, V4, V6};
use lb_common::layout;

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
