//! An update of the proxy under load: the next process gets the sockets of the one before.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lb_testbed::check::eventually;
use lb_testbed::ingress_bed::{EndpointState, slice};
use lb_testbed::{Backend, IngressBed, http};
use serde_json::json;

use crate::client::Client;

const HOST: &str = "shop.example";
const PORT: u16 = 20_000;
const UPDATES: usize = 3;
const CLIENTS: usize = 8;

#[test]
fn update_of_the_proxy_loses_no_request() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let _entered = runtime.enter();
    let bed = IngressBed::build()?;
    let endpoint = IngressBed::endpoint(0);
    let _backend = Backend::start(&bed.place, SocketAddr::new(endpoint.into(), PORT), "shop")?;
    let backend = json!({"service": {"name": "shop", "port": {"number": 80}}});
    bed.manifests.write(
        "shop.yaml",
        &[
            slice("shop", PORT, &[(endpoint, EndpointState::Ready)]),
            json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": "shop"},
                "spec": {"ports": [{"port": 80}]},
            }),
            json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "shop"},
                "spec": {"ingressClassName": "sluice", "rules": [{
                    "host": HOST,
                    "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]},
                }]},
            }),
        ],
    )?;
    let handover = format!("--handover={}", bed.folder().join("handover").display());
    let arguments = ["--no-access-log", "--shutdown-grace-period=1", handover.as_str()];
    let mut proxy = bed.start_proxy(&arguments)?;

    // A new process that dies takes nothing with it: the old one answers the probes again.
    let dead = bed.start_proxy(&arguments)?;
    eventually(|| {
        ensure!(dead.log()?.contains("initial sync complete"), "not ready");
        Ok(())
    })?;
    drop(dead);
    eventually(|| {
        let answer = http::get(&bed.place, IngressBed::ADMIN, "/readyz")?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    })
    .with_context(|| proxy.log_tail())?;

    let (stop, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    let load = |number: usize| -> Result<()> {
        // Half of the requests have a connection of their own.
        let keeps = number.is_multiple_of(2);
        let mut client = Client::connect(IngressBed::HTTP)?;
        while !stop.load(Ordering::Relaxed) {
            let answer = client.send("POST", HOST, "/", "hello")?;
            ensure!(answer.status == 200, "{answer:?}");
            answered.fetch_add(1, Ordering::Relaxed);
            if answer.closes || !keeps {
                client = Client::connect(IngressBed::HTTP)?;
            }
        }
        Ok(())
    };
    let result = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (load, place) = (&load, &bed.place);
                scope.spawn(move || place.inside(|| load(number))?)
            })
            .collect();
        let updated = (|| {
            for _ in 0..UPDATES {
                let next = bed.start_proxy(&arguments)?;
                // Until it has the sockets, the old process answers the probe.
                eventually(|| {
                    ensure!(next.log()?.contains("initial sync complete"), "not ready");
                    Ok(())
                })?;
                std::mem::replace(&mut proxy, next).stop()?;
                thread::sleep(Duration::from_millis(100));
            }
            Ok::<_, anyhow::Error>(())
        })();
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().expect("a client does not panic")?;
        }
        updated
    });
    result.with_context(|| proxy.log_tail())?;
    let answered = answered.into_inner();
    ensure!(answered > 1000, "only {answered} requests were sent");
    proxy.stop()
}
