//! The time limit for clients of HTTP/2 that read no response. [`Guard`](super::guard::Guard) has
//! that for HTTP/1.
//!
//! The HTTP engine runs each stream as a task on the executor that it was given. While the client's
//! window is closed it polls no body, so a body cannot end its stream. The executor can:
//! [`LimitedStreams`] runs each task with a timer, and drops the task when the timer ends. That
//! resets the stream, and releases the connection to the endpoint. Other streams continue.
//!
//! A task ends when the engine has its last piece, also if the client's window is too small for it.
//! Then nobody would end the stream. So the last piece of a body is a single byte: the engine takes
//! it when the window has room for it, and everything before it has left by then. Short last pieces
//! stay whole: those of all streams of a connection take little memory.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use hyper::rt::Executor;
use tokio::time::{Instant, Sleep, sleep_until};

/// A piece of a response is buffered until the client has read it. The time limit is longer for a
/// large piece: a client that reads this many bytes in a second is not cut.
const SLOWEST_BYTES: u64 = 8 << 10;

/// What a response has done last.
#[derive(Debug, Clone, Copy)]
pub enum Progress {
    /// The engine has received a piece of this many bytes, or the head (0 bytes).
    Handed(usize),
    /// The body waits for its endpoint.
    Waits,
}

thread_local! {
    /// The progress of the stream whose task this thread polls.
    static PROGRESS: Cell<Option<Progress>> = const { Cell::new(None) };
}

/// Reports the progress of a response, from within its task.
pub fn report(progress: Progress) {
    PROGRESS.set(Some(progress));
}

/// An executor for the streams of a connection.
#[derive(Debug, Clone)]
pub struct LimitedStreams {
    /// The time for the client to open its window.
    pub send: Duration,
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for LimitedStreams {
    fn execute(&self, stream: F) {
        tokio::spawn(limited(stream, self.send));
    }
}

/// Runs a stream until its end, or until the client has not read for too long.
async fn limited(stream: impl Future<Output = ()>, send: Duration) {
    let mut stream = pin!(stream);
    let mut timer: Option<Pin<Box<Sleep>>> = None;
    // The engine has something to send.
    let mut sends = false;
    poll_fn(|cx| {
        PROGRESS.set(None);
        if stream.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        match PROGRESS.take() {
            Some(Progress::Handed(length)) => {
                let deadline = Instant::now() + send + Duration::from_secs(length as u64 / SLOWEST_BYTES);
                match &mut timer {
                    Some(timer) => timer.as_mut().reset(deadline),
                    None => timer = Some(Box::pin(sleep_until(deadline))),
                }
                sends = true;
            }
            Some(Progress::Waits) => sends = false,
            None => {}
        }
        match &mut timer {
            Some(timer) if sends => timer.as_mut().poll(cx),
            _ => Poll::Pending,
        }
    })
    .await;
}
