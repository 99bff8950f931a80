//! Every map but the scratch entry (`scratch.rs`): its key and value, its writer, and when entries
//! are removed.
//!
//! Sizes here are defaults; the agent sets others at load time. `docs/maps.md` documents the same
//! maps for people who read them with `bpftool`.
//!
//! **References to elements.** An element stays mapped until the program ends, but its content can
//! change before. The kernel reuses the memory of a removed element for a new entry of the same
//! map: at once in preallocated and LRU maps, and since Linux 6.1 in others too. So each read has a
//! comment about the effect of a mixture of two entries.

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, bpf_fib_lookup, bpf_spin_lock};
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SkStorage};
use aya_ebpf::macros::btf_map;
use aya_log_ebpf::macro_support::{Argument, IpFormatter};
use lb_common::checksum::{sum4, sum16};
use lb_common::event::{Event, EventBudget, Monitor, event_kind};
use lb_common::family::{V4, V6};
use lb_common::filter::{Filtered, LINES};
use lb_common::layout::{
    Affinity, AffinityKey, Backend, ConnectedPeer, CountedSocket, Device, EndpointHealth, EndpointKey,
    FilterLine, Flow, FlowHand, FlowIndex, FlowKey, FlowTimeouts, FragmentKey, FragmentPorts, KnownAddress,
    LinkAddress, Load, NamespaceAddrs, PortShortage, Record, ServiceEntry, ServiceKey, ServiceName, Settings,
    SocketPeer, SocketPeerKey, SourceRange, Thresholds,
};
use lb_common::reason::REASONS;

const SPARSE: usize = BPF_F_NO_PREALLOC as usize;
const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

pub type Services<A> = HashMap<ServiceKey<A>, ServiceEntry, 65_536, SPARSE>;
pub type Backends<A> = Array<Backend<A>, 262_144, MMAPABLE>;
pub type Loads = Array<Load, 262_144, MMAPABLE>;
pub type Flows<A> = Array<Flow<A>, 65_536, MMAPABLE>;
pub type FlowIndices<A> = HashMap<FlowKey<A>, FlowIndex, 131_072>;
pub type Fragments<A> = LruHashMap<FragmentKey<A>, FragmentPorts, 8_192>;
pub type SocketPeers<A> = LruHashMap<SocketPeerKey<A>, SocketPeer<A>, 65_536>;
pub type Addresses<A> = HashMap<A, KnownAddress, 65_536, SPARSE>;
pub type Routes<A> = PerCpuArray<RememberedRoute<A>, ROUTE_COUNT>;
pub type Networks<A> = LpmTrie<A, u32, 4_096>;
pub type SourceRanges<A> = LpmTrie<SourceRange<A>, u32, 65_536>;

/// Address and port that clients use → endpoints. Written by the agent; removed with the Service.
#[btf_map]
pub static SERVICES_V4: Services<[u8; 4]> = HashMap::new();
#[btf_map]
pub static SERVICES_V6: Services<[u8; 16]> = HashMap::new();

/// Ranges of backend ids that service entries point at; both families. Written by the agent through
/// `mmap`. The agent reuses a range some seconds after it replaced the last service entry that
/// pointed at it.
#[btf_map]
pub static SLOTS: Array<u32, 1_048_576, MMAPABLE> = Array::new();

/// First slot of a range → the slot that is selected next, counted from the first one. Only ranges
/// whose slots are used in turn have an entry. Written by the agent with the range, and by the
/// programs, which hold a lock of [`FLOW_LOCKS`] meanwhile.
#[btf_map]
pub static CURSORS: HashMap<u32, u32, 65_536, SPARSE> = HashMap::new();

/// Backend id → endpoint. Written by the agent through `mmap`. The agent reuses an id when no flow
/// has it any more.
#[btf_map]
pub static BACKENDS_V4: Backends<[u8; 4]> = Array::new();
#[btf_map]
pub static BACKENDS_V6: Backends<[u8; 16]> = Array::new();

/// Backend id → the open connections of the endpoint. Written by the programs. The agent reuses an
/// id when its counts are zero.
#[btf_map]
pub static LOADS_V4: Loads = Array::new();
#[btf_map]
pub static LOADS_V6: Loads = Array::new();

/// Connections, one record each. Written by the packet programs. A record is used again when its
/// connection is over, or gives way (`records.rs`).
#[btf_map]
pub static FLOWS_V4: Flows<[u8; 4]> = Array::new();
#[btf_map]
pub static FLOWS_V6: Flows<[u8; 16]> = Array::new();

