//! Keys and values of the BPF maps.
//!
//! These layouts are an interface: people and programs read them with `bpftool map dump pinned …`.
//! Addresses are byte arrays in network order; **ports and all other numbers are in host byte
//! order**. Padding is explicit and always zero, because the kernel compares keys byte by byte.
//! `docs/maps.md` documents each map.
//!
//! A change of any layout must change [`LAYOUT_VERSION`].

#[cfg(not(feature = "other-layout"))]
use core::mem::{offset_of, size_of};

#[cfg(not(feature = "other-layout"))]
use crate::family::{Family, V4, V6};

/// Version of all layouts. It is part of the pin path (`<bpffs>/sluice/v4/…`), so that an agent
/// never reuses a map whose entries it would misread. The feature `other-layout` is the next
/// version of the tests, see [`crate::other_layout`].
pub const LAYOUT_VERSION: u32 = if cfg!(feature = "other-layout") { 5 } else { 4 };

pub use crate::handover;
pub use crate::health::EndpointHealth;
#[cfg(feature = "other-layout")]
pub use crate::other_layout::*;
pub use crate::threshold::Thresholds;

/// `IPPROTO_TCP`.
pub const TCP: u8 = 6;
/// `IPPROTO_UDP`.
pub const UDP: u8 = 17;
/// `IPPROTO_SCTP`.
pub const SCTP: u8 = 132;

/// Key of `SERVICES_V4` and `SERVICES_V6`: an address and port that clients use.
///
/// An `addr` of zeros stands for every address of this node that serves NodePorts (see
/// [`address_flags::NODE_PORTS`]).
#[repr(C)]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct ServiceKey<A> {
    pub addr: A,
    pub port: u16,
    pub protocol: u8,
    pub pad: u8,
}

/// Value of `SERVICES_V4` and `SERVICES_V6`: the endpoints, and how one is selected.
///
/// A service has two ranges of `SLOTS`: one for traffic from outside the cluster, one for traffic
/// from pods and from this node; they are the same range unless a traffic policy makes them differ.
/// Both are in one entry, so that replacing it changes both at once. A range with a count of zero
/// has no endpoint (see [`service_flags`]).
#[cfg(not(feature = "other-layout"))]
#[repr(C)]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct ServiceEntry {
    /// Key of the service port in `SERVICE_NAMES`; the same for all addresses and both families of
    /// that port.
    pub service_id: u32,
    /// Bits of [`service_flags`].
    pub flags: u32,
    /// First slot and number of slots for traffic from outside.
    pub outside_base: u32,
    pub outside_count: u32,
    /// First slot and number of slots for traffic from pods and from this node.
    pub inside_base: u32,
    pub inside_count: u32,
    /// Timeout of ClientIP session affinity in seconds; 0: off.
    pub affinity_seconds: u32,
    /// One of [`algorithm`].
    pub algorithm: u8,
    /// One of [`kind`].
    pub kind: u8,
    /// One of [`scheduler`], for people: the programs do not read it.
    pub scheduler: u8,
    pub pad: u8,
}

/// Bits of [`ServiceEntry::flags`].
pub mod service_flags {
    /// Without an endpoint, traffic from outside is dropped, not rejected (a Local policy without
    /// local endpoints).
    pub const OUTSIDE_DROP: u32 = 1 << 0;
    /// Without an endpoint, traffic from pods and this node is dropped, not rejected.
    pub const INSIDE_DROP: u32 = 1 << 1;
    /// `loadBalancerSourceRanges` applies: sources outside `SOURCE_RANGES_V4`/`V6` of this service
    /// are dropped.
    pub const SOURCE_RANGES: u32 = 1 << 2;
    /// The two ranges differ, so the programs must find out whether a packet comes from outside.
    pub const POLICY_LOCAL: u32 = 1 << 3;
    /// The range for traffic from outside is the Local list of endpoints
    /// ([`super::backend_flags::IN_LOCAL`]).
    pub const OUTSIDE_LOCAL: u32 = 1 << 4;
    /// The range for traffic from pods and this node is the Local list of endpoints.
    pub const INSIDE_LOCAL: u32 = 1 << 5;
    /// A client whose endpoint is overloaded (`THRESHOLDS`) gets another one. Without the flag, it
    /// is refused.
    pub const REPLACE_OVERLOADED: u32 = 1 << 6;
    /// The bits from this one on are the maximum age of connections in seconds; 0: they have none.
    /// Programs do not read it, so a field of its own is not worth another layout.
    pub const MAX_AGE_SHIFT: u32 = 12;
}

