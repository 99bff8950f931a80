//! The life of a connection: the phase that a packet moves it to, its time-out, and whether it
//! gives way to another one. The code is pure: the programs and the tests on the host run the same
//! code.
//!
//! TCP is tracked by sequence numbers. A packet that its receiver would not accept changes nothing.
//! Each direction stores two numbers: the end of the data that it has sent, and the end of the data
//! that it has acknowledged.
//!
//! * An ACK establishes a connection only if it acknowledges the endpoint's SYN-ACK. A sender that
//!   guesses needs 2^31 packets on average.
//! * A RST counts only if its sequence number lies between what the receiver has acknowledged and
//!   what the sender has sent. On an idle connection that is one number (RFC 5961 3.2: the receiver
//!   answers every other RST with a challenge ACK, and the answer to that is a RST with the right
//!   number).
//! * A FIN, and any other segment, counts only near these numbers ([`WINDOW`]).
//!
//! SCTP is tracked by verification tags (RFC 9260 8.5), which have the same purpose. UDP has no
//! such numbers.

use crate::SECOND;
use crate::layout::{
    Flow, FlowSide, FlowTimeouts, SCTP, TCP, UDP, counted, direction, flow_phase, tcp_flags,
};

/// The distance in bytes by which a TCP segment may extend beyond the data that its receiver has
/// acknowledged, or start before it. It is larger than any window that a connection through a node
/// uses, and small enough that a guessed number rarely lies in it. A connection with more data
/// under way is tracked again as soon as acknowledgements arrive.
pub const WINDOW: u32 = 1 << 22;

/// The fields of a packet that the tracking of its connection uses.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// One of [`direction`].
    pub direction: u8,
    /// The TCP flags, or the flags that correspond to an SCTP packet (see
    /// [`crate::sctp::signals`]).
    pub flags: u8,
    /// TCP: sequence number. SCTP: verification tag.
    pub seq: u32,
    /// TCP: acknowledgement number. SCTP: initiate tag of an INIT or INIT ACK, else 0.
    pub ack: u32,
    /// Bytes of payload.
    pub length: u32,
}

/// The state of a connection, as a flow record holds it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct ConnectionState {
    /// One of [`flow_phase`].
    pub phase: u8,
    pub request: FlowSide,
    pub reply: FlowSide,
}

/// UDP that both sides have used for longer than this counts as a stream
/// (`net.netfilter.nf_conntrack_udp_timeout_stream` applies after two seconds in netfilter too:
/// net/netfilter/nf_conntrack_proto_udp.c).
pub const STREAM_AFTER_S: u32 = 2;

/// Returns the state of a connection that `segment` opens.
#[inline(always)]
pub fn opened(protocol: u8, segment: &Segment) -> ConnectionState {
    let mut request = FlowSide { end: 0, ack: 0, closed: 0 };
    let mut reply = request;
    if protocol == TCP {
        request.end = end_of(segment);
    } else if protocol == SCTP {
        reply.end = segment.ack;
    }
    ConnectionState { phase: flow_phase::OPENING, request, reply }
}

/// Returns the state after `segment`, a packet of a connection in `state`. `age_s` is the time
/// since the connection was opened, in seconds.
#[inline(always)]
pub fn advance(protocol: u8, state: ConnectionState, segment: &Segment, age_s: u32) -> ConnectionState {
    match protocol {
        TCP => tcp(state, segment),
        SCTP => sctp(state, segment),
        _ => datagram(state, segment, age_s),
    }
}

#[inline(always)]
fn datagram(mut state: ConnectionState, segment: &Segment, age_s: u32) -> ConnectionState {
    if state.phase == flow_phase::OPENING && segment.direction == direction::REPLY {
        state.phase = flow_phase::ANSWERED;
    } else if state.phase == flow_phase::ANSWERED && age_s > STREAM_AFTER_S {
        state.phase = flow_phase::ESTABLISHED;
    }
    state
}

