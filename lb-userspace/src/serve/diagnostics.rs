//! The server of `/metrics`, `/configz` and `/proxyMode`, with the paths of kube-proxy.

use std::sync::Arc;

use hyper::{Method, StatusCode};
use prometheus_client::registry::Registry;
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::http::{self, HttpResponse};
use super::metrics::Metrics;
use super::process::ProcessMetrics;

/// Answers requests until the future is dropped. `configuration` are the settings in force.
pub async fn serve_diagnostics(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    configuration: watch::Receiver<Map<String, Value>>,
) {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(metrics));
    registry.register_collector(Box::new(ProcessMetrics));
    let answers = Arc::new((registry, configuration));
    http::serve(listener, move |method: &Method, path: &str| {
        let (registry, configuration) = &*answers;
        http::read_only(method, || respond(path, registry, configuration))
    })
    .await;
}

fn respond(path: &str, registry: &Registry, settings: &watch::Receiver<Map<String, Value>>) -> HttpResponse {
    match path {
        "/metrics" => http::open_metrics(registry),
        "/configz" => http::json(StatusCode::OK, &json!({ "sluice": *settings.borrow() })),
        // kube-proxy answers `iptables` or `nftables` here.
        "/proxyMode" => http::text(StatusCode::OK, "sluice"),
        _ => http::text(StatusCode::NOT_FOUND, "try /metrics, /configz or /proxyMode\n"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use lb_common::load::Connections;
    use lb_common::reason::Reason;
    use lb_datapath::apply::MapUsage;
    use lb_datapath::{DriftKind, EndpointShortage, ServiceLoad};
    use lb_model::{IpFamily, ObjectName, Problem, ProblemKind, Protocol, Severity, SourceEvent, Trigger};
    use lb_plan::desired::ServicePortId;
    use prometheus_client::encoding::text::encode;

    use super::super::http::testing::request;
    use super::super::{AgentPort, KernelCounts, MapMemory, bind};
    use super::*;
    use crate::testing::assert_golden;

    fn problem(severity: Severity, object: &str, kind: ProblemKind) -> Problem {
        Problem {
            severity,
            location: None,
            object: object.into(),
            field: "".into(),
            kind,
            reason: "".into(),
            remedy: "".into(),
        }
    }

    /// Metrics as after a few minutes of work.
    fn example() -> Metrics {
        let shortage = |port_name: &str, endpoint: &str, packets| EndpointShortage {
            service: ServicePortId {
                namespace: "default".into(),
                name: "web".into(),
                port_name: port_name.into(),
                protocol: Protocol::Tcp,
            },
            port: 80,
            endpoint: endpoint.parse().unwrap(),
            backend_id: 1,
            packets,
            last_ns: 0,
        };
        let counts = KernelCounts {
            packets: vec![(Reason::Delivered, 1200), (Reason::SourceRange, 3), (Reason::NoSourcePort, 9)],
            port_shortages: vec![
                shortage("http", "10.244.2.2:8080", 7),
                shortage("", "[fd00:10:244:2::2]:8080", 2),
            ],
            service_loads: vec![ServiceLoad {
                service: shortage("http", "10.244.2.2:8080", 0).service,
                port: 80,
                connections: Connections { active: 12, inactive: 5 },
                draining: Connections { active: 2, inactive: 0 },
            }],
        };
        let metrics = Metrics::new(Box::new(move || Ok(counts.clone())));
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_millis(seconds);
        let name = |name| ObjectName::new("default", name);
        metrics.received(&[
            SourceEvent::Service(name("web"), None),
            SourceEvent::EndpointSlice(name("web-1"), None),
            SourceEvent::EndpointSlice(name("web-2"), None),
            SourceEvent::Node(None),
        ]);
        metrics.synced(Duration::from_micros(1500), at(1_700_000_000_500));
        metrics.programmed(Trigger { family: IpFamily::V6, at: at(1000) }, at(1700));
        metrics.programmed(Trigger { family: IpFamily::V6, at: at(1000) }, at(900));
        let taken = problem(Severity::Error, "Service default/web", ProblemKind::AddressTaken);
        metrics.raised(&taken);
        metrics.raised(&taken);
        metrics.resolved(&taken);
        metrics.raised(&problem(Severity::Note, "EndpointSlice default/a", ProblemKind::NoService));
        metrics.raised(&problem(Severity::Error, "/etc/sluice/web.yaml", ProblemKind::Unreadable));
        metrics.set_served(
            2,
            5,
            vec![MapUsage { map: "SLOTS", entries: 10, capacity: 1024, option: "max-map-memory" }],
        );
        metrics.set_map_memory(MapMemory { bytes: 300 << 20, most: 1 << 30 });
        metrics.grown();
        metrics.set_flows(8, 2);
        metrics.set_networks_by_kernel(1);
        metrics.repaired(DriftKind::Tc);
        metrics.set_watches(vec![("services", Duration::from_secs(61))]);
        metrics
    }

    #[test]
    fn metrics_are_written_as_open_metrics() {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(example()));
        let answer = respond("/metrics", &registry, &watch::channel(Map::new()).1);
        assert_eq!(answer.headers()["content-type"], http::OPEN_METRICS);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        assert_golden("metrics.txt", &text);
    }

    #[tokio::test]
    async fn diagnostics_are_answered_over_http() {
        let listener = bind(AgentPort::Metrics, "127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, in_force) = watch::channel(Map::from_iter([("mode".to_owned(), "xdp".into())]));
        let server = tokio::spawn(serve_diagnostics(listener, Arc::new(example()), in_force));
        let metrics = request(address, "GET /metrics").await;
        assert!(metrics.starts_with("HTTP/1.1 200 ") && metrics.ends_with("# EOF\n"), "{metrics}");
        assert!(metrics.contains("sluice_packets_total{outcome=\"dropped\",reason=\"source_range\"} 3\n"));
        assert!(metrics.contains("\nprocess_resident_memory_bytes "), "{metrics}");
        sender.send_modify(|settings| drop(settings.insert("mode".to_owned(), "tc".into())));
        assert!(request(address, "GET /configz").await.ends_with("\r\n{\"sluice\":{\"mode\":\"tc\"}}"));
        assert!(request(address, "GET /proxyMode").await.ends_with("\r\nsluice"));
        assert!(request(address, "GET /").await.starts_with("HTTP/1.1 404 "));
        assert!(request(address, "DELETE /metrics").await.starts_with("HTTP/1.1 405 "));
        server.abort();
    }
}
