//! Closes sockets of this network namespace that are connected to removed endpoints (sock_diag(7)).
//!
//! A connected socket keeps its endpoint. After the endpoint is removed, its datagrams are lost and
//! the application waits. The kernel can close a socket (`SOCK_DESTROY`). The next call of the
//! application fails (with ECONNABORTED if it waits, with EDESTADDRREQ if it sends). The
//! application connects again and gets another endpoint.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;

use lb_common::layout::ConnectedPeer;
use lb_datapath::netlink::NetlinkSocket;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_packet_sock_diag::{
    AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP, SockDiagDestroy, SockDiagMessage,
};
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP};
use rustix::net::netlink;

/// States in which a socket has a peer and may send to it. A connected UDP socket is ESTABLISHED.
const CONNECTED: StateFlags =
    StateFlags::ESTABLISHED.union(StateFlags::SYN_SENT).union(StateFlags::CLOSE_WAIT);

/// A socket in the terms of sock_diag.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Socket {
    protocol: u8,
    family: u8,
    id: SocketId,
}

/// Closes sockets in the network namespace of the calling thread, and returns how many were closed.
///
/// It closes the sockets in `stale` (by cookie) that are still connected to their recorded
/// endpoint: UDP sockets and, with `close_tcp`, TCP sockets.
pub fn close(stale: &HashMap<u64, ConnectedPeer>, close_tcp: bool) -> io::Result<usize> {
    let netlink = NetlinkSocket::open(Some(netlink::SOCK_DIAG))?;
    let protocols = if close_tcp { &[IPPROTO_UDP, IPPROTO_TCP][..] } else { &[IPPROTO_UDP] };
    let mut closed = 0;
    for &protocol in protocols {
        for family in [AF_INET, AF_INET6] {
            for socket in stale_sockets(&netlink, protocol, family, stale)? {
                closed += usize::from(destroy(&netlink, socket)?);
            }
        }
    }
    Ok(closed)
}

/// Lists the connected sockets of a protocol and family, and returns those that are stale.
fn stale_sockets(
    netlink: &NetlinkSocket,
    protocol: u8,
    family: u8,
    stale: &HashMap<u64, ConnectedPeer>,
) -> io::Result<Vec<Socket>> {
    // The id of a list request is not used.
    let all = Socket { protocol, family, id: SocketId::new_v4() };
    netlink.send(NLM_F_DUMP, SockDiagMessage::InetRequest(request(all, CONNECTED)))?;
    let mut sockets = Vec::new();
    netlink.receive(|message| {
        if let SockDiagMessage::InetResponse(response) = message
            && is_stale(&response.header.socket_id, stale)
        {
            sockets.push(Socket { protocol, family, id: response.header.socket_id });
        }
    })?;
    Ok(sockets)
}

/// Closes a socket. Returns false if it has been closed already.
fn destroy(netlink: &NetlinkSocket, socket: Socket) -> io::Result<bool> {
    let request = SockDiagMessage::InetRequest(request(socket, StateFlags::empty()));
    netlink.send(NLM_F_ACK, SockDiagDestroy::new(request))?;
    match netlink.receive(|_: SockDiagMessage| {}) {
        Ok(()) => Ok(true),
        // There is no such socket any more, or a new one has its addresses.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => Ok(false),
        Err(error) => Err(error),
    }
}

fn request(socket: Socket, states: StateFlags) -> InetRequest {
    let Socket { protocol, family, id } = socket;
    InetRequest { family, protocol, extensions: ExtensionFlags::empty(), states, socket_id: id }
}

/// Returns whether a listed socket is in `stale` and is still connected to the endpoint there.
fn is_stale(id: &SocketId, stale: &HashMap<u64, ConnectedPeer>) -> bool {
    let mut address = [0; 16];
    match id.destination_address {
        IpAddr::V4(ip) => address[..4].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => address = ip.octets(),
    }
    stale
        .get(&u64::from_ne_bytes(id.cookie))
        .is_some_and(|peer| (peer.backend_addr, peer.backend_port) == (address, id.destination_port))
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, UdpSocket};

    use super::*;
    use crate::node::testing::enter_new_namespace;

    const COOKIE: u64 = 0x0000_0007_0000_0009;

    /// Returns the record of a socket with this endpoint.
    fn recorded(cookie: u64, address: &[u8], port: u16) -> HashMap<u64, ConnectedPeer> {
        let mut backend_addr = [0; 16];
        backend_addr[..address.len()].copy_from_slice(address);
        let peer = ConnectedPeer {
            service_addr: [0; 16],
            backend_addr,
            service_port: 53,
            backend_port: port,
            backend_id: 11,
            service_id: 22,
        };
        HashMap::from([(cookie, peer)])
    }

    /// Returns the id of a socket that is connected to 10.244.0.7:5353.
    fn connected() -> SocketId {
        SocketId {
            source_port: 4444,
            destination_port: 5353,
            destination_address: "10.244.0.7".parse().expect("an address"),
            cookie: COOKIE.to_ne_bytes(),
            ..SocketId::new_v4()
        }
    }

    #[test]
    fn a_socket_is_stale_while_it_is_connected_to_the_removed_endpoint() {
        let (pod, id): (&[u8], _) = (&[10, 244, 0, 7], connected());
        assert!(is_stale(&id, &recorded(COOKIE, pod, 5353)));
        assert!(!is_stale(&id, &recorded(COOKIE + 1, pod, 5353)), "another socket");
        assert!(!is_stale(&id, &recorded(COOKIE, pod, 5354)), "connected to another port");
        assert!(!is_stale(&id, &recorded(COOKIE, &[10, 244, 0, 8], 5353)), "connected to another address");
    }

    #[test]
    fn the_kernel_closes_the_socket_that_is_meant_and_no_other() {
        let test = || {
            enter_new_namespace();
            crate::node::testing::add_veth(&["192.0.2.1/24", "2001:db8::1/64"]);
            for (local, target) in [
                ("192.0.2.1:0", "192.0.2.2:53"),
                ("[2001:db8::1]:0", "[2001:db8::2]:53"),
                ("[::]:0", "[::ffff:192.0.2.2]:53"),
            ] {
                let target: SocketAddr = target.parse().expect("valid");
                let sockets: Vec<_> = (0..3)
                    .map(|_| {
                        let socket = UdpSocket::bind(local).expect("bound");
                        socket.connect(target).expect("connected");
                        socket
                    })
                    .collect();
                let address: Vec<u8> = match target.ip() {
                    IpAddr::V4(ip) => ip.octets().into(),
                    IpAddr::V6(ip) => ip.octets().into(),
                };
                let cookie =
                    |socket: &UdpSocket| rustix::net::sockopt::socket_cookie(socket).expect("a cookie");
                let mut stale = recorded(cookie(&sockets[0]), &address, 54);
                stale.extend(recorded(cookie(&sockets[1]), &address, 53));
                assert_eq!(close(&stale, false).expect("closed"), 1);
                let connected: Vec<_> = sockets.iter().map(|socket| socket.peer_addr().is_ok()).collect();
                assert_eq!(connected, [true, false, true], "{local}");
                let error = sockets[1].take_error().expect("readable").expect("an error");
                assert_eq!(error.raw_os_error(), Some(libc::ECONNABORTED));
            }
        };
        if let Err(panic) = std::thread::spawn(test).join() {
            std::panic::resume_unwind(panic);
        }
    }
}
