//! Converts EndpointSlices and legacy Endpoints.

use std::net::IpAddr;

use k8s_openapi::api::{core::v1, discovery};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use lb_model::{
    Endpoint, EndpointPort, EndpointSlice, IpFamily, NodeHint, ObjectName, PlaceHash, PodRef, Problem,
    ProblemKind, Problems, Trigger,
};

use super::address::{parse_ip, special_address};
use super::balancing;
use super::converted::{Converted, has_label, object_name};

const SERVICE_LABEL: &str = "kubernetes.io/service-name";
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// RFC 3339 with nanoseconds (`EndpointsLastChangeTriggerTime` in k8s.io/api/core/v1).
const TRIGGER_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// The EndpointSlice controller copies this label from the Service (KEP-2447).
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// Converts an EndpointSlice. The result has no value if this proxy does not use the slice: a slice
/// of a headless Service or of another proxy, one of type FQDN, or one that names no Service.
pub fn endpoint_slice(slice: &discovery::v1::EndpointSlice, this_node: &str) -> Converted<EndpointSlice> {
    if has_label(&slice.metadata, HEADLESS_LABEL) || has_label(&slice.metadata, PROXY_NAME_LABEL) {
        return Converted { name: object_name(&slice.metadata), value: None, problems: Vec::new() };
    }
    endpoint_slice_of_any_service(slice, this_node)
}

/// Converts an EndpointSlice like [`endpoint_slice`], also those of headless Services and of
/// Services of other proxies.
pub fn endpoint_slice_of_any_service(
    slice: &discovery::v1::EndpointSlice,
    this_node: &str,
) -> Converted<EndpointSlice> {
    let name = object_name(&slice.metadata);
    let mut problems = Problems::of("EndpointSlice", &name);
    let value = convert(slice, &name, this_node, &mut problems);
    Converted { name, value, problems: problems.into_vec() }
}

/// Converts a legacy `Endpoints` object into the slices that the mirroring controller of the
/// control plane would create: one for each subset and family. Their names contain slashes, so they
/// differ from the name of every real slice.
pub fn endpoints(
    object: &v1::Endpoints,
    this_node: &str,
) -> (Vec<(ObjectName, EndpointSlice)>, Vec<Problem>) {
    let service = object_name(&object.metadata);
    let mut problems = Problems::of("Endpoints", &service);
    let mut slices = Vec::new();
    for (index, subset) in object.subsets.iter().flatten().enumerate() {
        let ports = subset_ports(subset, index, &mut problems);
        let endpoints = subset_endpoints((index, subset), service.namespace(), this_node, &mut problems);
        for (family, suffix) in [(IpFamily::V4, "IPv4"), (IpFamily::V6, "IPv6")] {
            let endpoints: Box<[_]> = endpoints
                .iter()
                .filter(|endpoint| IpFamily::of(&endpoint.address) == family)
                .copied()
                .collect();
            if !endpoints.is_empty() {
                let name = format!("Endpoints/{}/{index}/{suffix}", service.name());
                let slice = EndpointSlice {
                    service: service.clone(),
                    location: None,
                    ports: ports.clone(),
                    endpoints,
                    zone_sets: Box::default(),
                    weight: None,
                    trigger: None,
                };
                slices.push((ObjectName::new(service.namespace(), &name), slice));
            }
        }
    }
    (slices, problems.into_vec())
}

