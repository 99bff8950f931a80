//! Reads devices and addresses by netlink, and converts the messages to types of our own.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use futures::TryStreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use tracing::debug;

use super::driver::Drivers;
use super::ipsec;
use super::kube_proxy;
use super::route::look_up_device;
use super::{DeviceAddress, DeviceInfo, LinkLayer, NodeError, NodeState, Scope};

/// Reads the state of this host. `drivers` caches the driver of each NIC, by index and name.
pub async fn node_state(
    handle: &Handle,
    drivers: &mut HashMap<(u32, String), Option<String>>,
) -> Result<NodeState, NodeError> {
    let error = |what| move |source| NodeError::Read { what, source: Box::new(source) };
    let links: Vec<_> = handle.link().get().execute().try_collect().await.map_err(error("links"))?;
    let addresses: Vec<_> =
        handle.address().get().execute().try_collect().await.map_err(error("addresses"))?;

    let mut devices: Vec<_> = links.iter().filter_map(device).collect();
    devices.sort_by_key(|device| device.index);
    for (index, address) in addresses.iter().filter_map(device_address) {
        if let Some(device) = devices.iter_mut().find(|device| device.index == index) {
            device.addresses.push(address);
        }
    }
    let reader = Drivers::open().map_err(NodeError::Socket)?;
    let mut known = HashMap::new();
    for device in &mut devices {
        // The sort is stable. Among equals the kernel's order stays, in which it chooses sources.
        device.addresses.sort_by_key(|address| (address.deprecated, address.secondary));
        if device.kind.is_none() && !device.loopback {
            let key = (device.index, device.name.clone());
            device.driver = drivers.remove(&key).unwrap_or_else(|| reader.of(&device.name));
            known.insert(key, device.driver.clone());
        }
    }
    *drivers = known;

    let (main_v4, main_v6) = default_sources();
    let main_v4 = main_v4.or_else(|| v4(likely_source(&devices, true)));
    let main_v6 = main_v6.or_else(|| v6(likely_source(&devices, false)));
    let mut default_route_devices = BTreeSet::new();
    for outside in OUTSIDE {
        default_route_devices.extend(look_up_device(handle, outside).await?);
    }
    let without_kube_proxy = !has_kube_proxy(&devices);
    let ipsec = ipsec::destinations()
        .inspect_err(|error| debug!(%error, "cannot list the IPsec policies of this node"))
        .ok();
    Ok(NodeState { devices, main_v4, main_v6, default_route_devices, ipsec, without_kube_proxy })
}

/// Returns whether kube-proxy has rules on this node, or may have: if that is unknown, its
/// connections must not break.
fn has_kube_proxy(devices: &[DeviceInfo]) -> bool {
    devices.iter().any(|device| device.name == kube_proxy::IPVS_DEVICE)
        || kube_proxy::has_rules().unwrap_or_else(|error| {
            debug!(%error, "cannot find out whether rules of kube-proxy are on this node");
            true
        })
}

/// Destinations outside: addresses for documentation (RFC 5737, RFC 3849) have no specific route.
const OUTSIDE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];

/// Returns the source addresses that the kernel chooses for destinations outside, in the network
/// namespace of the calling thread.
pub fn default_sources() -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
    let [v4_source, v6_source] = OUTSIDE.map(default_source);
    (v4(v4_source), v6(v6_source))
}

fn v4(ip: Option<IpAddr>) -> Option<Ipv4Addr> {
    ip.and_then(|ip| if let IpAddr::V4(ip) = ip { Some(ip) } else { None })
}

fn v6(ip: Option<IpAddr>) -> Option<Ipv6Addr> {
    ip.and_then(|ip| if let IpAddr::V6(ip) = ip { Some(ip) } else { None })
}

/// Returns the source address that the kernel chooses for a destination. Connecting a UDP socket
/// sends no packet.
fn default_source(destination: IpAddr) -> Option<IpAddr> {
    let any: IpAddr =
        if destination.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(SocketAddr::new(destination, 9)).ok()?;
    let source = socket.local_addr().ok()?.ip();
    let usable = !source.is_unspecified() && !source.is_loopback();
    usable.then_some(source)
}

