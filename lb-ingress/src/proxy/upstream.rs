//! Connections to endpoints.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tracing::debug;

use super::request_body::{Progress, RequestBody};
use crate::routes::policy::{BackendProtocol, Timeouts};
use crate::tls::{BackendConfig, noting_requests};

/// An idle connection is not used after this time: many servers close theirs after 60 s.
const IDLE: Duration = Duration::from_secs(55);
/// Idle HTTP/1 connections of one endpoint.
const MAX_IDLE: usize = 128;
/// HTTP/2 connections of one endpoint that further requests can use. They differ in their settings
/// or in the server name, which can be the host of the request.
const MAX_SHARED: usize = 64;

type Http1 = http1::SendRequest<RequestBody>;
type Http2 = http2::SendRequest<RequestBody>;

/// The properties in which connections to one endpoint differ. A request can use any connection
/// with the properties that it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    pub protocol: BackendProtocol,
    /// For the protocols with TLS.
    pub tls: Option<WayTls>,
}

/// TLS towards an endpoint.
#[derive(Debug, Clone)]
pub struct WayTls {
    pub config: Arc<BackendConfig>,
    /// The name that the endpoint's certificate must have if it is verified, and the server name
    /// (SNI) if it is sent.
    pub name: Option<Box<str>>,
}

impl PartialEq for WayTls {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.config, &other.config) && self.name == other.name
    }
}

impl Eq for WayTls {}

impl Way {
    /// Returns whether the Secret of the settings has changed since.
    fn is_retired(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.config.is_retired())
    }
}

/// The connections of one endpoint. They close when the endpoint is dropped. A connection that is
/// in neither list ends with its last request.
#[derive(Debug, Default)]
pub struct Connections {
    idle: Mutex<Vec<(Way, Http1, Instant)>>,
    /// The most recently used one is the last. One for each way.
    shared: Mutex<Vec<(Way, Http2, Doubt)>>,
}

/// An HTTP/1 connection with a request under way.
#[derive(Debug)]
pub struct Lease {
    way: Way,
    sender: Http1,
}

/// The endpoint has requested a certificate of the proxy, and has not sent a response. In TLS 1.3
/// it may still refuse the certificate, or that there is none.
#[derive(Debug, Clone)]
struct Doubt(Arc<AtomicBool>);

impl Doubt {
    /// The endpoint has sent a response.
    fn end(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Returns the error of a request that the end of the connection left without a response.
    fn broken(&self, error: &hyper::Error, unsent: Option<Request<RequestBody>>) -> SendError {
        let mut error = broken(error, unsent);
        if self.0.load(Ordering::Relaxed) {
            error.kind = SendErrorKind::Tls;
            let reason = "the endpoint has requested a certificate, and may have refused it";
            error.reason = format!("{}; {reason}", error.reason).into();
        }
        error
    }
}

/// The reason why a request has no response.
#[derive(Debug)]
pub struct SendError {
    pub kind: SendErrorKind,
    pub reason: Box<str>,
    /// The request, if no byte of it was sent.
    pub unsent: Option<Request<RequestBody>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendErrorKind {
    Connect,
    ConnectTimeout,
    /// The endpoint and the settings of the Ingress do not agree on TLS: the one does not admit the
    /// certificate of the other, or they have no protocol in common.
    Tls,
    Timeout,
    Broken,
}

impl Connections {
    /// Sends a request and returns the response with the connection that it came by.
    pub async fn send(
        &self,
        address: SocketAddr,
        way: &Way,
        timeouts: &Timeouts,
        request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, Option<Lease>), SendError> {
        if way.protocol.is_http2() {
            return Box::pin(self.send_http2(address, way, timeouts, request)).await;
        }
        let mut request = request;
        loop {
            let (mut sender, doubt) = match self.take_idle(way).await {
                Some(sender) => (sender, None),
                // Boxed: hyper moves the future of a request, and few requests open a connection.
                None => match Box::pin(connect_http1(address, way, timeouts.connect)).await {
                    Ok((sender, doubt)) => (sender, Some(doubt)),
                    Err(error) => return Err(connect_error(&error, request)),
                },
            };
            let progress = request.body().progress();
            let response = sender.try_send_request(request);
            match wait(response, timeouts.read, &progress).await {
                None => return Err(timeout_error()),
                Some(Ok(response)) => {
                    return Ok((response, Some(Lease { way: way.clone(), sender })));
                }
                Some(Err(mut error)) => match (error.take_message(), doubt) {
                    // The endpoint closed an idle connection. Nothing was sent.
                    (Some(unsent), None) => request = unsent,
                    (unsent, None) => return Err(broken(error.error(), unsent)),
                    (unsent, Some(doubt)) => return Err(doubt.broken(error.error(), unsent)),
                },
            }
        }
    }

