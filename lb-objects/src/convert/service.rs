//! Converts Services.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use k8s_openapi::api::core::v1;
use lb_model::{IpFamily, ProblemKind, Problems, Service, ServicePort, SourceRanges, TrafficPolicy};

use super::address::{parse_cidr, parse_ip, special_address};
use super::converted::{Converted, has_label, object_name};
use super::{balancing, contradictions};

/// Another proxy serves a Service that has this label, whatever the value (KEP-2447).
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// `DefaultClientIPServiceAffinitySeconds` and `MaxClientIPServiceAffinitySeconds` in
/// pkg/apis/core.
const AFFINITY_DEFAULT_SECONDS: u32 = 10_800;
const AFFINITY_MAX_SECONDS: i32 = 86_400;

/// Converts a Service. The result always has a value; an invalid Service has no cluster addresses.
pub fn service(service: &v1::Service) -> Converted<Service> {
    let name = object_name(&service.metadata);
    let mut problems = Problems::of("Service", &name);
    let value = convert(service, &mut problems);
    Converted { name, value: Some(value), problems: problems.into_vec() }
}

/// Converts a Service for a proxy that needs its ports only. The Service may be headless, and its
/// addresses are not checked.
pub fn service_ports(service: &v1::Service) -> Converted<Service> {
    let name = object_name(&service.metadata);
    let mut problems = Problems::of("Service", &name);
    let external_name =
        service.spec.as_ref().is_some_and(|spec| spec.type_.as_deref() == Some("ExternalName"));
    let ports = service.spec.as_ref().map(|spec| ports(spec, &mut problems)).unwrap_or_default();
    let value = Service { ports, external_name, ..Service::default() };
    Converted { name, value: Some(value), problems: problems.into_vec() }
}

fn convert(service: &v1::Service, problems: &mut Problems) -> Service {
    let Some(spec) = &service.spec else {
        problems.error(ProblemKind::Missing, "spec", "is missing", "add one; the Service is not served");
        return Service::default();
    };
    if has_label(&service.metadata, PROXY_NAME_LABEL) {
        // The other proxy reports its problems.
        let cluster_ips = cluster_ips(spec, &mut Problems::of("Service", object_name(&service.metadata)));
        return Service { cluster_ips, other_proxy: true, ..Service::default() };
    }
    match spec.type_.as_deref() {
        Some("ExternalName") => return Service { external_name: true, ..Service::default() },
        None | Some("" | "ClusterIP" | "NodePort" | "LoadBalancer") => {}
        Some(unknown) => problems.error(
            ProblemKind::UnknownValue,
            "spec.type",
            format_args!("`{unknown}` is not a type of Service"),
            "use ClusterIP, NodePort, LoadBalancer or ExternalName; until then the other fields \
             decide how it is served",
        ),
    }
    let first = spec.cluster_ips.iter().flatten().next().or(spec.cluster_ip.as_ref());
    if first.is_some_and(|first| first == "None") {
        return Service::default();
    }
    let cluster_ips = cluster_ips(spec, problems);
    if cluster_ips.is_empty() {
        return Service::default();
    }
    let external_ips = external_ips(spec, &cluster_ips, problems);
    let external_policy = external_policy(spec, &external_ips, problems);
    let converted = Service {
        created: service.metadata.creation_timestamp.as_ref().map(|time| time.0.as_second()),
        location: None,
        ports: ports(spec, problems),
        load_balancer_ips: load_balancer_ips(service, &cluster_ips, problems),
        source_ranges: source_ranges(spec, problems),
        affinity_seconds: affinity_seconds(spec, problems),
        balancing: balancing::of_service(&service.metadata, problems),
        internal_policy: policy(
            "spec.internalTrafficPolicy",
            spec.internal_traffic_policy.as_deref(),
            problems,
        ),
        external_policy,
        health_check_node_port: health_check_node_port(spec, external_policy, problems),
        external_ips,
        cluster_ips,
        other_proxy: false,
        external_name: false,
    };
    contradictions::report(spec, &converted, problems);
    converted
}

/// The policy applies only to Services with an external address (`ExternallyAccessible` in
/// pkg/api/v1/service/util.go).
fn external_policy(
    spec: &v1::ServiceSpec,
    external_ips: &[IpAddr],
    problems: &mut Problems,
) -> TrafficPolicy {
    let policy = policy("spec.externalTrafficPolicy", spec.external_traffic_policy.as_deref(), problems);
    match spec.type_.as_deref() {
        None | Some("" | "ClusterIP") if external_ips.is_empty() => TrafficPolicy::Cluster,
        _ => policy,
    }
}

