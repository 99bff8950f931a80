//! Accepts the connections of clients.

use std::convert::Infallible;
use std::io::{self, Cursor};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;
use tracing::debug;

use super::client_auth::Shown;
use super::drain::Drain;
use super::framing::MAX_FIELDS;
use super::gateway::Gateway;
use super::guard::{Guard, Link};
use super::headers::ConnectionFields;
use super::send_limit::{self, LimitedStreams, Progress};
use super::service::{Service, Tls};
use super::{proxy_protocol, upgrade, upstream};
use crate::endpoints::Choice;
use crate::routes::{BackendRef, request_host};

/// The protocols of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenerKind {
    /// HTTP/1 and HTTP/2 without TLS.
    Http,
    /// The same with TLS, and TLS that endpoints decrypt (passthrough).
    Https,
}

/// The first bytes of HTTP/2 without TLS (RFC 9113 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Streams of an HTTP/2 connection at a time.
const MAX_STREAMS: u32 = 128;
/// Streams that a client may reset before their requests were seen (CVE-2023-44487).
const MAX_EARLY_RESETS: usize = 20;
/// Streams that the proxy may have to reset because of errors of the client (CVE-2025-8671).
const MAX_ERROR_RESETS: usize = 256;
const MAX_HEADER_LIST: u32 = 32 << 10;

