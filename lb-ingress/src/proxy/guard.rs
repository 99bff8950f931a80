//! The bytes of an HTTP/1 connection, checked and timed before the HTTP engine reads them.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::framing::{Refusal, Scanner, Then};

/// Time limits of a client.
#[derive(Debug, Clone, Copy)]
pub struct ClientTimeouts {
    /// For a whole head, and for a whole TLS handshake.
    pub head: Duration,
    /// Between two requests of a connection.
    pub idle: Duration,
    /// Between two reads of a body.
    pub body: Duration,
    /// Between two writes of a response.
    pub send: Duration,
}

impl Default for ClientTimeouts {
    fn default() -> Self {
        let minute = Duration::from_secs(60);
        Self { head: Duration::from_secs(10), idle: Duration::from_secs(75), body: minute, send: minute }
    }
}

/// Bytes that are read and dropped after a refusal, so that the client can read the answer: the
/// kernel resets a connection that is closed with unread bytes.
const LINGER_BYTES: usize = 256 << 10;
const LINGER: Duration = Duration::from_secs(1);

/// The method of the request that the engine reads in place of a refused one. The status follows.
/// A client that sends such a method itself is refused too.
pub const REFUSED_METHOD: &str = "!REFUSED-";

/// The state that the service of a connection reports to its [`Guard`].
#[derive(Debug, Default)]
pub struct Link {
    /// A request is being answered.
    busy: AtomicBool,
    /// The service has received the first request.
    begun: AtomicBool,
    upgrade: AtomicU8,
    guard: AtomicWaker,
}

const UPGRADE_PENDING: u8 = 0;
const UPGRADE_SWITCHED: u8 = 1;
const UPGRADE_REFUSED: u8 = 2;

impl Link {
    pub fn set_busy(&self, busy: bool) {
        self.busy.store(busy, Ordering::Relaxed);
        self.begun.store(true, Ordering::Relaxed);
    }

    /// Returns whether the service has received a request.
    pub fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }

    /// Reports the answer to an upgrade.
    pub fn answer_upgrade(&self, switched: bool) {
        let answer = if switched { UPGRADE_SWITCHED } else { UPGRADE_REFUSED };
        self.upgrade.store(answer, Ordering::Release);
        self.guard.wake();
    }
}

/// A connection whose reads contain whole heads only, and no request that [`Scanner`] refuses. In
/// place of a refused head the engine reads a request of the method [`REFUSED_METHOD`].
#[derive(Debug)]
pub struct Guard<S> {
    stream: S,
    link: Arc<Link>,
    scanner: Scanner,
    timeouts: ClientTimeouts,
    /// Bytes that passed, and how many of them the engine has read.
    passed: Vec<u8>,
    read: usize,
    /// The first bytes of a head, or bytes that wait for the answer to an upgrade.
    held: Vec<u8>,
    /// Nothing is read any more.
    closed: bool,
    /// The last request was refused: its answer closes the connection.
    refused: bool,
    /// The time at which the head under way began to arrive.
    head_since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    /// The timer runs for the read that waits.
    timed: bool,
    send_timer: Option<Pin<Box<Sleep>>>,
    send_blocked: bool,
    linger: Option<(Pin<Box<Sleep>>, usize)>,
}

impl<S> Guard<S> {
    /// `first` are bytes that were read from the stream already.
    pub fn new(stream: S, first: Vec<u8>, link: Arc<Link>, timeouts: ClientTimeouts) -> Self {
        let mut guard = Self {
            stream,
            link,
            scanner: Scanner::new(),
            timeouts,
            passed: Vec::new(),
            read: 0,
            held: first,
            closed: false,
            refused: false,
            head_since: Some(Instant::now()),
            timer: None,
            timed: false,
            send_timer: None,
            send_blocked: false,
            linger: None,
        };
        if !guard.held.is_empty() {
            // An error appears again with the next bytes only if the bytes are scanned here.
            guard.scan_held();
        }
        guard
    }

    /// Scans the held bytes, and moves those that pass.
    fn scan_held(&mut self) -> bool {
        let scan = self.scanner.scan(&self.held);
        self.passed.clear();
        self.read = 0;
        self.passed.extend(self.held.drain(..scan.pass));
        self.take_end(scan.then)
    }

    /// Returns `false` if the body is refused.
    fn take_end(&mut self, then: Then) -> bool {
        match then {
            Then::More | Then::AwaitUpgrade => true,
            Then::RefuseHead(refusal) => {
                self.refuse(refusal);
                true
            }
            Then::RefuseBody => {
                self.closed = true;
                false
            }
        }
    }

    fn refuse(&mut self, refusal: Refusal) {
        let head = format!("{REFUSED_METHOD}{} / HTTP/1.1\r\nhost: -\r\n\r\n", refusal.status());
        self.passed.extend_from_slice(head.as_bytes());
        self.held = Vec::new();
        self.closed = true;
        self.refused = true;
    }

    /// Returns the time at which the read that waits ends.
    fn deadline(&self) -> Instant {
        let now = Instant::now();
        if !self.scanner.in_head() {
            return now + self.timeouts.body;
        }
        match self.head_since {
            Some(since) => since + self.timeouts.head,
            None => now + self.timeouts.idle,
        }
    }

