//! The layouts of the maps for `lb monitor`: the events of the programs, the limits of their
//! number, and the lease of the reader.

use core::mem::offset_of;

/// The only entry of `MONITOR`: the lease of the reader of `EVENTS` (`lb monitor`).
#[repr(C)]
#[derive(Copy, Clone, Debug, PartialEq, Eq, Default)]
pub struct Monitor {
    /// `CLOCK_MONOTONIC` until which the programs report events, in nanoseconds. The reader renews
    /// it. It is 0 without a reader.
    pub until_ns: u64,
    /// The kinds of events that are reported: bit number = one of [`event_kind`].
    pub kinds: u32,
    pub pad: u32,
}

/// Value of `EVENT_BUDGETS`, by [`event_kind`]: the events of a kind that a CPU has reported.
#[repr(C)]
#[derive(Copy, Clone, Debug, PartialEq, Eq, Default)]
pub struct EventBudget {
    /// The time from which the CPU may report the next event, less the burst.
    pub next_ns: u64,
    /// Events that were not reported because the CPU had reported too many. Never reset.
    pub limited: u64,
    /// Events that did not fit into `EVENTS`. Never reset.
    pub lost: u64,
}

/// A record of `EVENTS`. Addresses have 16 bytes. An IPv4 address is the first four of them, or is
/// IPv4-mapped if the socket is an IPv6 socket. A field that an event does not have is zero.
#[repr(C)]
#[derive(Copy, Clone, Debug, PartialEq, Eq, Default)]
pub struct Event {
    /// `CLOCK_MONOTONIC` in nanoseconds.
    pub time_ns: u64,
    /// Sockets: the cookie of the network namespace, and that of the socket.
    pub netns_cookie: u64,
    pub socket_cookie: u64,
    pub service_id: u32,
    pub backend_id: u32,
    /// One of [`event_kind`].
    pub kind: u8,
    /// One of [`event_path`].
    pub path: u8,
    /// For a closed connection, one of [`event_end`]. For a refused or dropped packet or call, the
    /// number of the `Reason`.
    pub reason: u8,
    /// IANA number.
    pub protocol: u8,
    /// 1 if the addresses are IPv6.
    pub is_v6: u8,
    pub pad: [u8; 3],
    pub client_port: u16,
    pub service_port: u16,
    pub source_port: u16,
    pub backend_port: u16,
    pub client_addr: [u8; 16],
    pub service_addr: [u8; 16],
    /// The source that the endpoint sees.
    pub source_addr: [u8; 16],
    pub backend_addr: [u8; 16],
}

/// Values of [`Event::kind`].
pub mod event_kind {
    /// A connection was opened, or a call at a socket was translated.
    pub const OPENED: u8 = 0;
    /// A connection has ended.
    pub const CLOSED: u8 = 1;
    /// The sender received an error.
    pub const REFUSED: u8 = 2;
    /// A packet was dropped.
    pub const DROPPED: u8 = 3;
    /// The number of kinds: entries of `EVENT_BUDGETS`.
    pub const COUNT: usize = 4;
}

/// Values of [`Event::path`]: the hook that has reported.
pub mod event_path {
    /// The event is of no hook: a program took the record of a connection for another one, or for
    /// the sweep of the agent.
    pub const RECORD: u8 = 0;
    pub const SOCKET: u8 = 1;
    pub const TC: u8 = 2;
    pub const XDP: u8 = 3;
}

/// Values of [`Event::reason`] of a closed connection.
pub mod event_end {
    /// Both sides have closed (FIN, SHUTDOWN).
    pub const FINISHED: u8 = 1;
    /// One side has reset or aborted it.
    pub const RESET: u8 = 2;
    /// It was silent for its time-out.
    pub const IDLE: u8 = 3;
    /// It gave way to another connection.
    pub const EVICTED: u8 = 4;
    /// Its client has opened a new connection with the same addresses and ports, or gets another
    /// endpoint: its SYN was not answered, or the endpoint of its datagrams is gone or unreachable.
    pub const REPLACED: u8 = 5;
    /// The process has closed the socket.
    pub const RELEASED: u8 = 6;
    /// Its endpoint has drained for longer than its time limit.
    pub const DRAINED: u8 = 7;
    /// It has reached the maximum age of connections of its Service.
    pub const AGED: u8 = 8;
}

const _: () = {
    assert!(size_of::<Monitor>() == 16 && offset_of!(Monitor, kinds) == 8);
    assert!(size_of::<EventBudget>() == 24 && offset_of!(EventBudget, lost) == 16);
    assert!(size_of::<Event>() == 112 && offset_of!(Event, kind) == 32);
    assert!(offset_of!(Event, client_port) == 40 && offset_of!(Event, client_addr) == 48);
};
