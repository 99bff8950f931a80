//! Assertions of test cases about answers. A failed assertion is an error with the whole exchange
//! in its message.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::thread;
use std::time::{Duration, Instant};

use crate::patience::patient;
use crate::report::{Exchange, FailureKind, LoadReport, PingReport, RequestAnswer, TransferReport};
use anyhow::{Context, Result, anyhow, bail, ensure};

/// How long a change may take to become visible. It is generous because the machine may be busy.
/// Only failing cases wait this long.
const LIMIT: Duration = Duration::from_secs(30);

/// Repeats `attempt` until it succeeds. Returns its last error after [`LIMIT`].
pub fn eventually(attempt: impl FnMut() -> Result<()>) -> Result<()> {
    eventually_within(LIMIT, attempt)
}

/// Repeats `attempt` until it succeeds. Returns its last error after `limit`.
pub fn eventually_within(limit: Duration, mut attempt: impl FnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + patient(limit);
    loop {
        match attempt() {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("still failing after {} s", limit.as_secs())));
            }
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Checks that all requests were answered by one of these pods (1-based numbers), that the payload
/// arrived intact, and that the client's socket shows the requested address as its peer.
pub fn answered_by(exchanges: &[Exchange], pods: &[usize]) -> Result<()> {
    for exchange in exchanges {
        let answer = answer_of(exchange)?;
        let pod = &answer.greeting.pod;
        ensure!(pods.iter().any(|number| *pod == format!("pod{number}")), "answered by {pod}: {exchange:?}");
    }
    Ok(())
}

/// Does the checks of [`answered_by`], and checks that the endpoint saw one of these client
/// addresses.
pub fn answered(exchanges: &[Exchange], pods: &[usize], clients: &[IpAddr]) -> Result<()> {
    answered_by(exchanges, pods)?;
    for exchange in exchanges {
        let seen = answer_of(exchange)?.greeting.client.ip();
        ensure!(clients.contains(&seen), "the endpoint saw {seen}, not one of {clients:?}: {exchange:?}");
    }
    Ok(())
}

/// Checks that only these pods answered, each of them at least once.
pub fn spread_over(exchanges: &[Exchange], pods: &[usize]) -> Result<()> {
    answered_by(exchanges, pods)?;
    for number in pods {
        let name = format!("pod{number}");
        let from_pod =
            |exchange: &Exchange| answer_of(exchange).is_ok_and(|answer| answer.greeting.pod == name);
        ensure!(exchanges.iter().any(from_pod), "{name} got none of {} requests", exchanges.len());
    }
    Ok(())
}

/// Checks that only these pods answered, each of them as often as `fair` allows.
pub fn evenly_over(exchanges: &[Exchange], pods: &[usize], fair: RangeInclusive<usize>) -> Result<()> {
    answered_by(exchanges, pods)?;
    for number in pods {
        let name = format!("pod{number}");
        let from_pod =
            |exchange: &&Exchange| answer_of(exchange).is_ok_and(|answer| answer.greeting.pod == name);
        let count = exchanges.iter().filter(from_pod).count();
        ensure!(fair.contains(&count), "{name} got {count} of {} requests, not {fair:?}", exchanges.len());
    }
    Ok(())
}

/// Checks that all requests were refused.
pub fn refused(exchanges: &[Exchange]) -> Result<()> {
    failed_as(exchanges, FailureKind::Refused)
}

/// Checks that all requests failed with this kind of failure.
pub fn failed_as(exchanges: &[Exchange], kind: FailureKind) -> Result<()> {
    for exchange in exchanges {
        match &exchange.result {
            Err(failure) if failure.kind == kind => {}
            result => bail!("{}: {result:?} instead of {kind:?}", exchange.target),
        }
    }
    Ok(())
}

/// Checks that no request was answered.
pub fn unanswered(exchanges: &[Exchange]) -> Result<()> {
    match exchanges.iter().find(|exchange| exchange.result.is_ok()) {
        None => Ok(()),
        Some(exchange) => bail!("answered: {exchange:?}"),
    }
}

/// Checks that every echo request was answered.
pub fn echoed(report: &PingReport) -> Result<()> {
    ensure!(report.sent > 0 && report.answered == report.sent, "not every ping was answered: {report:?}");
    Ok(())
}

/// Checks that at least one request was sent and that none failed. `what` is the name of the load
/// in the error.
pub fn without_failure(what: &str, report: &LoadReport) -> Result<()> {
    ensure!(report.requests > 0, "{what}: no request was sent");
    ensure!(report.failures == 0, "{what}: {report:?}");
    Ok(())
}

/// Checks that all bytes arrived intact in both directions.
pub fn transferred(report: &TransferReport, bytes: u64) -> Result<()> {
    report.intact.clone().map_err(|reason| anyhow!("{reason}: {report:?}"))?;
    ensure!((report.sent, report.received) == (bytes, bytes), "not all of {bytes}: {report:?}");
    Ok(())
}

fn answer_of(exchange: &Exchange) -> Result<&RequestAnswer> {
    let answer = exchange.result.as_ref().map_err(|failure| anyhow!("{failure}"));
    let answer = answer.with_context(|| format!("request to {}", exchange.target))?;
    ensure!(answer.greeting.intact, "the request arrived damaged: {exchange:?}");
    ensure!(answer.peer == exchange.target, "the client's socket shows another peer: {exchange:?}");
    Ok(answer)
}
