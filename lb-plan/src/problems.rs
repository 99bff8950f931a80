//! The problems of objects that are valid individually but conflict with others or with the
//! settings.

use std::net::IpAddr;

use lb_model::{EndpointSlice, ObjectName, Problem, ProblemKind, Service, ServicePort, Severity};

use super::claims::Claimant;
use super::desired::{FrontendAddress, FrontendKind};
use super::frontends::RequestedAddress;

/// The settings do not allow Services to claim this external IP.
pub(super) fn external_ip_refused(service: (&ObjectName, &Service), ip: &IpAddr) -> Problem {
    problem(
        service,
        ("spec.externalIPs".to_owned(), ProblemKind::NotAllowed),
        format!("{ip} is not an allowed external IP"),
        "use an allowed address, or ask the operator to allow this one (--external-ips)",
    )
}

/// Another Service port owns an address that this one requests.
pub(super) fn address_taken(
    (name, service): (&ObjectName, &Service),
    (index, port): (u16, &ServicePort),
    request: &RequestedAddress,
    owner: &Claimant,
) -> Problem {
    let field = match request.kind {
        FrontendKind::ClusterIp => "spec.clusterIPs".to_owned(),
        FrontendKind::NodePort => format!("spec.ports[{index}].nodePort"),
        FrontendKind::ExternalIp => "spec.externalIPs".to_owned(),
        FrontendKind::LoadBalancer => "status.loadBalancer.ingress".to_owned(),
    };
    let address = match request.address {
        FrontendAddress::Ip(ip) => format!("{ip} port {}/{}", request.port, port.protocol),
        FrontendAddress::Node(_) => format!("node port {}/{}", request.port, port.protocol),
    };
    let owner = if owner.service == *name {
        format!("spec.ports[{}] of the same Service", owner.port)
    } else {
        format!("Service {}", owner.service)
    };
    problem(
        (name, service),
        (field, ProblemKind::AddressTaken),
        format!("{address} belongs to {owner}"),
        "choose another one; this Service serves it as soon as the owner releases it",
    )
}

/// The Service of an EndpointSlice does not exist.
pub(super) fn slice_without_service(name: &ObjectName, slice: &EndpointSlice) -> Problem {
    Problem {
        severity: Severity::Note,
        location: slice.location.clone(),
        object: format!("EndpointSlice {name}").into(),
        field: "metadata.labels[kubernetes.io/service-name]".into(),
        kind: ProblemKind::NoService,
        reason: format!("Service {} does not exist", slice.service).into(),
        remedy: "create the Service, or delete the slice; the slice is not used".into(),
    }
}

fn problem(
    (name, service): (&ObjectName, &Service),
    (field, kind): (String, ProblemKind),
    reason: String,
    remedy: &str,
) -> Problem {
    Problem {
        severity: Severity::Error,
        location: service.location.clone(),
        object: format!("Service {name}").into(),
        field: field.into(),
        kind,
        reason: reason.into(),
        remedy: remedy.into(),
    }
}