/// Only a Service of type LoadBalancer with policy Local has a health check port.
fn health_check_node_port(
    spec: &v1::ServiceSpec,
    external_policy: TrafficPolicy,
    problems: &mut Problems,
) -> Option<u16> {
    let has_port = spec.type_.as_deref() == Some("LoadBalancer") && external_policy == TrafficPolicy::Local;
    let port = spec.health_check_node_port.filter(|port| has_port && *port != 0)?;
    problems.port("spec.healthCheckNodePort", port)
}

fn cluster_ips(spec: &v1::ServiceSpec, problems: &mut Problems) -> Box<[IpAddr]> {
    let list = spec.cluster_ips.as_deref().unwrap_or_default();
    let mut found: Vec<IpAddr> = Vec::new();
    let mut add = |field: String, text: &str| {
        let Some(ip) = vip(&field, text, problems) else { return };
        if found.iter().any(|previous| IpFamily::of(previous) == IpFamily::of(&ip)) {
            problems.error(
                ProblemKind::Duplicate,
                &field,
                format_args!("{text} is the second address of its family"),
                "use one address per family; this one is ignored",
            );
        } else {
            found.push(ip);
        }
    };
    if list.is_empty() {
        if let Some(text) = spec.cluster_ip.as_deref().filter(|text| !text.is_empty()) {
            add("spec.clusterIP".to_owned(), text);
        }
    } else {
        for (index, text) in list.iter().enumerate() {
            add(format!("spec.clusterIPs[{index}]"), text);
        }
    }
    if found.is_empty() && list.is_empty() && spec.cluster_ip.as_deref().is_none_or(str::is_empty) {
        problems.error(
            ProblemKind::Missing,
            "spec.clusterIP",
            "is not set, and no API server assigns one",
            "set the address that clients use, or None; the Service is not served",
        );
    }
    found.into()
}

fn ports(spec: &v1::ServiceSpec, problems: &mut Problems) -> Box<[ServicePort]> {
    let mut names = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    let mut ports = Vec::new();
    for (index, port) in spec.ports.iter().flatten().enumerate() {
        let field = |name: &str| format!("spec.ports[{index}].{name}");
        let Some(protocol) = problems.protocol(field("protocol"), port.protocol.as_deref()) else { continue };
        let Some(number) = problems.port(field("port"), port.port) else { continue };
        let name = port.name.as_deref().unwrap_or_default();
        if !names.insert((name, protocol)) {
            problems.error(
                ProblemKind::Duplicate,
                field("name"),
                format_args!("`{name}` is the name of another {protocol} port of this Service"),
                "use a different name; this port is ignored",
            );
            continue;
        }
        if !numbers.insert((number, protocol)) {
            problems.error(
                ProblemKind::Duplicate,
                field("port"),
                format_args!("{number} is the number of another {protocol} port of this Service"),
                "use a different number; this port is ignored",
            );
            continue;
        }
        let node_port = port.node_port.filter(|number| *number != 0);
        ports.push(ServicePort {
            name: name.into(),
            protocol,
            port: number,
            node_port: node_port.and_then(|number| problems.port(field("nodePort"), number)),
        });
    }
    ports.into()
}

/// Parses an address that clients can use. Reports an invalid address and returns `None` for it.
fn vip(field: &str, text: &str, problems: &mut Problems) -> Option<IpAddr> {
    let Some(ip) = parse_ip(text) else {
        problems.error(
            ProblemKind::InvalidAddress,
            field,
            format_args!("`{text}` is not an IP address"),
            "correct it; the address is ignored",
        );
        return None;
    };
    if let Some(reason) = special_address(&ip) {
        problems.error(
            ProblemKind::InvalidAddress,
            field,
            format_args!("{text} {reason}"),
            "use an address that is routed to the nodes; this one is ignored",
        );
        return None;
    }
    Some(ip)
}

/// Parses a VIP whose family the Service has. Reports one of the other family and ignores it, as
/// pkg/proxy/serviceport.go does.
fn vip_of_family(field: &str, text: &str, cluster_ips: &[IpAddr], problems: &mut Problems) -> Option<IpAddr> {
    let ip = vip(field, text, problems)?;
    let family = IpFamily::of(&ip);
    if cluster_ips.iter().all(|cluster_ip| IpFamily::of(cluster_ip) != family) {
        let name = match family {
            IpFamily::V4 => "IPv4",
            IpFamily::V6 => "IPv6",
        };
        problems.error(
            ProblemKind::WrongFamily,
            field,
            format_args!("{text} is an {name} address, but the Service has no {name} cluster address"),
            "make the Service dual-stack (spec.ipFamilyPolicy); the address is ignored",
        );
        return None;
    }
    Some(ip)
}

