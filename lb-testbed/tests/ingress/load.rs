//! Clients that send requests to shop.example without a pause while something changes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use anyhow::{Result, ensure};
use lb_testbed::Place;

use crate::client::Answer;

pub const HOST: &str = "shop.example";
/// The port of the endpoints.
pub const PORT: u16 = 20_000;
const CLIENTS: usize = 8;

/// Makes a change under load. `client` returns a function that sends one request and receives the
/// answer. `change` receives the number of answers so far. Returns an error if a request failed.
pub fn under_load<S: FnMut() -> Result<Answer>>(
    place: &Place,
    client: impl Fn(usize) -> Result<S> + Sync,
    change: impl FnOnce(&AtomicU64) -> Result<()>,
) -> Result<()> {
    let (stop, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    let load = |number: usize| -> Result<()> {
        let mut send = client(number)?;
        while !stop.load(Ordering::Relaxed) {
            let answer = send()?;
            ensure!(answer.status == 200, "client {number}: {answer:?}");
            answered.fetch_add(1, Ordering::Relaxed);
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
        let changed = change(&answered);
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().expect("a client does not panic")?;
        }
        changed
    })?;
    let answered = answered.into_inner();
    ensure!(answered > 1000, "only {answered} requests were sent");
    Ok(())
}
