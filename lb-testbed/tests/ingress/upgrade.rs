//! An update of the proxy under load: the next process gets the sockets of the one before.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use lb_testbed::check::eventually;
use lb_testbed::ingress_bed::{EndpointState, ingress, service, slice};
use lb_testbed::{Backend, IngressBed, IngressProxy, http};

use crate::client::Client;
use crate::load::{HOST, PORT, under_load};

const UPDATES: usize = 3;
/// Longer than the case: it ends each grace period by a second signal.
const GRACE_PERIOD: &str = "--shutdown-grace-period=3600";

#[test]
fn update_of_the_proxy_loses_no_request() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let _entered = runtime.enter();
    let bed = IngressBed::build()?;
    let endpoint = IngressBed::endpoint(0);
    let _backend = Backend::start(&bed.place, SocketAddr::new(endpoint.into(), PORT), "shop")?;
    let slice = slice("shop", PORT, &[(endpoint, EndpointState::Ready)]);
    bed.manifests.write("shop.yaml", &[slice, service("shop"), ingress("shop", HOST)])?;
    let handover = format!("--handover={}", bed.folder().join("handover").display());
    let arguments = ["--no-access-log", GRACE_PERIOD, handover.as_str()];
    let mut proxy = bed.start_proxy(&arguments)?;

    // A new process that dies takes nothing with it: the old one answers the probes again.
    let dead = bed.start_proxy(&arguments)?;
    wait_until_synced(&dead)?;
    drop(dead);
    eventually(|| {
        let answer = http::get(&bed.place, IngressBed::ADMIN, "/readyz")?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    })
    .with_context(|| proxy.log_tail())?;

    let client = |number: usize| {
        // Half of the requests have a connection of their own.
        let keeps = number.is_multiple_of(2);
        let mut client = Client::connect(IngressBed::HTTP)?;
        Ok(move || {
            let answer = client.send("POST", HOST, "/", "hello")?;
            if answer.closes || !keeps {
                client = Client::connect(IngressBed::HTTP)?;
            }
            Ok(answer)
        })
    };
    under_load(&bed.place, client, |answered| {
        for _ in 0..UPDATES {
            let next = bed.start_proxy(&arguments)?;
            // Until it has the sockets, the old process answers the probe.
            wait_until_synced(&next)?;
            let old = std::mem::replace(&mut proxy, next);
            begin_grace_period(&old)?;
            // An answer in the grace period closes the connection that a client has kept.
            answered.wait_for_each()?;
            old.stop()?;
            answered.wait_for_each()?;
        }
        Ok(())
    })
    .with_context(|| proxy.log_tail())?;
    begin_grace_period(&proxy)?;
    proxy.stop()
}

/// Sends the first signal, and waits until it has arrived: two that wait become one.
fn begin_grace_period(proxy: &IngressProxy) -> Result<()> {
    // The log has the lines of an earlier process, too, which ended after this one has started.
    let begun = || Ok::<_, anyhow::Error>(proxy.log()?.matches("the grace period begins").count());
    let before = begun()?;
    proxy.terminate()?;
    eventually(|| {
        ensure!(begun()? > before, "the grace period has not begun");
        Ok(())
    })
}

fn wait_until_synced(proxy: &IngressProxy) -> Result<()> {
    eventually(|| {
        ensure!(proxy.log()?.contains("initial sync complete"), "not ready");
        Ok(())
    })
}