fn external_ips(spec: &v1::ServiceSpec, cluster_ips: &[IpAddr], problems: &mut Problems) -> Box<[IpAddr]> {
    let mut ips: Vec<_> = (spec.external_ips.iter().flatten().enumerate())
        .filter_map(|(index, text)| {
            vip_of_family(&format!("spec.externalIPs[{index}]"), text, cluster_ips, problems)
        })
        .collect();
    ips.sort_unstable();
    ips.dedup();
    ips.into()
}

fn load_balancer_ips(
    service: &v1::Service,
    cluster_ips: &[IpAddr],
    problems: &mut Problems,
) -> Box<[IpAddr]> {
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let mut ips = Vec::new();
    for (index, ingress) in balancer.iter().flat_map(|balancer| balancer.ingress.iter().flatten()).enumerate()
    {
        let field = |name: &str| format!("status.loadBalancer.ingress[{index}].{name}");
        let Some(text) = ingress.ip.as_deref().filter(|text| !text.is_empty()) else { continue };
        match ingress.ip_mode.as_deref() {
            None | Some("VIP") => ips.extend(vip_of_family(&field("ip"), text, cluster_ips, problems)),
            // The load balancer terminates or translates connections itself (KEP-1860).
            Some("Proxy") => {}
            Some(unknown) => problems.error(
                ProblemKind::UnknownValue,
                field("ipMode"),
                format_args!("`{unknown}` is not an IP mode"),
                "use VIP or Proxy; the address is ignored",
            ),
        }
    }
    ips.sort_unstable();
    ips.dedup();
    ips.into()
}

/// Returns `loadBalancerSourceRanges` per family. A range of prefix length 0 removes the
/// restriction of its family. If a range is invalid, a family without valid ranges admits no
/// source.
fn source_ranges(spec: &v1::ServiceSpec, problems: &mut Problems) -> SourceRanges {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    let mut invalid = false;
    for (index, text) in spec.load_balancer_source_ranges.iter().flatten().enumerate() {
        match parse_cidr(text) {
            Some(IpNet::V4(net)) => v4.push(net),
            Some(IpNet::V6(net)) => v6.push(net),
            None => {
                invalid = true;
                problems.error(
                    ProblemKind::InvalidCidr,
                    format_args!("spec.loadBalancerSourceRanges[{index}]"),
                    format_args!("`{text}` is not a CIDR"),
                    "use the form 192.0.2.0/24; the range admits no source",
                );
            }
        }
    }
    SourceRanges {
        v4: restriction(v4, invalid, Ipv4Net::prefix_len),
        v6: restriction(v6, invalid, Ipv6Net::prefix_len),
    }
}

fn restriction<N: Ord>(mut ranges: Vec<N>, invalid: bool, length: fn(&N) -> u8) -> Option<Box<[N]>> {
    if ranges.iter().any(|range| length(range) == 0) || (ranges.is_empty() && !invalid) {
        return None;
    }
    ranges.sort_unstable();
    ranges.dedup();
    Some(ranges.into())
}

fn affinity_seconds(spec: &v1::ServiceSpec, problems: &mut Problems) -> Option<u32> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return None,
        Some("ClientIP") => {}
        Some(unknown) => {
            problems.error(
                ProblemKind::UnknownValue,
                "spec.sessionAffinity",
                format_args!("`{unknown}` is not a session affinity"),
                "use None or ClientIP; the Service has no affinity until then",
            );
            return None;
        }
    }
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    match config.and_then(|client_ip| client_ip.timeout_seconds) {
        None => Some(AFFINITY_DEFAULT_SECONDS),
        Some(seconds @ 1..=AFFINITY_MAX_SECONDS) => Some(seconds.unsigned_abs()),
        Some(seconds) => {
            problems.error(
                ProblemKind::OutOfRange,
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
                format_args!("{seconds} is not a valid timeout"),
                format_args!(
                    "use 1 to {AFFINITY_MAX_SECONDS}; the timeout is {AFFINITY_DEFAULT_SECONDS} \
                     until then"
                ),
            );
            Some(AFFINITY_DEFAULT_SECONDS)
        }
    }
}

fn policy(field: &str, value: Option<&str>, problems: &mut Problems) -> TrafficPolicy {
    match value {
        None | Some("" | "Cluster") => TrafficPolicy::Cluster,
        Some("Local") => TrafficPolicy::Local,
        Some(unknown) => {
            problems.error(
                ProblemKind::UnknownValue,
                field,
                format_args!("`{unknown}` is not a traffic policy"),
                "use Cluster or Local; the policy is Cluster until then",
            );
            TrafficPolicy::Cluster
        }
    }
}
