//! A minimal HTTP server for short answers.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};
use tracing::debug;

/// The server closes connections on which no complete request header arrives within this time.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Number of connections at a time. One more ends the oldest one, so that idle or slow clients
/// cannot keep probes out.
const CONNECTIONS: usize = 128;

pub type HttpResponse = Response<Full<Bytes>>;

/// Answers requests by their method and path. Dropping the future closes all connections.
pub async fn serve(
    listener: TcpListener,
    answer: impl Fn(&Method, &str) -> HttpResponse + Clone + Send + 'static,
) {
    let mut connections = JoinSet::new();
    let mut by_age: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // The process has too many open files, or the client has closed the connection
                    // already. Later connections may succeed.
                    debug!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            Some(_) = connections.join_next() => {
                by_age.retain(|connection| !connection.is_finished());
                continue;
            }
        };
        if by_age.len() >= CONNECTIONS
            && let Some(oldest) = by_age.pop_front()
        {
            oldest.abort();
        }
        let answer = answer.clone();
        by_age.push_back(connections.spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let response = answer(request.method(), request.uri().path());
                std::future::ready(Ok::<_, Infallible>(response))
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(REQUEST_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                debug!(%error, "connection failed");
            }
        }));
    }
}

/// Answers GET and HEAD. Other methods are refused with 405.
pub fn read_only(method: &Method, answer: impl FnOnce() -> HttpResponse) -> HttpResponse {
    match *method {
        Method::GET | Method::HEAD => answer(),
        _ => text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n"),
    }
}

pub fn json(status: StatusCode, body: &impl Serialize) -> HttpResponse {
    match serde_json::to_vec(body) {
        Ok(body) => response(status, "application/json", body.into()),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

pub fn text(status: StatusCode, body: impl Into<Bytes>) -> HttpResponse {
    response(status, "text/plain; charset=utf-8", body.into())
}

/// The content type of OpenMetrics 1.0.0. Prometheus selects the parser by it.
pub const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Returns the metrics of a registry.
pub fn open_metrics(registry: &Registry) -> HttpResponse {
    let mut metrics = String::new();
    match encode(&mut metrics, registry) {
        Ok(()) => response(StatusCode::OK, OPEN_METRICS, metrics.into()),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

pub fn response(status: StatusCode, content_type: &'static str, body: Bytes) -> HttpResponse {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
pub mod testing {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    /// Sends a request line such as `GET /healthz`, and returns the whole answer.
    pub async fn request(address: SocketAddr, line: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn idle_clients_do_not_keep_others_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server =
            tokio::spawn(serve(listener, |_: &Method, path: &str| text(StatusCode::OK, path.to_owned())));
        let mut idle = Vec::new();
        for _ in 0..CONNECTIONS + 1 {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        assert!(super::testing::request(address, "GET /a").await.starts_with("HTTP/1.1 200 "));
        for oldest in &mut idle[..2] {
            assert_eq!(oldest.read(&mut [0; 1]).await.unwrap_or(0), 0, "the connection is closed");
        }
        server.abort();
    }

    #[tokio::test]
    async fn connections_end_with_the_server() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server =
            tokio::spawn(serve(listener, |_: &Method, path: &str| text(StatusCode::OK, path.to_owned())));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = [0; 1024];
        let length = stream.read(&mut answer).await.unwrap();
        assert!(answer[..length].starts_with(b"HTTP/1.1 200 "), "the connection is kept alive");
        server.abort();
        assert_eq!(stream.read(&mut answer).await.unwrap(), 0, "the connection is closed");
        assert!(TcpStream::connect(address).await.is_err());
    }
}