/// Tuple of a packet as it arrives → record of its connection: two entries for each. Written by the
/// packet programs. An entry leaves when its record is used again.
#[btf_map]
pub static FLOW_INDEX_V4: FlowIndices<[u8; 4]> = HashMap::new();
#[btf_map]
pub static FLOW_INDEX_V6: FlowIndices<[u8; 16]> = HashMap::new();

/// The time-outs of idle connections. Written by the agent.
#[btf_map]
pub static FLOW_TIMEOUTS: Array<FlowTimeouts, 1> = Array::new();

/// The position of each CPU in its search for a free record, for IPv4 and for IPv6. Written by the
/// packet programs.
#[btf_map]
pub static FLOW_HANDS: PerCpuArray<FlowHand, 2> = PerCpuArray::new();

/// Number of [`FLOW_LOCKS`].
pub const FLOW_LOCK_COUNT: u32 = 64;

/// Locks of flow records, by record number, of cursors, by slot, and of the entries of
/// [`NO_SOURCE_PORT`] and [`HEALTH`] and new connections of endpoints with [`THRESHOLDS`], by
/// backend id. Written by the programs, each for a few instructions.
#[btf_map]
pub static FLOW_LOCKS: Array<FlowLock, { FLOW_LOCK_COUNT as usize }> = Array::new();

/// Held while a program takes a record, moves a cursor, or changes an entry of an endpoint.
#[repr(C)]
pub struct FlowLock {
    pub lock: bpf_spin_lock,
}

/// Number of entries of [`ROUTES_V4`] and of [`ROUTES_V6`], for each CPU; a power of two.
pub const ROUTE_COUNT: usize = 512;

/// Routes that a CPU has looked up lately, by a hash of the query (`route.rs`). Written by the
/// packet programs. Not pinned. An entry is void 100 ms after it was written.
#[btf_map]
pub static ROUTES_V4: Routes<[u8; 4]> = PerCpuArray::new();
#[btf_map]
pub static ROUTES_V6: Routes<[u8; 16]> = PerCpuArray::new();

/// A route and the query that found it.
#[repr(C)]
pub struct RememberedRoute<A> {
    /// Its result.
    pub fib: bpf_fib_lookup,
    /// The time from which the route is void, in nanoseconds of `CLOCK_MONOTONIC`.
    pub expires_ns: u64,
    pub src: A,
    pub dst: A,
    /// The device that the packet was on.
    pub ifindex: u32,
    pub protocol: u32,
    /// The largest IP packet that the path is known to take, in bytes.
    pub mtu: u32,
    /// The state of [`crate::route::RouteLookup`].
    pub state: u32,
    /// The flags of the device that it leads to.
    pub device_flags: u32,
    pub pad: u32,
}

/// The time at which a CPU last left a packet to the kernel so that it checks the neighbour, in
/// nanoseconds of `CLOCK_MONOTONIC`, by a hash of the neighbour's link-layer address. Written by
/// XDP programs. Not pinned.
#[btf_map]
pub static NEIGHBOUR_CHECKS: PerCpuArray<u64, NEIGHBOUR_CHECK_COUNT> = PerCpuArray::new();

/// Number of [`NEIGHBOUR_CHECKS`] for each CPU; a power of two.
pub const NEIGHBOUR_CHECK_COUNT: usize = 64;

/// Datagram identity → ports, for fragments after the first. Written by the packet programs; the
/// least recently used are evicted.
#[btf_map]
pub static FRAGMENTS_V4: Fragments<[u8; 4]> = LruHashMap::new();
#[btf_map]
pub static FRAGMENTS_V6: Fragments<[u8; 16]> = LruHashMap::new();

/// Unconnected UDP sockets: the endpoint of a socket at a service, and the service of an endpoint's
/// reply. Written by the socket programs; the least recently used are evicted.
#[btf_map]
pub static SOCKET_PEERS_V4: SocketPeers<[u8; 4]> = LruHashMap::new();
#[btf_map]
pub static SOCKET_PEERS_V6: SocketPeers<[u8; 16]> = LruHashMap::new();

/// The service and the endpoint of a connected socket. Written by the connect programs; removed
/// with the socket.
#[btf_map]
pub static CONNECTED: SkStorage<ConnectedPeer> = SkStorage::new();

/// The endpoint at which a connected socket is counted. Written by the connect programs; removed
/// with the socket.
#[btf_map]
pub static COUNTED: SkStorage<CountedSocket> = SkStorage::new();

/// Addresses of this node and of Services: the destinations that the programs handle. Written by
/// the agent; removed with the address.
#[btf_map]
pub static ADDRESSES_V4: Addresses<[u8; 4]> = HashMap::new();
#[btf_map]
pub static ADDRESSES_V6: Addresses<[u8; 16]> = HashMap::new();