fn convert(
    slice: &discovery::v1::EndpointSlice,
    name: &ObjectName,
    this_node: &str,
    problems: &mut Problems,
) -> Option<EndpointSlice> {
    let Some(service) = slice
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(SERVICE_LABEL))
        .filter(|service| !service.is_empty())
    else {
        problems.note(
            ProblemKind::Missing,
            format_args!("metadata.labels[{SERVICE_LABEL}]"),
            "is missing",
            "set it to the name of the Service; the slice is not used",
        );
        return None;
    };
    let family = match slice.address_type.as_str() {
        "IPv4" => IpFamily::V4,
        "IPv6" => IpFamily::V6,
        "FQDN" => return None,
        unknown => {
            problems.error(
                ProblemKind::UnknownValue,
                "addressType",
                format_args!("`{unknown}` is not a supported address type"),
                "use IPv4 or IPv6; the slice is not used",
            );
            return None;
        }
    };
    let mut zone_sets = Vec::new();
    let endpoints = (slice.endpoints.iter().flatten().enumerate())
        .filter_map(|(index, endpoint)| {
            convert_endpoint((index, endpoint), name.namespace(), family, this_node, &mut zone_sets, problems)
        })
        .collect();
    Some(EndpointSlice {
        service: ObjectName::new(name.namespace(), service),
        location: None,
        ports: slice_ports(slice, problems),
        endpoints,
        zone_sets: zone_sets.into(),
        weight: balancing::weight(&slice.metadata, "the weight of the Service applies", problems),
        trigger: trigger(&slice.metadata, family),
    })
}

/// Parses the trigger time. Ignores an invalid annotation, as kube-proxy does: it does not affect
/// how the endpoints are served.
fn trigger(metadata: &ObjectMeta, family: IpFamily) -> Option<Trigger> {
    let text = metadata.annotations.as_ref()?.get(TRIGGER_ANNOTATION)?;
    let at: Timestamp = text.parse().ok()?;
    Some(Trigger { family, at: at.into() })
}

fn slice_ports(slice: &discovery::v1::EndpointSlice, problems: &mut Problems) -> Box<[EndpointPort]> {
    let mut ports = Vec::new();
    for (index, port) in slice.ports.iter().flatten().enumerate() {
        // A missing number means "all ports", which only other consumers than proxies can use
        // (discovery/v1). kube-proxy treats 0 as missing.
        let Some(number) = port.port.filter(|number| *number != 0) else { continue };
        let protocol = problems.protocol(format_args!("ports[{index}].protocol"), port.protocol.as_deref());
        let number = problems.port(format_args!("ports[{index}].port"), number);
        if let (Some(protocol), Some(port_number)) = (protocol, number) {
            // The API server stores a missing name as an empty string.
            let name = port.name.as_deref().unwrap_or_default().into();
            ports.push(EndpointPort { name, protocol, port: port_number });
        }
    }
    ports.into()
}

fn convert_endpoint(
    (index, endpoint): (usize, &discovery::v1::Endpoint),
    namespace: &str,
    family: IpFamily,
    this_node: &str,
    zone_sets: &mut Vec<Box<[Box<str>]>>,
    problems: &mut Problems,
) -> Option<Endpoint> {
    // The API reserves further addresses for later use; kube-proxy has never read them.
    let address = address(
        &format!("endpoints[{index}].addresses[0]"),
        endpoint.addresses.first().map_or("", String::as_str),
        problems,
    )?;
    if IpFamily::of(&address) != family {
        problems.error(
            ProblemKind::WrongFamily,
            format_args!("endpoints[{index}].addresses[0]"),
            format_args!("{address} does not have the addressType of the slice"),
            "move it to a slice of its family; the endpoint is ignored",
        );
        return None;
    }
    let conditions = endpoint.conditions.as_ref();
    let condition = |value: Option<bool>, default| value.unwrap_or(default);
    let hints = endpoint.hints.as_ref();
    let nodes = hints.and_then(|hints| hints.for_nodes.as_deref()).unwrap_or_default();
    let node_hint = if nodes.is_empty() {
        NodeHint::None
    } else if nodes.iter().any(|node| node.name == this_node) {
        NodeHint::ThisNode
    } else {
        NodeHint::OtherNodes
    };
    let zones = hints.and_then(|hints| hints.for_zones.as_deref()).unwrap_or_default();
    Some(Endpoint {
        address,
        ready: condition(conditions.and_then(|conditions| conditions.ready), true),
        serving: condition(conditions.and_then(|conditions| conditions.serving), true),
        terminating: condition(conditions.and_then(|conditions| conditions.terminating), false),
        local: endpoint.node_name.as_deref() == Some(this_node),
        node: endpoint.node_name.as_deref().map(PlaceHash::of),
        pod: endpoint.target_ref.as_ref().and_then(|target| pod(target, namespace)),
        zone: endpoint.zone.as_deref().map(PlaceHash::of),
        node_hint,
        zone_hints: zone_set(zones.iter().map(|zone| zone.name.as_str()), zone_sets),
    })
}

