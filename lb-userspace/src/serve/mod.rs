//! The HTTP server for probes and load balancers: `/healthz` and `/livez`.

mod health;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::debug;

pub use health::{Pending, Progress, Report, State};

/// A client that sends no complete request within this time is hung up on.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
#[error(
    "cannot serve /healthz at {address}: {source}; end what uses the port (kube-proxy has the same default) or choose another address with --health-bind"
)]
pub struct BindError {
    address: SocketAddr,
    source: std::io::Error,
}

/// Opens the port. Nothing is answered before [`serve`] runs.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| BindError { address, source })
}

/// Answers requests until the task is dropped.
pub async fn serve(listener: TcpListener, state: watch::Receiver<State>) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, or a client that is gone already: others may have more luck a little later.
                debug!(%error, "cannot accept a connection to the health server");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let state = state.clone();
        tokio::spawn(async move {
            let answer = service_fn(|request| {
                let response = respond(&request, &state.borrow());
                std::future::ready(Ok::<_, Infallible>(response))
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(REQUEST_TIMEOUT)
                .serve_connection(TokioIo::new(stream), answer);
            if let Err(error) = connection.await {
                debug!(%error, "a connection to the health server broke");
            }
        });
    }
}

fn respond(request: &Request<Incoming>, state: &State) -> Response<Full<Bytes>> {
    let (now, wall_clock) = (Instant::now(), SystemTime::now());
    match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/healthz") => json(&state.healthz(now, wall_clock)),
        (&Method::GET | &Method::HEAD, "/livez") => json(&state.livez(now, wall_clock)),
        (&Method::GET | &Method::HEAD, _) => text(StatusCode::NOT_FOUND, "try /healthz or /livez\n"),
        _ => text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n"),
    }
}

fn json(report: &Report) -> Response<Full<Bytes>> {
    match serde_json::to_vec(report) {
        Ok(body) => response(report.status(), "application/json", body.into()),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    response(status, "text/plain; charset=utf-8", body.into())
}

fn response(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn get(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn probes_are_answered_over_http() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (state, receiver) = watch::channel(State::starting("waiting for Services"));
        let server = tokio::spawn(serve(listener, receiver));

        let starting = get(address, "GET /healthz").await;
        assert!(starting.starts_with("HTTP/1.1 503 "), "{starting}");
        assert!(starting.contains("content-type: application/json"), "{starting}");
        assert!(starting.contains("\"reason\":\"waiting for Services\""), "{starting}");
        assert!(get(address, "GET /livez?verbose").await.starts_with("HTTP/1.1 200 "));

        state.send_modify(|state| state.progress = Progress::Serving);
        assert!(get(address, "GET /healthz").await.starts_with("HTTP/1.1 200 "));
        assert!(get(address, "HEAD /healthz").await.ends_with("\r\n\r\n"));
        assert!(get(address, "GET /other").await.starts_with("HTTP/1.1 404 "));
        assert!(get(address, "POST /healthz").await.starts_with("HTTP/1.1 405 "));
        server.abort();
    }

    #[tokio::test]
    async fn a_port_in_use_is_named_with_the_remedy() {
        let first = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = first.local_addr().unwrap();
        let error = bind(address).await.unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && error.contains("--health-bind"), "{error}");
    }
}