/// Values of [`ServiceEntry::algorithm`]: how the slot is selected.
pub mod algorithm {
    /// Uniformly at random over the slots. Weights are repetitions of a backend in the slots.
    pub const RANDOM: u8 = 0;
    /// One slot after the other. `CURSORS` has the next one, by the first slot of the range.
    pub const IN_TURN: u8 = 1;
    /// By a hash of the client: of a packet's source address, or of the network namespace of a
    /// socket.
    pub const HASH_SOURCE: u8 = 2;
    /// By a hash of a packet's source address and port. The port of a socket is not known when it
    /// connects: its slot is selected at random.
    pub const HASH_SOURCE_PORT: u8 = 3;
    /// By a hash of the address that the client uses.
    pub const HASH_DESTINATION: u8 = 4;
    /// The algorithms from here on compare the open connections of endpoints (`LOADS_V4`,
    /// `LOADS_V6`). See [`crate::load`].
    ///
    /// The fewest connections, see [`crate::load::Connections::overhead`].
    pub const LEAST: u8 = 5;
    /// The fewest connections for the weight.
    pub const LEAST_WEIGHTED: u8 = 6;
    /// The shortest expected delay: active connections and the new one, for the weight.
    pub const SHORTEST_DELAY: u8 = 7;
    /// An endpoint without active connections, otherwise the shortest expected delay.
    pub const NEVER_QUEUE: u8 = 8;
    /// The greatest weight among the endpoints with no more active connections than their weight.
    pub const OVERFLOW: u8 = 9;
    /// The fewer connections for the weight, of two endpoints at random.
    pub const TWO_CHOICES: u8 = 10;
    /// The greatest weight. It compares no connections, but endpoints that are overloaded are left
    /// out of the comparison.
    pub const GREATEST_WEIGHT: u8 = 11;
}

/// Values of [`ServiceEntry::scheduler`]: how the agent arranged the slots. The names are those of
/// IPVS.
pub mod scheduler {
    pub const RANDOM: u8 = 0;
    pub const RR: u8 = 1;
    pub const WRR: u8 = 2;
    pub const SH: u8 = 3;
    pub const DH: u8 = 4;
    pub const MH: u8 = 5;
    pub const FO: u8 = 6;
    pub const LC: u8 = 7;
    pub const WLC: u8 = 8;
    pub const SED: u8 = 9;
    pub const NQ: u8 = 10;
    pub const OVF: u8 = 11;
    pub const TWOS: u8 = 12;
}

/// Values of [`ServiceEntry::kind`]: the kind of address.
pub mod kind {
    pub const CLUSTER_IP: u8 = 1;
    pub const NODE_PORT: u8 = 2;
    pub const EXTERNAL_IP: u8 = 3;
    pub const LOAD_BALANCER: u8 = 4;
}

/// Value of `BACKENDS_V4` and `BACKENDS_V6`, indexed by backend id: one endpoint of one service
/// port.
///
/// Id 0 is not used. The agent reuses an id when no flow has it any more.
#[cfg(not(feature = "other-layout"))]
#[repr(C)]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Backend<A> {
    pub addr: A,
    pub port: u16,
    /// Bits of [`backend_flags`].
    pub flags: u16,
    pub service_id: u32,
    /// The share of the endpoint. Algorithms that compare connections read it. For the others, the
    /// slots have the weights.
    pub weight: u32,
}

/// Value of `LOADS_V4` and `LOADS_V6`, indexed by backend id: the open connections of an endpoint.
///
/// Two neighbours are one number of 64 bits, to which programs add atomically
/// ([`crate::load::step`]).
#[repr(C, align(8))]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Load {
    /// Connections in `FLOWS_V4` or `FLOWS_V6` that are counted as [`counted::INACTIVE`].
    pub inactive: u32,
    /// The same for [`counted::ACTIVE`].
    pub active: u32,
    /// Connected sockets that are counted as [`counted::INACTIVE`].
    pub socket_inactive: u32,
    /// The same for [`counted::ACTIVE`].
    pub socket_active: u32,
}

/// How a connection is counted in `LOADS_V4` or `LOADS_V6`. The classes are those of IPVS.
pub mod counted {
    /// Not counted.
    pub const NONE: u8 = 0;
    /// UDP, and TCP and SCTP that one side has closed, or that were reset.
    pub const INACTIVE: u8 = 1;
    /// TCP and SCTP from the first packet until one side closes.
    pub const ACTIVE: u8 = 2;
}

/// Value of the socket storage `COUNTED`: the endpoint at which a connected socket is counted.
#[repr(C)]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct CountedSocket {
    /// Index into `LOADS_V4` or `LOADS_V6`. 0: the socket is not connected to an endpoint.
    pub backend_id: u32,
    /// 1 if the endpoint is in `LOADS_V6`.
    pub is_v6: u8,
    /// One of [`counted`].
    pub counted: u8,
    /// When it was connected, as a mark of [`crate::age`]. 0: not known (earlier programs).
    pub opened: u16,
}

