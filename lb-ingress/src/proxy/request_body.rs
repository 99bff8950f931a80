//! Bodies of requests.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::headers;

/// The errors of bodies. Each ends its connection, or its stream.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error(transparent)]
    Http(#[from] hyper::Error),
    #[error("the body of the request exceeds its limit")]
    TooLarge,
    #[error("the endpoint sent nothing for too long")]
    Slow,
}

/// The body of a request, as an endpoint receives it.
#[derive(Debug, Default)]
pub struct RequestBody {
    /// `None` for a body without bytes.
    inner: Option<Incoming>,
    /// Bytes that may still come.
    left: Option<u64>,
    progress: Arc<Progress>,
}

/// The part of the body of a request that has been read.
#[derive(Debug, Default)]
pub struct Progress {
    pub bytes: AtomicU64,
    pub too_large: AtomicBool,
}

impl RequestBody {
    pub fn new(inner: Incoming, limit: Option<u64>) -> Self {
        let inner = Some(inner).filter(|inner| !inner.is_end_stream());
        Self { inner, left: limit, progress: Arc::default() }
    }

    pub fn has_bytes(&self) -> bool {
        self.inner.is_some()
    }

    pub fn progress(&self) -> Arc<Progress> {
        self.progress.clone()
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let Some(inner) = &mut this.inner else { return Poll::Ready(None) };
        let frame = match ready!(Pin::new(inner).poll_frame(cx)) {
            Some(frame) => frame?,
            None => return Poll::Ready(None),
        };
        let mut frame = frame;
        if let Some(trailers) = frame.trailers_mut() {
            headers::clean_trailers(trailers);
        }
        if let Some(data) = frame.data_ref() {
            let length = data.remaining() as u64;
            this.progress.bytes.fetch_add(length, Ordering::Relaxed);
            if let Some(left) = &mut this.left {
                match left.checked_sub(length) {
                    Some(rest) => *left = rest,
                    None => {
                        this.progress.too_large.store(true, Ordering::Relaxed);
                        return Poll::Ready(Some(Err(BodyError::TooLarge)));
                    }
                }
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}
