//! The speed limit of a response: `limit-rate`, `limit-rate-after`.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::routes::policy::Rate;

/// Pieces are sent this many times a second at most, so that a slow response is not cut into single
/// bytes.
const PIECES: u64 = 8;

/// How many bytes of a response may be sent by now. As in nginx, a response may use what it has not
/// used before, and begins with the bytes of one second.
#[derive(Debug)]
pub struct Pace {
    rate: Rate,
    start: Instant,
    sent: u64,
    pause: Option<Pin<Box<Sleep>>>,
    /// The part of the last piece that was too long.
    rest: Bytes,
}

impl Pace {
    pub fn new(rate: Rate) -> Self {
        Self { rate, start: Instant::now(), sent: 0, pause: None, rest: Bytes::new() }
    }

    /// Returns the part of a piece that was not sent yet.
    pub fn rest(&self) -> &Bytes {
        &self.rest
    }

    /// Removes [`Pace::rest`]. Returns `None` if there is none.
    pub fn take_rest(&mut self) -> Option<Bytes> {
        Some(std::mem::take(&mut self.rest)).filter(|rest| !rest.is_empty())
    }

    /// Waits until some bytes may be sent, and returns their number.
    pub fn poll_allowance(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        loop {
            match self.allowance(self.start.elapsed()) {
                Ok(bytes) => {
                    self.pause = None;
                    return Poll::Ready(usize::try_from(bytes).unwrap_or(usize::MAX));
                }
                Err(at) => {
                    let at = self.start + at;
                    let pause = self.pause.get_or_insert_with(|| Box::pin(sleep_until(at)));
                    if pause.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    self.pause = None;
                }
            }
        }
    }

    /// Returns the part of a piece that may be sent, and counts it. Keeps the rest.
    pub fn cut(&mut self, mut piece: Bytes, allowance: usize) -> Bytes {
        if piece.len() > allowance {
            self.rest = piece.split_off(allowance);
        }
        self.sent += piece.len() as u64;
        piece
    }

    /// Returns how many bytes may be sent this long after the start, or else when there are enough
    /// of them.
    fn allowance(&self, elapsed: Duration) -> Result<u64, Duration> {
        let Rate { bytes, after } = self.rate;
        let by_now = after.saturating_add(bytes).saturating_add(bytes_in(elapsed, bytes));
        let least = (bytes / PIECES).max(1);
        match self.sent.saturating_add(least).saturating_sub(by_now) {
            0 => Ok(by_now - self.sent),
            missing => Err(elapsed + time_for(missing, bytes)),
        }
    }
}

/// Returns the bytes that are sent in this time.
fn bytes_in(time: Duration, bytes_a_second: u64) -> u64 {
    u64::try_from(time.as_millis() * u128::from(bytes_a_second) / 1000).unwrap_or(u64::MAX)
}

/// Returns the time in which these bytes are sent. It is longer by a millisecond at most: the timer
/// of the runtime has no shorter ones.
fn time_for(bytes: u64, bytes_a_second: u64) -> Duration {
    Duration::from_millis(bytes.saturating_mul(1000) / bytes_a_second + 1)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    const KIB: u64 = 1024;

    /// Sends pieces of this length at once, whenever some bytes may be sent. Returns the number of
    /// bytes, and of pieces, that have left in each of the first seconds.
    async fn sent_in_each_second(rate: Rate, piece: usize, seconds: usize) -> Vec<(u64, u32)> {
        let mut pace = Pace::new(rate);
        let mut sent = vec![(0, 0); seconds];
        loop {
            let allowance = poll_fn(|cx| pace.poll_allowance(cx)).await;
            let second = pace.start.elapsed().as_secs() as usize;
            if second >= seconds {
                return sent;
            }
            let next = pace.take_rest().unwrap_or_else(|| Bytes::from(vec![0; piece]));
            sent[second].0 += pace.cut(next, allowance).len() as u64;
            sent[second].1 += 1;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_of_each_second() {
        let rate = Rate { bytes: 100 * KIB, after: 0 };
        for piece in [100, 1000, 16 << 10, 1 << 20] {
            let sent = sent_in_each_second(rate, piece, 5).await;
            let total: u64 = sent.iter().map(|(bytes, _)| bytes).sum();
            // The bytes of one second are sent at once. The pieces of a second may leave later.
            let most = 6 * 100 * KIB;
            assert!(total <= most && total >= most - 100 * KIB / 4, "pieces of {piece}: {sent:?}");
            assert!(
                sent[0].0 <= 200 * KIB && sent[1..].iter().all(|(bytes, _)| *bytes <= 113 * KIB),
                "{sent:?}"
            );
        }
        let pieces = sent_in_each_second(rate, 1 << 20, 5).await;
        assert!(pieces.iter().all(|(_, pieces)| u64::from(*pieces) <= PIECES + 1), "{pieces:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_bytes_are_not_slowed_down() {
        let sent = sent_in_each_second(Rate { bytes: KIB, after: 1000 * KIB }, 16 << 10, 3).await;
        assert!((1001 * KIB..=1002 * KIB).contains(&sent[0].0), "{sent:?}");
        assert!((KIB / 2..=2 * KIB).contains(&sent[1].0), "{sent:?}");
    }

    #[test]
    fn extreme_rates() {
        let pace = |bytes, after| Pace::new(Rate { bytes, after });
        let day = Duration::from_secs(86_400);
        assert_eq!(pace(u64::MAX, u64::MAX).allowance(day), Ok(u64::MAX));
        let mut slow = pace(1, 0);
        slow.sent = 1;
        assert_eq!(slow.allowance(Duration::ZERO), Err(Duration::from_millis(1001)));
        assert_eq!(slow.allowance(day), Ok(86_400));
    }
}
