//! The cases of ingress-controller-conformance (`lb-ingress/tests/cases/ingress/conformance.txt`)
//! with one `lb ingress --manifests` and real endpoints.
//!
//! Each Service of a case has two endpoints. Each must receive requests, as the case about load
//! balancing requires.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use lb_testbed::ingress_bed::{EndpointState, ingress, service, slice};
use lb_testbed::patience::patient;
use lb_testbed::{Backend, IngressBed};

use crate::client::Client;
use crate::short_form::expand;

const CASES: &str = include_str!("../../../lb-ingress/tests/cases/ingress/conformance.txt");
/// Limit of the time from the change of a file to its effect.
const LIMIT: Duration = Duration::from_secs(10);
const FIRST_PORT: u16 = 20_000;
/// A host that each case routes to a Service of its own: it shows that the case is in effect.
const MARK: &str = "mark.example";
/// Requests to a Service. Each endpoint receives some of them.
const REQUESTS: usize = 8;

#[test]
fn conformance() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let _entered = runtime.enter();
    let bed = IngressBed::build()?;
    let mut port = FIRST_PORT;
    let mut proxy = None;
    let (mut failures, mut count) = (Vec::new(), 0);
    for case in CASES.split("=== ").skip(1) {
        let (name, text) = case.split_once('\n').context("a case without a body")?;
        let (input, expected) = text.split_once("\n=>\n").context("a case without a result")?;
        let step = expand(input);
        // Of the objects that the proxy reads together, this one comes last: its name does.
        let mark = format!("zz-mark-{count}");
        let mut objects = step.objects;
        let mut marked = ingress(&mark, MARK);
        marked["spec"]["ingressClassName"] = "lb".into();
        objects.extend([service(&mark), marked]);
        let mut backends = Vec::new();
        let services: Vec<_> = objects.iter().filter(|object| object["kind"] == "Service").cloned().collect();
        for service in services {
            let service = service["metadata"]["name"].as_str().context("a Service without a name")?;
            let addresses = [0, 1].map(IngressBed::endpoint);
            for address in addresses {
                let name = format!("{service} {address}");
                backends.push(Backend::start(&bed.place, SocketAddr::new(address.into(), port), &name)?);
            }
            objects.push(slice(service, port, &addresses.map(|address| (address, EndpointState::Ready))));
            port += 1;
        }
        bed.manifests.write("case.yaml", &objects)?;
        if proxy.is_none() {
            proxy = Some(bed.start_proxy(&["--no-access-log"])?);
        }
        let expected: Vec<_> = expected.lines().filter_map(|line| line.split_once(" = ")).collect();
        let result = bed.place.inside(|| {
            wait_for(&mark)?;
            expected.iter().try_for_each(|(request, expected)| check(request, expected))
        })?;
        if let Err(error) = result {
            failures.push(format!("{name}: {error:#}"));
        }
        count += 1;
        for backend in backends {
            runtime.block_on(backend.stop())?;
        }
    }
    assert!(count >= 30, "only {count} cases were found");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    proxy.context("no case")?.stop()
}

/// Waits until the mark of the case is served.
fn wait_for(mark: &str) -> Result<()> {
    let deadline = Instant::now() + patient(LIMIT);
    loop {
        let answer = Client::connect(IngressBed::HTTP)?.get(MARK, "/")?;
        if answer.status == 200 && answer.first_line().split(' ').next() == Some(mark) {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("the case has no effect: {answer:?}");
        }
        sleep(Duration::from_millis(5));
    }
}

/// Sends requests of a case. `expected` is the name of a Service, or a status.
fn check(request: &str, expected: &str) -> Result<()> {
    let (host, path) = request.split_once('/').context("a request without a path")?;
    let path = format!("/{path}");
    // HTTP/1.1 requires the field `Host`. Without a name, clients send the address.
    let host = if host.is_empty() { "127.0.0.1:8180" } else { host };
    let mut client = Client::connect(IngressBed::HTTP)?;
    let mut endpoints = BTreeSet::new();
    for _ in 0..REQUESTS {
        let answer = client.get(host, &path)?;
        let is_expected = match expected.parse::<u16>() {
            Ok(status) => answer.status == status,
            Err(_) => answer.status == 200 && answer.first_line().split(' ').next() == Some(expected),
        };
        if !is_expected {
            bail!("{request}: expected {expected}, got {answer:?}");
        }
        if answer.status == 200 {
            let line = answer.body.lines().nth(1).unwrap_or_default();
            if line != format!("GET {path}") || !answer.body.contains(&format!("\nhost: {host}\n")) {
                bail!("{request}: the endpoint received {answer:?}");
            }
            endpoints.insert(answer.first_line().to_owned());
        }
    }
    match (expected.parse::<u16>(), endpoints.len()) {
        (Ok(_), 0) | (Err(_), 2) => Ok(()),
        (_, count) => bail!("{request}: {count} endpoints received requests"),
    }
}
