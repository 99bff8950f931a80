//! Session affinity (`sessionAffinity: ClientIP`).

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lb_testbed::Family;
use serde_json::{Value, json};

use crate::check::eventually;
use crate::exposed::{Exposed, Requester, route_external_addresses};
use crate::world::{To, World};

/// A client keeps its endpoint on all addresses of the Service port, until the endpoint is removed.
pub fn a_client_keeps_its_endpoint(world: &mut World, family: Family) -> Result<()> {
    route_external_addresses(world)?;
    let service = Exposed::publish(world, "Cluster", &[1, 3, 4], |object| sticky(object, 10_800))?;
    service.wait_until_programmed(world, &[1, 3, 4])?;
    for (source, kinds) in [
        ("outside", &["ClusterIP", "NodePort", "ExternalIP", "LoadBalancer"][..]),
        ("pod here", &["ClusterIP", "NodePort", "ExternalIP", "LoadBalancer"][..]),
        ("node", &["ClusterIP", "NodePort"][..]),
    ] {
        for to in [To::Http, To::Udp] {
            let requester =
                |kind| Requester::new(world, source, service.address(kind, world, family, to), to);
            let first = only_endpoint(&requester(kinds[0])).with_context(|| format!("{source}, {to:?}"))?;
            for kind in kinds {
                let now =
                    only_endpoint(&requester(kind)).with_context(|| format!("{source}, {to:?}, {kind}"))?;
                ensure!(now == first, "{source}, {to:?}: {kind} uses {now}, {} used {first}", kinds[0]);
            }
        }
    }

    let target = service.address("NodePort", world, family, To::Http);
    let before = only_endpoint(&Requester::new(world, "outside", target, To::Http))?;
    let rest: Vec<usize> = [1, 3, 4].into_iter().filter(|pod| format!("pod{pod}") != before).collect();
    service.write(world, "Cluster", &rest, |object| sticky(object, 10_800))?;
    let mut after = String::new();
    eventually(|| {
        after = only_endpoint(&Requester::new(world, "outside", target, To::Http))?;
        ensure!(after != before, "still answered by {after}, which was removed");
        Ok(())
    })?;
    // The client keeps the new endpoint when the old one comes back.
    service.write(world, "Cluster", &[1, 3, 4], |object| sticky(object, 10_800))?;
    service.wait_until_programmed(world, &[1, 3, 4])?;
    let now = only_endpoint(&Requester::new(world, "outside", target, To::Http))?;
    ensure!(now == after, "answered by {now} instead of {after}");
    Ok(())
}

/// After the time-out a client may get another endpoint.
pub fn a_client_may_move_after_the_timeout(world: &mut World, family: Family) -> Result<()> {
    let service = Exposed::publish(world, "Cluster", &[1, 3], |object| sticky(object, 1))?;
    service.wait_until_programmed(world, &[1, 3])?;
    for (source, kind) in [("outside", "NodePort"), ("pod here", "ClusterIP")] {
        let target = service.address(kind, world, family, To::Http);
        let requester = Requester::new(world, source, target, To::Http);
        let first = endpoint(&requester)?;
        let mut moved = false;
        // By chance it gets the same endpoint 40 times in one of a million million runs.
        for _ in 0..40 {
            thread::sleep(Duration::from_millis(1200));
            if endpoint(&requester)? != first {
                moved = true;
                break;
            }
        }
        ensure!(moved, "{source}: always answered by {first}");
    }
    Ok(())
}

pub(super) fn sticky(object: &mut Value, seconds: u32) {
    object["spec"]["sessionAffinity"] = "ClientIP".into();
    object["spec"]["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": seconds}});
}

/// Returns the endpoint that answers several requests. Returns an error if more than one answers.
fn only_endpoint(requester: &Requester<'_>) -> Result<String> {
    let first = endpoint(requester)?;
    for exchange in requester.send(8)? {
        let pod = exchange.result.map_err(|failure| anyhow::anyhow!("{failure}"))?.greeting.pod;
        ensure!(pod == first, "answered by {first}, then by {pod}");
    }
    Ok(first)
}

fn endpoint(requester: &Requester<'_>) -> Result<String> {
    let exchange = requester.send(1)?.pop().context("no request was sent")?;
    Ok(exchange.result.map_err(|failure| anyhow::anyhow!("{failure}"))?.greeting.pod)
}
