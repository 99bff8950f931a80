//! What the kernel programs of `cargo xtask bench forward` and the benchmark share. No agent uses
//! it.
//!
//! All frames are UDP datagrams without IP options, [`FRAME`] bytes long. Their payload starts with
//! the number of the connection, four bytes in network byte order.

/// Length of a frame in bytes, without the frame check sequence: the shortest that is a multiple of
/// four and has space for an IPv6 header, a UDP header and the number of the connection.
pub const FRAME: usize = 68;
/// The words of four bytes of a frame.
pub const WORDS: usize = FRAME / 4;
/// Number of frames that can be sent.
pub const FRAMES: u32 = 1 << 17;
/// Number of connections whose frames are kept as they leave the node.
pub const SEEN: u32 = 4096;
/// Number of devices that frames can be sent to.
pub const DEVICES: u32 = 16;

/// The UDP port of the endpoints.
pub const TARGET_PORT: u16 = 9999;
/// The nodePort of the Service.
pub const NODE_PORT: u16 = 30_999;
/// First bytes of the addresses of clients: `198.18.0.0/15` (RFC 2544) and `fd00:198::/32`.
pub const CLIENTS_V4: [u8; 2] = [198, 18];
pub const CLIENTS_V6: [u8; 4] = [0xfd, 0x00, 0x01, 0x98];

/// What the programs do at the moment.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Plan {
    /// Index of the first frame that is sent.
    pub first: u32,
    /// Number of frames that are sent, one after the other. After the last, the first is sent
    /// again.
    pub count: u32,
    /// The frame that is sent next, counted from the first. The generator changes it.
    pub next: u32,
    /// Index of the device whose peer receives the frames.
    pub device: u32,
    /// 1: each frame to an endpoint is kept under the number of its connection.
    pub keep: u32,
}

/// What leaves the node: the values of a counter, one for each CPU.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames to an endpoint.
    pub requests: u64,
    /// Frames to a client.
    pub replies: u64,
}

/// What the floor program writes into each packet.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FloorRewrite {
    /// The endpoint's addresses: the new destination of requests.
    pub endpoint_v4: [u8; 4],
    pub endpoint_v6: [u8; 16],
    /// The node's addresses: the new source of replies.
    pub node_v4: [u8; 4],
    pub node_v6: [u8; 16],
    /// MAC addresses of the next node and of the client's gateway.
    pub next_node: [u8; 6],
    pub gateway: [u8; 6],
}

crate::plain! {
    Plan { first, count, next, device, keep }
    Counts { requests, replies }
    FloorRewrite { endpoint_v4, endpoint_v6, node_v4, node_v6, next_node, gateway }
}
