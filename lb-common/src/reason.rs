//! The reasons that the programs count. Every packet that they drop, reject or cannot translate has
//! one of these reasons.

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $value:literal, $label:literal, $kind:ident;)*) => {
        /// Index into `COUNTERS`.
        #[repr(u32)]
        #[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Reason { $($(#[doc = $doc])+ $name = $value,)* }

        impl Reason {
            /// Every reason, in the order of its number.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)*];

            /// Returns the metric label, which tools print too.
            pub const fn label(self) -> &'static str {
                match self { $(Reason::$name => $label,)* }
            }

            /// Returns what happened to the packet.
            pub const fn outcome(self) -> Outcome {
                match self { $(Reason::$name => Outcome::$kind,)* }
            }

            /// Returns one sentence for people.
            pub const fn describe(self) -> &'static str {
                match self { $(Reason::$name => concat!($($doc),+),)* }
            }
        }
    };
}

/// The error of a call at a socket (`connect`, `sendmsg`, `bind`).
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Errno {
    /// The error that a local firewall causes.
    Eperm,
    Eaddrinuse,
    Econnrefused,
    Ehostunreach,
}

impl Errno {
    /// Returns the number on Linux, positive.
    pub const fn number(self) -> i32 {
        match self {
            Self::Eperm => 1,
            Self::Eaddrinuse => 98,
            Self::Econnrefused => 111,
            Self::Ehostunreach => 113,
        }
    }

    /// Returns the name in the C library.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Eperm => "EPERM",
            Self::Eaddrinuse => "EADDRINUSE",
            Self::Econnrefused => "ECONNREFUSED",
            Self::Ehostunreach => "EHOSTUNREACH",
        }
    }
}

impl Reason {
    /// Returns the error of a call that fails for this reason, on kernels that let a program choose
    /// it (Linux 5.18).
    pub const fn errno(self) -> Errno {
        match self {
            Reason::SocketRefused => Errno::Econnrefused,
            Reason::SourceRange => Errno::Eperm,
            Reason::NodePortProtected => Errno::Eaddrinuse,
            _ => Errno::Ehostunreach,
        }
    }
}

/// The result for a counted packet.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Translated and sent on.
    Translated,
    /// Passed untouched.
    Passed,
    /// Answered with an error.
    Rejected,
    /// Dropped.
    Dropped,
    /// A connection gave way to another one.
    Evicted,
}

reasons! {
    /// Translated and handed to an endpoint on this node, or back to a client.
    Delivered = 0, "delivered", Translated;
    /// Translated and sent out of this node again.
    Forwarded = 1, "forwarded", Translated;
    /// A connection was opened: both flow entries were made.
    FlowOpened = 2, "flow_opened", Translated;
    /// A call at a socket was translated.
    SocketTranslated = 3, "socket_translated", Translated;
    /// A TCP or SCTP packet to a service that opens no connection and belongs to none: passed
    /// untouched.
    NotOpening = 4, "not_opening", Passed;
    /// XDP passed the packet to the tc program of the same device.
    LeftToTc = 5, "left_to_tc", Passed;
    /// The service has no endpoint that takes the connection: refused at the socket.
    SocketRefused = 6, "socket_no_endpoint", Rejected;
    /// The service has no endpoint that takes the connection: the packet was answered with an
    /// error.
    NoEndpointRejected = 7, "no_endpoint_rejected", Rejected;
    /// The packet does not fit the path: the sender received an error (fragmentation needed, packet
    /// too big).
    TooBig = 8, "too_big", Rejected;
    /// The service has no endpoint here and its policy is Local.
    NoEndpointDropped = 9, "no_endpoint_dropped", Dropped;
    /// No source port was free.
    NoSourcePort = 10, "no_source_port", Dropped;
    /// The flow table is full of established connections.
    FlowTableFull = 11, "flow_table_full", Dropped;
    /// There is no route to the endpoint, or one that refuses (blackhole, prohibit, unreachable).
    NoRoute = 12, "no_route", Dropped;
    /// The outgoing device has no address to rewrite the source to.
    NoSourceAddress = 13, "no_source_address", Dropped;
    /// TTL or hop limit ran out on a packet to be forwarded.
    TtlExpired = 14, "ttl_expired", Dropped;
    /// The packet could not be changed: no memory, or a header that is cut off.
    RewriteFailed = 15, "rewrite_failed", Dropped;
    /// The service entry refers to a slot or backend that does not exist or belongs to another
    /// service. This is a fault of the agent.
    MapInconsistent = 16, "map_inconsistent", Dropped;
    /// The source is not in the loadBalancerSourceRanges of the service.
    SourceRange = 17, "source_range", Dropped;
    /// A fragmented SCTP packet would need other ports. Its checksum depends on the last fragment,
    /// which has not arrived.
    SctpFragment = 18, "sctp_fragment", Dropped;
    /// The ClusterIP's Service does not have this port: answered with an error.
    UnknownPort = 19, "unknown_port_rejected", Rejected;
    /// The address is in a ServiceCIDR, but belongs to no Service.
    UnassignedAddress = 20, "unassigned_address", Dropped;
    /// A process of the node called `bind` with the port of a NodePort.
    NodePortProtected = 21, "node_port_protected", Rejected;
    /// An echo request (ping) to the address of a Service was answered.
    EchoAnswered = 22, "echo_answered", Translated;
    /// An ICMP error about a translated connection was translated, including the packet that it
    /// quotes.
    IcmpTranslated = 23, "icmp_translated", Translated;
    /// A connection that was not open yet gave way to a new one: no record or source port was free.
    EvictedHalfOpen = 24, "evicted_half_open", Evicted;
    /// An idle UDP flow gave way to a new connection.
    EvictedDatagrams = 25, "evicted_datagrams", Evicted;
    /// A connection that was closed or reset gave way to a new one before its time.
    EvictedClosed = 26, "evicted_closed", Evicted;
    /// A TCP packet to a Service's address that belongs to no connection was answered with a reset.
    NoConnection = 27, "no_connection_reset", Rejected;
    /// An ICMP error or a reset was not sent: this CPU has sent too many in the last second.
    AnswerLimited = 28, "answer_limited", Dropped;
    /// The client has repeated its SYN, and the endpoint had not answered: the connection got
    /// another endpoint.
    FlowMoved = 29, "flow_moved", Translated;
    /// An endpoint refused or did not answer: it is left out for a while.
    EndpointLeftOut = 30, "endpoint_left_out", Translated;
    /// An endpoint that is left out was tried again with this connection.
    EndpointTried = 31, "endpoint_tried", Translated;
    /// A router reported that the endpoint is unreachable: the client did not receive the error,
    /// because its next SYN goes to another endpoint.
    ErrorWithheld = 32, "error_withheld", Translated;
    /// The endpoint that was selected first is overloaded: the connection got another one.
    EndpointOverloaded = 33, "endpoint_overloaded", Translated;
    /// Other connections reached the upper threshold of the endpoint in the same instant: the
    /// client's next packet gets another endpoint.
    ThresholdReached = 34, "threshold_reached", Dropped;
}

/// Number of reasons: entries of `COUNTERS`.
pub const REASONS: usize = Reason::ALL.len();

const _: () = {
    let mut i = 0;
    while i < Reason::ALL.len() {
        assert!(Reason::ALL[i] as usize == i, "reasons are numbered without gaps");
        i += 1;
    }
};
