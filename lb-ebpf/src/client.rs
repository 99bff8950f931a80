//! The location of a client, and the services that it may use.

use aya_ebpf::btf_maps::lpm_trie::Key;
use lb_common::layout::{
    FlowKey, ServiceEntry, SourceRange, address_flags, device_flags, network_flags, service_flags,
};

use crate::address::{known, network};
use crate::aligned::Aligned;
use crate::frame::Frame;
use crate::maps::{DEVICES, Maps};
use crate::route::{Query, RouteLookup};

/// The location of a client. It selects one of the two ranges of a service entry, and so the
/// eligible endpoints.
#[derive(Copy, Clone, PartialEq, Eq)]
pub enum Client {
    /// The client is outside the cluster, or a pod of another node.
    Outside,
    /// The client is a pod of this node, or this node.
    Inside,
}

/// Returns the location of the sender of this packet. A pod of another node is outside.
///
/// The device on the route to the source address shows the location, if the agent has published
/// which hosts are behind that device. Otherwise the networks of pods decide.
#[inline(always)]
pub fn of_source<F: Maps, K: Frame>(frame: &K, key: &FlowKey<F::Addr>, lookup: &mut RouteLookup) -> Client {
    let addr = key.src_addr;
    if known::<F>(&addr).is_some_and(|known| known.has(address_flags::NODE)) {
        return Client::Inside;
    }
    // With length 0 the lookup does not check the MTU, and does not use a remembered route.
    let query = Query { src: key.dst_addr, dst: addr, protocol: key.protocol, length: 0, now: 0 };
    let flags = lookup.find::<F, K>(frame, &query).map_or(0, |route| route.device_flags());
    let is_inside = if flags & (device_flags::ONLY_LOCAL_PODS | device_flags::OTHER_NODES) != 0 {
        flags & device_flags::ONLY_LOCAL_PODS != 0
    } else {
        network::<F>(addr) & network_flags::PODS != 0
    };
    if is_inside { Client::Inside } else { Client::Outside }
}

/// Returns whether the packet arrived by the device of a pod of this node (`--pod-interfaces`).
#[inline(always)]
pub fn came_from_pod<K: Frame>(frame: &K) -> bool {
    // XDP is never attached to such a device.
    if !K::COMPLETE {
        return false;
    }
    // SAFETY: only `flags` is read, one aligned word. If the element is reused meanwhile, the flags
    // are those of another device, for this packet alone.
    match unsafe { DEVICES.get(&frame.ifindex()) } {
        Some(device) => device.flags & device_flags::POD != 0,
        None => false,
    }
}

/// Returns whether this source may use the service (`loadBalancerSourceRanges`).
#[inline(always)]
pub fn is_allowed<F: Maps>(service: &ServiceEntry, addr: F::Addr) -> bool {
    if service.flags & service_flags::SOURCE_RANGES == 0 {
        return true;
    }
    let range = SourceRange { service_id: service.service_id, addr };
    let key = Aligned(Key::new(size_of::<SourceRange<F::Addr>>() as u32 * 8, range));
    F::source_ranges().get(&key.0).is_some()
}
