//! Another layout of the map entries, with the same fields in other places. Only tests use it (the
//! feature `other-layout`): an agent with this layout converts the maps of one with the usual
//! layout, and the other way round.
//!
//! The types replace those of the same name in [`crate::layout`], which describes their fields. A
//! field that is added there is added here too.

#[repr(C)]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct ServiceEntry {
    pub inside_base: u32,
    pub inside_count: u32,
    pub outside_base: u32,
    pub outside_count: u32,
    pub affinity_seconds: u32,
    pub service_id: u32,
    pub flags: u32,
    pub pad: u8,
    pub scheduler: u8,
    pub algorithm: u8,
    pub kind: u8,
}

#[repr(C)]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Backend<A> {
    pub service_id: u32,
    pub flags: u16,
    pub port: u16,
    pub weight: u32,
    pub addr: A,
}

#[repr(C)]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct FlowIndex {
    pub generation: u16,
    pub direction: u8,
    pub pad: u8,
    pub record: u32,
}

#[repr(C)]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Flow<A> {
    pub last_seen_ns: u64,
    pub request: FlowSide,
    pub reply: FlowSide,
    pub client_addr: A,
    pub service_addr: A,
    pub source_addr: A,
    pub backend_addr: A,
    pub backend_id: u32,
    pub service_id: u32,
    pub opened_s: u32,
    pub service_port: u16,
    pub client_port: u16,
    pub backend_port: u16,
    pub source_port: u16,
    pub generation: u16,
    pub deliver: u8,
    pub phase: u8,
    pub protocol: u8,
    pub counted: u8,
    pub pad: [u8; 2],
    pub ifindex: u32,
}

#[repr(C)]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct FlowSide {
    pub closed: u32,
    pub ack: u32,
    pub end: u32,
}

#[repr(C)]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct SocketPeer<A> {
    pub backend_id: u32,
    pub service_id: u32,
    pub addr: A,
    pub pad: u16,
    pub port: u16,
}

#[repr(C)]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct KnownAddress {
    pub flags: u32,
    pub ifindex: u32,
}