/// Bits of [`Backend::flags`]. 0 means that the endpoint has been removed.
pub mod backend_flags {
    /// The endpoint exists. When the bit is cleared, its UDP flows move to another endpoint with
    /// their next packet.
    pub const PRESENT: u16 = 1 << 0;
    /// The endpoint runs on this node: packets to it are passed up the stack, not sent out again.
    pub const LOCAL: u16 = 1 << 1;
    /// In the Cluster list: eligible for new connections under the Cluster policy. An endpoint in
    /// neither list drains: it gets no new connections and keeps the open ones.
    pub const IN_CLUSTER: u16 = 1 << 2;
    /// In the Local list: eligible for new connections under the Local policy.
    pub const IN_LOCAL: u16 = 1 << 3;
    /// A TCP client that repeats its SYN, because the endpoint has not answered, gets another
    /// endpoint.
    pub const FAILOVER: u16 = 1 << 4;
    /// The endpoint is left out for a while if it refuses clients or does not answer them
    /// (`HEALTH`).
    pub const PASSIVE_HEALTH: u16 = 1 << 5;
    /// The endpoint has thresholds (`THRESHOLDS`).
    pub const THRESHOLDS: u16 = 1 << 6;
}

/// Key of `FLOW_INDEX_V4` and `FLOW_INDEX_V6`: a packet's 5-tuple as it arrives at the hook.
#[repr(C, align(8))]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct FlowKey<A> {
    pub src_addr: A,
    pub dst_addr: A,
    pub src_port: u16,
    pub dst_port: u16,
    pub protocol: u8,
    pub pad: u8,
    pub reserved: u16,
}

impl<A: Copy> FlowKey<A> {
    /// Returns the tuple of a packet in the other direction.
    #[inline(always)]
    pub fn reversed(&self) -> Self {
        Self {
            src_addr: self.dst_addr,
            dst_addr: self.src_addr,
            src_port: self.dst_port,
            dst_port: self.src_port,
            protocol: self.protocol,
            pad: 0,
            reserved: 0,
        }
    }
}

/// Value of `FLOW_INDEX_V4` and `FLOW_INDEX_V6`: the record that holds the connection of a tuple.
/// Every connection has two index entries, one per direction.
///
/// An entry is valid only if the record has the same generation and holds the tuple. Otherwise the
/// record belongs to another connection now.
#[cfg(not(feature = "other-layout"))]
#[repr(C)]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct FlowIndex {
    /// Index into `FLOWS_V4` or `FLOWS_V6`.
    pub record: u32,
    /// [`Flow::generation`] of the record when the entry was written.
    pub generation: u16,
    /// One of [`direction`]: which tuple of the record the key is.
    pub direction: u8,
    pub pad: u8,
}

/// Value of `FLOWS_V4` and `FLOWS_V6`: one connection.
///
/// ```text
/// request:  client → service   becomes   source → backend
/// reply:    backend → source   becomes   service → client
/// ```
#[cfg(not(feature = "other-layout"))]
#[repr(C)]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Flow<A> {
    /// Incremented when another connection takes the record.
    pub generation: u16,
    /// One of [`flow_phase`]. 0 means that the record is free.
    pub phase: u8,
    pub protocol: u8,
    /// One of [`deliver`], for both directions.
    pub deliver: u8,
    /// One of [`counted`]: how the connection is counted at its endpoint. It changes only under the
    /// lock of the record.
    pub counted: u8,
    pub pad: [u8; 2],
    /// `CLOCK_MONOTONIC` at the last packet of either direction, in nanoseconds; written at most
    /// every [`SEEN_GRANULARITY_NS`].
    pub last_seen_ns: u64,
    /// `CLOCK_MONOTONIC` at the first packet, in seconds.
    pub opened_s: u32,
    pub backend_id: u32,
    pub service_id: u32,
    pub client_port: u16,
    /// The address and port that the client uses.
    pub service_port: u16,
    /// The source that the endpoint sees: the client itself, or an address of this node.
    pub source_port: u16,
    pub backend_port: u16,
    pub client_addr: A,
    pub service_addr: A,
    pub source_addr: A,
    pub backend_addr: A,
    /// The state of the request direction. Only packets of this direction write it. Packets of the
    /// other direction write [`Flow::reply`].
    pub request: FlowSide,
    pub reply: FlowSide,
    /// Interface index of the device that the first packet arrived by; 0: unknown.
    pub ifindex: u32,
}