    async fn send_http2(
        &self,
        address: SocketAddr,
        way: &Way,
        timeouts: &Timeouts,
        request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, Option<Lease>), SendError> {
        let mut request = request;
        loop {
            let shared = self.shared(way);
            let reused = shared.is_some();
            let (mut sender, doubt) = match shared {
                Some(shared) => shared,
                None => match connect_http2(address, way, timeouts.connect).await {
                    Ok((sender, doubt)) => {
                        self.share(way, &sender, &doubt);
                        (sender, doubt)
                    }
                    Err(error) => return Err(connect_error(&error, request)),
                },
            };
            let progress = request.body().progress();
            let response = sender.try_send_request(request);
            match wait(response, timeouts.read, &progress).await {
                None => return Err(timeout_error()),
                Some(Ok(response)) => {
                    doubt.end();
                    return Ok((response, None));
                }
                Some(Err(mut error)) => match error.take_message() {
                    Some(unsent) if reused => request = unsent,
                    unsent => return Err(doubt.broken(error.error(), unsent)),
                },
            }
        }
    }

    /// Removes the connections whose Secret has changed.
    pub fn end_retired(&self) {
        self.lock_idle().retain(|(way, ..)| !way.is_retired());
        self.lock_shared().retain(|(way, ..)| !way.is_retired());
    }

    fn lock_idle(&self) -> MutexGuard<'_, Vec<(Way, Http1, Instant)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_shared(&self) -> MutexGuard<'_, Vec<(Way, Http2, Doubt)>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the connection for further requests of this way.
    fn shared(&self, way: &Way) -> Option<(Http2, Doubt)> {
        let mut shared = self.lock_shared();
        shared.retain(|(_, sender, _)| !sender.is_closed());
        let found = shared.iter().rposition(|(other, ..)| other == way)?;
        shared[found..].rotate_left(1);
        shared.last().map(|(_, sender, doubt)| (sender.clone(), doubt.clone()))
    }

    /// Makes a connection the one for further requests of this way.
    fn share(&self, way: &Way, sender: &Http2, doubt: &Doubt) {
        let mut shared = self.lock_shared();
        shared.retain(|(other, sender, _)| other != way && !sender.is_closed());
        // With the lock: `end_retired` comes later, or its reason is seen here.
        if way.is_retired() {
            return;
        }
        if shared.len() >= MAX_SHARED {
            shared.remove(0);
        }
        shared.push((way.clone(), sender.clone(), doubt.clone()));
    }

    async fn take_idle(&self, way: &Way) -> Option<Http1> {
        loop {
            let mut sender = {
                let mut idle = self.lock_idle();
                let found = idle.iter().rposition(|(other, ..)| other == way)?;
                let (_, sender, since) = idle.swap_remove(found);
                if sender.is_closed() || since.elapsed() > IDLE {
                    continue;
                }
                sender
            };
            // The engine may still have to notice the end of the last response.
            if sender.is_ready() || sender.ready().await.is_ok() {
                return Some(sender);
            }
        }
    }

