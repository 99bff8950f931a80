//! Notifications about devices and addresses in the network namespaces of this node.
//!
//! The kernel gives another namespace an id, and one socket in this node's namespace receives the
//! notifications of all namespaces with an id (NETLINK_LISTEN_ALL_NSID, Linux 4.2). So no namespace
//! has to be kept open.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};

use lb_datapath::netlink::NetlinkSocket;
use rtnetlink::packet_core::NLM_F_ACK;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::nsid::{NsidAttribute, NsidMessage};
use rtnetlink::sys::Socket;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use tokio::io::unix::AsyncFd;

/// The notifications: of devices, and of addresses of both families.
const GROUPS: [u32; 3] = [libc::RTNLGRP_LINK, libc::RTNLGRP_IPV4_IFADDR, libc::RTNLGRP_IPV6_IFADDR];

/// A network namespace, as this node's namespace names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerId {
    /// The namespace of this process.
    Here,
    Other(i32),
}

/// Where something has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    In(PeerId),
    /// Notifications were lost.
    Anywhere,
}

/// Notifications of all namespaces with an id.
pub struct Changes(AsyncFd<Socket>);

impl Changes {
    /// Subscribes. This needs CAP_NET_BROADCAST.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.set_listen_all_namespaces(true)?;
        socket.set_non_blocking(true)?;
        socket.bind_auto()?;
        GROUPS.iter().try_for_each(|group| socket.add_membership(*group))?;
        // SAFETY: the `AsyncFd` owns the socket, and nothing else closes its descriptor.
        Ok(Self(unsafe { AsyncFd::register(socket) }?))
    }

    /// Waits for the next notification.
    pub async fn next(&mut self) -> io::Result<Change> {
        loop {
            let mut ready = self.0.readable().await?;
            match receive(self.0.get_ref()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(Change::Anywhere),
                result => return result.map(Change::In),
            }
        }
    }
}

/// Receives one notification. Returns where it comes from, and discards its content.
fn receive(socket: &Socket) -> io::Result<PeerId> {
    let mut content = [0_u8; 16];
    let mut control = [0_u64; 8];
    let mut vector = libc::iovec { iov_base: content.as_mut_ptr().cast(), iov_len: content.len() };
    // SAFETY: all-zero bytes are a valid `msghdr` without buffers.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = mem::size_of_val(&control) as _;
    // SAFETY: the message points to buffers of these lengths, which live until the call returns.
    if unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has written the control messages and their length.
    let first = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: the pointer is null, or leads into `control`, which is aligned.
    match unsafe { first.as_ref() } {
        Some(header)
            if (header.cmsg_level, header.cmsg_type)
                == (libc::SOL_NETLINK, libc::NETLINK_LISTEN_ALL_NSID) =>
        {
            // SAFETY: the content of such a control message is an int.
            Ok(PeerId::Other(unsafe { libc::CMSG_DATA(first).cast::<i32>().read_unaligned() }))
        }
        _ => Ok(PeerId::Here),
    }
}

/// Returns the id of another namespace. Gives it one if it has none: from now on, [`Changes`]
/// reports its changes.
pub fn peer_id(namespace: BorrowedFd<'_>) -> io::Result<PeerId> {
    let netlink = NetlinkSocket::open(None)?;
    if let Some(id) = assigned_id(&netlink, namespace)? {
        return Ok(PeerId::Other(id));
    }
    let request = message(namespace, Some(NsidAttribute::Id(-1)));
    netlink.send(NLM_F_ACK, RouteNetlinkMessage::NewNsId(request))?;
    match netlink.receive(|_: RouteNetlinkMessage| {}) {
        // The kernel has given it one meanwhile.
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
        result => result?,
    }
    let id = assigned_id(&netlink, namespace)?;
    id.map(PeerId::Other).ok_or_else(|| io::Error::other("the kernel gives a network namespace no id"))
}

fn assigned_id(netlink: &NetlinkSocket, namespace: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    netlink.send(NLM_F_ACK, RouteNetlinkMessage::GetNsId(message(namespace, None)))?;
    let mut found = None;
    netlink.receive(|answer: RouteNetlinkMessage| {
        if let RouteNetlinkMessage::NewNsId(answer) = answer {
            found = answer.attributes.iter().find_map(|attribute| match attribute {
                NsidAttribute::Id(id) if *id >= 0 => Some(*id),
                _ => None,
            });
        }
    })?;
    Ok(found)
}

fn message(namespace: BorrowedFd<'_>, attribute: Option<NsidAttribute>) -> NsidMessage {
    let mut message = NsidMessage::default();
    message.attributes.push(NsidAttribute::Fd(namespace.as_raw_fd().cast_unsigned()));
    message.attributes.extend(attribute);
    message
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::thread;

    use super::super::super::testing::{add_veth, enter_new_namespace, other_namespace};
    use super::super::list::{NamespaceId, run_in};
    use super::*;

    #[test]
    fn addresses_in_other_namespaces_are_reported() {
        let test = || {
            enter_new_namespace();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut changes = Changes::open().unwrap();
                let (first, second) = (other_namespace(), other_namespace());
                let ids = [&first, &second].map(|namespace| peer_id(namespace.as_fd()).unwrap());
                assert_ne!(ids[0], ids[1]);
                assert_eq!(peer_id(second.as_fd()).unwrap(), ids[1], "it has an id");
                let path = format!("/proc/self/fd/{}", second.as_raw_fd());
                let id = NamespaceId::of(&second.metadata().unwrap());
                run_in(id, path.as_ref(), || add_veth(&["192.0.2.9/24"])).unwrap();
                assert_eq!(changes.next().await.unwrap(), Change::In(ids[1]));
            });
        };
        thread::spawn(test).join().unwrap();
    }
}
