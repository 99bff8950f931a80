//! Fields of a Service that do not go together. An API server refuses them (`ValidateService` in
//! pkg/apis/core/validation/validation.go); a manifest folder has none to do so, and each is served as kube-proxy, which looks
//! at the fields and not at the type, would serve it.

use k8s_openapi::api::core::v1;
use lb_model::{ProblemKind, Service, TrafficPolicy};

use super::problems::Problems;

/// Reports what does not go together in a Service that became `converted`.
pub(super) fn report(service: &v1::ServiceSpec, converted: &Service, problems: &mut Problems) {
    let mut tell = |field: &str, reason: String, remedy: &str| {
        problems.error(ProblemKind::Contradiction, field, reason, remedy);
    };
    let load_balancer = service.type_.as_deref() == Some("LoadBalancer");
    let plain = matches!(service.type_.as_deref(), None | Some("" | "ClusterIP"));
    let type_is = || format!("spec.type is {}", service.type_.as_deref().unwrap_or("ClusterIP"));

    if plain {
        for (index, port) in service.ports.iter().flatten().enumerate() {
            if port.node_port.is_some_and(|port| port != 0) {
                tell(
                    &format!("spec.ports[{index}].nodePort"),
                    format!("is set, but {}", type_is()),
                    "use type NodePort or LoadBalancer, or take it out; it is served",
                );
            }
        }
    }
    if plain
        && service.external_traffic_policy.as_deref() == Some("Local")
        && converted.external_ips.is_empty()
    {
        tell(
            "spec.externalTrafficPolicy",
            "is Local, but the Service has no external address".to_owned(),
            "use type NodePort or LoadBalancer, or take it out; it has no effect",
        );
    }
    if !load_balancer && service.load_balancer_source_ranges.as_ref().is_some_and(|ranges| !ranges.is_empty())
    {
        tell(
            "spec.loadBalancerSourceRanges",
            format!("are set, but {}", type_is()),
            "use type LoadBalancer, or take them out; they restrict nothing but load-balancer addresses",
        );
    }
    if service.health_check_node_port.is_some_and(|port| port != 0)
        && !(load_balancer && converted.external_policy == TrafficPolicy::Local)
    {
        tell(
            "spec.healthCheckNodePort",
            "is set, but the Service is not a LoadBalancer with externalTrafficPolicy Local".to_owned(),
            "make it one, or take the port out; it is not opened",
        );
    }
    if service.session_affinity_config.as_ref().is_some_and(|config| config.client_ip.is_some())
        && matches!(service.session_affinity.as_deref(), None | Some("" | "None"))
    {
        tell(
            "spec.sessionAffinityConfig",
            "is set, but spec.sessionAffinity is None".to_owned(),
            "use sessionAffinity ClientIP, or take it out; there is no affinity",
        );
    }
    if let (Some(one), Some(first)) = (
        service.cluster_ip.as_deref().filter(|ip| !ip.is_empty()),
        service.cluster_ips.iter().flatten().next(),
    ) && one != first
    {
        tell(
            "spec.clusterIP",
            format!("is {one}, but spec.clusterIPs[0] is {first}"),
            "write the same address in both; spec.clusterIPs is served",
        );
    }
}