/// Returns the Pod that an endpoint refers to. `namespace` is that of the object with the endpoint.
fn pod(target: &v1::ObjectReference, namespace: &str) -> Option<PodRef> {
    let name = target.name.as_deref().filter(|_| target.kind.as_deref() == Some("Pod"))?;
    let namespace = target.namespace.as_deref().unwrap_or(namespace);
    Some(PodRef::new(&ObjectName::new(namespace, name), target.uid.as_deref()))
}

/// Returns the index of this set of zones in `zone_sets`, and adds the set if it is new. A slice
/// has few distinct sets, so the search is linear.
fn zone_set<'a>(
    zones: impl Iterator<Item = &'a str> + Clone,
    zone_sets: &mut Vec<Box<[Box<str>]>>,
) -> Option<u16> {
    zones.clone().next()?;
    let known = zone_sets.iter().position(|set| set.iter().map(|zone| &**zone).eq(zones.clone()));
    let index = known.unwrap_or_else(|| {
        zone_sets.push(zones.map(Box::from).collect());
        zone_sets.len() - 1
    });
    // The API allows a thousand endpoints per slice. In a manifest with more than 65536 distinct
    // sets the rest counts as endpoints without hints.
    u16::try_from(index).ok()
}

/// Parses the address of an endpoint. Reports an invalid address and returns `None` for it.
fn address(field: &str, text: &str, problems: &mut Problems) -> Option<IpAddr> {
    let Some(ip) = parse_ip(text) else {
        problems.error(
            ProblemKind::InvalidAddress,
            field,
            format_args!("`{text}` is not an IP address"),
            "correct it; the endpoint is ignored",
        );
        return None;
    };
    if let Some(reason) = special_address(&ip) {
        problems.error(
            ProblemKind::InvalidAddress,
            field,
            format_args!("{text} {reason}"),
            "use the address of the pod or host; the endpoint is ignored",
        );
        return None;
    }
    Some(ip)
}

fn subset_ports(subset: &v1::EndpointSubset, index: usize, problems: &mut Problems) -> Box<[EndpointPort]> {
    let mut ports = Vec::new();
    for (port_index, port) in subset.ports.iter().flatten().enumerate() {
        let field = |name: &str| format!("subsets[{index}].ports[{port_index}].{name}");
        let protocol = problems.protocol(field("protocol"), port.protocol.as_deref());
        let number = problems.port(field("port"), port.port);
        if let (Some(protocol), Some(number)) = (protocol, number) {
            let name = port.name.as_deref().unwrap_or_default().into();
            ports.push(EndpointPort { name, protocol, port: number });
        }
    }
    ports.into()
}

fn subset_endpoints(
    (index, subset): (usize, &v1::EndpointSubset),
    namespace: &str,
    this_node: &str,
    problems: &mut Problems,
) -> Vec<Endpoint> {
    let mut endpoints = Vec::new();
    let lists =
        [("addresses", true, &subset.addresses), ("notReadyAddresses", false, &subset.not_ready_addresses)];
    for (list, ready, addresses) in lists {
        for (address_index, endpoint) in addresses.iter().flatten().enumerate() {
            let field = format!("subsets[{index}].{list}[{address_index}].ip");
            if let Some(address) = address(&field, &endpoint.ip, problems) {
                endpoints.push(Endpoint {
                    address,
                    ready,
                    serving: ready,
                    terminating: false,
                    local: endpoint.node_name.as_deref() == Some(this_node),
                    node: endpoint.node_name.as_deref().map(PlaceHash::of),
                    pod: endpoint.target_ref.as_ref().and_then(|target| pod(target, namespace)),
                    zone: None,
                    node_hint: NodeHint::None,
                    zone_hints: None,
                });
            }
        }
    }
    endpoints
}