/// The bits of the first filter (`filter.rs`), for both families. Written by the agent through
/// `mmap`: it sets a bit before it writes the entry that needs the bit, and clears a bit some
/// seconds after the last entry and the last connection that needed it are gone.
#[btf_map]
pub static FILTER: Array<FilterLine, LINES, MMAPABLE> = Array::new();

/// Networks of pods, of Services, and to which the kernel forwards translated packets. Written by
/// the agent after its initial sync, and when they change.
#[btf_map]
pub static NETWORKS_V4: Networks<[u8; 4]> = LpmTrie::new();
#[btf_map]
pub static NETWORKS_V6: Networks<[u8; 16]> = LpmTrie::new();

/// `loadBalancerSourceRanges` by service id. Written by the agent before the service entry that
/// refers to it, and removed after.
#[btf_map]
pub static SOURCE_RANGES_V4: SourceRanges<[u8; 4]> = LpmTrie::new();
#[btf_map]
pub static SOURCE_RANGES_V6: SourceRanges<[u8; 16]> = LpmTrie::new();

/// Cookie of a network namespace → the addresses of its pod. Written by the agent as pods come and
/// go.
#[btf_map]
pub static NAMESPACES: HashMap<u64, NamespaceAddrs, 4_096, SPARSE> = HashMap::new();

/// ClientIP session affinity, both families. Written by the programs; the least recently used are
/// evicted.
#[btf_map]
pub static AFFINITY: LruHashMap<AffinityKey, Affinity, 65_536> = LruHashMap::new();

/// Endpoints for whose connections no source port was free (`count.rs`). Written by the packet
/// programs; an entry is removed by the agent when its endpoint is gone. A packet to an endpoint
/// beyond the capacity is in [`COUNTERS`] only.
#[btf_map]
pub static NO_SOURCE_PORT: HashMap<EndpointKey, PortShortage, 256> = HashMap::new();

/// Endpoints whose last connections have failed (`health.rs`). Written by the programs. An answer
/// of the endpoint removes its entry, and the agent removes those of removed endpoints and those
/// that are out of date. An endpoint beyond the capacity is not left out.
#[btf_map]
pub static HEALTH: HashMap<EndpointKey, EndpointHealth, 4_096, SPARSE> = HashMap::new();

/// Service id → the thresholds of the Service port, if it has any. Written by the agent before the
/// endpoints that refer to it, and removed after.
#[btf_map]
pub static THRESHOLDS: HashMap<u32, Thresholds, 65_536, SPARSE> = HashMap::new();

/// Endpoints that are overloaded (`loads.rs`). The value is 1. Written and removed by the programs
/// with new connections. The agent removes the entries of removed endpoints, and those of endpoints
/// whose upper threshold it has raised. An endpoint beyond the capacity gets new connections as
/// soon as it is below its upper threshold.
#[btf_map]
pub static OVERLOADED: HashMap<EndpointKey, u32, 16_384, SPARSE> = HashMap::new();

/// Interface index → properties of the device. Written by the agent as devices come and go.
#[btf_map]
pub static DEVICES: HashMap<u32, Device, 4_096, SPARSE> = HashMap::new();

/// Interface index → MAC address of the device. Written by the agent as devices come and go.
#[btf_map]
pub static LINK_ADDRESSES: HashMap<u32, LinkAddress, 4_096, SPARSE> = HashMap::new();

/// The time from which this CPU may send the next answer of a kind, see `limit.rs`. Not pinned.
#[btf_map]
pub static ANSWER_LIMITS: PerCpuArray<u64, 2> = PerCpuArray::new();

/// Service id → its name in the API. Written by the agent, for people and tools.
#[btf_map]
pub static SERVICE_NAMES: HashMap<u32, ServiceName, 65_536, SPARSE> = HashMap::new();

/// The settings that the agent loaded the programs with (`settings.rs`). Written by the agent, for
/// `lb explain`.
#[btf_map]
pub static SETTINGS: Array<Settings, 1> = Array::new();

/// Packets by reason (`lb_common::reason`), per CPU. Written by the programs, never reset.
#[btf_map]
pub static COUNTERS: PerCpuArray<u64, REASONS> = PerCpuArray::new();

/// The lease of the reader of [`EVENTS`] (`event.rs`). Written by `lb monitor`. A program sets its
/// end to zero when that has passed.
#[btf_map]
pub static MONITOR: Array<Monitor, 1> = Array::new();

