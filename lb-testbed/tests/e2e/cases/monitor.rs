//! `lb monitor` with real connections: its output, its filters, a second reader, and floods.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow, ensure};
use lb_testbed::command::{TimeLimit, output};
use lb_testbed::host::{Datagrams, FloodKind, HTTP_PORT, Process};
use lb_testbed::{AttachMode, Family, Underlay, agent};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::check::{answered_by, eventually, refused};
use crate::world::{To, World};

/// A running `lb monitor -o json` on the first node. Dropping it kills it.
pub(super) struct Monitor {
    process: Process,
    rows: Arc<Mutex<Vec<Value>>>,
    output: JoinHandle<()>,
}

fn command(world: &World, arguments: &[&str]) -> Result<Command> {
    let node = world.node(0);
    let mut command = node.host.place.command(agent::program()?)?;
    command.args(["monitor", "-o", "json"]).args(arguments).arg("--bpffs").arg(&node.bpffs);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command)
}

impl Monitor {
    /// Starts the command and waits until the programs report to it.
    pub(super) fn start(world: &World, arguments: &[&str]) -> Result<Self> {
        // A reader that was killed leaves its time.
        let before = lease(world)?;
        let monitor = Self::spawn(world, arguments)?;
        eventually(|| {
            ensure!(![0, before].contains(&lease(world)?), "the programs do not report");
            Ok(())
        })?;
        Ok(monitor)
    }

    fn spawn(world: &World, arguments: &[&str]) -> Result<Self> {
        let mut process = Process(command(world, arguments)?.spawn()?);
        let stdout = BufReader::new(process.0.stdout.take().context("no standard output")?);
        let rows = Arc::new(Mutex::new(Vec::new()));
        let written = Arc::clone(&rows);
        let output = thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let row = serde_json::from_str(&line).unwrap_or(Value::String(line));
                written.lock().unwrap_or_else(PoisonError::into_inner).push(row);
            }
        });
        Ok(Self { process, rows, output })
    }

    fn rows(&self) -> Vec<Value> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns an event that has these fields.
    pub(super) fn event(&self, fields: &Value) -> Result<Value> {
        let rows = self.rows();
        let row = rows.iter().find(|row| has(row, fields));
        Ok(row.with_context(|| format!("no event has {fields}: {rows:#?}"))?.clone())
    }

    /// Repeats a request until there is an event that has these fields, and returns the event. On a
    /// busy machine the command may be too late to renew its lease: then an event is missing.
    fn expect_after(&self, fields: &Value, request: impl Fn() -> Result<()>) -> Result<Value> {
        let mut found = Value::Null;
        eventually(|| {
            request()?;
            found = self.event(fields)?;
            Ok(())
        })?;
        Ok(found)
    }

    /// Waits for the end. Returns the events and standard error.
    fn finish(self) -> Result<(Vec<Value>, String)> {
        let Self { mut process, rows, output } = self;
        let _limit = TimeLimit::of(&process.0)?;
        let mut text = String::new();
        process.0.stderr.take().context("no standard error")?.read_to_string(&mut text)?;
        let status = process.0.wait()?;
        output.join().map_err(|_| anyhow!("the reader of the output panicked"))?;
        ensure!(status.success(), "{status}: {text}");
        let rows = rows.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok((rows, text))
    }
}

fn has(row: &Value, fields: &Value) -> bool {
    fields.as_object().is_some_and(|fields| fields.iter().all(|(name, value)| row[name] == *value))
}

/// Returns the time until which the programs report.
fn lease(world: &World) -> Result<u64> {
    world.dump(0, "MONITOR")?[0]["value"]["until_ns"].as_u64().context("no time in MONITOR")
}

/// Returns the name of the hook that sees packets from outside first.
fn hook(world: &World) -> &'static str {
    if world.is(AttachMode::Xdp, Underlay::Routed) { "xdp" } else { "tc" }
}

const ONE: Datagrams = Datagrams { connected: true, count: 1, size: 32, dont_fragment: false };

