//! The end of a proxy: connections end after their requests.

use std::convert::Infallible;

use tokio::sync::{mpsc, watch};

/// Ends connections after their requests. Each connection holds a clone.
#[derive(Debug, Clone)]
pub struct Drain {
    stop: watch::Receiver<bool>,
    _alive: mpsc::Sender<Infallible>,
}

impl Drain {
    /// Returns the sender that begins the drain, and the receiver that ends with the last clone.
    pub fn new() -> (Self, watch::Sender<bool>, mpsc::Receiver<Infallible>) {
        let (begin, stop) = watch::channel(false);
        let (alive, ended) = mpsc::channel(1);
        (Self { stop, _alive: alive }, begin, ended)
    }

    pub(super) fn has_begun(&self) -> bool {
        *self.stop.borrow()
    }

    pub(super) async fn begun(&mut self) {
        // An error means that the sender is gone: the process ends.
        let _ = self.stop.wait_for(|stop| *stop).await;
    }
}
