//! HTTP/1.1 requests, each on a new connection.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use lb_testbed::patience::patient;
use lb_testbed::report::{Exchange, FailureKind, Greeting, RequestAnswer, RequestFailure};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::REQUEST_LIMIT;

/// After this many slow failures (time-outs, unreachable hosts) no more requests are sent: the
/// others would fail, too.
const SLOW_FAILURES: u32 = 3;

/// Sends `count` requests to each target, each on its own connection.
pub async fn run(targets: &[SocketAddr], count: u32) -> Vec<Exchange> {
    let mut exchanges = Vec::new();
    let mut slow = 0;
    for &target in targets {
        for _ in 0..count {
            let result =
                timeout(patient(REQUEST_LIMIT), request(target)).await.unwrap_or_else(|_| Err(timed_out()));
            slow += u32::from(result.as_ref().is_err_and(|failure| failure.kind != FailureKind::Refused));
            exchanges.push(Exchange { target, result });
            if slow == SLOW_FAILURES {
                return exchanges;
            }
        }
    }
    exchanges
}

/// Sends one request on a new connection.
pub async fn request(target: SocketAddr) -> Result<RequestAnswer, RequestFailure> {
    Connection::open(target).await?.request().await
}

/// Returns the failure of a request that was not answered in time.
pub fn timed_out() -> RequestFailure {
    io::Error::new(io::ErrorKind::TimedOut, "no answer in time").into()
}

/// How a TCP socket is set up before it connects.
#[derive(Args, Default)]
pub struct Socket {
    /// Use Multipath TCP
    #[arg(long, requires = "tcp")]
    mptcp: bool,
    /// Set IPV6_V6ONLY
    #[arg(long, requires = "tcp")]
    v6_only: bool,
    /// Bind the socket to this address
    #[arg(long, requires = "tcp")]
    source: Option<SocketAddr>,
    /// Once connected, connect to this address, too; anything but EISCONN is a failure
    #[arg(long, requires = "tcp")]
    again: Option<SocketAddr>,
}

impl Socket {
    /// Returns the settings of a usual socket that is bound to this address.
    pub fn bound_to(source: SocketAddr) -> Self {
        Self { source: Some(source), ..Self::default() }
    }

    async fn connect(&self, target: SocketAddr) -> io::Result<TcpStream> {
        let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let protocol = self.mptcp.then_some(ipproto::MPTCP);
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, protocol)?;
        if self.v6_only {
            sockopt::set_ipv6_v6only(&socket, true)?;
        }
        if let Some(source) = self.source {
            rustix::net::bind(&socket, &source)?;
        }
        let stream = TcpSocket::from_std_stream(socket.into()).connect(target).await?;
        if let Some(again) = self.again {
            // The first call completes the non-blocking one: it may succeed, whatever its address.
            let calls = [rustix::net::connect(&stream, &again), rustix::net::connect(&stream, &again)];
            if calls[1] != Err(Errno::ISCONN) {
                return Err(io::Error::other(format!("connecting again returned {calls:?}")));
            }
        }
        Ok(stream)
    }
}

/// An open HTTP connection.
pub struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    peer: SocketAddr,
    /// Drives the connection until its end. Returns the socket if `is_closing`.
    driver: JoinHandle<Option<TcpStream>>,
    is_closing: Arc<AtomicBool>,
}

impl Connection {
    pub async fn open(target: SocketAddr) -> Result<Self, RequestFailure> {
        Self::open_over(&Socket::default(), target).await
    }

    pub async fn open_over(socket: &Socket, target: SocketAddr) -> Result<Self, RequestFailure> {
        let stream = socket.connect(target).await?;
        let peer = stream.peer_addr()?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(http_failure)?;
        // The task ends with the connection. The request reports the connection's errors.
        let is_closing = Arc::new(AtomicBool::new(false));
        let returns_socket = is_closing.clone();
        let driver = tokio::spawn(async move {
            let parts = connection.without_shutdown().await.ok()?;
            returns_socket.load(Ordering::Relaxed).then(|| parts.io.into_inner())
        });
        Ok(Self { sender, peer, driver, is_closing })
    }

    /// Closes the connection, and returns when the server has closed it too.
    pub async fn close(self) -> Result<(), RequestFailure> {
        self.is_closing.store(true, Ordering::Relaxed);
        drop(self.sender);
        let stream = self.driver.await.map_err(io::Error::other)?;
        let mut stream = stream.ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionReset))?;
        stream.shutdown().await?;
        stream.read_to_end(&mut Vec::new()).await?;
        Ok(())
    }

    pub async fn request(&mut self) -> Result<RequestAnswer, RequestFailure> {
        let request = Request::get("/")
            .header("host", "testbed")
            .body(Empty::new())
            .map_err(|error| RequestFailure::from(io::Error::other(error)))?;
        let response = self.sender.send_request(request).await.map_err(http_failure)?;
        let body = response.into_body().collect().await.map_err(http_failure)?.to_bytes();
        let greeting: Greeting =
            serde_json::from_slice(&body).map_err(|error| RequestFailure::from(io::Error::other(error)))?;
        Ok(RequestAnswer { greeting, peer: self.peer })
    }
}

/// Returns the I/O error that caused a hyper error, if there is one.
fn http_failure(error: hyper::Error) -> RequestFailure {
    let source = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<io::Error>());
    let kind = match source {
        Some(source) => source.kind(),
        None if error.is_incomplete_message() || error.is_canceled() => io::ErrorKind::ConnectionReset,
        None => io::ErrorKind::Other,
    };
    io::Error::new(kind, error.to_string()).into()
}
