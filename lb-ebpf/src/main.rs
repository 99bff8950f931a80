//! The kernel programs of Sluice. This file holds their entry points and nothing else.
//!
//! | folder or file | concern |
//! |---|---|
//! | `xdp/ tc/ cgroup/` | one folder per hook family: adapts its context, consumes the verdict |
//! | `pipeline.rs` | the way of a packet, written once |
//! | `packet.rs flow.rs service.rs client.rs select.rs call.rs route.rs nat.rs icmp.rs reset.rs` | its steps, one file each |
//! | `connected.rs` | what connected sockets were given, for the agent to read |
//! | `maps.rs settings.rs count.rs record.rs log.rs` | what the programs share with the agent |
#![no_std]
#![no_main]
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "keys and values go to map calls by reference: by value they would be copied on a stack of 512 bytes"
)]

mod aligned;
mod call;
mod cgroup;
mod client;
mod connected;
mod count;
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
mod select;
mod service;
mod settings;
mod socket;
mod tc;
mod verdict;
mod xdp;

use aya_ebpf::macros::{cgroup_sock_addr, classifier, xdp};
use aya_ebpf::programs::{SockAddrContext, TcContext, XdpContext};
use tc::Way;

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
    tc::with_ethernet(context, Way::In)
}

/// Every device, egress.
#[classifier]
pub fn lb_tc_egress(context: TcContext) -> i32 {
    tc::with_ethernet(context, Way::Out)
}

/// Devices without Ethernet headers, ingress.
#[classifier]
pub fn lb_tc_ingress_l3(context: TcContext) -> i32 {
    tc::without_ethernet(context, Way::In)
}

/// Devices without Ethernet headers, egress.
#[classifier]
pub fn lb_tc_egress_l3(context: TcContext) -> i32 {
    tc::without_ethernet(context, Way::Out)
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
