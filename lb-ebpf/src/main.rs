//! The kernel programs of Sluice. This file has their entry points and nothing else.
//!
//! The files are a stack of floors, the lowest first in this table. A file imports only files that
//! stand before it: on a lower floor, or further left on its own.
//!
//! | floor | files |
//! |---|---|
//! | words | `aligned seam settings clock translation verdict` |
//! | the kernel's side: maps, packets as bytes | `maps frame frame/skb frame/xdp handover` |
//! | output for people | `record count log event` |
//! | addresses | `address service client` |
//! | packets | `packet filter route socket scratch` |
//! | connections | `health loads records select flow` |
//! | changing and sending a packet | `nat compose deliver` |
//! | decisions about a packet | `pipeline` |
//! | decisions about an ICMP message | `limit reset icmp/kind icmp/answer icmp/echo icmp/effect icmp/translate icmp` |
//! | decisions about a call at a socket | `call` |
//! | hooks | `xdp tc cgroup/address cgroup/context cgroup/report cgroup cgroup/bind cgroup/release connected explain sweep` |
//! | measurement | `bin/bench` |
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "map calls take keys and values by reference: by value they would be copied on a stack of 512 bytes"
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
mod event;
mod explain;
mod filter;
mod flow;
mod frame;
mod handover;
mod health;
mod icmp;
mod limit;
mod loads;
mod log;
mod maps;
mod nat;
mod packet;
mod pipeline;
mod record;
mod records;
mod reset;
mod route;
mod scratch;
mod seam;
mod select;
mod service;
mod settings;
mod socket;
mod sweep;
mod tc;
mod translation;
mod verdict;
mod xdp;

use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr, classifier, xdp};
use aya_ebpf::programs::{SockAddrContext, SockContext, TcContext, XdpContext};
use verdict::Direction;

/// Ingress of NICs whose driver delivers complete checksums.
#[xdp(frags)]
pub fn lb_xdp(context: XdpContext) -> u32 {
    xdp::ingress(context)
}

/// The same program for kernels without multi-buffer XDP (before 5.18): frames of one buffer only.
#[xdp]
pub fn lb_xdp_linear(context: XdpContext) -> u32 {
    xdp::ingress(context)
}

/// Swaps the MAC addresses and sends the frame back: the cost of touching a packet at all. Tests
/// and benchmarks alone load it.
#[xdp]
pub fn lb_floor(context: XdpContext) -> u32 {
    xdp::floor(context)
}

/// Ingress of every device with Ethernet headers.
#[classifier]
pub fn lb_tc_ingress(context: TcContext) -> i32 {
    tc::with_ethernet(context, Direction::Ingress)
}

/// Egress of every device with Ethernet headers.
#[classifier]
pub fn lb_tc_egress(context: TcContext) -> i32 {
    tc::with_ethernet(context, Direction::Egress)
}

/// Ingress of devices without Ethernet headers.
#[classifier]
pub fn lb_tc_ingress_l3(context: TcContext) -> i32 {
    tc::without_ethernet(context, Direction::Ingress)
}

/// Egress of devices without Ethernet headers.
#[classifier]
pub fn lb_tc_egress_l3(context: TcContext) -> i32 {
    tc::without_ethernet(context, Direction::Egress)
}

/// Records the decision about a call at a socket. Only `lb explain` loads it. It is not attached.
#[classifier]
pub fn lb_explain_call(context: TcContext) -> i32 {
    explain::call(context)
}

#[cgroup_sock_addr(connect4)]
pub fn lb_connect4(context: SockAddrContext) -> i32 {
    if handover::earlier_programs_open() {
        handover::hand_over(&context, &handover::PREDECESSORS_CONNECT4, 0);
    }
    cgroup::connect4(&context)
}

#[cgroup_sock_addr(connect6)]
pub fn lb_connect6(context: SockAddrContext) -> i32 {
    if handover::earlier_programs_open() {
        handover::hand_over(&context, &handover::PREDECESSORS_CONNECT6, 0);
    }
    cgroup::connect6(&context)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn lb_sendmsg4(context: SockAddrContext) -> i32 {
    if handover::earlier_programs_open() {
        handover::hand_over(&context, &handover::PREDECESSORS_SENDMSG4, 0);
    }
    cgroup::sendmsg4(&context)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn lb_sendmsg6(context: SockAddrContext) -> i32 {
    if handover::earlier_programs_open() {
        handover::hand_over(&context, &handover::PREDECESSORS_SENDMSG6, 0);
    }
    cgroup::sendmsg6(&context)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn lb_recvmsg4(context: SockAddrContext) -> i32 {
    if !cgroup::recvmsg4(&context) && handover::is_going_on() {
        handover::hand_over(&context, &handover::PREDECESSORS_RECVMSG4, 0);
    }
    cgroup::ALLOW
}

#[cgroup_sock_addr(recvmsg6)]
pub fn lb_recvmsg6(context: SockAddrContext) -> i32 {
    if !cgroup::recvmsg6(&context) && handover::is_going_on() {
        handover::hand_over(&context, &handover::PREDECESSORS_RECVMSG6, 0);
    }
    cgroup::ALLOW
}

#[cgroup_sock_addr(getpeername4)]
pub fn lb_getpeername4(context: SockAddrContext) -> i32 {
    if !cgroup::getpeername4(&context) && handover::is_going_on() {
        handover::hand_over(&context, &handover::PREDECESSORS_GETPEERNAME4, 0);
    }
    cgroup::ALLOW
}

#[cgroup_sock_addr(getpeername6)]
pub fn lb_getpeername6(context: SockAddrContext) -> i32 {
    if !cgroup::getpeername6(&context) && handover::is_going_on() {
        handover::hand_over(&context, &handover::PREDECESSORS_GETPEERNAME6, 0);
    }
    cgroup::ALLOW
}

#[cgroup_sock_addr(bind4)]
pub fn lb_bind4(context: SockAddrContext) -> i32 {
    cgroup::bind::bind4(&context)
}

#[cgroup_sock_addr(bind6)]
pub fn lb_bind6(context: SockAddrContext) -> i32 {
    cgroup::bind::bind6(&context)
}

/// A process has closed the last descriptor of a socket.
#[cgroup_sock(sock_release)]
pub fn lb_release(context: SockContext) -> i32 {
    cgroup::release::release(&context)
}

/// Ends connections that are over. The agent runs it; it is not attached.
#[classifier]
pub fn lb_sweep(context: TcContext) -> i32 {
    sweep::end_connections(&context)
}

/// Lists connected sockets when the agent reads it; it is not attached.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_sk_storage_map")]
pub extern "C" fn lb_connected(context: *const connected::Context) -> i32 {
    connected::show(context)
}

/// The compiler requires it. The build refuses an object in which any path leads here.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// The programs are dual licensed. Helpers for GPL programs require a name that the kernel
/// recognizes.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
