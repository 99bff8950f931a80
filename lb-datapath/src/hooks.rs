//! The attach types of the programs, and the names of their pins.

use aya_obj::generated::bpf_attach_type::*;

/// Program name, attach type and pin name of each socket hook.
///
/// `lb_release` comes first: it must see the end of each socket that `lb_connect4` and
/// `lb_connect6` count.
pub const CGROUP: [(&str, u32, &str); 11] = [
    ("lb_release", BPF_CGROUP_INET_SOCK_RELEASE as u32, "cgroup-release"),
    ("lb_connect4", BPF_CGROUP_INET4_CONNECT as u32, "cgroup-connect4"),
    ("lb_connect6", BPF_CGROUP_INET6_CONNECT as u32, "cgroup-connect6"),
    ("lb_sendmsg4", BPF_CGROUP_UDP4_SENDMSG as u32, "cgroup-sendmsg4"),
    ("lb_sendmsg6", BPF_CGROUP_UDP6_SENDMSG as u32, "cgroup-sendmsg6"),
    ("lb_recvmsg4", BPF_CGROUP_UDP4_RECVMSG as u32, "cgroup-recvmsg4"),
    ("lb_recvmsg6", BPF_CGROUP_UDP6_RECVMSG as u32, "cgroup-recvmsg6"),
    ("lb_getpeername4", BPF_CGROUP_INET4_GETPEERNAME as u32, "cgroup-getpeername4"),
    ("lb_getpeername6", BPF_CGROUP_INET6_GETPEERNAME as u32, "cgroup-getpeername6"),
    ("lb_bind4", BPF_CGROUP_INET4_BIND as u32, "cgroup-bind4"),
    ("lb_bind6", BPF_CGROUP_INET6_BIND as u32, "cgroup-bind6"),
];
/// The pin of the first program that serves sockets.
pub const CONNECT: &str = "cgroup-connect4";
pub const XDP: u32 = BPF_XDP as u32;
pub const TCX_INGRESS: u32 = BPF_TCX_INGRESS as u32;
pub const TCX_EGRESS: u32 = BPF_TCX_EGRESS as u32;