/// Returns whether `a` is before `b` in sequence space, or the same (RFC 9293 3.4).
#[inline(always)]
pub fn not_after(a: u32, b: u32) -> bool {
    b.wrapping_sub(a) < 1 << 31
}

/// Returns whether `x` lies between `first` and `last`, both included. If `last` is before `first`,
/// only `first` itself does.
#[inline(always)]
fn within(x: u32, first: u32, last: u32) -> bool {
    let length = if not_after(first, last) { last.wrapping_sub(first) } else { 0 };
    x.wrapping_sub(first) <= length
}

/// Returns the sequence number after the segment. SYN and FIN count as one byte each.
#[inline(always)]
fn end_of(segment: &Segment) -> u32 {
    let controls =
        (segment.flags & tcp_flags::SYN != 0) as u32 + (segment.flags & tcp_flags::FIN != 0) as u32;
    segment.seq.wrapping_add(segment.length).wrapping_add(controls)
}

#[inline(always)]
fn tcp(mut state: ConnectionState, segment: &Segment) -> ConnectionState {
    let is_request = segment.direction == direction::REQUEST;
    match state.phase {
        flow_phase::OPENING => opening_tcp(&mut state, segment, is_request),
        flow_phase::ANSWERED | flow_phase::ESTABLISHED => {
            let (sender, receiver) =
                if is_request { (state.request, state.reply) } else { (state.reply, state.request) };
            if segment.flags & tcp_flags::RST != 0 {
                if within(segment.seq, receiver.ack, sender.end) {
                    state.phase = flow_phase::RESET;
                }
                return state;
            }
            if segment.flags & tcp_flags::SYN != 0 {
                // A repeated SYN or SYN-ACK, or one that the endpoint answers.
                return state;
            }
            if segment.flags & tcp_flags::ACK == 0 || !is_plausible(sender, receiver, segment) {
                return state;
            }
            if state.phase == flow_phase::ANSWERED && is_request {
                // `sender.ack` is still what the SYN-ACK made it: the least that acknowledges the
                // SYN-ACK.
                if !within(segment.ack, sender.ack, receiver.end) {
                    return state;
                }
                state.phase = flow_phase::ESTABLISHED;
            }
            let sender = if is_request { &mut state.request } else { &mut state.reply };
            let end = end_of(segment);
            if !not_after(end, sender.end) {
                sender.end = end;
            }
            // Before the client has acknowledged the SYN-ACK, its number is kept for that
            // comparison.
            if !not_after(segment.ack, sender.ack) {
                sender.ack = segment.ack;
            }
            if segment.flags & tcp_flags::FIN != 0 {
                sender.closed = 1;
            }
        }
        _ => {}
    }
    state
}

#[inline(always)]
fn opening_tcp(state: &mut ConnectionState, segment: &Segment, is_request: bool) {
    let (syn, ack, rst) = (
        segment.flags & tcp_flags::SYN != 0,
        segment.flags & tcp_flags::ACK != 0,
        segment.flags & tcp_flags::RST != 0,
    );
    if is_request {
        if rst {
            // The client gives up: its RST carries the number after its SYN.
            if segment.seq == state.request.end {
                state.phase = flow_phase::RESET;
            }
        } else if syn && !ack {
            // The client repeats its SYN, perhaps without the data of TCP Fast Open, or begins
            // anew.
            state.request.end = end_of(segment);
        }
        return;
    }
    // The endpoint acknowledges the SYN, with or without the data that came with it (TCP Fast Open,
    // RFC 7413).
    if !ack || state.request.end.wrapping_sub(segment.ack) > 0xffff {
        return;
    }
    if rst {
        state.phase = flow_phase::RESET;
    } else if syn {
        state.phase = flow_phase::ANSWERED;
        state.reply.end = end_of(segment);
        state.reply.ack = segment.ack;
        state.request.ack = segment.seq.wrapping_add(1);
    }
}

