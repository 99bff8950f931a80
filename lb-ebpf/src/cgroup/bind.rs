//! `bind` to a port that is a NodePort. Clients that connect to the port reach the Service's
//! endpoints and never the process, so the call fails as if the port were in use. (Older
//! kube-proxies opened a socket for each NodePort, with the same effect.)
//!
//! The call is allowed in pods, and at addresses of the node that serve no NodePorts.

use aya_ebpf::programs::SockAddrContext;
use lb_common::family::{Family, V4, V6};
use lb_common::reason::Reason;

use super::address::{self, In4, In6, Mapped, SocketAddress, Wide, is_mapped};
use super::context::{ALLOW, protocol};
use super::refuse;
use crate::address::{Known, is_loopback, known};
use crate::call::Caller as _;
use crate::maps::Maps;
use crate::service::at_node_port;
use crate::settings::PROTECT_NODE_PORTS;

pub fn bind4(context: &SockAddrContext) -> i32 {
    decide::<In4>(context, is_node_port::<V4, In4>)
}

/// An IPv6 socket at the unspecified address receives IPv4 too, unless it has `IPV6_V6ONLY`, which
/// a program cannot see.
pub fn bind6(context: &SockAddrContext) -> i32 {
    decide::<In6>(context, |context, port, protocol| {
        if is_mapped(context) {
            return is_node_port::<V4, Mapped>(context, port, protocol);
        }
        is_node_port::<V6, In6>(context, port, protocol)
            || <In6 as SocketAddress<V6>>::address(context) == V6::UNSPECIFIED
                && at_node_port::<V4>(port, protocol).is_some()
    })
}

#[inline(always)]
fn decide<S: Wide>(context: &SockAddrContext, taken: impl Fn(&SockAddrContext, u16, u8) -> bool) -> i32 {
    let port = address::port(context);
    // With port 0 the kernel chooses a port.
    if PROTECT_NODE_PORTS.load() == 0 || port == 0 || !context.is_in_node_namespace() {
        return ALLOW;
    }
    let Some(protocol) = protocol(context) else { return ALLOW };
    if !taken(context, port, protocol) {
        return ALLOW;
    }
    refuse::<S>(context, Reason::NodePortProtected)
}

/// Returns whether a Service has this port as its NodePort, and serves it at the address of the
/// call.
#[inline(always)]
fn is_node_port<F: Maps, S: SocketAddress<F>>(context: &SockAddrContext, port: u16, protocol: u8) -> bool {
    let addr = S::address(context);
    at_node_port::<F>(port, protocol).is_some()
        && (addr == F::UNSPECIFIED
            || is_loopback::<F>(&addr)
            || known::<F>(&addr).is_some_and(Known::takes_node_ports))
}