/// Returns the main address of a host without a default route: a global address of the device that
/// most likely leads to other nodes. Pod gateways have no subnet, or are on bridges.
fn likely_source(devices: &[DeviceInfo], is_v4: bool) -> Option<IpAddr> {
    let candidates = devices.iter().filter(|device| device.up && !device.loopback).flat_map(|device| {
        let inward = matches!(device.kind.as_deref(), Some("bridge" | "dummy"));
        device.addresses.iter().map(move |address| (inward, address))
    });
    candidates
        .filter(|(_, address)| address.ip.is_ipv4() == is_v4 && address.scope == Scope::Global)
        .min_by_key(|(inward, address)| (address.deprecated, !address.is_in_a_subnet(), *inward))
        .map(|(_, address)| address.ip)
}

/// Converts a link message. Returns `None` if it has no device name.
fn device(message: &LinkMessage) -> Option<DeviceInfo> {
    let flags = message.header.flags;
    let mut info = DeviceInfo {
        index: message.header.index,
        name: String::new(),
        kind: None,
        driver: None,
        link_layer: link_layer(message.header.link_layer_type.into()),
        mac: None,
        loopback: flags.contains(LinkFlags::Loopback),
        up: flags.contains(LinkFlags::Up),
        master: None,
        lower: None,
        lower_elsewhere: false,
        addresses: Vec::new(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => info.name.clone_from(name),
            LinkAttribute::Address(mac) if info.link_layer == LinkLayer::Ethernet && !info.loopback => {
                info.mac = mac.as_slice().try_into().ok();
            }
            LinkAttribute::Controller(index) => info.master = Some(*index),
            LinkAttribute::Link(index) => info.lower = Some(*index).filter(|index| *index != 0),
            LinkAttribute::LinkNetNsId(_) => info.lower_elsewhere = true,
            LinkAttribute::LinkInfo(infos) => {
                info.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    if info.lower_elsewhere || info.lower == Some(info.index) {
        info.lower = None; // An index of another namespace is not valid in this one.
    }
    (!info.name.is_empty()).then_some(info)
}

/// Numbers of linux/if_arp.h that the libc crate does not have.
const ARPHRD_RAWIP: u16 = 519;
const ARPHRD_IP6GRE: u16 = 823;

/// Converts an `ARPHRD_` number.
fn link_layer(arphrd: u16) -> LinkLayer {
    match arphrd {
        libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => LinkLayer::Ethernet,
        libc::ARPHRD_NONE
        | libc::ARPHRD_TUNNEL
        | libc::ARPHRD_TUNNEL6
        | libc::ARPHRD_SIT
        | libc::ARPHRD_IPGRE
        | ARPHRD_IP6GRE
        | ARPHRD_RAWIP
        | libc::ARPHRD_PPP => LinkLayer::None,
        other => LinkLayer::Other(other),
    }
}

/// Converts an address message to the index of the device and the address. Returns `None` if the
/// address is tentative or a duplicate.
fn device_address(message: &AddressMessage) -> Option<(u32, DeviceAddress)> {
    let header = &message.header;
    let mut flags = AddressFlags::from_bits_retain(header.flags.bits().into());
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point device `Address` is the address of the peer, `Local` the own one.
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let optimistic = flags.contains(AddressFlags::Optimistic);
    if flags.contains(AddressFlags::Dadfailed) || (flags.contains(AddressFlags::Tentative) && !optimistic) {
        return None;
    }
    let address = DeviceAddress {
        ip: local.or(address)?,
        prefix_len: header.prefix_len,
        scope: match header.scope {
            AddressScope::Host | AddressScope::Nowhere => Scope::Host,
            AddressScope::Link => Scope::Link,
            _ => Scope::Global,
        },
        deprecated: flags.contains(AddressFlags::Deprecated),
        secondary: flags.contains(AddressFlags::Secondary),
    };
    Some((header.index, address))
}

#[cfg(test)]
mod tests {
    use super::super::testing::device;
    use super::*;

    #[test]
    fn without_a_default_route_the_main_address_is_that_of_a_device_to_other_nodes() {
        let devices = [
            DeviceInfo { loopback: true, ..device(1, "lo", None, &["10.9.9.9/32"]) },
            device(2, "veth1", Some("veth"), &["10.244.0.1/32"]),
            device(3, "docker0", Some("bridge"), &["172.17.0.1/16"]),
            device(4, "eth0", Some("veth"), &["fe80::1/64", "172.18.0.2/16"]),
        ];
        assert_eq!(likely_source(&devices, true).map(|ip| ip.to_string()).as_deref(), Some("172.18.0.2"));
        assert_eq!(likely_source(&devices, false), None);
        assert_eq!(
            likely_source(&devices[..2], true).map(|ip| ip.to_string()).as_deref(),
            Some("10.244.0.1")
        );
    }
}