/// Accepts connections until the drain begins.
pub async fn serve(listener: TcpListener, kind: ListenerKind, gateway: Arc<Gateway>, mut drain: Drain) {
    let connections = Arc::new(Semaphore::new(gateway.settings.max_connections));
    loop {
        let accepted = async {
            let permit = connections.clone().acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            accepted = accepted => accepted,
            () = drain.begun() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // The process has too many open files, or the client has closed already.
                debug!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let connection = Connection { gateway: gateway.clone(), kind, peer, port: 0, drain: drain.clone() };
        tokio::spawn(async move {
            let _permit = permit;
            let open = connection.gateway.observer.metrics.connections.clone();
            open.inc();
            if let Err(error) = connection.run(stream).await {
                debug!(%peer, %error, "a connection of a client ended");
            }
            open.dec();
        });
    }
}

struct Connection {
    gateway: Arc<Gateway>,
    kind: ListenerKind,
    peer: SocketAddr,
    port: u16,
    drain: Drain,
}

impl Connection {
    async fn run(mut self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        self.port = stream.local_addr()?.port();
        let within = self.gateway.settings.timeouts.head;
        if self.gateway.settings.proxy_protocol {
            let source = timeout(within, proxy_protocol::read(&mut stream)).await??;
            self.peer = source.unwrap_or(self.peer);
        }
        match self.kind {
            ListenerKind::Http => self.run_plain(stream, within).await,
            ListenerKind::Https => self.run_tls(stream, within).await,
        }
    }

    async fn run_plain(self, mut stream: TcpStream, within: Duration) -> io::Result<()> {
        let mut first = Vec::with_capacity(1024);
        let deadline = tokio::time::Instant::now() + within;
        loop {
            if tokio::time::timeout_at(deadline, stream.read_buf(&mut first)).await?? == 0 {
                return Ok(());
            }
            let length = first.len().min(PREFACE.len());
            if first[..length] != PREFACE[..length] {
                return self.serve_http1(stream, first, None).await;
            }
            if length == PREFACE.len() {
                let (read, write) = stream.into_split();
                return self.serve_http2(tokio::io::join(Cursor::new(first).chain(read), write), None).await;
            }
        }
    }

    async fn run_tls(self, stream: TcpStream, within: Duration) -> io::Result<()> {
        let deadline = tokio::time::Instant::now() + within;
        let recorder = Recorder { stream, record: Some(Vec::new()) };
        let acceptor = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), recorder);
        let mut start = tokio::time::timeout_at(deadline, acceptor).await??;
        let record = start.io.record.take().unwrap_or_default();
        let name = start.client_hello().server_name().and_then(request_host).map(|name| name.into_owned());
        let mut clients = None;
        let mut config = self.gateway.tls.config();
        if let Some(name) = &name {
            let table = self.gateway.table.load_full();
            if let Some(passthrough) = table.passthrough(name) {
                return self.pass_through(start.io.stream, &record, &passthrough.backend).await;
            }
            let rules = table.host(name).and_then(|host| host.settings.client_certificates.clone());
            clients = rules.and_then(|rules| {
                let authorities = self.gateway.authorities.of(&rules.secret)?;
                config = authorities.config(&config)?;
                Some((rules, authorities))
            });
        }
        let accept = start.into_stream(config);
        let stream = tokio::time::timeout_at(deadline, accept).await??;
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let client = clients.map(|(rules, authorities)| {
            let certificate = authorities.verify(stream.get_ref().1.peer_certificates(), rules.depth);
            Shown::new(rules, certificate)
        });
        let tls = Some(Tls { name, client });
        if is_http2 {
            self.serve_http2(stream, tls).await
        } else {
            self.serve_http1(stream, Vec::new(), tls).await
        }
    }

    /// Connects the client with an endpoint that decrypts by itself.
    async fn pass_through(self, client: TcpStream, first: &[u8], backend: &BackendRef) -> io::Result<()> {
        let set = self.gateway.endpoints.of(backend);
        let mut tried = Vec::new();
        while tried.len() < 2 {
            let now = self.gateway.now_ms();
            let Some(endpoint) = set.as_ref().and_then(|set| set.choose(Choice::RoundRobin, &tried, now))
            else {
                break;
            };
            match upstream::connect(endpoint.address, Duration::from_secs(5)).await {
                Ok(mut stream) => {
                    endpoint.succeeded();
                    stream.write_all(first).await?;
                    return upgrade::copy(client, stream, Duration::from_secs(600)).await;
                }
                Err(error) => {
                    debug!(address = %endpoint.address, %error, "cannot connect to an endpoint");
                    endpoint.failed(now, true);
                    tried.push(endpoint.address);
                }
            }
        }
        Err(io::Error::other(format!("no endpoint of {backend} can be connected to")))
    }

    async fn serve_http1(
        mut self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        first: Vec<u8>,
        tls: Option<Tls>,
    ) -> io::Result<()> {
        let link = Arc::new(Link::default());
        let guard = Guard::new(stream, first, link.clone(), self.gateway.settings.timeouts);
        let service = Arc::new(self.service(tls, Some(link.clone())));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(None)
            .max_headers(MAX_FIELDS + 1)
            .max_buf_size(64 << 10)
            .serve_connection(
                TokioIo::new(guard),
                service_fn(move |request| answer(service.clone(), request)),
            )
            .with_upgrades();
        until_drained(connection, &mut self.drain, |connection| {
            // The engine closes a connection whose first request it has not read, also if the guard
            // holds bytes of it. The response to that request closes the connection.
            if link.has_begun() {
                connection.graceful_shutdown();
            }
        })
        .await
    }

    async fn serve_http2(
        mut self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        tls: Option<Tls>,
    ) -> io::Result<()> {
        let service = Arc::new(self.service(tls, None));
        let timeouts = self.gateway.settings.timeouts;
        let connection = http2::Builder::new(LimitedStreams { send: timeouts.send })
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_pending_accept_reset_streams(MAX_EARLY_RESETS)
            .max_local_error_reset_streams(MAX_ERROR_RESETS)
            .max_header_list_size(MAX_HEADER_LIST)
            .initial_stream_window_size(256 << 10)
            .initial_connection_window_size(1 << 20)
            .keep_alive_interval(timeouts.idle)
            .keep_alive_timeout(timeouts.head)
            .serve_connection(
                TokioIo::new(stream),
                service_fn(move |request| answer(service.clone(), request)),
            );
        until_drained(connection, &mut self.drain, |connection| connection.graceful_shutdown()).await
    }

    fn service(&self, tls: Option<Tls>, link: Option<Arc<Link>>) -> Service {
        let Self { gateway, peer, port, drain, .. } = self;
        let fields = ConnectionFields::new(peer.ip(), *port, gateway.settings.https_port);
        let (gateway, drain) = (gateway.clone(), drain.clone());
        Service { gateway, peer: *peer, port: *port, fields, tls, link, drain }
    }
}

/// Serves a connection until its end. `shut_down` ends it after its requests when the drain begins.
async fn until_drained<C: Future<Output = hyper::Result<()>>>(
    connection: C,
    drain: &mut Drain,
    shut_down: impl FnOnce(Pin<&mut C>),
) -> io::Result<()> {
    let mut connection = pin!(connection);
    let result = tokio::select! {
        result = &mut connection => result,
        () = drain.begun() => {
            shut_down(connection.as_mut());
            connection.await
        }
    };
    result.map_err(io::Error::other)
}

async fn answer(
    service: Arc<Service>,
    request: hyper::Request<hyper::body::Incoming>,
) -> Result<hyper::Response<super::response_body::ResponseBody>, Infallible> {
    let response = service.handle(request).await;
    send_limit::report(Progress::Handed(0));
    Ok(response)
}

/// A stream that records what is read, for an endpoint that decrypts by itself.
struct Recorder {
    stream: TcpStream,
    record: Option<Vec<u8>>,
}

impl AsyncRead for Recorder {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, out))?;
        if let Some(record) = &mut self.record {
            record.extend_from_slice(&out.filled()[before..]);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Recorder {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