/// Connections are opened and closed, at packets and at sockets.
pub fn connections(world: &mut World, family: Family) -> Result<()> {
    let service = world.publish(&[1])?;
    let other = world.publish(&[1])?;
    let (name, port) = (service.service.name.clone(), "http");
    let of_service = json!({"namespace": "default", "name": name, "portName": port, "port": 80});
    let monitor = Monitor::start(world, &[&name])?;
    let client = world.client().address(family).to_string();
    let pod = world.pod(2).host.clone();

    let outside = service.node_port(world.node(0), family, To::Http);
    let endpoint = world.pod(1).host.at(family, HTTP_PORT).to_string();
    // Events of another Service are not printed.
    answered_by(&world.client().get(&[other.node_port(world.node(0), family, To::Http)], 1)?, &[1])?;
    let request = || answered_by(&world.client().get(&[outside], 1)?, &[1]);
    let opened = json!({
        "kind": "opened", "service": of_service, "protocol": "TCP", "address": outside.to_string(),
        "endpoint": endpoint, "path": hook(world), "reason": null,
    });
    // The last FIN may be one of the endpoint, which a tc program sees.
    let closed = json!({
        "kind": "closed", "reason": "finished", "endpoint": endpoint, "service": of_service,
    });
    let clients = |fields: &Value| -> BTreeSet<String> {
        monitor.rows().iter().filter(|row| has(row, fields)).map(|row| row["client"].to_string()).collect()
    };
    eventually(|| {
        request()?;
        let (opened, closed) = (clients(&opened), clients(&closed));
        ensure!(opened.iter().all(|it| it.contains(&client)), "{opened:?}");
        ensure!(!opened.is_disjoint(&closed), "opened by {opened:?}, closed by {closed:?}");
        Ok(())
    })?;

    let udp = service.node_port(world.node(0), family, To::Udp);
    monitor
        .expect_after(&json!({"kind": "opened", "protocol": "UDP", "address": udp.to_string()}), || {
            answered_by(&world.client().send_datagrams(udp, ONE)?, &[1])
        })?;

    let inside = service.cluster_ip(family, To::Http);
    let request = || answered_by(&pod.get(&[inside], 1)?, &[1]);
    let opened = json!({
        "kind": "opened", "path": "socket", "protocol": "TCP", "address": inside.to_string(),
        "endpoint": endpoint, "client": pod.address(family).to_string(), "service": of_service,
    });
    let closed = json!({"kind": "closed", "reason": "released", "path": "socket"});
    let sockets = |fields: &Value| -> BTreeSet<String> {
        monitor.rows().iter().filter(|row| has(row, fields)).map(|row| row["socket"].to_string()).collect()
    };
    eventually(|| {
        request()?;
        let (opened, closed) = (sockets(&opened), sockets(&closed));
        ensure!(!opened.is_disjoint(&closed), "opened: {opened:?}, closed: {closed:?}");
        Ok(())
    })?;
    let unconnected = Datagrams { connected: false, ..ONE };
    let target = service.cluster_ip(family, To::Udp);
    let opened =
        json!({"kind": "opened", "path": "socket", "protocol": "UDP", "address": target.to_string()});
    monitor.expect_after(&opened, || answered_by(&pod.send_datagrams(target, unconnected)?, &[1]))?;

    monitor.process.signal(Signal::INT)?;
    let (rows, text) = monitor.finish()?;
    ensure!(rows.iter().all(|row| row["service"]["name"] == name.as_str()), "{rows:#?}");
    ensure!(text.contains(&format!("{} events in ", rows.len())), "{text}");
    ensure!(lease(world)? == 0, "the programs report after the end of the reader");
    Ok(())
}

