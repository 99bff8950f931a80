//! HTTP/1.1 requests, each on a new connection.

use std::io;
use std::net::SocketAddr;

use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use lb_testbed::patience::patient;
use lb_testbed::report::{Exchange, FailureKind, Greeting, RequestAnswer, RequestFailure};
use tokio::net::TcpStream;
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

/// An open HTTP connection.
pub struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    peer: SocketAddr,
}

impl Connection {
    pub async fn open(target: SocketAddr) -> Result<Self, RequestFailure> {
        let stream = TcpStream::connect(target).await?;
        let peer = stream.peer_addr()?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(http_failure)?;
        // The task ends with the connection. The request reports the connection's errors.
        tokio::spawn(connection);
        Ok(Self { sender, peer })
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
