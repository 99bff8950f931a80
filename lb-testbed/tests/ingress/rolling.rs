//! A rolling update of the endpoints of a Service under load.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use lb_testbed::ingress_bed::{EndpointState, ingress, service, slice};
use lb_testbed::patience::patient;
use lb_testbed::{Backend, IngressBed};

use crate::client::Client;
use crate::load::{HOST, PORT, under_load};

/// Endpoints at a time.
const REPLICAS: u8 = 3;
/// Endpoints that are replaced: four times each.
const REPLACED: u8 = 12;
const LIMIT: Duration = Duration::from_secs(20);

/// Each endpoint is replaced as a Deployment does it: a new one becomes ready, the old one becomes
/// terminating, and stops when the controller has had time to see that. No request fails.
#[test]
fn rolling_update_loses_no_request() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let _entered = runtime.enter();
    let bed = IngressBed::build()?;
    let start = |number: u8| {
        let address = SocketAddr::new(IngressBed::endpoint(number).into(), PORT);
        Ok::<_, anyhow::Error>((number, Backend::start(&bed.place, address, &number.to_string())?))
    };
    let mut running = (0..REPLICAS).map(start).collect::<Result<Vec<_>>>()?;
    let write = |running: &[(u8, Backend)], terminating: Option<u8>| {
        let endpoints: Vec<_> = running
            .iter()
            .map(|(number, _)| {
                let is_terminating = terminating == Some(*number);
                let state = if is_terminating { EndpointState::Terminating } else { EndpointState::Ready };
                (IngressBed::endpoint(*number), state)
            })
            .collect();
        bed.manifests.write("endpoints.yaml", &[slice("shop", PORT, &endpoints)])
    };
    write(&running, None)?;
    bed.manifests.write("shop.yaml", &[service("shop"), ingress("shop", HOST)])?;
    let proxy = bed.start_proxy(&["--no-access-log"])?;

    let client = |number: usize| {
        // Half of the requests have a body, so they are never repeated once they were sent.
        let (method, body) = if number.is_multiple_of(2) { ("GET", "") } else { ("POST", "hello") };
        let mut client = Client::connect(IngressBed::HTTP)?;
        Ok(move || client.send(method, HOST, "/", body))
    };
    under_load(&bed.place, client, |answered| {
        for next in REPLICAS..REPLICAS + REPLACED {
            running.push(start(next)?);
            write(&running, None)?;
            wait_until(|| Ok(running.last().is_some_and(|(_, backend)| backend.requests() > 0)))?;
            let old = running[0].0;
            write(&running, Some(old))?;
            // A pod is given time by its preStop hook. Here it ends as soon as requests have
            // stopped coming: no request may be lost after that.
            wait_until(|| {
                let before = (running[0].1.requests(), answered.total());
                wait_until(|| Ok(answered.total() > before.1 + 100))?;
                Ok(running[0].1.requests() == before.0)
            })?;
            let (_, backend) = running.remove(0);
            runtime.block_on(backend.stop())?;
            write(&running, None)?;
        }
        Ok(())
    })
    .with_context(|| proxy.log_tail())?;
    proxy.stop()
}

fn wait_until(mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + patient(LIMIT);
    while !done()? {
        if Instant::now() > deadline {
            bail!("a step of the update takes too long");
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
