//! The networks to which the kernel encrypts packets, or refuses to send them, by its IPsec
//! policies (`ip xfrm policy`).
//!
//! A packet that a program sends along a route itself passes by these policies: it would leave in
//! clear text.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use tokio::io::unix::AsyncFd;
use tracing::debug;

use super::dump::dump;

// linux/xfrm.h.
const XFRM_MSG_GETPOLICY: u16 = 0x15;
/// The group `XFRMNLGRP_POLICY`, as a bit.
const POLICY_GROUP: u32 = 1 << (4 - 1);
const XFRM_POLICY_OUT: u8 = 1;
const XFRM_POLICY_ALLOW: u8 = 0;
const XFRMA_TMPL: u16 = 5;
const XFRMA_IF_ID: u16 = 31;

/// Length of `struct xfrm_userpolicy_info`.
const POLICY: usize = 168;
// Offsets in it. It starts with the selector, which starts with the destination address.
const FAMILY: usize = 40;
const DESTINATION_PREFIX: usize = 42;
const DIRECTION: usize = 160;
const ACTION: usize = 161;

/// Returns the destinations of the policies for packets that leave the network namespace of the
/// calling thread.
pub fn destinations() -> io::Result<BTreeSet<IpNet>> {
    let mut found = BTreeSet::new();
    // The kernel ignores the content of `struct xfrm_userpolicy_id` in a list request.
    dump(netlink::XFRM, XFRM_MSG_GETPOLICY, &[0; 64], |policy| found.extend(networks(policy)))?;
    Ok(found)
}

/// Returns the destinations of a policy if it may hold up a packet or change it. A policy without a
/// transformation that allows packets does neither. A policy of an XFRM interface applies only to
/// packets that the kernel sends to that device.
fn networks(policy: &[u8]) -> Vec<IpNet> {
    let Some((info, attributes)) = policy.split_at_checked(POLICY) else { return Vec::new() };
    let attribute = |kind| attributes_of(attributes).find(|(found, _)| *found == kind);
    let changes = attribute(XFRMA_TMPL).is_some() || info[ACTION] != XFRM_POLICY_ALLOW;
    let of_interface = attribute(XFRMA_IF_ID).is_some_and(|(_, id)| id.iter().any(|byte| *byte != 0));
    if info[DIRECTION] != XFRM_POLICY_OUT || !changes || of_interface {
        return Vec::new();
    }
    let prefix = info[DESTINATION_PREFIX];
    let family = i32::from(u16::from_ne_bytes([info[FAMILY], info[FAMILY + 1]]));
    let network = match (family, info.first_chunk::<4>(), info.first_chunk::<16>()) {
        (libc::AF_INET, Some(address), _) => IpNet::new(IpAddr::from(*address), prefix),
        (libc::AF_INET6, _, Some(address)) => IpNet::new(IpAddr::from(*address), prefix),
        // A selector without a family selects every packet.
        _ => return EVERYWHERE.to_vec(),
    };
    network.map(|network| network.trunc()).into_iter().collect()
}

/// Every address of both families.
pub const EVERYWHERE: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
];

/// Returns type and content of each attribute (`struct rtattr`).
fn attributes_of(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?);
        let content = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, content))
    })
}

/// Notifications about changes of policies.
pub struct Changes(Option<AsyncFd<OwnedFd>>);

impl Changes {
    /// Subscribes. A kernel without IPsec sends no notification, and neither does one that does not
    /// allow it.
    pub fn open() -> Self {
        let subscribe = || -> io::Result<_> {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::XFRM))?;
            bind(&socket, &SocketAddrNetlink::new(0, POLICY_GROUP))?;
            // SAFETY: the `AsyncFd` owns the descriptor, and nothing else closes it.
            Ok(unsafe { AsyncFd::register(socket) }?)
        };
        Self(subscribe().inspect_err(|error| debug!(%error, "no notifications of IPsec policies")).ok())
    }

    /// Waits for a change. Discards all notifications that have arrived.
    pub async fn next(&mut self) -> io::Result<()> {
        let Some(socket) = &self.0 else { return std::future::pending().await };
        loop {
            let mut ready = socket.readable().await?;
            let mut seen = false;
            let emptied = loop {
                match recv(socket.get_ref(), &mut [0; 64][..], RecvFlags::empty()) {
                    Ok(_) => seen = true,
                    // Notifications were lost, so something has changed.
                    Err(rustix::io::Errno::NOBUFS) => seen = true,
                    Err(rustix::io::Errno::WOULDBLOCK) => break Ok(()),
                    Err(error) => break Err(error),
                }
            };
            emptied?;
            ready.clear_ready();
            if seen {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::node::testing::enter_new_namespace;

    fn policy(arguments: &str) {
        let arguments = format!("xfrm policy {arguments}");
        let output = Command::new("ip").args(arguments.split(' ')).output().expect("ip runs");
        assert!(output.status.success(), "ip {arguments}: {output:?}");
    }

    fn found() -> Vec<String> {
        destinations().expect("readable").iter().map(ToString::to_string).collect()
    }

    #[test]
    fn destinations_of_policies_are_found() {
        const ESP: &str = "tmpl src 192.0.2.1 dst 192.0.2.2 proto esp reqid 1 mode tunnel";
        const ESP6: &str = "tmpl src 2001:db8::1 dst 2001:db8::2 proto esp reqid 1 mode tunnel";
        let test = || {
            enter_new_namespace();
            assert_eq!(found(), Vec::<String>::new(), "there are no policies");
            policy(&format!("add src 10.1.0.0/16 dst 10.2.0.0/16 dir out {ESP}"));
            policy(&format!("add src 10.2.0.0/16 dst 10.1.0.0/16 dir in {ESP}"));
            policy(&format!("add src 10.2.0.0/16 dst 10.1.0.0/16 dir fwd {ESP}"));
            policy(&format!("add src 10.1.0.0/16 dst 10.3.0.0/16 dir out if_id 7 {ESP}"));
            policy("add src 10.1.0.0/16 dst 10.4.0.0/16 dir out action allow");
            policy("add src 10.1.0.0/16 dst 10.5.0.7/32 dir out action block");
            policy(&format!("add src fd00:1::/32 dst fd00:2::/32 dir out {ESP6}"));
            assert_eq!(found(), ["10.2.0.0/16", "10.5.0.7/32", "fd00:2::/32"]);
            policy("delete src 10.1.0.0/16 dst 10.5.0.7/32 dir out");
            assert_eq!(found(), ["10.2.0.0/16", "fd00:2::/32"]);
        };
        std::thread::spawn(test).join().expect("the test passes");
    }

    #[test]
    fn changes_are_noticed() {
        let test = || {
            enter_new_namespace();
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let mut changes = Changes::open();
                policy("add src 10.1.0.0/16 dst 10.5.0.7/32 dir out action block");
                changes.next().await.expect("a change");
            });
        };
        std::thread::spawn(test).join().expect("the test passes");
    }
}
