//! Sends requests to one of several API servers, and to the next one after a failure.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{Method, Request, Response, StatusCode, Uri};
use kube::Client;
use kube::client::Body;
use tower::{BoxError, Service};
use tracing::warn;

use super::watch::with_causes;

/// The addresses of the API servers, and the one in use. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Servers {
    urls: Arc<[Uri]>,
    current: Arc<AtomicUsize>,
}

/// The API server that sent a response: an extension of the response.
#[derive(Debug, Clone, Copy)]
pub(super) struct SentBy(usize);

impl Servers {
    pub fn new(urls: Vec<Uri>) -> Self {
        Self { urls: urls.into(), current: Arc::default() }
    }

    /// Returns the API server to which the next request is sent.
    pub fn current(&self) -> SentBy {
        SentBy(self.current.load(Ordering::Relaxed))
    }

    /// Records that an API server failed. The next request is sent to the one after it, unless
    /// another request has failed there before.
    pub fn failed(&self, server: SentBy, reason: &dyn std::fmt::Display) {
        let next = (server.0 + 1) % self.urls.len().max(1);
        let (Some(from), Some(to)) = (self.urls.get(server.0), self.urls.get(next)) else { return };
        let changed = self.current.compare_exchange(server.0, next, Ordering::Relaxed, Ordering::Relaxed);
        if changed.is_ok() && next != server.0 {
            warn!("the API server {from} failed, using {to}: {reason}");
        }
    }
}

/// A client for several API servers of one cluster.
#[derive(Clone)]
pub(super) struct Failover {
    pub clients: Arc<[Client]>,
    pub servers: Servers,
}

impl Service<Request<Body>> for Failover {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<Body>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        // Whether a client is ready is known when it is chosen.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Self { clients, servers } = self.clone();
        async move {
            // A request without a body can be repeated at once. The sender repeats others.
            let attempts = if request.method() == Method::GET { clients.len() } else { 1 };
            let (parts, body) = request.into_parts();
            let mut body = Some(body);
            let mut attempt = 1;
            loop {
                let server = servers.current();
                let Some(client) = clients.get(server.0) else {
                    return Err("no API server is configured".into());
                };
                let request = Request::from_parts(parts.clone(), body.take().unwrap_or_else(Body::empty));
                match client.send(request).await {
                    Ok(mut response) => {
                        if is_gateway_error(response.status()) {
                            servers.failed(server, &response.status());
                        }
                        response.extensions_mut().insert(server);
                        return Ok(response);
                    }
                    Err(error) => {
                        servers.failed(server, &with_causes(&error));
                        if attempt >= attempts {
                            return Err(error.into());
                        }
                        attempt += 1;
                    }
                }
            }
        }
        .boxed()
    }
}

/// Returns whether the API server or a load balancer before it cannot serve requests now.
fn is_gateway_error(status: StatusCode) -> bool {
    matches!(status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT)
}