/// The state of one direction of a connection, see [`crate::connection`].
#[cfg(not(feature = "other-layout"))]
#[repr(C)]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct FlowSide {
    /// TCP: the sequence number after everything that was sent. SCTP: the verification tag of this
    /// direction.
    pub end: u32,
    /// TCP: the highest acknowledgement number that was sent.
    pub ack: u32,
    /// 1: this side has closed (TCP FIN, SCTP SHUTDOWN).
    pub closed: u32,
}

impl<A: Copy> Flow<A> {
    /// The tuple of request packets as they arrive.
    #[inline(always)]
    pub fn request_key(&self) -> FlowKey<A> {
        FlowKey {
            src_addr: self.client_addr,
            dst_addr: self.service_addr,
            src_port: self.client_port,
            dst_port: self.service_port,
            protocol: self.protocol,
            pad: 0,
            reserved: 0,
        }
    }

    /// The tuple of reply packets as they arrive.
    #[inline(always)]
    pub fn reply_key(&self) -> FlowKey<A> {
        FlowKey {
            src_addr: self.backend_addr,
            dst_addr: self.source_addr,
            src_port: self.backend_port,
            dst_port: self.source_port,
            protocol: self.protocol,
            pad: 0,
            reserved: 0,
        }
    }

    /// Returns whether packets of this direction, one of [`direction`], arrive with this tuple.
    #[inline(always)]
    pub fn has_tuple(&self, key: &FlowKey<A>, direction: u8) -> bool
    where
        A: PartialEq,
    {
        let (src_addr, dst_addr, src_port, dst_port) = if direction == direction::REQUEST {
            (&self.client_addr, &self.service_addr, self.client_port, self.service_port)
        } else {
            (&self.backend_addr, &self.source_addr, self.backend_port, self.source_port)
        };
        self.protocol == key.protocol
            && src_port == key.src_port
            && dst_port == key.dst_port
            && *src_addr == key.src_addr
            && *dst_addr == key.dst_addr
    }
}

/// The packet of the program `lb_sweep` is a header of this length, whose content does not matter,
/// and at most [`SWEEP_RECORDS`] words ([`sweep`]).
pub const SWEEP_HEADER: usize = 16;
/// The greatest number of records in one run of `lb_sweep`.
pub const SWEEP_RECORDS: usize = 64;

/// A word of the packet of `lb_sweep`: the number of a record in the lower half, its generation in
/// the two bytes above, and these bits.
pub mod sweep {
    /// The record is in `FLOWS_V6`.
    pub const V6: u64 = 1 << 48;
    /// The connection is ended even if it is not over: its endpoint has drained for long enough.
    pub const CUT: u64 = 1 << 49;
    /// With [`CUT`]: it is ended because it has reached its maximum age.
    pub const AGED: u64 = 1 << 50;
}

/// Values of [`Flow::phase`].
pub mod flow_phase {
    /// The record belongs to no connection.
    pub const FREE: u8 = 0;
    /// The client has sent its first packet, and the endpoint has not answered.
    pub const OPENING: u8 = 1;
    /// The endpoint has answered. TCP: with a SYN-ACK; SCTP: with an INIT ACK.
    pub const ANSWERED: u8 = 2;
    /// TCP: the client has acknowledged the SYN-ACK; SCTP: it has sent the COOKIE ECHO. UDP: both
    /// sides have been heard for more than [`crate::connection::STREAM_AFTER_S`].
    pub const ESTABLISHED: u8 = 3;
    /// TCP: reset; SCTP: aborted.
    pub const RESET: u8 = 4;
    /// A program is filling the record in.
    pub const CLAIMED: u8 = 255;
}

/// The only entry of `FLOW_TIMEOUTS`: the time-outs of idle connections, in seconds.
#[repr(C)]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct FlowTimeouts {
    /// TCP: not established. As `nf_conntrack_tcp_timeout_syn_recv`.
    pub tcp_syn: u32,
    /// TCP: open on both sides. As kube-proxy's `--conntrack-tcp-timeout-established`.
    pub tcp_established: u32,
    /// TCP: closed by one side. As kube-proxy's `--conntrack-tcp-timeout-close-wait`.
    pub tcp_half_closed: u32,
    /// TCP: closed by both sides. As `nf_conntrack_tcp_timeout_time_wait`.
    pub tcp_time_wait: u32,
    /// TCP: reset. As `nf_conntrack_tcp_timeout_close`.
    pub tcp_reset: u32,
    /// UDP: the endpoint has not answered. As `nf_conntrack_udp_timeout`.
    pub udp_unreplied: u32,
    /// UDP: the endpoint has answered.
    pub udp: u32,
    /// UDP: both sides have sent packets for more than two seconds. As
    /// `nf_conntrack_udp_timeout_stream`.
    pub udp_stream: u32,
    /// SCTP: not established.
    pub sctp_opening: u32,
    /// SCTP: open. As `nf_conntrack_sctp_timeout_established`: an idle association sends a
    /// HEARTBEAT every 30 s (RFC 9260 8.3).
    pub sctp_established: u32,
    /// SCTP: shut down or aborted. As `nf_conntrack_sctp_timeout_closed`.
    pub sctp_closed: u32,
}

