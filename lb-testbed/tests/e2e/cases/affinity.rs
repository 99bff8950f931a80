//! `sessionAffinity: ClientIP`.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lb_testbed::Family;
use serde_json::{Value, json};

use crate::check::eventually;
use crate::exposed::{Ask, Exposed, route_external_addresses};
use crate::world::{To, World};

/// A client stays with its endpoint, whichever address of the port it uses, until that endpoint
/// goes.
pub fn a_client_stays(world: &mut World, family: Family) -> Result<()> {
    route_external_addresses(world)?;
    let service = Exposed::publish(world, "Cluster", &[1, 3, 4], |object| sticky(object, 10_800))?;
    service.wait_until_known(world)?;
    for (source, kinds) in [
        ("outside", &["ClusterIP", "NodePort", "ExternalIP", "LoadBalancer"][..]),
        ("pod here", &["ClusterIP", "NodePort", "ExternalIP", "LoadBalancer"][..]),
        ("node", &["ClusterIP", "NodePort"][..]),
    ] {
        for to in [To::Http, To::Udp] {
            let ask = |kind| Ask::new(world, source, service.address(kind, world, family, to), to);
            let first = only_one(&ask(kinds[0])).with_context(|| format!("{source}, {to:?}"))?;
            for kind in kinds {
                let now = only_one(&ask(kind)).with_context(|| format!("{source}, {to:?}, {kind}"))?;
                ensure!(now == first, "{source}, {to:?}: {kind} gives {now}, {} gave {first}", kinds[0]);
            }
        }
    }

    let target = service.address("NodePort", world, family, To::Http);
    let before = only_one(&Ask::new(world, "outside", target, To::Http))?;
    let rest: Vec<usize> = [1, 3, 4].into_iter().filter(|pod| format!("pod{pod}") != before).collect();
    service.write(world, "Cluster", &rest, |object| sticky(object, 10_800))?;
    let mut after = String::new();
    eventually(|| {
        after = only_one(&Ask::new(world, "outside", target, To::Http))?;
        ensure!(after != before, "still {after}, which has gone");
        Ok(())
    })?;
    // That the old endpoint is there again does not bring the client back.
    service.write(world, "Cluster", &[1, 3, 4], |object| sticky(object, 10_800))?;
    thread::sleep(Duration::from_millis(500));
    let now = only_one(&Ask::new(world, "outside", target, To::Http))?;
    ensure!(now == after, "{now} instead of {after}");
    Ok(())
}

/// After the time-out a client is given any endpoint again.
pub fn a_client_may_move_after_the_timeout(world: &mut World, family: Family) -> Result<()> {
    let service = Exposed::publish(world, "Cluster", &[1, 3], |object| sticky(object, 1))?;
    service.wait_until_known(world)?;
    for (source, kind) in [("outside", "NodePort"), ("pod here", "ClusterIP")] {
        let ask = Ask::new(world, source, service.address(kind, world, family, To::Http), To::Http);
        let first = endpoint(&ask)?;
        let mut moved = false;
        for _ in 0..20 {
            thread::sleep(Duration::from_millis(1200));
            if endpoint(&ask)? != first {
                moved = true;
                break;
            }
        }
        ensure!(moved, "{source}: always {first}");
    }
    Ok(())
}

fn sticky(object: &mut Value, seconds: u32) {
    object["spec"]["sessionAffinity"] = "ClientIP".into();
    object["spec"]["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": seconds}});
}

/// The one endpoint that answers many requests.
fn only_one(ask: &Ask<'_>) -> Result<String> {
    let first = endpoint(ask)?;
    for exchange in ask.some(8)? {
        let pod = exchange.result.map_err(|failure| anyhow::anyhow!("{failure}"))?.greeting.pod;
        ensure!(pod == first, "{pod} answers, and before {first} did");
    }
    Ok(first)
}

fn endpoint(ask: &Ask<'_>) -> Result<String> {
    let exchange = ask.some(1)?.pop().context("an exchange")?;
    Ok(exchange.result.map_err(|failure| anyhow::anyhow!("{failure}"))?.greeting.pod)
}