    /// Polls the timer of the read that waits. Returns whether its time is over.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.timed {
            let deadline = self.deadline();
            match &mut self.timer {
                Some(timer) => timer.as_mut().reset(deadline),
                None => self.timer = Some(Box::pin(sleep_until(deadline))),
            }
            self.timed = true;
        }
        match &mut self.timer {
            Some(timer) => timer.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }

    /// New bytes of the client have arrived.
    fn received(&mut self) {
        self.timed = false;
        if self.scanner.in_head() {
            self.head_since.get_or_insert_with(Instant::now);
        }
    }

    /// Bytes were scanned.
    fn scanned(&mut self) {
        if !self.scanner.in_head() || self.held.is_empty() {
            self.head_since = None;
        }
    }
}

impl<S: AsyncRead + Unpin> Guard<S> {
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut space = [0; 4096];
        let mut buffer = ReadBuf::new(&mut space);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
        self.held.extend_from_slice(buffer.filled());
        Poll::Ready(Ok(buffer.filled().len()))
    }

    /// The read waits. Ends it if its time is over.
    fn poll_wait(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.scanner.in_tunnel() {
            return Poll::Pending;
        }
        if self.scanner.in_head() && self.link.busy.load(Ordering::Relaxed) && self.held.is_empty() {
            // The client waits for an answer.
            self.timed = false;
            self.head_since = None;
            return Poll::Pending;
        }
        ready!(self.poll_timer(cx));
        self.timed = false;
        if !self.scanner.in_head() {
            self.closed = true;
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        self.closed = true;
        if !self.held.is_empty() {
            self.closed = false;
            self.refuse(Refusal::Slow);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if this.read < this.passed.len() {
                let count = out.remaining().min(this.passed.len() - this.read);
                out.put_slice(&this.passed[this.read..this.read + count]);
                this.read += count;
                if this.read == this.passed.len() {
                    this.passed = Vec::new();
                    this.read = 0;
                }
                return Poll::Ready(Ok(()));
            }
            if this.refused {
                // The engine reads the end of the bytes as a closed connection, and would send no
                // answer.
                return Poll::Pending;
            }
            if this.closed {
                return Poll::Ready(Ok(()));
            }
            if this.scanner.awaits_upgrade() {
                this.link.guard.register(cx.waker());
                match this.link.upgrade.swap(UPGRADE_PENDING, Ordering::AcqRel) {
                    UPGRADE_PENDING => return Poll::Pending,
                    answer => this.scanner.upgraded(answer == UPGRADE_SWITCHED),
                }
                if !this.held.is_empty() {
                    this.scan_held();
                    this.scanned();
                }
                continue;
            }
            if this.held.is_empty() {
                let before = out.filled().len();
                match Pin::new(&mut this.stream).poll_read(cx, out) {
                    Poll::Pending => {
                        ready!(this.poll_wait(cx))?;
                        continue;
                    }
                    Poll::Ready(result) => result?,
                }
                let new = &out.filled()[before..];
                if new.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                this.received();
                let scan = this.scanner.scan(new);
                this.held.extend_from_slice(&new[scan.pass..]);
                out.set_filled(before + scan.pass);
                let accepted = this.take_end(scan.then);
                this.scanned();
                if scan.pass > 0 {
                    return Poll::Ready(Ok(()));
                }
                if !accepted {
                    return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                }
            } else {
                match this.poll_held(cx) {
                    Poll::Pending => {
                        ready!(this.poll_wait(cx))?;
                        continue;
                    }
                    Poll::Ready(Ok(0)) => {
                        // A head without an end.
                        this.closed = true;
                        continue;
                    }
                    Poll::Ready(result) => result?,
                };
                this.received();
                if !this.scan_held() && this.passed.is_empty() {
                    return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                }
                this.scanned();
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> Guard<S> {
    /// Ends a write that waits for too long.
    fn timed_send(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if result.is_ready() {
            self.send_blocked = false;
            return result;
        }
        if !self.send_blocked {
            let deadline = Instant::now() + self.timeouts.send;
            match &mut self.send_timer {
                Some(timer) => timer.as_mut().reset(deadline),
                None => self.send_timer = Some(Box::pin(sleep_until(deadline))),
            }
            self.send_blocked = true;
        }
        if let Some(timer) = &mut self.send_timer {
            ready!(timer.as_mut().poll(cx));
        }
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.timed_send(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.timed_send(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
            if !this.closed {
                return Poll::Ready(Ok(()));
            }
        }
        let (timer, left) =
            this.linger.get_or_insert_with(|| (Box::pin(sleep_until(Instant::now() + LINGER)), LINGER_BYTES));
        while timer.as_mut().poll(cx).is_pending() {
            let mut space = [0; 4096];
            let mut buffer = ReadBuf::new(&mut space);
            match ready!(Pin::new(&mut this.stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() && *left > 0 => {
                    *left = left.saturating_sub(buffer.filled().len());
                }
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}
