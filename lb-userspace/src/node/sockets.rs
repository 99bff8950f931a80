//! Sockets of this network namespace that were connected through a Service, and closing them (sock_diag(7)).
//!
//! A socket that `connect` gave an endpoint knows nothing of Services: when the endpoint is gone, its datagrams go nowhere, and
//! the application waits. The kernel closes a socket that is named to it: the application's next call fails (ECONNABORTED
//! where it waits, EDESTADDRREQ where it sends), and it connects again, to an endpoint that is there.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;

use lb_common::layout::{ConnectedPeer, TCP, UDP};
use rtnetlink::packet_core::NetlinkBuffer;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, netlink, recv, send, socket};

/// linux/sock_diag.h, linux/inet_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// linux/netlink.h
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// States of net/tcp_states.h in which a socket has a peer and may send to it, as bits. A connected UDP socket is ESTABLISHED.
const CONNECTED_STATES: u32 = 1 << 1 | 1 << 2 | 1 << 8; // ESTABLISHED, SYN_SENT, CLOSE_WAIT

/// `struct inet_diag_sockid`: what names a socket. Taken from a list and sent back as it is.
const SOCKET_ID: usize = 48;

/// Room for one message of a list; the kernel makes none larger than 32 KiB.
const MESSAGE: usize = 65536;

/// A socket as the kernel names it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Socket {
    protocol: u8,
    family: u8,
    id: [u8; SOCKET_ID],
}

/// Closes sockets of the calling thread's network namespace: those in `stale` (by cookie) that are still connected to the endpoint
/// they were given. Tells how many. `tcp`: TCP too, else UDP alone.
pub fn close(stale: &HashMap<u64, ConnectedPeer>, tcp: bool) -> io::Result<usize> {
    let netlink = socket(AddressFamily::NETLINK, SocketType::RAW, Some(netlink::SOCK_DIAG))?;
    let mut closed = 0;
    for protocol in [UDP, TCP] {
        if protocol == TCP && !tcp {
            continue;
        }
        for family in [libc::AF_INET, libc::AF_INET6] {
            for socket in list(&netlink, protocol, family as u8, stale)? {
                closed += usize::from(destroy(&netlink, &socket)?);
            }
        }
    }
    Ok(closed)
}

fn list(
    netlink: &OwnedFd,
    protocol: u8,
    family: u8,
    stale: &HashMap<u64, ConnectedPeer>,
) -> io::Result<Vec<Socket>> {
    let body = request(protocol, family, CONNECTED_STATES, &[0; SOCKET_ID]);
    send(netlink, &message(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, &body), SendFlags::empty())?;
    let mut sockets = Vec::new();
    answers(netlink, |kind, payload| {
        if kind == SOCK_DIAG_BY_FAMILY
            && let Some(id) = stale_socket(payload, stale)
        {
            sockets.push(Socket { protocol, family, id });
        }
    })?;
    Ok(sockets)
}

/// False: it is closed already.
fn destroy(netlink: &OwnedFd, socket: &Socket) -> io::Result<bool> {
    let body = request(socket.protocol, socket.family, 0, &socket.id);
    send(netlink, &message(SOCK_DESTROY, NLM_F_ACK, &body), SendFlags::empty())?;
    match answers(netlink, |_, _| {}) {
        Ok(()) => Ok(true),
        // No such socket, or another one at the same addresses.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Hands the messages of an answer to `take`, up to the one that ends it.
fn answers(netlink: &OwnedFd, mut take: impl FnMut(u16, &[u8])) -> io::Result<()> {
    let mut buffer = vec![0; MESSAGE];
    loop {
        let (_, length) = recv(netlink, &mut buffer[..], RecvFlags::TRUNC)?;
        let mut rest = buffer.get(..length).ok_or_else(malformed)?;
        while !rest.is_empty() {
            let message = NetlinkBuffer::new_checked(rest).map_err(|_| malformed())?;
            let payload = message.payload();
            match message.message_type() {
                NLMSG_DONE | NLMSG_ERROR => {
                    return match payload.first_chunk().map(|errno| i32::from_ne_bytes(*errno)) {
                        None => Err(malformed()),
                        Some(0) => Ok(()),
                        Some(errno) => Err(io::Error::from_raw_os_error(-errno)),
                    };
                }
                kind => take(kind, payload),
            }
            let length = (message.length() as usize).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "an answer of the kernel's sock_diag that cannot be read")
}

/// `struct inet_diag_req_v2`
fn request(protocol: u8, family: u8, states: u32, id: &[u8; SOCKET_ID]) -> Vec<u8> {
    let mut bytes = vec![family, protocol, 0, 0];
    bytes.extend(states.to_ne_bytes());
    bytes.extend(id);
    bytes
}

/// `struct nlmsghdr` and what follows it.
fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = (16 + body.len() as u32).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    bytes.extend([0; 8]); // sequence and port: there is one request at a time
    bytes.extend(body);
    bytes
}

/// The id of a socket of a list (`struct inet_diag_msg`), if it is stale and stands where a Service sent it.
fn stale_socket(payload: &[u8], stale: &HashMap<u64, ConnectedPeer>) -> Option<[u8; SOCKET_ID]> {
    let id: [u8; SOCKET_ID] = *payload.get(4..)?.first_chunk()?;
    // In the id: source port, destination port, source address, destination address, device, cookie.
    let port = u16::from_be_bytes(*id.get(2..)?.first_chunk()?);
    let address: [u8; 16] = *id.get(20..)?.first_chunk()?;
    let peer = stale.get(&u64::from_ne_bytes(*id.get(40..)?.first_chunk()?))?;
    ((peer.backend_addr, peer.backend_port) == (address, port)).then_some(id)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr, UdpSocket};

    use super::*;
    use crate::node::testing::enter_new_namespace;

    const COOKIE: u64 = 0x0000_0007_0000_0009;

    /// What is noted of a socket that was given this endpoint.
    fn noted(cookie: u64, address: &[u8], port: u16) -> HashMap<u64, ConnectedPeer> {
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

    /// What a list says of a socket that is connected to 10.244.0.7:5353.
    fn listed() -> Vec<u8> {
        let mut payload = vec![libc::AF_INET as u8, 1, 0, 0];
        payload.extend(4444u16.to_be_bytes());
        payload.extend(5353u16.to_be_bytes());
        payload.extend([0; 16]);
        payload.extend([10, 244, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        payload.extend([0; 4]);
        payload.extend(COOKIE.to_ne_bytes());
        payload.resize(72, 0);
        payload
    }

    #[test]
    fn a_socket_is_stale_where_a_service_sent_it() {
        let (pod, payload): (&[u8], _) = (&[10, 244, 0, 7], listed());
        let id = stale_socket(&payload, &noted(COOKIE, pod, 5353));
        assert_eq!(id.as_ref().map(|id| &id[..]), Some(&payload[4..52]));
        assert_eq!(stale_socket(&payload, &noted(COOKIE + 1, pod, 5353)), None, "another socket");
        assert_eq!(stale_socket(&payload, &noted(COOKIE, pod, 5354)), None, "it went elsewhere");
        assert_eq!(stale_socket(&payload, &noted(COOKIE, &[10, 244, 0, 8], 5353)), None, "it went elsewhere");
        for length in 0..4 + SOCKET_ID {
            assert_eq!(stale_socket(&payload[..length], &noted(COOKIE, pod, 5353)), None, "{length} bytes");
        }
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
                let mut stale = noted(cookie(&sockets[0]), &address, 54);
                stale.extend(noted(cookie(&sockets[1]), &address, 53));
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