impl FlowTimeouts {
    /// The default time-outs.
    pub const DEFAULT: Self = Self {
        tcp_syn: 60,
        tcp_established: 86_400,
        tcp_half_closed: 3_600,
        tcp_time_wait: 120,
        tcp_reset: 10,
        udp_unreplied: 30,
        udp: 30,
        udp_stream: 120,
        sctp_opening: 30,
        sctp_established: 210,
        sctp_closed: 10,
    };
}

/// Value of `FLOW_HANDS`, one for each CPU: the position of its search for a free record.
#[repr(C)]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct FlowHand {
    /// Index of the next record that the CPU examines. 0 if it has not examined any.
    pub next: u32,
    pub pad: u32,
    /// `CLOCK_MONOTONIC` when a connection last gave way to another one, in nanoseconds.
    pub pressure_ns: u64,
}

/// Value of `FILTER`: a cache line of bits, see [`crate::filter`].
#[repr(C)]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct FilterLine {
    pub words: [u64; 8],
}

/// Values of [`FlowIndex::direction`].
pub mod direction {
    /// From the client to the service.
    pub const REQUEST: u8 = 1;
    /// From the endpoint to the client.
    pub const REPLY: u8 = 2;
}

/// Values of [`Flow::deliver`]: where rewritten packets go.
pub mod deliver {
    /// Onward on their path: up the stack at ingress, out of the device at egress.
    pub const PASS: u8 = 1;
    /// Out of this node again, by a FIB lookup.
    pub const ROUTE: u8 = 2;
}

/// TCP flags: byte 13 of the header.
pub mod tcp_flags {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;
}

/// A program refreshes the time stamp of a flow if it is older than this. Writing it for every
/// packet would move the cache line between CPUs each time.
pub const SEEN_GRANULARITY_NS: u64 = 2_000_000_000;

/// Key of `FRAGMENTS_V4` and `FRAGMENTS_V6`: the fields that all fragments of a datagram share (RFC
/// 791, RFC 8200 4.5).
#[repr(C, align(8))]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct FragmentKey<A> {
    pub src_addr: A,
    pub dst_addr: A,
    /// Identification field of the IP header, in host byte order.
    pub id: u32,
    pub protocol: u8,
    pub pad: u8,
    pub reserved: u16,
}

/// Value of `FRAGMENTS_V4` and `FRAGMENTS_V6`: the ports. Only the first fragment contains them.
#[repr(C)]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct FragmentPorts {
    pub src_port: u16,
    pub dst_port: u16,
}

/// Key of `SOCKET_PEERS_V4` and `SOCKET_PEERS_V6`: an unconnected UDP socket and a peer, which is a
/// service or an endpoint.
#[repr(C)]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct SocketPeerKey<A> {
    /// `SO_COOKIE` of the socket, low and high half. A `u64` would align the key to 8 bytes, with
    /// hidden padding after an IPv6 address. That padding would contain remains of the stack, and
    /// no lookup would match.
    pub cookie: [u32; 2],
    pub addr: A,
    pub port: u16,
    pub pad: [u8; 2],
}

/// Value of `SOCKET_PEERS_V4`/`V6`. If the key has a service: the endpoint that the socket uses.
/// The socket keeps this endpoint. If the key has an endpoint: the service to which the process has
/// sent.
#[cfg(not(feature = "other-layout"))]
#[repr(C)]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct SocketPeer<A> {
    pub addr: A,
    pub port: u16,
    pub pad: u16,
    pub backend_id: u32,
    pub service_id: u32,
}

/// Value of the socket storage `CONNECTED`: the service that a socket was connected to, and its
/// endpoint. An IPv4 address is the first four bytes.
#[repr(C)]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct ConnectedPeer {
    pub service_addr: [u8; 16],
    pub backend_addr: [u8; 16],
    pub service_port: u16,
    pub backend_port: u16,
    pub backend_id: u32,
    pub service_id: u32,
}

/// What `lb_connected` writes for each socket in `CONNECTED`. `opened`: that of [`CountedSocket`].
#[repr(C)]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct ConnectedSocket {
    /// `SO_COOKIE` of the socket, low and high half. A `u64` would need padding.
    pub cookie: [u32; 2],
    pub peer: ConnectedPeer,
    pub opened: u32,
}

