//! Reports fields of a Service that contradict each other.
//!
//! An API server refuses such a Service (`ValidateService` in
//! pkg/apis/core/validation/validation.go), but a manifest folder can contain one. It is served as
//! kube-proxy would serve it: kube-proxy evaluates the fields and ignores the type.

use k8s_openapi::api::core::v1;
use lb_model::{ProblemKind, Problems, Service, TrafficPolicy};

/// Reports the contradictions in a Service spec whose conversion is `converted`.
pub(super) fn report(service: &v1::ServiceSpec, converted: &Service, problems: &mut Problems) {
    let mut report = |field: &str, reason: String, remedy: &str| {
        problems.error(ProblemKind::Contradiction, field, reason, remedy);
    };
    let load_balancer = service.type_.as_deref() == Some("LoadBalancer");
    let plain = matches!(service.type_.as_deref(), None | Some("" | "ClusterIP"));
    let type_is = || format!("spec.type is {}", service.type_.as_deref().unwrap_or("ClusterIP"));

    if plain {
        for (index, port) in service.ports.iter().flatten().enumerate() {
            if port.node_port.is_some_and(|port| port != 0) {
                report(
                    &format!("spec.ports[{index}].nodePort"),
                    format!("is set, but {}", type_is()),
                    "use type NodePort or LoadBalancer, or remove the field; the nodePort is \
                     served",
                );
            }
        }
    }
    if plain
        && service.external_traffic_policy.as_deref() == Some("Local")
        && converted.external_ips.is_empty()
    {
        report(
            "spec.externalTrafficPolicy",
            "is Local, but the Service has no external address".to_owned(),
            "use type NodePort or LoadBalancer, or remove the field; it has no effect",
        );
    }
    if !load_balancer && service.load_balancer_source_ranges.as_ref().is_some_and(|ranges| !ranges.is_empty())
    {
        report(
            "spec.loadBalancerSourceRanges",
            format!("is set, but {}", type_is()),
            "use type LoadBalancer, or remove the field; it restricts load balancer addresses only",
        );
    }
    if service.health_check_node_port.is_some_and(|port| port != 0)
        && !(load_balancer && converted.external_policy == TrafficPolicy::Local)
    {
        report(
            "spec.healthCheckNodePort",
            "is set, but the Service is not a LoadBalancer with externalTrafficPolicy \
             Local"
                .to_owned(),
            "change the Service, or remove the field; the port is not opened",
        );
    }
    if service.session_affinity_config.as_ref().is_some_and(|config| config.client_ip.is_some())
        && matches!(service.session_affinity.as_deref(), None | Some("" | "None"))
    {
        report(
            "spec.sessionAffinityConfig",
            "is set, but spec.sessionAffinity is None".to_owned(),
            "use sessionAffinity ClientIP, or remove the field; the Service has no affinity",
        );
    }
    if let (Some(one), Some(first)) = (
        service.cluster_ip.as_deref().filter(|ip| !ip.is_empty()),
        service.cluster_ips.iter().flatten().next(),
    ) && one != first
    {
        report(
            "spec.clusterIP",
            format!("is {one}, but spec.clusterIPs[0] is {first}"),
            "write the same address into both fields; spec.clusterIPs is served",
        );
    }
}
