//! Reports an API server whose address only this agent serves.
//!
//! Such an address works as long as the programs are in the kernel. After a reboot of the node
//! nothing serves it, so the agent cannot read the Services, and the address stays unserved.

use std::net::IpAddr;

use lb_model::{Problem, ProblemKind, Severity};
use lb_plan::Planner;

/// Returns the problem if all API servers have the ClusterIP of a Service. With rules of kube-proxy
/// the node can reach them without this agent.
pub fn problem(servers: &[IpAddr], planner: &Planner, without_kube_proxy: bool) -> Option<Problem> {
    let (first, rest) = servers.split_first()?;
    let service = planner.service_with_cluster_ip(*first)?;
    let all = rest.iter().all(|server| planner.service_with_cluster_ip(*server).is_some());
    (without_kube_proxy && all).then(|| Problem {
        severity: Severity::Error,
        location: None,
        object: format!("Service {service}").into(),
        field: "".into(),
        kind: ProblemKind::ApiServerIsService,
        reason: format!("the agents reach the API server at its ClusterIP {first}, which only they serve")
            .into(),
        remedy: "set --api-server to addresses that need no Service (control-plane nodes, or a load \
                 balancer in front of them), or nodes cannot reach the API server after a reboot"
            .into(),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use lb_model::SourceEvent;
    use lb_objects::convert;
    use lb_plan::PlannerSettings;
    use serde_json::json;

    use super::*;

    #[test]
    fn an_api_server_behind_a_service_is_a_problem_without_kube_proxy() {
        let object = serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": "kubernetes"},
            "spec": {
                "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"],
                "ports": [{"port": 443}],
            },
        }))
        .unwrap();
        let converted = convert::service(&object);
        let mut planner = Planner::new(PlannerSettings::default());
        planner.update([SourceEvent::Service(converted.name, converted.value.map(Arc::new))]);
        let found = |servers: &[&str], without_kube_proxy| {
            let servers: Vec<IpAddr> = servers.iter().map(|server| server.parse().unwrap()).collect();
            problem(&servers, &planner, without_kube_proxy)
        };
        let text = found(&["10.96.0.1"], true).unwrap().to_string();
        assert_eq!(
            text,
            "Service default/kubernetes: the agents reach the API server at its ClusterIP 10.96.0.1, \
             which only they serve: set --api-server to addresses that need no Service (control-plane \
             nodes, or a load balancer in front of them), or nodes cannot reach the API server after a \
             reboot"
        );
        assert!(found(&["fd00::1", "10.96.0.1"], true).is_some());
        assert_eq!(found(&["10.96.0.1"], false), None, "kube-proxy serves it, too");
        assert_eq!(found(&["10.96.0.1", "192.0.2.10"], true), None, "the second one needs no Service");
        assert_eq!(found(&["192.0.2.10"], true), None);
        assert_eq!(found(&[], true), None);
    }
}
