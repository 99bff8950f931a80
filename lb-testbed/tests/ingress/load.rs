//! Clients that send requests to shop.example without a pause while something changes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use anyhow::{Result, ensure};
use lb_testbed::Place;
use lb_testbed::check::eventually;

use crate::client::Answer;

pub const HOST: &str = "shop.example";
/// The port of the endpoints.
pub const PORT: u16 = 20_000;
const CLIENTS: usize = 8;
/// The load sends this many requests at least.
const REQUESTS: u64 = 1000;

/// The number of answers of each client so far.
pub struct Answered([AtomicU64; CLIENTS]);

impl Answered {
    pub fn total(&self) -> u64 {
        self.counts().iter().sum()
    }

    fn counts(&self) -> [u64; CLIENTS] {
        self.0.each_ref().map(|count| count.load(Ordering::Relaxed))
    }

    /// Waits until each client has the answer to a request that it sent after the call.
    pub fn wait_for_each(&self) -> Result<()> {
        let before = self.counts();
        eventually(|| {
            let now = self.counts();
            // The first further answer may be to a request that was sent before.
            let all = now.iter().zip(&before).all(|(now, before)| *now >= before + 2);
            ensure!(all, "some clients got no answers: {before:?} before, {now:?} now");
            Ok(())
        })
    }
}

/// Makes a change under load. `client` returns a function that sends one request and receives the
/// answer. Returns an error if a request failed.
pub fn under_load<S: FnMut() -> Result<Answer>>(
    place: &Place,
    client: impl Fn(usize) -> Result<S> + Sync,
    change: impl FnOnce(&Answered) -> Result<()>,
) -> Result<()> {
    let stop = AtomicBool::new(false);
    let answered = Answered(Default::default());
    let load = |number: usize| -> Result<()> {
        let mut send = client(number)?;
        while !stop.load(Ordering::Relaxed) {
            let answer = send()?;
            ensure!(answer.status == 200, "client {number}: {answer:?}");
            answered.0[number].fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let load = &load;
                scope.spawn(move || place.inside(|| load(number))?)
            })
            .collect();
        let changed = change(&answered).and_then(|()| {
            eventually(|| {
                let total = answered.total();
                ensure!(total > REQUESTS, "only {total} requests were answered");
                Ok(())
            })
        });
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().expect("a client does not panic")?;
        }
        changed
    })
}