/// Value of `ADDRESSES_V4` and `ADDRESSES_V6`, keyed by a destination that the programs handle: an
/// address of this node, of a Service, or of both. Packets to other destinations pass untouched.
#[cfg(not(feature = "other-layout"))]
#[repr(C)]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct KnownAddress {
    /// Interface index of the device that has the address; 0 if this node does not have it.
    pub ifindex: u32,
    /// Bits of [`address_flags`].
    pub flags: u32,
}

/// Bits of [`KnownAddress::flags`].
pub mod address_flags {
    /// NodePorts are served at this address of the node.
    pub const NODE_PORTS: u32 = 1 << 0;
    /// An address of this node.
    pub const NODE: u32 = 1 << 1;
    /// An address of a Service. Echo requests to it are answered, unless the node has it too.
    pub const SERVICE: u32 = 1 << 2;
    /// A ClusterIP. Packets to ports that its Service does not have are rejected.
    pub const CLUSTER_IP: u32 = 1 << 3;
    /// The ClusterIP of a Service that another proxy serves. Packets to it pass untouched.
    pub const OTHER_PROXY: u32 = 1 << 4;
    /// The bits that follow from the state of this host.
    pub const OF_HOST: u32 = NODE_PORTS | NODE | OTHER_PROXY;
    /// The bits that follow from the Services that are served.
    pub const OF_SERVICES: u32 = SERVICE | CLUSTER_IP;
}

/// Values of `NETWORKS_V4` and `NETWORKS_V6`, whose keys are prefix lengths and addresses.
pub mod network_flags {
    /// Addresses of pods of this node, if routes do not show where they are.
    pub const PODS: u32 = 1 << 0;
    /// A ServiceCIDR. Packets to an address in it that no Service has are dropped.
    pub const SERVICES: u32 = 1 << 1;
    /// The kernel forwards translated packets to these addresses, by its IPsec policies, its
    /// firewall and its rules (`--forward`).
    pub const BY_KERNEL: u32 = 1 << 2;
}

/// The part of a key of `SOURCE_RANGES_V4`/`V6` after the prefix length: a network whose addresses
/// may use the load-balancer addresses of a service port with [`service_flags::SOURCE_RANGES`]. The
/// prefix length includes the 32 bits of the id.
#[repr(C)]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct SourceRange<A> {
    pub service_id: u32,
    pub addr: A,
}

/// Value of `NAMESPACES`, keyed by the cookie of a network namespace (`SO_NETNS_COOKIE`): the
/// source addresses of its processes. A socket program needs them because a socket may have no
/// source address yet. All zeros mean that the namespace has no address of the family.
#[repr(C)]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct NamespaceAddrs {
    pub addr_v4: [u8; 4],
    pub addr_v6: [u8; 16],
}

/// Key of `AFFINITY`: a client of a service port (ClientIP session affinity).
#[repr(C)]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct AffinityKey {
    /// For packets: the source address, IPv4 in the first four bytes. For sockets: the cookie of
    /// the network namespace, in the first eight bytes, low byte first.
    pub client: [u8; 16],
    pub service_id: u32,
    /// One of [`affinity_client`].
    pub client_kind: u32,
}

/// Values of [`AffinityKey::client_kind`]: the meaning of [`AffinityKey::client`], and the family
/// of the connection.
pub mod affinity_client {
    pub const ADDRESS_V4: u32 = 1;
    pub const ADDRESS_V6: u32 = 2;
    pub const NAMESPACE_V4: u32 = 3;
    pub const NAMESPACE_V6: u32 = 4;
}

/// Value of `AFFINITY`: the client's last endpoint.
#[repr(C)]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// `CLOCK_MONOTONIC` at the last new connection, in nanoseconds.
    pub last_used_ns: u64,
    pub backend_id: u32,
    pub pad: u32,
}

/// Key of `NO_SOURCE_PORT`: an endpoint of a service port.
#[repr(C)]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct EndpointKey {
    /// Index into `BACKENDS_V4` or `BACKENDS_V6`.
    pub backend_id: u32,
    /// 1 if the endpoint is in `BACKENDS_V6`.
    pub is_v6: u32,
}

/// Value of `NO_SOURCE_PORT`: the packets that were dropped because no source port was free for a
/// connection to the endpoint.
#[repr(C)]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct PortShortage {
    pub packets: u64,
    /// `CLOCK_MONOTONIC` at the last one, in nanoseconds.
    pub last_ns: u64,
}

/// The key of `DEVICES` whose entry is about the whole node. No device has this index.
pub const NODE: u32 = 0;

/// Bits of [`Device::flags`] in the entry of [`NODE`].
pub mod node_flags {
    /// kube-proxy has left nothing on this node. TCP packets of no known connection are reset if
    /// they are addressed to a Service's address that the node does not have.
    pub const NO_KUBE_PROXY: u32 = 1 << 0;
}

