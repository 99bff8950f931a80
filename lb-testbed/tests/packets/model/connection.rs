//! The state that the model stores of a connection. It predicts whether a packet replaces the
//! connection by a new one. Written from RFC 9293, RFC 5961, RFC 9260 and docs/ARCHITECTURE.md.

use super::{ACK, FIN, RST, SCTP, SYN, TCP};

/// The distance in bytes by which a TCP segment may differ from the data that its receiver expects.
const WINDOW: u32 = 4 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The client's first packet has passed.
    Opening,
    /// The endpoint has agreed.
    Agreed,
    /// The client has confirmed.
    Open,
    Reset,
}

/// The progress of one end of a connection.
#[derive(Debug, Clone, Copy, Default)]
pub struct End {
    /// TCP: the next sequence number. SCTP: the verification tag of its packets.
    pub next: u32,
    /// TCP: the highest acknowledgement.
    pub acked: u32,
    closed: bool,
}

/// The numbers of a packet.
#[derive(Debug, Clone, Copy, Default)]
pub struct Numbers {
    pub flags: u8,
    /// Sequence number, or verification tag.
    pub seq: u32,
    /// Acknowledgement number, or initiate tag.
    pub ack: u32,
    pub payload: u32,
}

impl Numbers {
    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    fn end(&self) -> u32 {
        let controls = u32::from(self.has(SYN)) + u32::from(self.has(FIN));
        self.seq.wrapping_add(self.payload).wrapping_add(controls)
    }
}

/// The time for which a connection may be silent, in seconds.
///
/// All time-outs are 15 seconds off a multiple of [`TICK`], and time passes by ticks. So it does
/// not matter for how many seconds a test really runs between two packets.
pub mod timeout {
    pub const TCP_RESET: u64 = 15;
    pub const UDP_UNREPLIED: u64 = 45;
    pub const SCTP_OPENING: u64 = 75;
    pub const TCP_SYN: u64 = 105;
    pub const UDP: u64 = 135;
    pub const TCP_TIME_WAIT: u64 = 165;
    pub const SCTP_CLOSED: u64 = 195;
    pub const SCTP_ESTABLISHED: u64 = 225;
    pub const TCP_HALF_CLOSED: u64 = 345;
    pub const TCP_ESTABLISHED: u64 = 645;
}

/// A packet of a TCP connection that is used properly.
pub struct Honest {
    pub from_client: bool,
    /// As packet texts have them.
    pub flags: &'static str,
    pub seq: u32,
    pub ack: u32,
    /// Bytes of payload.
    pub payload: u32,
}

/// The number of seconds that pass at once.
pub const TICK: u64 = 30;

/// The rank in which connections give way to new ones when records or source ports run out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Yields {
    HalfOpen,
    /// UDP that was answered: only if it is idle.
    Datagram,
    Closed,
    Never,
}

#[derive(Debug, Clone, Copy)]
pub struct Connection {
    protocol: u8,
    stage: Stage,
    pub client: End,
    pub endpoint: End,
}

/// Returns whether `x` is in the circular range from `first` to `last`.
fn in_range(x: u32, first: u32, last: u32) -> bool {
    x.wrapping_sub(first) <= last.wrapping_sub(first)
}

fn is_after(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) > 0
}

impl Connection {
    pub fn opened(protocol: u8, first: &Numbers) -> Self {
        let mut connection =
            Self { protocol, stage: Stage::Opening, client: End::default(), endpoint: End::default() };
        match protocol {
            TCP => connection.client.next = first.end(),
            SCTP => connection.endpoint.next = first.ack,
            _ => {}
        }
        connection
    }

    /// Returns whether a packet that can open a connection opens a new one in the place of this
    /// one.
    pub fn gives_way(&self) -> bool {
        let both_closed = self.client.closed && self.endpoint.closed;
        matches!(self.stage, Stage::Reset) || both_closed
    }

    pub fn passed(&mut self, packet: &Numbers, from_client: bool) {
        match self.protocol {
            TCP => self.tcp(packet, from_client),
            SCTP => self.sctp(packet, from_client),
            _ if !from_client => self.stage = Stage::Agreed,
            _ => {}
        }
    }

    /// Returns a packet that continues the connection as RFC 9293 demands. `any` is a random
    /// number.
    pub fn continued(&self, any: u32) -> Honest {
        let (client, endpoint) = (self.client, self.endpoint);
        let from_client = any & 1 == 0;
        let (sender, receiver) = if from_client { (client, endpoint) } else { (endpoint, client) };
        let segment =
            |flags, payload| Honest { from_client, flags, seq: sender.next, ack: receiver.next, payload };
        let open = |seq| Honest { from_client: true, flags: "S", seq, ack: 0, payload: 0 };
        match self.stage {
            Stage::Opening => {
                Honest { from_client: false, flags: "SA", seq: any, ack: client.next, payload: 0 }
            }
            Stage::Agreed => {
                Honest { from_client: true, flags: "A", seq: client.next, ack: endpoint.next, payload: 0 }
            }
            Stage::Reset => open(any),
            Stage::Open if client.closed && endpoint.closed => open(client.next.wrapping_add(1000)),
            Stage::Open if sender.closed => segment("A", 0),
            Stage::Open => match any % 32 {
                0 | 1 => segment("FA", 0),
                2 => segment("RA", 0),
                _ => segment("PA", any % 1000),
            },
        }
    }