/// Events for `lb monitor`. Written by the programs while a process reads them.
#[btf_map]
pub static EVENTS: RingBuf<Event, 524_288> = RingBuf::new();

/// Kind of event → the time of the next event that this CPU may report, and the number of events
/// that it has not reported. Written by the programs.
#[btf_map]
pub static EVENT_BUDGETS: PerCpuArray<EventBudget, { event_kind::COUNT }> = PerCpuArray::new();

/// The decisions of a recording program, see `record.rs`. Not pinned: each process of `lb explain`
/// has a map of its own.
#[btf_map]
pub static RECORD: Array<Record, 1> = Array::new();

/// The maps of one address family.
pub trait Maps: Filtered<Addr: IpFormatter + Argument> {
    fn services() -> &'static Services<Self::Addr>;
    fn backends() -> &'static Backends<Self::Addr>;
    fn loads() -> &'static Loads;
    fn flows() -> &'static Flows<Self::Addr>;
    fn flow_index() -> &'static FlowIndices<Self::Addr>;
    fn fragments() -> &'static Fragments<Self::Addr>;
    fn socket_peers() -> &'static SocketPeers<Self::Addr>;
    fn addresses() -> &'static Addresses<Self::Addr>;
    fn networks() -> &'static Networks<Self::Addr>;
    fn routes() -> &'static Routes<Self::Addr>;
    fn source_ranges() -> &'static SourceRanges<Self::Addr>;
    /// Returns the unfolded sum of an address.
    fn sum(addr: Self::Addr) -> u64;
    /// Returns the address of a device to which sources are rewritten.
    fn device_addr(device: &Device) -> Self::Addr;
    /// Returns the address of a network namespace.
    fn namespace_addr(addrs: &NamespaceAddrs) -> Self::Addr;
}

macro_rules! family_maps {
    ($family:ty, $addr:ident, $sum:ident, $services:ident, $backends:ident, $loads:ident, $flows:ident, $flow_index:ident, $fragments:ident,
     $socket_peers:ident, $addresses:ident, $networks:ident, $source_ranges:ident, $routes:ident) => {
        impl Maps for $family {
            #[inline(always)]
            fn services() -> &'static Services<Self::Addr> {
                &$services
            }
            #[inline(always)]
            fn backends() -> &'static Backends<Self::Addr> {
                &$backends
            }
            #[inline(always)]
            fn loads() -> &'static Loads {
                &$loads
            }
            #[inline(always)]
            fn flows() -> &'static Flows<Self::Addr> {
                &$flows
            }
            #[inline(always)]
            fn flow_index() -> &'static FlowIndices<Self::Addr> {
                &$flow_index
            }
            #[inline(always)]
            fn fragments() -> &'static Fragments<Self::Addr> {
                &$fragments
            }
            #[inline(always)]
            fn socket_peers() -> &'static SocketPeers<Self::Addr> {
                &$socket_peers
            }
            #[inline(always)]
            fn addresses() -> &'static Addresses<Self::Addr> {
                &$addresses
            }
            #[inline(always)]
            fn networks() -> &'static Networks<Self::Addr> {
                &$networks
            }
            #[inline(always)]
            fn routes() -> &'static Routes<Self::Addr> {
                &$routes
            }
            #[inline(always)]
            fn source_ranges() -> &'static SourceRanges<Self::Addr> {
                &$source_ranges
            }
            #[inline(always)]
            fn sum(addr: Self::Addr) -> u64 {
                $sum(addr)
            }
            #[inline(always)]
            fn device_addr(device: &Device) -> Self::Addr {
                device.$addr
            }
            #[inline(always)]
            fn namespace_addr(addrs: &NamespaceAddrs) -> Self::Addr {
                addrs.$addr
            }
        }
    };
}

family_maps!(
    V4,
    addr_v4,
    sum4,
    SERVICES_V4,
    BACKENDS_V4,
    LOADS_V4,
    FLOWS_V4,
    FLOW_INDEX_V4,
    FRAGMENTS_V4,
    SOCKET_PEERS_V4,
    ADDRESSES_V4,
    NETWORKS_V4,
    SOURCE_RANGES_V4,
    ROUTES_V4
);
family_maps!(
    V6,
    addr_v6,
    sum16,
    SERVICES_V6,
    BACKENDS_V6,
    LOADS_V6,
    FLOWS_V6,
    FLOW_INDEX_V6,
    FRAGMENTS_V6,
    SOCKET_PEERS_V6,
    ADDRESSES_V6,
    NETWORKS_V6,
    SOURCE_RANGES_V6,
    ROUTES_V6
);