/// Value of `DEVICES`, keyed by interface index: a device by which packets arrive or leave.
#[repr(C)]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Source address of packets that leave by this device with a rewritten source. Zero if there
    /// is none.
    pub addr_v4: [u8; 4],
    pub addr_v6: [u8; 16],
    /// Bits of [`device_flags`].
    pub flags: u32,
}

/// Bits of [`Device::flags`].
pub mod device_flags {
    /// XDP programs can send frames out of this device (`XDP_REDIRECT`).
    pub const XDP_TARGET: u32 = 1 << 0;
    /// The device leads to a pod (`--pod-interfaces`): packets that arrive by it come from a pod of
    /// this node.
    pub const POD: u32 = 1 << 1;
    /// Only pods of this node are behind the device. The addresses of its routes are on this node.
    pub const ONLY_LOCAL_PODS: u32 = 1 << 2;
    /// Other nodes are behind the device. The addresses of its routes are not on this node.
    pub const OTHER_NODES: u32 = 1 << 3;
}

/// Value of `LINK_ADDRESSES`, keyed by interface index: the MAC address of a device. Frames to
/// other addresses are not for this node.
#[repr(C)]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct LinkAddress {
    pub addr: [u8; 6],
    pub pad: [u8; 2],
}

/// Value of `SERVICE_NAMES`, keyed by service id: the service port in the Kubernetes API. Names are
/// zero-padded UTF-8.
#[repr(C)]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct ServiceName {
    pub namespace: [u8; 64],
    pub name: [u8; 64],
    pub port_name: [u8; 64],
    /// Number of the port in the Service spec.
    pub port: u16,
    pub protocol: u8,
    pub pad: u8,
}

/// The only entry of `SETTINGS`: the settings with which the agent has loaded its programs. `lb
/// explain` uses the same settings.
#[repr(C)]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Cookie of the network namespace of the agent (`SO_NETNS_COOKIE`). 0 if the kernel has no
    /// such cookies.
    pub netns_cookie: u64,
    /// First port of the range for rewritten source ports, and number of ports.
    pub snat_port_first: u16,
    pub snat_port_count: u16,
    /// 1 if calls are translated in the agent's own network namespace only.
    pub host_sockets_only: u8,
    /// 1 if the kernel accepts packets of this node's own that arrive by the loopback device.
    pub kernel_fragments: u8,
    pub pad: [u8; 2],
}

/// The only entry of `RECORD`. Only the programs of `lb explain` use it. Before a run it has the
/// caller, if the packet represents a call at a socket. After the run it has the decisions of the
/// program. The number of a decision that was not made is zero.
#[repr(C)]
#[derive(Copy, Clone, Debug, PartialEq, Eq, Default)]
pub struct Record {
    /// Input for a call: cookie of the network namespace of the socket. 0 if it is unknown.
    pub netns_cookie: u64,
    /// The number of the last `Reason` that the program would have counted, plus one.
    pub reason: u32,
    /// The service entry that was matched: its id, [`ServiceEntry::kind`] and
    /// [`ServiceEntry::flags`].
    pub service_id: u32,
    pub kind: u32,
    pub flags: u32,
    /// One of [`record_client`].
    pub client: u32,
    /// Slots of the eligible endpoints.
    pub slot_base: u32,
    pub slot_count: u32,
    /// The chosen endpoint.
    pub backend_id: u32,
    /// One of [`record_source`].
    pub source: u32,
    /// 1 if the packet belongs to an open connection, so that no endpoint was chosen.
    pub known_flow: u32,
    /// 1 if session affinity determined the endpoint.
    pub by_affinity: u32,
    /// Interface index of the device by which the packet leaves.
    pub ifindex: u32,
    /// The endpoint that the algorithm or session affinity selected, if it is left out.
    pub left_out: u32,
    /// [`ServiceEntry::scheduler`].
    pub scheduler: u32,
    /// The first endpoint that was passed over because it is overloaded.
    pub overloaded: u32,
    pub pad: u32,
}

/// Values of [`Record::client`].
pub mod record_client {
    pub const OUTSIDE: u32 = 1;
    pub const INSIDE: u32 = 2;
}

/// Values of [`Record::source`]: whether the source address is rewritten, and why.
pub mod record_source {
    /// Kept: the endpoint is on this node.
    pub const KEPT_ENDPOINT_HERE: u32 = 1;
    /// Kept: the client is on this node.
    pub const KEPT_CLIENT_HERE: u32 = 2;
    /// Rewritten: the reply of an endpoint on another node must come back to this node.
    pub const ENDPOINT_ELSEWHERE: u32 = 3;
    /// Rewritten: the endpoint is the client itself.
    pub const HAIRPIN: u32 = 4;
}

