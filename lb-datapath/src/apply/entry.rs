//! Builds map entries from the desired state of the planner. All functions here are pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use lb_common::layout::{self, backend_flags, service_flags};
use lb_model::{Algorithm, HashInput, IpFamily, Protocol, SourceRanges};
use lb_plan::desired::{
    DesiredEndpoint, DesiredServicePort, EndpointList, EndpointLists, Frontend, FrontendAddress,
    FrontendKind, ListPolicy, ServicePortId, WhenEmpty,
};

use super::tables::ServiceAddress;

/// A range of slots in a service entry. The base of an empty range is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SlotRange {
    pub base: u32,
    pub count: u32,
}

/// Returns the map key of a frontend.
pub fn service_address(frontend: &Frontend, protocol: Protocol) -> ServiceAddress {
    let ip = match frontend.address {
        FrontendAddress::Ip(ip) => ip,
        FrontendAddress::Node(IpFamily::V4) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        FrontendAddress::Node(IpFamily::V6) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    ServiceAddress { ip, port: frontend.port, protocol: protocol as u8 }
}

/// Returns the networks that may use the load balancer addresses of a family. `None` allows all
/// clients.
pub fn source_ranges(desired: &DesiredServicePort, family: IpFamily) -> Option<Vec<IpNet>> {
    let SourceRanges { v4, v6 } = &desired.source_ranges;
    match family {
        IpFamily::V4 => v4.as_ref().map(|nets| nets.iter().map(|net| net.trunc().into()).collect()),
        IpFamily::V6 => v6.as_ref().map(|nets| nets.iter().map(|net| net.trunc().into()).collect()),
    }
}

/// Returns the service entry of a frontend. `range_of` returns the slots of a list.
pub fn service(
    service_id: u32,
    desired: &DesiredServicePort,
    frontend: &Frontend,
    range_of: impl Fn(ListPolicy) -> SlotRange,
) -> layout::ServiceEntry {
    let [outside, inside] = [frontend.outside, frontend.inside].map(&range_of);
    let drops =
        |policy: ListPolicy, range: SlotRange| range.count == 0 && policy.when_empty == WhenEmpty::Drop;
    let [outside_drop, inside_drop] = [drops(frontend.outside, outside), drops(frontend.inside, inside)];
    let guarded = frontend.kind == FrontendKind::LoadBalancer
        && source_ranges(desired, frontend.address.family()).is_some();

    let mut flags = 0;
    for (set, flag) in [
        (outside_drop, service_flags::OUTSIDE_DROP),
        (inside_drop, service_flags::INSIDE_DROP),
        (guarded, service_flags::SOURCE_RANGES),
        ((outside, outside_drop) != (inside, inside_drop), service_flags::POLICY_LOCAL),
        (frontend.outside.list == EndpointList::Local, service_flags::OUTSIDE_LOCAL),
        (frontend.inside.list == EndpointList::Local, service_flags::INSIDE_LOCAL),
        (replaces_overloaded(desired), service_flags::REPLACE_OVERLOADED),
    ] {
        if set {
            flags |= flag;
        }
    }
    flags |= max_age(desired) << service_flags::MAX_AGE_SHIFT;
    layout::ServiceEntry {
        service_id,
        flags,
        outside_base: outside.base,
        outside_count: outside.count,
        inside_base: inside.base,
        inside_count: inside.count,
        affinity_seconds: desired.affinity_seconds.unwrap_or(0),
        algorithm: algorithm(desired),
        kind: frontend.kind as u8,
        scheduler: desired.algorithm as u8,
        pad: 0,
    }
}

/// Returns the maximum age of connections in seconds; 0: they have none. There is room for twelve
/// days.
fn max_age(desired: &DesiredServicePort) -> u32 {
    let seconds = desired.max_connection_age.map_or(0, |age| age.as_secs());
    u32::try_from(seconds).unwrap_or(u32::MAX).min(u32::MAX >> service_flags::MAX_AGE_SHIFT)
}

/// Returns the maximum age of connections in seconds, from the flags of a service entry.
pub fn max_age_of(flags: u32) -> Option<u32> {
    Some(flags >> service_flags::MAX_AGE_SHIFT).filter(|seconds| *seconds > 0)
}

/// Returns whether a client whose endpoint is overloaded gets another one. `ovf` would get one that
/// has more connections than its weight.
fn replaces_overloaded(desired: &DesiredServicePort) -> bool {
    desired.thresholds.is_some()
        && desired.algorithm != Algorithm::Overflow
        && (desired.fallback || !desired.algorithm.is_by_hash())
}

/// Returns how the programs select a slot: one of [`layout::algorithm`].
pub fn algorithm(desired: &DesiredServicePort) -> u8 {
    match (desired.algorithm, desired.hash) {
        (Algorithm::Failover, _) if desired.thresholds.is_some() => layout::algorithm::GREATEST_WEIGHT,
        (Algorithm::Random | Algorithm::Failover, _) => layout::algorithm::RANDOM,
        (Algorithm::RoundRobin | Algorithm::WeightedRoundRobin, _) => layout::algorithm::IN_TURN,
        (Algorithm::DestinationHash, _)
        | (Algorithm::SourceHash | Algorithm::Maglev, HashInput::Destination) => {
            layout::algorithm::HASH_DESTINATION
        }
        (Algorithm::SourceHash | Algorithm::Maglev, HashInput::Source) => layout::algorithm::HASH_SOURCE,
        (Algorithm::SourceHash | Algorithm::Maglev, HashInput::SourcePort) => {
            layout::algorithm::HASH_SOURCE_PORT
        }
        (Algorithm::LeastConnections, _) => layout::algorithm::LEAST,
        (Algorithm::WeightedLeastConnections, _) => layout::algorithm::LEAST_WEIGHTED,
        (Algorithm::ShortestExpectedDelay, _) => layout::algorithm::SHORTEST_DELAY,
        (Algorithm::NeverQueue, _) => layout::algorithm::NEVER_QUEUE,
        (Algorithm::Overflow, _) => layout::algorithm::OVERFLOW,
        (Algorithm::TwoChoices, _) => layout::algorithm::TWO_CHOICES,
    }
}

/// Returns the ranges of slots in a service entry.
pub fn slot_ranges(entry: &layout::ServiceEntry) -> [SlotRange; 2] {
    [
        SlotRange { base: entry.outside_base, count: entry.outside_count },
        SlotRange { base: entry.inside_base, count: entry.inside_count },
    ]
}

/// Returns the flags of the endpoint with this index in the lists of its family.
pub fn backend_flags(
    desired: &DesiredServicePort,
    lists: &EndpointLists,
    index: u32,
    endpoint: &DesiredEndpoint,
) -> u16 {
    let mut flags = backend_flags::PRESENT;
    for (set, flag) in [
        (endpoint.local, backend_flags::LOCAL),
        (lists.cluster.binary_search(&index).is_ok(), backend_flags::IN_CLUSTER),
        (lists.local.binary_search(&index).is_ok(), backend_flags::IN_LOCAL),
        (desired.failover, backend_flags::FAILOVER),
        (desired.passive_health, backend_flags::PASSIVE_HEALTH),
        (desired.thresholds.is_some(), backend_flags::THRESHOLDS),
    ] {
        if set {
            flags |= flag;
        }
    }
    flags
}

/// Returns the name entry of a Service port, or `None` if a part is too long. Parts are never
/// truncated: a restarted agent identifies the Service port by this entry.
pub fn service_name(id: &ServicePortId, port: u16) -> Option<layout::ServiceName> {
    fn field(text: &str) -> Option<[u8; 64]> {
        let mut bytes = [0; 64];
        bytes.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
        Some(bytes)
    }
    Some(layout::ServiceName {
        namespace: field(&id.namespace)?,
        name: field(&id.name)?,
        port_name: field(&id.port_name)?,
        port,
        protocol: id.protocol as u8,
        pad: 0,
    })
}

/// Returns identity and port number from a name entry. Returns `None` if [`service_name`] did not
/// make it.
pub fn parse_service_name(name: &layout::ServiceName) -> Option<(ServicePortId, u16)> {
    fn field(bytes: &[u8; 64]) -> Option<String> {
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        Some(std::str::from_utf8(&bytes[..end]).ok()?.to_owned())
    }
    let protocol = match name.protocol {
        layout::TCP => Protocol::Tcp,
        layout::UDP => Protocol::Udp,
        layout::SCTP => Protocol::Sctp,
        _ => return None,
    };
    let (namespace, service, port_name) =
        (field(&name.namespace)?, field(&name.name)?, field(&name.port_name)?);
    let named = !namespace.is_empty() && !service.is_empty();
    named.then_some((ServicePortId { namespace, name: service, port_name, protocol }, name.port))
}