/// Refused and dropped packets and calls have a reason, and name the Service.
pub fn refusals(world: &mut World, family: Family) -> Result<()> {
    let empty = world.publish(&[1])?;
    world.set_endpoints(&empty, &[])?;
    let local = world.publish(&[3])?;
    let mut objects = local.service.with_endpoints(&[world.pod(3)]);
    for field in ["externalTrafficPolicy", "internalTrafficPolicy"] {
        objects[0]["spec"][field] = "Local".into();
    }
    world.write(&local, &objects)?;
    let (outside, inside) =
        (empty.node_port(world.node(0), family, To::Http), empty.cluster_ip(family, To::Http));
    eventually(|| refused(&world.pod(2).host.get(&[inside], 1)?))?;
    eventually(|| refused(&world.client().get(&[outside], 1)?))?;

    let filter = format!("{}/{}", world.client().address(family), if family == Family::V4 { 24 } else { 64 });
    let monitor = Monitor::start(world, &["--kind", "refused,dropped"])?;
    let reason = |service: &str, reason: &str, path: &str, address: String| {
        json!({"reason": reason, "path": path, "address": address, "service": {
            "namespace": "default", "name": service, "portName": "http", "port": 80,
        }})
    };
    let empty_name = empty.service.name.as_str();
    monitor.expect_after(&reason(empty_name, "socket_no_endpoint", "socket", inside.to_string()), || {
        refused(&world.pod(2).host.get(&[inside], 1)?)
    })?;
    // XDP leaves packets that it would answer to tc.
    let rejected = reason(empty_name, "no_endpoint_rejected", "tc", outside.to_string());
    let row = monitor.expect_after(&rejected, || refused(&world.client().get(&[outside], 1)?))?;
    ensure!(row["kind"] == "refused", "{row}");
    monitor.process.signal(Signal::TERM)?;
    let (rows, _) = monitor.finish()?;
    ensure!(rows.iter().all(|row| row["kind"] == "refused" || row["kind"] == "dropped"), "{rows:#?}");

    let dropped = local.node_port(world.node(0), family, To::Udp);
    let client =
        ["--client", &filter, "--reason", "no_endpoint_dropped", "--protocol", "udp", "--count", "3"];
    let mut monitor = Monitor::start(world, &client)?;
    // The policy of the Service may come into effect after the first packets. Their ports have a
    // connection then, so each attempt uses more ports.
    let mut ports = 0;
    eventually(|| {
        ports += 10;
        world.client().flood(FloodKind::Datagrams, dropped, ports)?;
        ensure!(monitor.process.0.try_wait()?.is_some(), "fewer than three events: {:#?}", monitor.rows());
        Ok(())
    })?;
    let (rows, text) = monitor.finish()?;
    let expected = json!({
        "kind": "dropped", "reason": "no_endpoint_dropped", "path": hook(world),
        "address": dropped.to_string(), "endpoint": null,
    });
    ensure!(rows.len() == 3 && rows.iter().all(|row| has(row, &expected)), "{rows:#?}");
    ensure!(text.contains("3 events in ") && text.contains("3 dropped"), "{text}");
    Ok(())
}