    /// Takes back a connection whose response has ended.
    pub fn give_back(&self, Lease { way, sender }: Lease) {
        let mut idle = self.lock_idle();
        if idle.len() >= MAX_IDLE {
            // Some may have a server name or settings that no request needs any more.
            idle.retain(|(_, sender, since)| !sender.is_closed() && since.elapsed() <= IDLE);
        }
        if !sender.is_closed() && !way.is_retired() && idle.len() < MAX_IDLE {
            idle.push((way, sender, Instant::now()));
        }
    }
}

/// Waits for a response. The time begins again with each byte of the request's body.
async fn wait<T>(response: impl Future<Output = T>, read: Duration, progress: &Progress) -> Option<T> {
    let mut response = std::pin::pin!(response);
    loop {
        let before = progress.bytes.load(Ordering::Relaxed);
        match timeout(read, response.as_mut()).await {
            Ok(response) => return Some(response),
            Err(_) if progress.bytes.load(Ordering::Relaxed) == before => return None,
            Err(_) => {}
        }
    }
}

fn connect_error(error: &io::Error, request: Request<RequestBody>) -> SendError {
    let kind = match error.kind() {
        io::ErrorKind::TimedOut => SendErrorKind::ConnectTimeout,
        _ => match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            // The endpoint has answered, perhaps with an alert, or not in TLS.
            Some(_) => SendErrorKind::Tls,
            None => SendErrorKind::Connect,
        },
    };
    SendError { kind, reason: format!("cannot connect: {error}").into(), unsent: Some(request) }
}

fn timeout_error() -> SendError {
    let reason = "no response in time".into();
    SendError { kind: SendErrorKind::Timeout, reason, unsent: None }
}

fn broken(error: &hyper::Error, unsent: Option<Request<RequestBody>>) -> SendError {
    let mut reason = error.to_string();
    if let Some(cause) = std::error::Error::source(error) {
        reason = format!("{reason}: {cause}");
    }
    SendError { kind: SendErrorKind::Broken, reason: reason.into(), unsent }
}

/// Opens a connection, within the time.
pub async fn connect(address: SocketAddr, within: Duration) -> io::Result<TcpStream> {
    let stream =
        timeout(within, TcpStream::connect(address)).await.map_err(|_| io::ErrorKind::TimedOut)??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn connect_http1(address: SocketAddr, way: &Way, within: Duration) -> io::Result<(Http1, Doubt)> {
    let stream = connect(address, within).await?;
    let mut builder = http1::Builder::new();
    builder.max_headers(256);
    if let Some(tls) = &way.tls {
        let (stream, doubt) = connect_tls(stream, address, tls, within).await?;
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        tokio::spawn(report(address, connection.with_upgrades()));
        return Ok((sender, doubt));
    }
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(report(address, connection.with_upgrades()));
    Ok((sender, Doubt(Arc::default())))
}

async fn connect_http2(address: SocketAddr, way: &Way, within: Duration) -> io::Result<(Http2, Doubt)> {
    let stream = connect(address, within).await?;
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    if let Some(tls) = &way.tls {
        let (stream, doubt) = connect_tls(stream, address, tls, within).await?;
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        tokio::spawn(report(address, connection));
        return Ok((sender, doubt));
    }
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(report(address, connection));
    Ok((sender, Doubt(Arc::default())))
}

async fn report(address: SocketAddr, connection: impl Future<Output = hyper::Result<()>>) {
    if let Err(error) = connection.await {
        debug!(%address, %error, "a connection to an endpoint ended");
    }
}

async fn connect_tls(
    stream: TcpStream,
    address: SocketAddr,
    tls: &WayTls,
    within: Duration,
) -> io::Result<(tokio_rustls::client::TlsStream<TcpStream>, Doubt)> {
    let name = match &tls.name {
        Some(name) => ServerName::try_from(name.to_string()).map_err(io::Error::other)?,
        // An address is never sent as SNI (RFC 6066 3).
        None => ServerName::from(address.ip()),
    };
    let doubt = Doubt(Arc::default());
    let handshake = TlsConnector::from(tls.config.client.clone()).connect(name, stream);
    let handshake = noting_requests(doubt.0.clone(), handshake);
    let stream = timeout(within, handshake).await.map_err(|_| io::ErrorKind::TimedOut)??;
    Ok((stream, doubt))
}
