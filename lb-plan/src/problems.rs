//! What the planner has to say of objects that are valid by themselves.

use std::net::IpAddr;

use lb_model::{EndpointSlice, ObjectName, Problem, ProblemKind, Service, ServicePort, Severity};

use super::claims::Claimant;
use super::desired::{FrontendAddress, FrontendKind};
use super::frontends::Asked;

/// The operator does not let Services claim this address.
pub(super) fn external_ip_refused(service: (&ObjectName, &Service), ip: &IpAddr) -> Problem {
    problem(
        service,
        ("spec.externalIPs".to_owned(), ProblemKind::NotAllowed),
        format!("{ip} is not among the external IPs that this cluster allows"),
        "use an allowed address, or have the operator allow it (--external-ips)",
    )
}

/// Another Service port has what this one asks for.
pub(super) fn address_taken(
    (name, service): (&ObjectName, &Service),
    (index, port): (u16, &ServicePort),
    asked: &Asked,
    owner: &Claimant,
) -> Problem {
    let field = match asked.kind {
        FrontendKind::ClusterIp => "spec.clusterIPs".to_owned(),
        FrontendKind::NodePort => format!("spec.ports[{index}].nodePort"),
        FrontendKind::ExternalIp => "spec.externalIPs".to_owned(),
        FrontendKind::LoadBalancer => "status.loadBalancer.ingress".to_owned(),
    };
    let what = match asked.address {
        FrontendAddress::Ip(ip) => format!("{ip} port {}/{}", asked.port, port.protocol),
        FrontendAddress::Node(_) => format!("node port {}/{}", asked.port, port.protocol),
    };
    let holder = if owner.service == *name {
        format!("spec.ports[{}] of the same Service", owner.port)
    } else {
        format!("Service {}", owner.service)
    };
    problem(
        (name, service),
        (field, ProblemKind::AddressTaken),
        format!("{what} is held by {holder}"),
        "choose another one; until then, or until the other gives it up, it is not served for this Service",
    )
}

/// Nothing uses the endpoints.
pub(super) fn slice_without_service(name: &ObjectName, slice: &EndpointSlice) -> Problem {
    Problem {
        severity: Severity::Note,
        location: slice.location.clone(),
        object: format!("EndpointSlice {name}").into(),
        field: "metadata.labels[kubernetes.io/service-name]".into(),
        kind: ProblemKind::NoService,
        reason: format!("there is no Service {}", slice.service).into(),
        remedy: "create it, or delete the slice; it is not used".into(),
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
