//! What cases assert about answers. Failures are errors with the whole exchange in the message.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::thread;
use std::time::{Duration, Instant};

use crate::report::{Answer, Exchange, FailureKind, LoadReport, PingReport, TransferReport};
use anyhow::{Context, Result, anyhow, bail, ensure};

/// How long a change may take to show. Generous: the machine may be busy, and only failures wait so long.
const LIMIT: Duration = Duration::from_secs(15);

/// Repeats `attempt` until it succeeds; after [`LIMIT`] returns its last error.
pub fn eventually(attempt: impl FnMut() -> Result<()>) -> Result<()> {
    eventually_within(LIMIT, attempt)
}

/// Repeats `attempt` until it succeeds; after `limit` returns its last error.
pub fn eventually_within(limit: Duration, mut attempt: impl FnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        match attempt() {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("still so after {} s", limit.as_secs())));
            }
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// All requests were answered, by pods of these numbers, intact, and the client believes to speak with whom it asked.
pub fn answered_by(exchanges: &[Exchange], pods: &[usize]) -> Result<()> {
    for exchange in exchanges {
        let answer = answer_of(exchange)?;
        let pod = &answer.greeting.pod;
        ensure!(pods.iter().any(|number| *pod == format!("pod{number}")), "answered by {pod}: {exchange:?}");
    }
    Ok(())
}

/// As [`answered_by`], and the endpoint saw one of these client addresses.
pub fn answered(exchanges: &[Exchange], pods: &[usize], clients: &[IpAddr]) -> Result<()> {
    answered_by(exchanges, pods)?;
    for exchange in exchanges {
        let seen = answer_of(exchange)?.greeting.client.ip();
        ensure!(clients.contains(&seen), "the endpoint saw {seen}, not one of {clients:?}: {exchange:?}");
    }
    Ok(())
}

/// Each of these pods answered at least once.
pub fn spread_over(exchanges: &[Exchange], pods: &[usize]) -> Result<()> {
    answered_by(exchanges, pods)?;
    for number in pods {
        let name = format!("pod{number}");
        let by_it =
            |exchange: &&Exchange| answer_of(exchange).is_ok_and(|answer| answer.greeting.pod == name);
        ensure!(exchanges.iter().any(|exchange| by_it(&exchange)), "{name} got none of {}", exchanges.len());
    }
    Ok(())
}

/// Each of these pods answered a fair number of times.
pub fn evenly_over(exchanges: &[Exchange], pods: &[usize], fair: RangeInclusive<usize>) -> Result<()> {
    answered_by(exchanges, pods)?;
    for number in pods {
        let name = format!("pod{number}");
        let by_it =
            |exchange: &&Exchange| answer_of(exchange).is_ok_and(|answer| answer.greeting.pod == name);
        let count = exchanges.iter().filter(by_it).count();
        ensure!(fair.contains(&count), "{name} got {count} of {} requests, not {fair:?}", exchanges.len());
    }
    Ok(())
}

/// All requests were refused.
pub fn refused(exchanges: &[Exchange]) -> Result<()> {
    failed_as(exchanges, FailureKind::Refused)
}

/// All requests failed in this way.
pub fn failed_as(exchanges: &[Exchange], kind: FailureKind) -> Result<()> {
    for exchange in exchanges {
        match &exchange.result {
            Err(failure) if failure.kind == kind => {}
            other => bail!("{}: {other:?} instead of {kind:?}", exchange.target),
        }
    }
    Ok(())
}

/// No request was answered.
pub fn unanswered(exchanges: &[Exchange]) -> Result<()> {
    match exchanges.iter().find(|exchange| exchange.result.is_ok()) {
        None => Ok(()),
        Some(exchange) => bail!("answered: {exchange:?}"),
    }
}

/// Every echo request was answered.
pub fn echoed(report: &PingReport) -> Result<()> {
    ensure!(report.sent > 0 && report.answered == report.sent, "not every ping was answered: {report:?}");
    Ok(())
}

/// The load ran, and nothing of it failed.
pub fn without_failure(what: &str, report: &LoadReport) -> Result<()> {
    ensure!(report.requests > 0, "{what}: no request was sent");
    ensure!(report.failures == 0, "{what}: {report:?}");
    Ok(())
}

/// All bytes arrived, both ways.
pub fn transferred(report: &TransferReport, bytes: u64) -> Result<()> {
    report.intact.clone().map_err(|reason| anyhow!("{reason}: {report:?}"))?;
    ensure!((report.sent, report.received) == (bytes, bytes), "not all of {bytes}: {report:?}");
    Ok(())
}

fn answer_of(exchange: &Exchange) -> Result<&Answer> {
    let answer = exchange.result.as_ref().map_err(|failure| anyhow!("{failure}"));
    let answer = answer.with_context(|| format!("request to {}", exchange.target))?;
    ensure!(answer.greeting.intact, "the request arrived damaged: {exchange:?}");
    ensure!(answer.peer == exchange.target, "the client sees another peer: {exchange:?}");
    Ok(answer)
}
