//! Connections that change their protocol, such as WebSocket.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::header::{CONNECTION, UPGRADE};
use hyper::upgrade::OnUpgrade;
use hyper::{HeaderMap, Version};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::sleep;
use tracing::debug;

use super::drain::Drain;
use super::framing::has_word;
use super::upstream::Connections;
use crate::endpoints::InFlight;

/// Returns whether a request is one for another protocol. The rule is that of
/// [`framing`](super::framing): the guard of the connection waits for the answer.
pub fn is_requested(version: Version, headers: &HeaderMap) -> bool {
    let mut protocols = headers.get_all(UPGRADE).iter();
    let mut options = headers.get_all(CONNECTION).iter();
    version == Version::HTTP_11
        && protocols.any(|value| !has_word(value.as_bytes(), b"h2c"))
        && options.any(|value| has_word(value.as_bytes(), b"upgrade"))
}

/// Copies the bytes between client and endpoint until both directions have ended, or until no byte
/// has come for `idle`.
pub fn start(
    client: OnUpgrade,
    endpoint: OnUpgrade,
    idle: Duration,
    in_flight: Option<InFlight<Connections>>,
    drain: Drain,
) {
    tokio::spawn(async move {
        let _held = (in_flight, drain);
        let (client, endpoint) = match futures::try_join!(client, endpoint) {
            Ok((client, endpoint)) => (TokioIo::new(client), TokioIo::new(endpoint)),
            Err(error) => return debug!(%error, "an upgrade failed"),
        };
        if let Err(error) = copy(client, endpoint, idle).await {
            debug!(%error, "an upgraded connection ended");
        }
    });
}

/// Copies the bytes of both directions.
pub async fn copy<A, B>(a: A, b: B, idle: Duration) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let (read_a, write_a) = tokio::io::split(a);
    let (read_b, write_b) = tokio::io::split(b);
    let copied = AtomicU64::new(0);
    let both = async {
        futures::try_join!(one_way(read_a, write_b, &copied), one_way(read_b, write_a, &copied)).map(drop)
    };
    let silence = async {
        loop {
            let before = copied.load(Ordering::Relaxed);
            sleep(idle).await;
            if copied.load(Ordering::Relaxed) == before {
                return;
            }
        }
    };
    tokio::select! {
        result = both => result,
        () = silence => Err(io::ErrorKind::TimedOut.into()),
    }
}

async fn one_way(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    copied: &AtomicU64,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..count]).await?;
        to.flush().await?;
        copied.fetch_add(count as u64, Ordering::Relaxed);
    }
}