/// Returns whether the segment is near the data that its receiver expects, and acknowledges data
/// near what the receiver has sent. It may lie beyond these: if other packets took another path,
/// the state skips them.
#[inline(always)]
fn is_plausible(sender: FlowSide, receiver: FlowSide, segment: &Segment) -> bool {
    let start = segment.seq.wrapping_sub(receiver.ack.wrapping_sub(WINDOW));
    let ahead = receiver.end.wrapping_add(WINDOW).wrapping_sub(segment.ack);
    start <= 2 * WINDOW && ahead <= receiver.end.wrapping_sub(sender.ack).wrapping_add(2 * WINDOW)
}

#[inline(always)]
fn sctp(mut state: ConnectionState, segment: &Segment) -> ConnectionState {
    let is_request = segment.direction == direction::REQUEST;
    let opens = segment.flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN;
    let (expected, reflected) =
        if is_request { (state.request.end, state.reply.end) } else { (state.reply.end, state.request.end) };
    if opens {
        if is_request && state.phase == flow_phase::OPENING {
            state.reply.end = segment.ack;
        }
    } else if segment.flags & tcp_flags::RST != 0 {
        // With the T bit set the tag is the one that the receiver expects of itself (RFC 9260
        // 8.5.1).
        if segment.seq == expected || (state.phase != flow_phase::OPENING && segment.seq == reflected) {
            state.phase = flow_phase::RESET;
        }
    } else if segment.seq == expected && segment.flags & tcp_flags::ACK != 0 {
        let init_ack = segment.flags & tcp_flags::SYN != 0;
        if state.phase == flow_phase::OPENING {
            if init_ack && !is_request {
                state.phase = flow_phase::ANSWERED;
                state.request.end = segment.ack;
            }
        } else if state.phase == flow_phase::ANSWERED && is_request && !init_ack {
            state.phase = flow_phase::ESTABLISHED;
        }
        if state.phase == flow_phase::ESTABLISHED && segment.flags & tcp_flags::FIN != 0 {
            if is_request {
                state.request.closed = 1;
            } else {
                state.reply.closed = 1;
            }
        }
    }
    state
}

impl<A: Copy> Flow<A> {
    /// Returns the fields that the tracking of the connection uses.
    #[inline(always)]
    pub fn state(&self) -> ConnectionState {
        ConnectionState { phase: self.phase, request: self.request, reply: self.reply }
    }

    /// Returns whether the connection is over: it has been silent for its time-out at `now_ns`. A
    /// free record is over too.
    #[inline(always)]
    pub fn is_over(&self, now_ns: u64, timeouts: &FlowTimeouts) -> bool {
        let seconds = self.state().timeout(self.protocol, timeouts);
        self.phase == flow_phase::FREE || now_ns.saturating_sub(self.last_seen_ns) >= seconds as u64 * SECOND
    }
}

impl ConnectionState {
    /// Returns whether both sides have closed.
    #[inline(always)]
    fn is_closed(&self) -> bool {
        self.request.closed != 0 && self.reply.closed != 0
    }

    /// Returns whether both sides have closed, or one has reset the connection. Then a SYN or INIT
    /// of the client opens a new connection with the same tuple. Before, the endpoint itself
    /// answers it.
    ///
    /// As in netfilter and IPVS, the sequence number of the SYN does not matter: there may be
    /// several clients behind one address, whose numbers are not in order. Client and endpoint find
    /// out whether it is a late one of the old connection (RFC 9293 3.6.1). A new connection in the
    /// record of the old one would be over after the time-out of closed connections.
    #[inline(always)]
    pub fn has_ended(&self) -> bool {
        self.phase == flow_phase::RESET || self.is_closed()
    }

    /// Returns how the connection is counted at its endpoint, one of [`counted`]. The classes are
    /// those of IPVS (`tcp_state_active_table` in net/netfilter/ipvs/ip_vs_proto_tcp.c, and
    /// `sctp_state_active_table`): a connection is active until one side closes it. UDP is never
    /// active.
    #[inline(always)]
    pub fn counted(&self, protocol: u8) -> u8 {
        let closing = self.request.closed | self.reply.closed != 0;
        if protocol == UDP || closing || self.phase == flow_phase::RESET {
            counted::INACTIVE
        } else {
            counted::ACTIVE
        }
    }

