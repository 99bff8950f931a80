//! HTTP servers behind an ingress proxy, as tasks of this process.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::place::Place;

/// A server. It answers each request with its own name and the fields of the request.
#[derive(Debug)]
pub struct Backend {
    requests: Arc<AtomicU64>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Backend {
    /// Listens at an address in the network namespace of `place`. The current task must be one of a
    /// tokio runtime.
    pub fn start(place: &Place, address: SocketAddr, name: &str) -> Result<Self> {
        let listener = place
            .inside(|| std::net::TcpListener::bind(address))?
            .with_context(|| format!("listen on {address}"))?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let (stop, stopped) = watch::channel(false);
        let requests = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(serve(listener, name.into(), requests.clone(), stopped));
        Ok(Self { requests, stop, task })
    }

    /// Returns the number of requests that were received.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Closes the port. Open connections close after their requests.
    pub async fn stop(self) -> Result<()> {
        self.stop.send_replace(true);
        self.task.await.context("the server has panicked")
    }
}

async fn serve(
    listener: TcpListener,
    name: Arc<str>,
    requests: Arc<AtomicU64>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted.map(|(stream, _)| stream),
            () = stop_of(&mut stopped) => break,
        };
        if let Ok(stream) = stream {
            connections.spawn(serve_connection(stream, name.clone(), requests.clone(), stopped.clone()));
        }
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn stop_of(stopped: &mut watch::Receiver<bool>) {
    // An error means that the server was dropped.
    let _ = stopped.wait_for(|stop| *stop).await;
}

async fn serve_connection(
    stream: TcpStream,
    name: Arc<str>,
    requests: Arc<AtomicU64>,
    mut stopped: watch::Receiver<bool>,
) {
    // An error only means larger delays.
    let _ = stream.set_nodelay(true);
    let answer = service_fn(|request| {
        requests.fetch_add(1, Ordering::Relaxed);
        answer(name.clone(), request)
    });
    let mut connection = pin!(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
    // An error of a connection ends this connection only.
    tokio::select! {
        result = connection.as_mut() => drop(result),
        () = stop_of(&mut stopped) => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

async fn answer(name: Arc<str>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    // A body that ends early is no concern of the answer.
    let length = body.collect().await.map_or(0, |body| body.to_bytes().len());
    let mut text = format!("{name}\n{} {}\nbody: {length}\n", parts.method, parts.uri);
    for (field, value) in &parts.headers {
        text.push_str(&format!("{field}: {}\n", String::from_utf8_lossy(value.as_bytes())));
    }
    Ok(Response::new(Full::new(text.into())))
}
