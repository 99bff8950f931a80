//! The server of `/readyz`, `/healthz` and `/metrics` of `lb ingress`.

use std::sync::Arc;

use hyper::{Method, StatusCode};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::http::{self, HttpResponse};
use super::process::ProcessMetrics;

/// Adds the metrics of the process to those of the proxy.
pub fn ingress_registry(mut registry: Registry) -> Arc<Registry> {
    registry.register_collector(Box::new(ProcessMetrics));
    Arc::new(registry)
}

/// Answers requests until the future is dropped. `ready` is true while the proxy serves routes and
/// does not drain.
pub async fn serve_ingress_probes(
    listener: TcpListener,
    registry: Arc<Registry>,
    ready: watch::Receiver<bool>,
) {
    http::serve(listener, move |method: &Method, path: &str| {
        http::read_only(method, || respond(path, &registry, *ready.borrow()))
    })
    .await;
}

fn respond(path: &str, registry: &Registry, ready: bool) -> HttpResponse {
    match path {
        "/readyz" if ready => http::text(StatusCode::OK, "ready\n"),
        "/readyz" => http::text(StatusCode::SERVICE_UNAVAILABLE, "not ready: no routes yet, or stopping\n"),
        "/healthz" | "/livez" => http::text(StatusCode::OK, "ok\n"),
        "/metrics" => http::open_metrics(registry),
        _ => http::text(StatusCode::NOT_FOUND, "try /readyz, /healthz or /metrics\n"),
    }
}