    /// Returns the time for which the connection may be silent, in seconds.
    #[inline(always)]
    pub fn timeout(&self, protocol: u8, timeouts: &FlowTimeouts) -> u32 {
        let closing = self.request.closed | self.reply.closed != 0;
        match (protocol, self.phase) {
            (UDP, flow_phase::OPENING) => timeouts.udp_unreplied,
            (UDP, flow_phase::ANSWERED) => timeouts.udp,
            (UDP, _) => timeouts.udp_stream,
            (SCTP, flow_phase::OPENING | flow_phase::ANSWERED) => timeouts.sctp_opening,
            (SCTP, flow_phase::ESTABLISHED) if !self.is_closed() => timeouts.sctp_established,
            (SCTP, _) => timeouts.sctp_closed,
            (_, flow_phase::OPENING | flow_phase::ANSWERED) => timeouts.tcp_syn,
            (_, flow_phase::ESTABLISHED) if self.is_closed() => timeouts.tcp_time_wait,
            (_, flow_phase::ESTABLISHED) if closing => timeouts.tcp_half_closed,
            (_, flow_phase::ESTABLISHED) => timeouts.tcp_established,
            _ => timeouts.tcp_reset,
        }
    }

    /// Returns whether the endpoint or the client has not shown yet that it takes part.
    #[inline(always)]
    pub fn is_half_open(&self, protocol: u8) -> bool {
        self.phase == flow_phase::OPENING || (self.phase == flow_phase::ANSWERED && protocol != UDP)
    }

    /// Returns whether, and how early, the connection gives way to new ones when records or source
    /// ports run out. `silent_ns` is the time since its last packet.
    #[inline(always)]
    pub fn yields(&self, protocol: u8, silent_ns: u64) -> Yields {
        if self.is_half_open(protocol) {
            if silent_ns < HANDSHAKE_NS { Yields::Opening } else { Yields::HalfOpen }
        } else if protocol == UDP {
            if silent_ns < IDLE_DATAGRAM_NS { Yields::Never } else { Yields::Datagram }
        } else if self.has_ended() {
            Yields::Closed
        } else {
            Yields::Never
        }
    }
}

/// Whether a connection gives way, in the order in which connections do. Greater yields first.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Yields {
    /// An established connection never does.
    Never = 0,
    /// Not open yet, and silent for less than [`HANDSHAKE_NS`].
    Opening = 1,
    /// Closed by both sides, or reset: only late packets can come.
    Closed = 2,
    /// UDP that was answered and is idle.
    Datagram = 3,
    /// Not open yet, and silent for longer.
    HalfOpen = 4,
}

/// The answer of an endpoint may be on its way for so long. Until then, a half-open connection
/// gives way only if no other one does. Many honest connections are opened at the same time: the
/// port of one must not be given to another one in the middle of its handshake. The half-open
/// connections of a flood are older, unless it opens more than 280,000 in a second to one endpoint.
pub const HANDSHAKE_NS: u64 = 100_000_000;

/// A SYN that follows this time after the one before is repeated: clients wait for an answer for a
/// second (RFC 6298 2.1). XDP may leave a packet to tc, which sees the same SYN at once.
pub const REPEATED_NS: u64 = 500_000_000;