#[cfg(not(feature = "other-layout"))]
macro_rules! assert_layout {
    ($($type:ty : $size:expr, { $($field:ident : $offset:expr),* $(,)? };)*) => { $(
        const _: () = assert!(size_of::<$type>() == $size);
        $(const _: () = assert!(offset_of!($type, $field) == $offset);)*
    )* };
}

#[cfg(not(feature = "other-layout"))]
type A4 = <V4 as Family>::Addr;
#[cfg(not(feature = "other-layout"))]
type A6 = <V6 as Family>::Addr;

#[cfg(not(feature = "other-layout"))]
assert_layout! {
    ServiceKey<A4>: 8, { addr: 0, port: 4, protocol: 6, pad: 7 };
    ServiceKey<A6>: 20, { addr: 0, port: 16, protocol: 18, pad: 19 };
    ServiceEntry: 32, { service_id: 0, flags: 4, outside_base: 8, inside_base: 16, affinity_seconds: 24, algorithm: 28, kind: 29 };
    Backend<A4>: 16, { addr: 0, port: 4, flags: 6, service_id: 8, weight: 12 };
    Backend<A6>: 28, { addr: 0, port: 16, flags: 18, service_id: 20, weight: 24 };
    Load: 16, { inactive: 0, active: 4, socket_inactive: 8, socket_active: 12 };
    CountedSocket: 8, { backend_id: 0, is_v6: 4, counted: 5, opened: 6 };
    FlowKey<A4>: 16, { src_addr: 0, dst_addr: 4, src_port: 8, dst_port: 10, protocol: 12 };
    FlowKey<A6>: 40, { src_addr: 0, dst_addr: 16, src_port: 32, dst_port: 34, protocol: 36 };
    FlowIndex: 8, { record: 0, generation: 4, direction: 6 };
    FlowSide: 12, { end: 0, ack: 4, closed: 8 };
    Flow<A4>: 80, { generation: 0, phase: 2, counted: 5, last_seen_ns: 8, client_port: 28, client_addr: 36, request: 52, reply: 64 };
    Flow<A6>: 128, { generation: 0, phase: 2, last_seen_ns: 8, client_port: 28, client_addr: 36, request: 100, reply: 112 };
    FlowTimeouts: 44, { tcp_syn: 0, udp: 24, sctp_closed: 40 };
    FlowHand: 16, { next: 0, pressure_ns: 8 };
    FilterLine: 64, {};
    FragmentKey<A4>: 16, { id: 8, protocol: 12 };
    FragmentKey<A6>: 40, { id: 32, protocol: 36 };
    FragmentPorts: 4, {};
    SocketPeerKey<A4>: 16, { cookie: 0, addr: 8, port: 12 };
    SocketPeerKey<A6>: 28, { cookie: 0, addr: 8, port: 24 };
    SocketPeer<A4>: 16, { addr: 0, port: 4, backend_id: 8 };
    SocketPeer<A6>: 28, { addr: 0, port: 16, backend_id: 20 };
    ConnectedPeer: 44, { service_addr: 0, backend_addr: 16, service_port: 32, backend_id: 36 };
    ConnectedSocket: 56, { cookie: 0, peer: 8, opened: 52 };
    KnownAddress: 8, { ifindex: 0, flags: 4 };
    SourceRange<A4>: 8, { service_id: 0, addr: 4 };
    SourceRange<A6>: 20, { service_id: 0, addr: 4 };
    NamespaceAddrs: 20, { addr_v4: 0, addr_v6: 4 };
    AffinityKey: 24, { client: 0, service_id: 16, client_kind: 20 };
    Affinity: 16, { last_used_ns: 0, backend_id: 8 };
    EndpointKey: 8, { backend_id: 0, is_v6: 4 };
    PortShortage: 16, { packets: 0, last_ns: 8 };
    EndpointHealth: 32, { clients: 0, until_ns: 8, failed_ns: 16, level: 24, tried: 28 };
    Settings: 16, { netns_cookie: 0, snat_port_first: 8, host_sockets_only: 12, kernel_fragments: 13 };
    Thresholds: 8, { upper: 0, lower: 4 };
    Record: 72, { netns_cookie: 0, reason: 8, backend_id: 36, by_affinity: 48, ifindex: 52, left_out: 56, overloaded: 64 };
    Device: 24, { addr_v4: 0, addr_v6: 4, flags: 20 };
    LinkAddress: 8, { addr: 0 };
    ServiceName: 196, { namespace: 0, name: 64, port_name: 128, port: 192, protocol: 194 };
}
