//! Test helpers: devices, and private network namespaces.

use std::fs::File;

use futures::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::address::AddressHeaderFlags;
use rtnetlink::{LinkUnspec, LinkVeth};
use rustix::thread::UnshareFlags;

use super::{DeviceAddress, DeviceInfo, LinkLayer, NodeState, Scope};

/// Returns an Ethernet device that is up. Addresses are `IP/PREFIX`; the scope follows from the IP.
pub fn device(index: u32, name: &str, kind: Option<&str>, addresses: &[&str]) -> DeviceInfo {
    let address = |text: &&str| {
        let net: IpNet = text.parse().expect("IP/PREFIX");
        let ip = net.addr();
        let scope = match ip {
            _ if ip.is_loopback() => Scope::Host,
            std::net::IpAddr::V6(ip) if ip.is_unicast_link_local() => Scope::Link,
            _ => Scope::Global,
        };
        DeviceAddress { ip, prefix_len: net.prefix_len(), scope, deprecated: false, secondary: false }
    };
    DeviceInfo {
        index,
        name: name.into(),
        kind: kind.map(Into::into),
        driver: None,
        link_layer: LinkLayer::Ethernet,
        mac: None,
        loopback: false,
        up: true,
        master: None,
        lower: None,
        lower_elsewhere: false,
        addresses: addresses.iter().map(address).collect(),
    }
}

/// Returns the state of a node with these devices.
pub fn node(devices: Vec<DeviceInfo>) -> NodeState {
    NodeState { devices, ..NodeState::default() }
}

/// Moves the calling thread to a new network namespace, which ends with the thread.
pub fn enter_new_namespace() {
    // SAFETY: only the network namespace of this thread changes. File table and address space stay
    // shared.
    let entered = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) };
    entered.expect("this test needs root to create network namespaces");
}

/// Returns a new namespace. It exists as long as the file is open.
pub fn other_namespace() -> File {
    let thread = std::thread::spawn(|| {
        enter_new_namespace();
        File::open("/proc/thread-self/ns/net").expect("a namespace")
    });
    thread.join().expect("made")
}

/// Creates `eth0` with these addresses (`IP/PREFIX`) in the network namespace of the calling
/// thread.
pub fn add_veth(addresses: &[&str]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().expect("a socket");
        tokio::spawn(connection);
        handle.link().add(LinkVeth::new("eth0", "peer0").build()).execute().await.expect("veth");
        let found = handle.link().get().match_name("eth0").execute().try_next().await.expect("links");
        let index = found.expect("made").header.index;
        handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await.expect("up");
        for address in addresses {
            let net: IpNet = address.parse().expect("IP/PREFIX");
            let mut request = handle.address().add(index, net.addr(), net.prefix_len());
            if net.addr().is_ipv6() {
                request.message_mut().header.flags = AddressHeaderFlags::from_bits_retain(0x02); // IFA_F_NODAD
            }
            request.execute().await.expect("address");
        }
    });
}