/// UDP flows give way only if they were silent for this time. An active stream never gives way.
pub const IDLE_DATAGRAM_NS: u64 = 5_000_000_000;

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec;
    use std::vec::Vec;

    use super::*;

    const TIMEOUTS: &FlowTimeouts = &FlowTimeouts::DEFAULT;
    const CLIENT_ISN: u32 = 0xffff_fff0;
    const SERVER_ISN: u32 = 7_000;

    fn segment(direction: u8, flags: u8, seq: u32, ack: u32, length: u32) -> Segment {
        Segment { direction, flags, seq, ack, length }
    }

    fn request(flags: u8, seq: u32, ack: u32, length: u32) -> Segment {
        segment(direction::REQUEST, flags, CLIENT_ISN.wrapping_add(seq), SERVER_ISN.wrapping_add(ack), length)
    }

    fn reply(flags: u8, seq: u32, ack: u32, length: u32) -> Segment {
        segment(direction::REPLY, flags, SERVER_ISN.wrapping_add(seq), CLIENT_ISN.wrapping_add(ack), length)
    }

    use tcp_flags::{ACK, FIN, RST, SYN};

    /// Returns the state after these packets, the first of which opens the connection.
    fn after(protocol: u8, segments: &[Segment]) -> ConnectionState {
        let (first, rest) = segments.split_first().unwrap();
        rest.iter().fold(opened(protocol, first), |state, next| advance(protocol, state, next, 0))
    }

    fn handshake() -> Vec<Segment> {
        vec![request(SYN, 0, 0, 0), reply(SYN | ACK, 0, 1, 0), request(ACK, 1, 1, 0)]
    }

    fn with(segments: &[Segment]) -> ConnectionState {
        after(TCP, &[&handshake()[..], segments].concat())
    }

    #[test]
    fn a_handshake_establishes() {
        let packets = handshake();
        let timeouts: Vec<u32> = (1..=3).map(|n| after(TCP, &packets[..n]).timeout(TCP, TIMEOUTS)).collect();
        assert_eq!(timeouts, [TIMEOUTS.tcp_syn, TIMEOUTS.tcp_syn, TIMEOUTS.tcp_established]);
        assert_eq!(after(TCP, &packets).yields(TCP, u64::MAX), Yields::Never);
        for opening in [&packets[..1], &packets[..2]] {
            let state = after(TCP, opening);
            assert_eq!(state.yields(TCP, 0), Yields::Opening);
            assert_eq!(state.yields(TCP, HANDSHAKE_NS - 1), Yields::Opening);
            assert_eq!(state.yields(TCP, HANDSHAKE_NS), Yields::HalfOpen);
        }
    }

    #[test]
    fn a_guessed_ack_establishes_nothing() {
        let [syn, syn_ack, _] = handshake()[..] else { unreachable!() };
        for guess in [2u32, 0, 1 << 16, u32::MAX / 2] {
            let state = after(TCP, &[syn, syn_ack, request(ACK, 1, guess, 0)]);
            assert_eq!(state.phase, flow_phase::ANSWERED, "{guess}");
        }
        // Without the endpoint's word there is nothing to acknowledge.
        assert_eq!(after(TCP, &[syn, request(ACK, 1, 1, 0)]).phase, flow_phase::OPENING);
        // A SYN-ACK that does not acknowledge the SYN is none.
        assert_eq!(after(TCP, &[syn, reply(SYN | ACK, 0, 1 << 20, 0)]).phase, flow_phase::OPENING);
    }

    #[test]
    fn fast_open_establishes() {
        let data = [
            request(SYN, 0, 0, 500),
            reply(SYN | ACK, 0, 501, 200),
            reply(ACK, 201, 501, 1_000),
            request(ACK, 501, 1_201, 0),
        ];
        assert_eq!(after(TCP, &data).phase, flow_phase::ESTABLISHED);
        let refused_data = [request(SYN, 0, 0, 500), reply(SYN | ACK, 0, 1, 0), request(ACK, 1, 1, 500)];
        assert_eq!(after(TCP, &refused_data).phase, flow_phase::ESTABLISHED);
    }

    #[test]
    fn only_a_rst_with_the_right_number_resets() {
        for (rst, resets) in [
            (request(RST, 1, 0, 0), true),
            (request(RST | ACK, 1, 1, 0), true),
            (request(RST, 2, 0, 0), false),
            (request(RST, 0, 0, 0), false),
            (request(RST, 60_000, 0, 0), false),
            (reply(RST, 1, 0, 0), true),
            (reply(RST | ACK, 3, 1, 0), false),
        ] {
            assert_eq!(with(&[rst]).phase == flow_phase::RESET, resets, "{rst:?}");
        }
        // Data under way: anything from what was acknowledged to what was sent.
        let sending = [request(ACK, 1, 1, 1_000)];
        for (seq, resets) in [(1, true), (500, true), (1_001, true), (1_002, false)] {
            let state = with(&[&sending[..], &[request(RST, seq, 0, 0)]].concat());
            assert_eq!(state.phase == flow_phase::RESET, resets, "{seq}");
        }
        let acked = [request(ACK, 1, 1, 1_000), reply(ACK, 1, 1_001, 0), request(RST, 500, 0, 0)];
        assert_eq!(with(&acked).phase, flow_phase::ESTABLISHED);
        assert_eq!(after(TCP, &[request(SYN, 0, 0, 0), reply(RST | ACK, 0, 1, 0)]).phase, flow_phase::RESET);
        assert_eq!(
            after(TCP, &[request(SYN, 0, 0, 0), reply(RST | ACK, 0, 9_999_999, 0)]).phase,
            flow_phase::OPENING
        );
    }

    #[test]
    fn a_guessed_segment_moves_no_number() {
        let far = [request(ACK, 1 << 30, 1, 100), request(ACK, 1, 1 << 30, 100), reply(ACK, 1 << 25, 1, 9)];
        for guess in far {
            assert_eq!(with(&[guess]), with(&[]), "{guess:?}");
        }
    }

    #[test]
    fn closing_goes_by_both_sides() {
        let (client_fin, server_fin) = (request(FIN | ACK, 1, 1, 0), reply(FIN | ACK, 1, 2, 0));
        assert_eq!(with(&[client_fin]).timeout(TCP, TIMEOUTS), TIMEOUTS.tcp_half_closed);
        assert_eq!(with(&[client_fin]).yields(TCP, u64::MAX), Yields::Never);
        assert_eq!(with(&[client_fin, server_fin]).timeout(TCP, TIMEOUTS), TIMEOUTS.tcp_time_wait);
        assert_eq!(with(&[client_fin, server_fin]).yields(TCP, 0), Yields::Closed);
        assert_eq!(
            with(&[request(FIN | ACK, 1 << 28, 1, 0)]).timeout(TCP, TIMEOUTS),
            TIMEOUTS.tcp_established
        );
    }

    #[test]
    fn a_syn_opens_anew_only_when_the_old_connection_is_over() {
        let closed = with(&[request(FIN | ACK, 1, 1, 0), reply(FIN | ACK, 1, 2, 0)]);
        assert!(closed.has_ended());
        assert!(with(&[request(RST, 1, 0, 0)]).has_ended());
        assert!(!with(&[request(FIN | ACK, 1, 1, 0)]).has_ended(), "half closed");
        assert!(!with(&[]).has_ended());
    }

    #[test]
    fn a_connection_is_active_until_one_side_closes() {
        let packets = handshake();
        for opening in 1..=3 {
            assert_eq!(after(TCP, &packets[..opening]).counted(TCP), counted::ACTIVE);
        }
        assert_eq!(with(&[request(FIN | ACK, 1, 1, 0)]).counted(TCP), counted::INACTIVE);
        assert_eq!(with(&[reply(FIN | ACK, 1, 1, 0)]).counted(TCP), counted::INACTIVE);
        assert_eq!(with(&[reply(RST, 1, 0, 0)]).counted(TCP), counted::INACTIVE);
        let datagram = segment(direction::REQUEST, 0, 0, 0, 9);
        assert_eq!(opened(UDP, &datagram).counted(UDP), counted::INACTIVE);
        let init = segment(direction::REQUEST, SYN, 0, 1, 0);
        assert_eq!(opened(SCTP, &init).counted(SCTP), counted::ACTIVE);
    }

    #[test]
    fn long_transfers_are_followed_around_the_sequence_space() {
        let mut state = with(&[]);
        let mut sent = 1u32;
        for _ in 0..5_000 {
            state = advance(TCP, state, &request(ACK, sent, 1, 1 << 20), 0);
            sent = sent.wrapping_add(1 << 20);
            state = advance(TCP, state, &reply(ACK, 1, sent, 0), 0);
        }
        assert_eq!(state.request.end, CLIENT_ISN.wrapping_add(sent));
        assert_eq!(advance(TCP, state, &request(RST, sent, 0, 0), 0).phase, flow_phase::RESET);
        assert_eq!(advance(TCP, state, &request(RST, 1, 0, 0), 0).phase, flow_phase::ESTABLISHED);
    }

    #[test]
    fn datagrams_become_a_stream_when_both_sides_last() {
        let (there, back) = (segment(direction::REQUEST, 0, 0, 0, 9), segment(direction::REPLY, 0, 0, 0, 9));
        let mut state = opened(UDP, &there);
        assert_eq!(advance(UDP, state, &there, 60).timeout(UDP, TIMEOUTS), TIMEOUTS.udp_unreplied);
        state = advance(UDP, state, &back, 0);
        assert_eq!(state.timeout(UDP, TIMEOUTS), TIMEOUTS.udp);
        assert_eq!(state.yields(UDP, IDLE_DATAGRAM_NS - 1), Yields::Never);
        assert_eq!(state.yields(UDP, IDLE_DATAGRAM_NS), Yields::Datagram);
        // Half-open connections of a flood give way first, and handshakes last.
        let order = [Yields::Opening, Yields::Closed, Yields::Datagram, Yields::HalfOpen];
        assert!(order.is_sorted() && Yields::Never < order[0]);
        assert_eq!(advance(UDP, state, &there, 2).timeout(UDP, TIMEOUTS), TIMEOUTS.udp);
        assert_eq!(advance(UDP, state, &there, 3).timeout(UDP, TIMEOUTS), TIMEOUTS.udp_stream);
    }

    #[test]
    fn sctp_goes_by_verification_tags() {
        let (client_tag, server_tag) = (0x1111, 0x2222);
        let init = segment(direction::REQUEST, SYN, 0, client_tag, 0);
        let init_ack = segment(direction::REPLY, SYN | ACK, client_tag, server_tag, 0);
        let cookie = segment(direction::REQUEST, ACK, server_tag, 0, 0);
        let open = after(SCTP, &[init, init_ack, cookie]);
        assert_eq!(open.phase, flow_phase::ESTABLISHED);
        let forged = segment(direction::REQUEST, ACK, 5, 0, 0);
        assert_eq!(after(SCTP, &[init, init_ack, forged]).phase, flow_phase::ANSWERED);
        let forged = segment(direction::REPLY, SYN | ACK, 5, server_tag, 0);
        assert_eq!(after(SCTP, &[init, forged]).phase, flow_phase::OPENING);
        for (tag, resets) in [(server_tag, true), (client_tag, true), (5, false)] {
            let abort = segment(direction::REQUEST, RST, tag, 0, 0);
            assert_eq!(advance(SCTP, open, &abort, 0).phase == flow_phase::RESET, resets, "{tag:x}");
        }
        let shutdown = segment(direction::REQUEST, FIN | ACK, server_tag, 0, 0);
        let shutdown_ack = segment(direction::REPLY, FIN | ACK, client_tag, 0, 0);
        let half = advance(SCTP, open, &shutdown, 0);
        assert_eq!(half.timeout(SCTP, TIMEOUTS), TIMEOUTS.sctp_established);
        assert_eq!(advance(SCTP, half, &shutdown_ack, 0).timeout(SCTP, TIMEOUTS), TIMEOUTS.sctp_closed);
    }
}
