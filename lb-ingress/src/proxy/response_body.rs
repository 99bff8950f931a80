//! Bodies of responses.

use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Sleep, sleep};

use super::answer::Content;
use super::gateway::Gateway;
use super::guard::Link;
use super::limits::Permit;
use super::logged::Logged;
use super::pace::Pace;
use super::request_body::BodyError;
use super::send_limit::{self, Progress};
use super::upstream::Connections;
use crate::endpoints::InFlight;
use crate::observe::AccessRecord;

/// A longer last piece of an HTTP/2 response is handed to the engine without its last byte
/// ([`send_limit`]).
const LONGEST_WHOLE: usize = 1 << 10;

/// The body of a response. Its end, or its drop, ends the request.
#[derive(Debug)]
pub struct ResponseBody {
    content: Content,
    /// The last byte, after everything else was handed to the engine.
    last: Option<LastByte>,
    timer: Option<Pin<Box<Sleep>>>,
    finish: Finish,
}

#[derive(Debug)]
struct LastByte {
    byte: Bytes,
    /// The length of the piece before it, which the client may not have read yet.
    after: usize,
}

/// The state that ends with the response.
#[derive(Debug)]
pub struct Finish {
    pub gateway: Arc<Gateway>,
    pub record: AccessRecord,
    /// `None` without an access log.
    pub logged: Option<Logged>,
    pub start: Instant,
    pub link: Option<Arc<Link>>,
    pub permit: Option<Permit>,
    /// `None`: the response is as fast as its client.
    pub pace: Option<Pace>,
    pub in_flight: Option<InFlight<Connections>>,
}

impl Drop for Finish {
    fn drop(&mut self) {
        if let Some(link) = &self.link {
            link.set_busy(false);
        }
        let texts = self.logged.as_ref().map(Logged::texts);
        self.gateway.observer.finished(&self.record, texts.as_ref(), self.start.elapsed());
    }
}

impl ResponseBody {
    pub fn new(content: Content, mut finish: Finish) -> Self {
        finish.record.complete = match &content {
            Content::Own(bytes) => bytes.is_empty(),
            Content::Endpoint { body, .. } => body.is_end_stream(),
            Content::Upgraded => true,
        };
        let mut this = Self { content, last: None, timer: None, finish };
        if this.finish.record.complete {
            this.give_back();
        }
        this
    }

    fn give_back(&mut self) {
        if let Content::Endpoint { lease, .. } = &mut self.content
            && let Some(lease) = lease.take()
            && let Some(in_flight) = &self.finish.in_flight
        {
            in_flight.endpoint().connections.give_back(lease);
        }
    }

    /// Returns the next piece. A response that has a pace waits for it, and has shorter pieces.
    fn poll_paced(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(pace) = &mut self.finish.pace else { return self.poll_content(cx) };
        let allowance = ready!(pace.poll_allowance(cx));
        let piece = match pace.take_rest() {
            Some(rest) => rest,
            None => match ready!(self.poll_content(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(piece) => piece,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                end => return Poll::Ready(end),
            },
        };
        let piece = match &mut self.finish.pace {
            Some(pace) => pace.cut(piece, allowance),
            None => piece,
        };
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn poll_content(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.content {
            Content::Own(bytes) if bytes.is_empty() => Poll::Ready(None),
            Content::Own(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Content::Endpoint { .. } => self.poll_endpoint(cx),
            Content::Upgraded => Poll::Ready(None),
        }
    }

    /// Returns the number of bytes that wait for the pace of the response.
    fn waiting(&self) -> usize {
        self.finish.pace.as_ref().map_or(0, |pace| pace.rest().len())
    }

    fn poll_endpoint(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Content::Endpoint { body, read, .. } = &mut self.content else { return Poll::Ready(None) };
        match Pin::new(body).poll_frame(cx) {
            Poll::Ready(frame) => {
                self.timer = None;
                Poll::Ready(frame.map(|frame| frame.map_err(BodyError::from)))
            }
            Poll::Pending => {
                let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(*read)));
                ready!(timer.as_mut().poll(cx));
                Poll::Ready(Some(Err(BodyError::Slow)))
            }
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let last = this.last.take();
        let after = last.as_ref().map_or(0, |last| last.after);
        let mut frame = match last {
            Some(last) => Some(Ok(Frame::data(last.byte))),
            None => match this.poll_paced(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending => {
                    send_limit::report(Progress::Waits);
                    return Poll::Pending;
                }
            },
        };
        match &mut frame {
            Some(Ok(frame)) => {
                let is_http2 = this.finish.link.is_none();
                if let Some(piece) = frame.data_mut()
                    && is_http2
                    && piece.len() > LONGEST_WHOLE
                    && this.is_end_stream()
                {
                    let byte = piece.split_off(piece.len() - 1);
                    this.last = Some(LastByte { byte, after: piece.len() });
                    this.give_back();
                }
                let length = frame.data_ref().map_or(0, Bytes::len);
                this.finish.record.bytes += length as u64;
                send_limit::report(Progress::Handed(after + length));
                if this.is_end_stream() {
                    this.finish.record.complete = true;
                    this.give_back();
                }
            }
            Some(Err(error)) => this.finish.record.reason = Some(error.to_string().into()),
            None => {
                this.finish.record.complete = true;
                this.give_back();
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            _ if self.last.is_some() || self.waiting() > 0 => false,
            Content::Own(bytes) => bytes.is_empty(),
            Content::Endpoint { body, .. } => body.is_end_stream(),
            Content::Upgraded => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = match &self.content {
            _ if self.last.is_some() => SizeHint::with_exact(1),
            Content::Own(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Content::Endpoint { body, .. } => body.size_hint(),
            Content::Upgraded => SizeHint::with_exact(0),
        };
        let waiting = self.waiting() as u64;
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + waiting);
        }
        hint.set_lower(hint.lower() + waiting);
        hint
    }
}
