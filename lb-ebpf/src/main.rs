//! The kernel programs of Sluice. This file has their entry points and nothing else.
//!
//! The files are a stack of floors: a file imports files of lower floors only, and of its own floor only those to its left.
//! `floor` in this table counts from the bottom.
//!
//! | floor | files | concern |
//! |---|---|---|
//! | 9 | `xdp tc cgroup/ explain connected` | the hooks: each adapts its context, runs a lower floor and returns an action |
//! | 8 | `pipeline` · `icmp/translate icmp` | what happens to a packet, to an ICMP message |
//! | 7 | `reset icmp/kind icmp/answer icmp/echo` · `call` | answers; calls at sockets |
//! | 6 | `flow` · `deliver` · `nat compose` | connections; where a packet goes; rewriting and writing headers |
//! | 5 | `select` · `socket` · `scratch` | endpoints for new connections; ports held by sockets; working memory |
//! | 4 | `service client` · `packet route` | what a destination is, where a client is; parsing, the kernel's routes |
//! | 3 | `count log` · `address` | what people read; what an address is |
//! | 2 | `record` · `frame/skb frame/xdp` | recording for `lb explain`; skbs and XDP frames |
//! | 1 | `maps` · `frame` · `clock verdict` | all maps; packets as bytes; words that all floors share |
//! | 0 | `settings aligned` | read-only globals; alignment on the stack |
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "keys and values go to map calls by reference: by value they would be copied on a stack of 512 bytes"
)]

mod address;
mod aligned;
mod call;
mod cgroup;
mod client;
mod clock;
mod compose;
mod connected;
mod count;
mod deliver;
mod explain;
mod flow;
mod frame;
mod icmp;
mod log;
mod maps;
mod nat;
mod packet;
mod pipeline;
mod record;
mod reset;
mod route;
mod scratch;
mod select;
mod service;
mod settings;
mod socket;
mod tc;
mod verdict;
mod xdp;

use aya_ebpf::macros::{cgroup_sock_addr, classifier, xdp};
use aya_ebpf::programs::{SockAddrContext, TcContext, XdpContext};
use verdict::Direction;

/// NICs whose driver hands over complete checksums.
#[xdp(frags)]
pub fn lb_xdp(context: XdpContext) -> u32 {
    xdp::ingress(context)
}

/// The same for kernels without multi-buffer XDP (before 5.18): frames of one buffer only.
#[xdp]
pub fn lb_xdp_linear(context: XdpContext) -> u32 {
    xdp::ingress(context)
}

/// The cost of touching a packet at all, for benchmarks: parse, swap the MAC addresses, send back.
#[xdp]
pub fn lb_floor(context: XdpContext) -> u32 {
    xdp::floor(context)
}

/// Every device, ingress.
#[classifier]
pub fn lb_tc_ingress(context: TcContext) -> i32 {
    tc::with_ethernet(context, Direction::Ingress)
}

/// Every device, egress.
#[classifier]
pub fn lb_tc_egress(context: TcContext) -> i32 {
    tc::with_ethernet(context, Direction::Egress)
}

/// Devices without Ethernet headers, ingress.
#[classifier]
pub fn lb_tc_ingress_l3(context: TcContext) -> i32 {
    tc::without_ethernet(context, Direction::Ingress)
}

/// Devices without Ethernet headers, egress.
#[classifier]
pub fn lb_tc_egress_l3(context: TcContext) -> i32 {
    tc::without_ethernet(context, Direction::Egress)
}

/// `lb explain` of a call at a socket; attached to nothing.
#[classifier]
pub fn lb_explain_call(context: TcContext) -> i32 {
    explain::call(context)
}

#[cgroup_sock_addr(connect4)]
pub fn lb_connect4(context: SockAddrContext) -> i32 {
    cgroup::connect4(&context)
}

#[cgroup_sock_addr(connect6)]
pub fn lb_connect6(context: SockAddrContext) -> i32 {
    cgroup::connect6(&context)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn lb_sendmsg4(context: SockAddrContext) -> i32 {
    cgroup::sendmsg4(&context)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn lb_sendmsg6(context: SockAddrContext) -> i32 {
    cgroup::sendmsg6(&context)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn lb_recvmsg4(context: SockAddrContext) -> i32 {
    cgroup::recvmsg4(&context)
}

#[cgroup_sock_addr(recvmsg6)]
pub fn lb_recvmsg6(context: SockAddrContext) -> i32 {
    cgroup::recvmsg6(&context)
}

#[cgroup_sock_addr(getpeername4)]
pub fn lb_getpeername4(context: SockAddrContext) -> i32 {
    cgroup::getpeername4(&context)
}

#[cgroup_sock_addr(getpeername6)]
pub fn lb_getpeername6(context: SockAddrContext) -> i32 {
    cgroup::getpeername6(&context)
}

#[cgroup_sock_addr(bind4)]
pub fn lb_bind4(context: SockAddrContext) -> i32 {
    cgroup::bind::bind4(&context)
}

#[cgroup_sock_addr(bind6)]
pub fn lb_bind6(context: SockAddrContext) -> i32 {
    cgroup::bind::bind6(&context)
}

/// Read by the agent, not attached to anything.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_sk_storage_map")]
pub extern "C" fn lb_connected(context: *const connected::Context) -> i32 {
    connected::show(context)
}

/// Needed by the compiler; the build refuses an object in which any path leads here.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// Dual licensed; the kernel wants a name it knows for the helpers that only GPL programs may call.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
