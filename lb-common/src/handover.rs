//! The only entry of `HANDOVER`: the phase of a conversion, while the programs of two generations
//! run (`lb-ebpf/src/handover.rs`). The phases follow each other in this order.

/// The maps are filled. The programs of this generation are not attached yet.
pub const FILLING: u32 = 0;
/// The programs of this generation are attached. Connections are copied. The earlier programs
/// handle all packets of connections that are not copied yet, and open new ones.
pub const COPYING: u32 = 1;
/// The programs of this generation open new connections. The earlier programs handle packets that
/// open none and belong to no connection that is copied.
pub const OPENING: u32 = 2;
/// The earlier programs and maps are not used any more.
pub const DONE: u32 = 3;

/// The names of the tc programs, in their order in `PREDECESSORS_TC`.
pub const TC_PROGRAMS: [&str; 4] = ["lb_tc_ingress", "lb_tc_egress", "lb_tc_ingress_l3", "lb_tc_egress_l3"];