/// One process reads at a time. A reader that was killed costs nothing after some seconds, and the
/// next one does not see its events.
pub fn readers(world: &mut World) -> Result<()> {
    let service = world.publish(&[1])?;
    let target = service.node_port(world.node(0), Family::V4, To::Http);
    let first = Monitor::start(world, &[])?;
    let second = output(&mut command(world, &[])?)?;
    let text = String::from_utf8_lossy(&second.stderr);
    ensure!(!second.status.success() && text.contains("another process reads the events"), "{text}");
    ensure!(text.contains("hint: "), "{text}");
    first.expect_after(&json!({"kind": "opened", "address": target.to_string()}), || {
        answered_by(&world.client().get(&[target], 1)?, &[1])
    })?;
    first.process.signal(Signal::KILL)?;
    drop(first);
    // A program that makes an event notices that nobody has renewed the time.
    eventually(|| {
        answered_by(&world.client().get(&[target], 1)?, &[1])?;
        ensure!(lease(world)? == 0, "the programs still report");
        Ok(())
    })?;
    let bounded = Monitor::spawn(world, &["--for", "300ms"])?;
    let (rows, text) = bounded.finish()?;
    ensure!(!rows.iter().any(|row| row["address"] == target.to_string()), "events of before: {rows:#?}");
    ensure!(text.contains(" events in "), "{text}");

    // The programs of an agent that replaces the maps report to the same reader, which looks up
    // names in the new maps.
    let monitor = Monitor::start(world, &["--kind", "opened"])?;
    world.take_agent(0)?.stop()?;
    world.start_agent_with(0, &["--max-flows", "32768", "--max-services", "4096"])?;
    let seen = monitor.rows().len();
    eventually(|| {
        answered_by(&world.client().get(&[target], 1)?, &[1])?;
        ensure!(monitor.rows().len() > seen, "no event after the agent has replaced the maps");
        Ok(())
    })?;
    let new = world.publish(&[1])?;
    let target = new.node_port(world.node(0), Family::V4, To::Http);
    let expected = json!({"kind": "opened", "address": target.to_string(), "service": {
        "namespace": "default", "name": new.service.name, "portName": "http", "port": 80,
    }});
    monitor.expect_after(&expected, || answered_by(&world.client().get(&[target], 1)?, &[1]))?;
    drop(monitor);
    world.take_agent(0)?.stop()?;
    world.start_agent(0)
}

/// A flood makes no more events than the limit, and the other events are counted.
pub fn floods(world: &mut World) -> Result<()> {
    let service = world.publish(&[3])?;
    let mut objects = service.service.with_endpoints(&[world.pod(3)]);
    objects[0]["spec"]["externalTrafficPolicy"] = "Local".into();
    world.write(&service, &objects)?;
    let target = service.node_port(world.node(0), Family::V4, To::Udp);
    let client = world.client().clone();
    let monitor = Monitor::start(world, &["--kind", "dropped"])?;
    // A port that was used before the policy came into effect has a connection.
    let mut ports = 0;
    eventually(|| {
        ports += 10;
        client.flood(FloodKind::Datagrams, target, ports)?;
        ensure!(!monitor.rows().is_empty(), "no packet is dropped");
        Ok(())
    })?;
    let counts = || -> Result<(u64, u64)> {
        let budgets = world.dump(0, "EVENT_BUDGETS")?;
        let all = budgets.iter().flat_map(|entry| entry["values"].as_array().cloned().unwrap_or_default());
        Ok(all.fold((0, 0), |(lost, limited), cpu| {
            let count = |field: &str| cpu["value"][field].as_u64().unwrap_or(0);
            (lost + count("lost"), limited + count("limited"))
        }))
    };
    let before = counts()?;
    let both_move = || -> Result<()> {
        loop {
            let (lost, limited) = counts()?;
            if lost > before.0 && limited > before.1 {
                return Ok(());
            }
            ensure!(lease(world)? != 0, "{lost} lost and {limited} limited, before {before:?}");
        }
    };
    // While it is stopped, nobody empties the ring. How many packets fill it depends on how fast
    // they are: the limit lets through a number of events in a time. A reader that is stopped for
    // too long has no lease, so another attempt follows.
    eventually(|| {
        monitor.process.signal(Signal::STOP)?;
        let is_over = AtomicBool::new(false);
        let (counted, flooded) = thread::scope(|scope| {
            let flood = scope.spawn(|| -> Result<()> {
                while !is_over.load(Ordering::Relaxed) {
                    client.flood(FloodKind::Datagrams, target, 60_000)?;
                }
                Ok(())
            });
            let counted = both_move();
            is_over.store(true, Ordering::Relaxed);
            (counted, flood.join())
        });
        monitor.process.signal(Signal::CONT)?;
        flooded.map_err(|_| anyhow!("the flood panicked"))??;
        counted
    })?;
    monitor.process.signal(Signal::INT)?;
    let (_, text) = monitor.finish()?;
    ensure!(text.contains("events not reported") && text.contains(" lost"), "{text}");
    Ok(())
}
