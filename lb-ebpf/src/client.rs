//! Who asks, and whether it may.

use aya_ebpf::btf_maps::lpm_trie::Key;
use lb_common::layout::{Service, SourceRange, address_flags, device_flags, network_flags, service_flags};

use crate::aligned::Aligned;
use crate::frame::Frame;
use crate::maps::{DEVICES, Maps};
use crate::service::known;

/// Decides which endpoints are eligible: the two ranges of a service entry.
#[derive(Copy, Clone, PartialEq, Eq)]
pub enum Client {
    /// From outside the cluster.
    Outside,
    /// A pod, or this node.
    Inside,
}

/// A key of `NETWORKS` where its address is aligned, see [`Aligned`].
#[repr(C, align(8))]
struct NetworkKey<A> {
    pad: u32,
    key: Key<A>,
}

/// Bits of [`network_flags`] of the smallest network that holds an address.
#[inline(always)]
pub fn network<F: Maps>(addr: F::Addr) -> u32 {
    let lookup = NetworkKey { pad: 0, key: Key::new(size_of::<F::Addr>() as u32 * 8, addr) };
    F::networks().get(&lookup.key).copied().unwrap_or(0)
}

/// Who sends packets from this source.
#[inline(always)]
pub fn of_source<F: Maps>(addr: F::Addr) -> Client {
    if network::<F>(addr) & network_flags::PODS != 0 || known::<F>(&addr) & address_flags::NODE != 0 {
        Client::Inside
    } else {
        Client::Outside
    }
}

/// Whether the packet comes from a pod of this node by the pod's own device (`--pod-interfaces`).
#[inline(always)]
pub fn came_from_pod<K: Frame>(frame: &K) -> bool {
    // XDP is never attached there.
    if !K::COMPLETE {
        return false;
    }
    // SAFETY: only flags, one aligned word, are read.
    match unsafe { DEVICES.get(&frame.ifindex()) } {
        Some(device) => device.flags & device_flags::POD != 0,
        None => false,
    }
}

/// Whether this source may use the service (`loadBalancerSourceRanges`).
#[inline(always)]
pub fn is_allowed<F: Maps>(service: &Service, addr: F::Addr) -> bool {
    if service.flags & service_flags::SOURCE_RANGES == 0 {
        return true;
    }
    let range = SourceRange { service_id: service.service_id, addr };
    let key = Aligned(Key::new(size_of::<SourceRange<F::Addr>>() as u32 * 8, range));
    F::source_ranges().get(&key.0).is_some()
}
