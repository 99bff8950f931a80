//! The server of `/healthz` and `/livez`, for load balancers and the kubelet.

use std::time::{Instant, SystemTime};

use hyper::{Method, StatusCode};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::health::AgentState;
use super::http::{self, HttpResponse};

/// Answers requests until the task is dropped.
pub async fn serve_probes(listener: TcpListener, state: watch::Receiver<AgentState>) {
    http::serve(listener, move |method: &Method, path: &str| respond(method, path, &state.borrow())).await;
}

fn respond(method: &Method, path: &str, state: &AgentState) -> HttpResponse {
    let (now, wall_clock) = (Instant::now(), SystemTime::now());
    http::read_only(method, || {
        let report = match path {
            "/healthz" => state.healthz(now, wall_clock),
            "/livez" => state.livez(now, wall_clock),
            _ => return http::text(StatusCode::NOT_FOUND, "try /healthz or /livez\n"),
        };
        http::json(report.status(), &report)
    })
}

#[cfg(test)]
mod tests {
    use super::super::health::Progress;
    use super::super::http::testing::request;
    use super::super::{AgentPort, bind};
    use super::*;

    #[tokio::test]
    async fn probes_are_answered_over_http() {
        let listener = bind(AgentPort::Health, "127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (state, receiver) = watch::channel(AgentState::starting("waiting for Services"));
        let server = tokio::spawn(serve_probes(listener, receiver));

        let starting = request(address, "GET /healthz").await;
        assert!(starting.starts_with("HTTP/1.1 503 "), "{starting}");
        assert!(starting.contains("content-type: application/json"), "{starting}");
        assert!(starting.contains("\"reason\":\"waiting for Services\""), "{starting}");
        assert!(request(address, "GET /livez?verbose").await.starts_with("HTTP/1.1 200 "));

        state.send_modify(|state| state.progress = Progress::Serving);
        assert!(request(address, "GET /healthz").await.starts_with("HTTP/1.1 200 "));
        assert!(request(address, "HEAD /healthz").await.ends_with("\r\n\r\n"));
        assert!(request(address, "GET /other").await.starts_with("HTTP/1.1 404 "));
        assert!(request(address, "POST /healthz").await.starts_with("HTTP/1.1 405 "));
        server.abort();
    }
}