    /// Returns the time for which the connection may be silent, in seconds.
    pub fn timeout(&self) -> u64 {
        let (one, both) =
            (self.client.closed || self.endpoint.closed, self.client.closed && self.endpoint.closed);
        match (self.protocol, self.stage) {
            (TCP, Stage::Opening | Stage::Agreed) => timeout::TCP_SYN,
            (TCP, Stage::Open) if both => timeout::TCP_TIME_WAIT,
            (TCP, Stage::Open) if one => timeout::TCP_HALF_CLOSED,
            (TCP, Stage::Open) => timeout::TCP_ESTABLISHED,
            (TCP, Stage::Reset) => timeout::TCP_RESET,
            (SCTP, Stage::Opening | Stage::Agreed) => timeout::SCTP_OPENING,
            (SCTP, Stage::Open) if !both => timeout::SCTP_ESTABLISHED,
            (SCTP, _) => timeout::SCTP_CLOSED,
            (_, Stage::Opening) => timeout::UDP_UNREPLIED,
            _ => timeout::UDP,
        }
    }

    pub fn yields(&self) -> Yields {
        let both_closed = self.client.closed && self.endpoint.closed;
        match (self.protocol, self.stage) {
            (_, Stage::Opening) => Yields::HalfOpen,
            (TCP | SCTP, Stage::Agreed) => Yields::HalfOpen,
            (TCP | SCTP, Stage::Reset) => Yields::Closed,
            (TCP | SCTP, Stage::Open) if both_closed => Yields::Closed,
            (TCP | SCTP, Stage::Open) => Yields::Never,
            _ => Yields::Datagram,
        }
    }

    fn tcp(&mut self, packet: &Numbers, from_client: bool) {
        match (self.stage, from_client) {
            (Stage::Reset, _) => {}
            (Stage::Opening, true) => {
                if packet.has(RST) {
                    if packet.seq == self.client.next {
                        self.stage = Stage::Reset;
                    }
                } else if packet.has(SYN) && !packet.has(ACK) {
                    self.client.next = packet.end();
                }
            }
            (Stage::Opening, false) => {
                let acknowledges_syn =
                    in_range(packet.ack, self.client.next.wrapping_sub(0xffff), self.client.next);
                if packet.has(ACK) && acknowledges_syn {
                    if packet.has(RST) {
                        self.stage = Stage::Reset;
                    } else if packet.has(SYN) {
                        self.stage = Stage::Agreed;
                        self.endpoint = End { next: packet.end(), acked: packet.ack, closed: false };
                        self.client.acked = packet.seq.wrapping_add(1);
                    }
                }
            }
            (Stage::Agreed | Stage::Open, _) => self.tcp_segment(packet, from_client),
        }
    }

    fn tcp_segment(&mut self, packet: &Numbers, from_client: bool) {
        let (sender, receiver) =
            if from_client { (self.client, self.endpoint) } else { (self.endpoint, self.client) };
        if packet.has(RST) {
            // From the first byte that is not acknowledged to the last that was sent.
            let last = if is_after(receiver.acked, sender.next) { receiver.acked } else { sender.next };
            if in_range(packet.seq, receiver.acked, last) {
                self.stage = Stage::Reset;
            }
            return;
        }
        let near =
            in_range(packet.seq, receiver.acked.wrapping_sub(WINDOW), receiver.acked.wrapping_add(WINDOW))
                && in_range(
                    packet.ack,
                    sender.acked.wrapping_sub(WINDOW),
                    receiver.next.wrapping_add(WINDOW),
                );
        if packet.has(SYN) || !packet.has(ACK) || !near {
            return;
        }
        if self.stage == Stage::Agreed && from_client {
            if !in_range(packet.ack, sender.acked, receiver.next) {
                return;
            }
            self.stage = Stage::Open;
        }
        let sender = if from_client { &mut self.client } else { &mut self.endpoint };
        if is_after(packet.end(), sender.next) {
            sender.next = packet.end();
        }
        if is_after(packet.ack, sender.acked) {
            sender.acked = packet.ack;
        }
        sender.closed |= packet.has(FIN);
    }

    fn sctp(&mut self, packet: &Numbers, from_client: bool) {
        let (own, other) =
            if from_client { (self.client, self.endpoint) } else { (self.endpoint, self.client) };
        let matches = packet.seq == own.next;
        let init = packet.has(SYN) && !packet.has(ACK);
        let init_ack = packet.has(SYN) && packet.has(ACK);
        if init {
            if from_client && self.stage == Stage::Opening {
                self.endpoint.next = packet.ack;
            }
        } else if packet.has(RST) {
            let reflected = self.stage != Stage::Opening && packet.seq == other.next;
            if matches || reflected {
                self.stage = Stage::Reset;
            }
        } else if matches && packet.has(ACK) {
            match self.stage {
                Stage::Opening if init_ack && !from_client => {
                    self.stage = Stage::Agreed;
                    self.client.next = packet.ack;
                }
                Stage::Agreed if from_client && !init_ack => self.stage = Stage::Open,
                _ => {}
            }
            if self.stage == Stage::Open && packet.has(FIN) {
                let end = if from_client { &mut self.client } else { &mut self.endpoint };
                end.closed = true;
            }
        }
    }
}
