//! The annotations that select an algorithm (`docs/algorithms.md`).

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lb_testbed::Family;
use lb_testbed::agent::metric;
use lb_testbed::host::{HTTP_PORT, Held, Host, UDP_PORT};
use lb_testbed::manifests::{self, ServiceManifest};
use lb_testbed::patience::patient;
use lb_testbed::report::Exchange;
use lb_testbed::topology::Pod;
use serde_json::{Value, json};

use super::monitor::Monitor;
use crate::check::{answered_by, eventually, eventually_within, refused};
use crate::exposed::{Exposed, Requester};
use crate::world::{To, World};

const SOURCES: [(&str, &str); 3] =
    [("outside", "NodePort"), ("pod here", "ClusterIP"), ("node", "ClusterIP")];

/// With `rr` the endpoints answer one after the other: clients with packets, and clients with
/// sockets.
pub fn endpoints_take_turns(world: &mut World, family: Family) -> Result<()> {
    let service =
        Exposed::publish(world, "Cluster", &[1, 3, 4], |object| annotate(object, "algorithm", "rr"))?;
    service.wait_until_programmed(world, &[1, 3, 4])?;
    for (source, kind) in SOURCES {
        for to in [To::Http, To::Udp] {
            let target = service.address(kind, world, family, to);
            let answers = answers(&Requester::new(world, source, target, to), 9)?;
            let round: BTreeSet<_> = answers[..3].iter().collect();
            ensure!(round.len() == 3, "{source}, {to:?}: {answers:?}");
            ensure!(answers[..6] == answers[3..], "{source}, {to:?}: not in turn: {answers:?}");
        }
    }
    Ok(())
}

/// With `mh` a client outside reaches the same endpoint through every node, and a pod has one
/// endpoint too.
pub fn maglev_selects_alike_on_all_nodes(world: &mut World, family: Family) -> Result<()> {
    let service =
        Exposed::publish(world, "Cluster", &[1, 2, 3, 4], |object| annotate(object, "algorithm", "mh"))?;
    service.wait_until_programmed(world, &[1, 2, 3, 4])?;
    for (source, kind) in SOURCES {
        let target = service.address(kind, world, family, To::Http);
        let first = answers(&Requester::new(world, source, target, To::Http), 8)?;
        let distinct: BTreeSet<_> = first.iter().collect();
        ensure!(distinct.len() == 1, "{source}: {first:?}");
        if kind != "NodePort" {
            continue;
        }
        let port = target.port();
        for node in [0, 1] {
            let target = (world.node(node).host.address(family), port).into();
            let others = answers(&Requester::new(world, source, target, To::Http), 4)?;
            ensure!(
                others.iter().all(|answer| *answer == first[0]),
                "node{}: {others:?}, not {first:?}",
                node + 1
            );
        }
    }
    Ok(())
}

/// With `lc` the endpoints have equally many connections of packets and of sockets together. The
/// counts survive a restart of the agent, and fall when sockets are closed.
pub fn lc_evens_out_connections(world: &mut World, family: Family) -> Result<()> {
    let service =
        Exposed::publish(world, "Cluster", &[1, 3, 4], |object| annotate(object, "algorithm", "lc"))?;
    service.wait_until_programmed(world, &[1, 3, 4])?;
    let cluster_ip = service.address("ClusterIP", world, family, To::Http);
    let node_port = service.address("NodePort", world, family, To::Http);
    let sockets = world.pod(2).host.hold_many(6, cluster_ip)?;
    active_connections(world, &service, family, [2, 2, 2])?;
    let packets = world.client().hold_many(3, node_port)?;
    active_connections(world, &service, family, [3, 3, 3])?;
    let mixed = world.node(0).host.hold_many(3, cluster_ip)?;
    active_connections(world, &service, family, [4, 4, 4])?;

    world.take_agent(0)?.stop()?;
    // No agent is needed to see the end of a socket.
    drop(mixed);
    world.start_agent(0)?;
    active_connections(world, &service, family, [3, 3, 3])?;
    let again = world.pod(2).host.hold_many(3, cluster_ip)?;
    active_connections(world, &service, family, [4, 4, 4])?;
    drop((sockets, again));
    active_connections(world, &service, family, [1, 1, 1])?;
    drop(packets);
    active_connections(world, &service, family, [0, 0, 0])
}

/// Clients open and close connections at the same time: packets from two hosts, sockets of a pod
/// and of the node. Then each endpoint counts the connections that it has, also after an agent was
/// away meanwhile. One Service has thresholds, whose connections are counted under a lock.
pub fn counts_are_exact_under_concurrency(world: &mut World, family: Family) -> Result<()> {
    let pods = [1, 3, 4];
    let mut services = Vec::new();
    for annotations in [&[("algorithm", "lc")][..], &[("algorithm", "rr"), ("upper-threshold", "5000")]] {
        let service = Exposed::publish(world, "Cluster", &pods, |object| {
            annotations.iter().for_each(|(name, value)| annotate(object, name, value));
        })?;
        service.wait_until_programmed(world, &pods)?;
        services.push(service);
    }
    let mut held = open_and_close(world, &services, family)?;
    counts_are_those_of_the_pods(world, &services, family, pods, held.len())?;

    world.take_agent(0)?.stop()?;
    // Half of the connections end, and as many are opened.
    let kept = held.split_off(held.len() / 2);
    drop(held);
    held = open_and_close(world, &services, family)?;
    world.start_agent(0)?;
    held.extend(kept);
    counts_are_those_of_the_pods(world, &services, family, pods, held.len())?;
    drop(held);
    counts_are_those_of_the_pods(world, &services, family, pods, 0)
}

/// The connections that [`open_and_close`] keeps in one process.
const HELD: u32 = 8;

/// Opens connections to both Services from all clients at once, while others end. Returns the
/// processes with those that are open.
fn open_and_close(world: &World, services: &[Exposed], family: Family) -> Result<Vec<Held>> {
    let clients = [
        (world.client(), "NodePort"),
        (&world.topology.far, "NodePort"),
        (&world.pod(2).host, "ClusterIP"),
        (&world.node(0).host, "ClusterIP"),
    ];
    let open = |client: &Host, target: SocketAddr| {
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(client.hold_many(HELD, target)?);
            held.push(client.hold_many(HELD, target)?);
            held.remove(0);
        }
        for connections in &mut held {
            answered_by(&[connections.request()?], &[1, 3, 4])?;
        }
        Ok::<_, anyhow::Error>(held)
    };
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for (client, kind) in clients {
            for service in services {
                let target = service.address(kind, world, family, To::Http);
                threads.push(scope.spawn(move || open(client, target)));
            }
        }
        let mut all = Vec::new();
        for thread in threads {
            all.extend(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(all)
    })
}

/// Waits until the first node counts, at each pod, the connections that are established there.
/// There are so many processes with connections.
fn counts_are_those_of_the_pods(
    world: &World,
    services: &[Exposed],
    family: Family,
    pods: [usize; 3],
    held: usize,
) -> Result<()> {
    eventually(|| {
        let mut counted = [0; 3];
        for service in services {
            let found = active_at(world, service, family, pods)?;
            for (count, found) in counted.iter_mut().zip(found) {
                *count += found.context("no count")?;
            }
        }
        let mut established = [0; 3];
        for (pod, count) in pods.iter().zip(&mut established) {
            let port = format!("sport = :{HTTP_PORT}");
            let family = if family == Family::V4 { "-4" } else { "-6" };
            let list = ["-H", "-t", "-n", family, "state", "established", &port];
            *count = world.pod(*pod).host.place.run("ss", list)?.lines().count() as u64;
        }
        ensure!(counted == established, "counted {counted:?}, established {established:?}");
        let total = held as u64 * u64::from(HELD);
        ensure!(counted.iter().sum::<u64>() == total, "counted {counted:?}, not {total} in sum");
        Ok(())
    })
}

/// Two endpoints take two connections each, of packets and of sockets together. The next ones are
/// refused. A closed socket makes room at its endpoint.
pub fn thresholds_limit_connections(world: &mut World, family: Family) -> Result<()> {
    let service =
        Exposed::publish(world, "Cluster", &[1, 3], |object| annotate(object, "upper-threshold", "2"))?;
    let name = service.published.service.name.clone();
    let backends = |world: &World| world.agent(0)?.lb(&["get", "backends", &name, "-o", "wide"]);
    eventually(|| {
        let backends = backends(world)?;
        ensure!(backends.contains("THRESHOLDS") && backends.contains("ready"), "{backends}");
        Ok(())
    })?;
    let cluster_ip = service.address("ClusterIP", world, family, To::Http);
    let node_port = service.address("NodePort", world, family, To::Http);
    let is_overloaded = |world: &World, expected: [usize; 2]| {
        eventually(|| {
            let backends = backends(world)?;
            let addresses = [1, 3].map(|pod| world.pod(pod).host.at(family, HTTP_PORT).to_string());
            let rows = backends.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            let states: Vec<_> = rows
                .filter(|row| row.len() > 3 && row[1] == "TCP" && addresses.iter().any(|at| row[2] == at))
                .map(|row| row[3].to_owned())
                .collect();
            let found = ["ready", "overloaded"].map(|state| states.iter().filter(|s| **s == state).count());
            ensure!(found == expected, "{backends}");
            Ok(())
        })
    };
    let packets = world.client().hold_many(1, node_port)?;
    let sockets = world.pod(2).host.hold_many(2, cluster_ip)?;
    is_overloaded(world, [1, 1])?;
    let last = world.node(0).host.hold_many(1, cluster_ip)?;
    is_overloaded(world, [0, 2])?;
    refused(&world.client().get(&[node_port], 1)?)?;
    refused(&world.pod(2).host.get(&[cluster_ip], 1)?)?;
    refused(&world.node(0).host.get(&[cluster_ip], 1)?)?;
    eventually(|| {
        let overloaded = metric(world.node(0), "sluice_overloaded_endpoints", "")?;
        ensure!(overloaded >= 2.0, "{overloaded} endpoints are overloaded");
        Ok(())
    })?;
    let services = world.agent(0)?.lb(&["get", "services", &name, "-o", "wide"])?;
    ensure!(services.contains("THRESHOLDS"), "{services}");

    // Both endpoints have more connections than the lower threshold. A greater upper threshold
    // ends the overload all the same.
    service.write(world, "Cluster", &[1, 3], |object| {
        annotate(object, "upper-threshold", "3");
        annotate(object, "lower-threshold", "1");
    })?;
    is_overloaded(world, [2, 0])?;
    answered_by(&world.pod(2).host.get(&[cluster_ip], 1)?, &[1, 3])?;
    service.write(world, "Cluster", &[1, 3], |object| annotate(object, "upper-threshold", "2"))?;
    eventually(|| refused(&world.pod(2).host.get(&[cluster_ip], 1)?))?;

    drop((sockets, last));
    eventually(|| answered_by(&world.pod(2).host.get(&[cluster_ip], 1)?, &[1, 3]))?;
    eventually(|| answered_by(&world.client().get(&[node_port], 1)?, &[1, 3]))?;
    drop(packets);
    Ok(())
}

/// A UDP socket that connects again has one place at a time: it gets its own place again, keeps it
/// if the call is refused, and gives it up when it connects to another address.
pub fn a_socket_that_connects_again_has_one_place(world: &mut World, family: Family) -> Result<()> {
    let mut targets = Vec::new();
    for _ in 0..2 {
        let service =
            Exposed::publish(world, "Cluster", &[1], |object| annotate(object, "upper-threshold", "1"))?;
        service.wait_until_programmed(world, &[1])?;
        targets.push(service.address("ClusterIP", world, family, To::Udp));
    }
    let [target, full] = targets[..] else { bail!("two Services") };
    let elsewhere = world.pod(3).host.at(family, UDP_PORT);
    let host = &world.pod(2).host;
    let (mut socket, mut last) = (host.hold_udp(target)?, host.hold_udp(full)?);
    let mut next = host.hold_udp(elsewhere)?;
    for _ in 0..2 {
        answered_by(&[socket.reconnect()?], &[1])?;
        answered_by(&[last.reconnect()?], &[1])?;
        refused(&[next.reconnect_to(target)?])?;
    }
    refused(&[socket.reconnect_to(full)?])?;
    refused(&[next.reconnect_to(target)?])?;
    answered_by(&[socket.request()?], &[1])?;
    answered_by(&[socket.reconnect_to(elsewhere)?], &[3])?;
    answered_by(&[next.reconnect_to(target)?], &[1])?;
    // The socket has no place that it could take back.
    refused(&[socket.reconnect()?])?;
    drop(next);
    eventually(|| answered_by(&[last.reconnect_to(target)?], &[1]))
}

/// Returns the active connections of the TCP endpoints on pods, as the first node counts them.
fn active_at(world: &World, service: &Exposed, family: Family, pods: [usize; 3]) -> Result<[Option<u64>; 3]> {
    let rows = world.rows(0, &["backends", &service.published.service.name])?;
    Ok(pods.map(|pod| {
        let address = world.pod(pod).host.at(family, HTTP_PORT).to_string();
        let row = rows.iter().find(|row| row["address"] == *address && row["protocol"] == "TCP");
        row.and_then(|row| row["activeConnections"].as_u64())
    }))
}

/// Waits until the endpoints on pods 1, 3 and 4 have so many active connections on the first node.
fn active_connections(world: &World, service: &Exposed, family: Family, expected: [u64; 3]) -> Result<()> {
    eventually(|| {
        let found = active_at(world, service, family, [1, 3, 4])?;
        ensure!(found == expected.map(Some), "active connections {found:?}, expected {expected:?}");
        Ok(())
    })
}

/// One of two endpoints does not answer. With failover, a client outside that is sent to it repeats
/// its SYN and reaches the other one.
pub fn failover_moves_unanswered_connections(world: &mut World, family: Family) -> Result<()> {
    let published = world.new_service();
    let mut object = published.service.object();
    annotate(&mut object, "failover", "true");
    annotate(&mut object, "algorithm", "rr");
    let mut slice = published.service.slice(family, &[world.pod(3)]);
    let mut silent = slice["endpoints"][0].clone();
    let address = match family {
        Family::V4 => "10.244.2.99",
        Family::V6 => "fd00:10:244:2::99",
    };
    // Without the route, the second node answers that the host is unreachable.
    world.node(1).host.place.run("ip", ["route", "replace", "blackhole", address])?;
    silent["addresses"][0] = address.into();
    slice["endpoints"].as_array_mut().context("no endpoints")?.push(silent);
    world.write(&published, &[object, slice])?;
    let target = published.node_port(world.node(0), family, To::Http);
    eventually(|| {
        let backends = world.agent(0)?.lb(&["get", "backends", &published.service.name])?;
        ensure!(backends.contains("::99]") || backends.contains("2.99:"), "{backends}");
        Ok(())
    })?;
    let before = moved(world)?;
    answered_by(&world.client().get(&[target], 4)?, &[3])?;
    // In turn, two of four requests go to the silent endpoint first.
    eventually(|| {
        let moves = moved(world)? - before;
        ensure!(moves >= 2, "{moves} connections were moved");
        Ok(())
    })?;

    // A router answers that the host is unreachable. The client does not receive the error, and
    // after three of them the endpoint is left out. Two clients may count as one.
    world.node(1).host.place.run("ip", ["route", "replace", "unreachable", address])?;
    answered_by(&world.client().get(&[target], 8)?, &[3])?;
    eventually(|| {
        answered_by(&world.client().get(&[target], 2)?, &[3])?;
        let backends = world.agent(0)?.lb(&["get", "backends", &published.service.name])?;
        let states = ["left-out", "ready"].map(|state| backends.contains(state));
        ensure!(states == [true, true], "{backends}");
        let left_out = metric(world.node(0), "sluice_left_out_endpoints", "")?;
        ensure!(left_out >= 1.0, "{left_out} endpoints are left out");
        Ok(())
    })
}

/// Returns how many connections the first node has moved to another endpoint.
fn moved(world: &World) -> Result<u64> {
    Ok(metric(world.node(0), "sluice_packets_total", "reason=\"flow_moved\"")? as u64)
}

/// An endpoint with weight 0 gets no new connections. When the weight is back, it gets some.
pub fn weight_0_drains(world: &mut World, family: Family) -> Result<()> {
    let drained = Exposed::publish(world, "Cluster", &[1, 3], |object| {
        annotate(object, "weights", "node2=0");
        annotate(object, "algorithm", "wrr");
    })?;
    let target = drained.address("ClusterIP", world, family, To::Http);
    eventually(|| {
        let answers = answers(&Requester::new(world, "pod here", target, To::Http), 6)?;
        ensure!(answers.iter().all(|answer| answer == "pod1"), "{answers:?}");
        Ok(())
    })?;
    drained.write(world, "Cluster", &[1, 3], |object| annotate(object, "weights", "node1=2"))?;
    eventually(|| {
        let answers = answers(&Requester::new(world, "pod here", target, To::Http), 40)?;
        let distinct: BTreeSet<_> = answers.iter().collect();
        ensure!(distinct.len() == 2, "{answers:?}");
        Ok(())
    })
}

/// With `--pod-weights`, Pods of the manifest folder have weights, for packets and for sockets. A
/// change of a Pod needs no change of the slice.
pub fn pods_have_weights(world: &mut World, family: Family) -> Result<()> {
    world.take_agent(0)?.stop()?;
    world.start_agent_with(0, &["--pod-weights"])?;
    let checked = weights_of_pods(world, family);
    write_pods(world, &[])?;
    world.take_agent(0)?.stop()?;
    world.start_agent(0)?;
    checked
}

fn weights_of_pods(world: &mut World, family: Family) -> Result<()> {
    // The weight of a Pod precedes that of its node.
    let service = Exposed::publish(world, "Cluster", &[1, 3], |object| {
        annotate(object, "algorithm", "wrr");
        annotate(object, "weights", "node1=7,node2=7");
    })?;
    service.wait_until_programmed(world, &[1, 3])?;
    // With weights 3 and 1, four of `wrr` in a row are three and one.
    for (weights, expected) in [(["0", "1"], [0, 8]), (["3", "1"], [6, 2]), (["1", "3"], [2, 6])] {
        write_pods(world, &[(1, weights[0]), (3, weights[1])])?;
        for (source, kind) in SOURCES {
            for to in [To::Http, To::Udp] {
                let target = service.address(kind, world, family, to);
                eventually(|| {
                    let answers = answers(&Requester::new(world, source, target, to), 8)?;
                    let of = |pod: &str| answers.iter().filter(|answer| *answer == pod).count();
                    let found = ["pod1", "pod3"].map(of);
                    ensure!(found == expected, "{source}, {to:?}, weights {weights:?}: {answers:?}");
                    Ok(())
                })?;
            }
        }
    }
    let rows = world.rows(0, &["backends", &service.published.service.name])?;
    for (pod, weight) in [(1, 1), (3, 3)] {
        let address = world.pod(pod).host.at(family, HTTP_PORT).to_string();
        let row = rows.iter().find(|row| row["address"] == *address && row["protocol"] == "TCP");
        ensure!(row.is_some_and(|row| row["weight"] == weight), "pod{pod}: {row:?}");
    }
    Ok(())
}

/// Writes Pods with these weights.
fn write_pods(world: &World, weights: &[(usize, &str)]) -> Result<()> {
    let pod = |(number, weight): &(usize, &str)| {
        let mut object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": world.pod(*number).host.name, "annotations": {} },
            "spec": { "containers": [{ "name": "web", "image": "example.com/web" }] },
        });
        annotate(&mut object, "weight", weight);
        object
    };
    let pods: Vec<_> = weights.iter().map(pod).collect();
    world.topology.manifests.write("pods.yaml", &pods)
}

/// The second node drains. Its endpoint keeps its connections, of packets and of sockets, and gets
/// no new ones. After the drain it gets some.
pub fn a_drained_node_gets_no_new_connections(world: &mut World, family: Family) -> Result<()> {
    let service = Exposed::publish(world, "Cluster", &[1, 3], |object| annotate(object, "algorithm", "rr"))?;
    service.wait_until_programmed(world, &[1, 3])?;
    let checked = new_connections_avoid_the_second_node(world, &service, family);
    write_nodes(world, false)?;
    checked?;
    let target = service.address("ClusterIP", world, family, To::Http);
    eventually(|| {
        let answers = answers(&Requester::new(world, "pod here", target, To::Http), 4)?;
        let distinct: BTreeSet<_> = answers.iter().collect();
        ensure!(distinct.len() == 2, "{answers:?}");
        Ok(())
    })
}

/// Opens two connections of packets, from outside, and then two of sockets, from a pod. Sends a
/// request over each at once.
fn hold_two_of_each(world: &World, service: &Exposed, family: Family) -> Result<Vec<Held>> {
    let mut held = Vec::new();
    for (client, kind) in [(world.client(), "NodePort"), (&world.pod(2).host, "ClusterIP")] {
        let target = service.address(kind, world, family, To::Http);
        for _ in 0..2 {
            let mut connection = client.hold_http(target)?;
            answered_by(&[connection.request()?], &[1, 3])?;
            held.push(connection);
        }
    }
    Ok(held)
}

fn new_connections_avoid_the_second_node(world: &World, service: &Exposed, family: Family) -> Result<()> {
    let mut held = hold_two_of_each(world, service, family)?;
    write_nodes(world, true)?;
    for (source, kind) in SOURCES {
        for to in [To::Http, To::Udp] {
            let target = service.address(kind, world, family, to);
            eventually(|| {
                let answers = answers(&Requester::new(world, source, target, to), 4)?;
                ensure!(answers.iter().all(|answer| answer == "pod1"), "{source}, {to:?}: {answers:?}");
                Ok(())
            })?;
        }
    }
    let mut served = BTreeSet::new();
    for connection in &mut held {
        let exchange = connection.request()?;
        let greeting = exchange.result.map_err(|failure| anyhow::anyhow!("{failure}"))?.greeting;
        served.insert(greeting.pod);
    }
    ensure!(served.len() == 2, "the open connections lead to {served:?}");
    let backends = world.agent(0)?.lb(&["get", "backends", &service.published.service.name])?;
    ensure!(backends.contains("draining"), "{backends}");
    Ok(())
}

/// An endpoint drains with a time limit. When the limit has passed, its connections are reset:
/// those of packets and those of sockets. The connections to the other endpoint stay.
pub fn a_time_limit_ends_a_drain(world: &mut World, family: Family) -> Result<()> {
    let service = Exposed::publish(world, "Cluster", &[1, 3], |object| annotate(object, "algorithm", "rr"))?;
    service.wait_until_programmed(world, &[1, 3])?;
    let mut held = hold_two_of_each(world, &service, family)?;
    let resets = |world: &World| metric(world.node(0), "sluice_drain_resets_total", "");
    let before = resets(world)?;
    service.write(world, "Cluster", &[1, 3], |object| {
        annotate(object, "algorithm", "rr");
        annotate(object, "weights", "node2=0");
        annotate(object, "drain-timeout", "1s");
    })?;
    eventually(|| {
        let mut open = Vec::new();
        for connection in &mut held {
            let pod = connection.request()?.result.ok().map(|answer| answer.greeting.pod);
            open.push(pod.unwrap_or_else(|| "reset".to_owned()));
        }
        for of_client in open.chunks_mut(2) {
            of_client.sort_unstable();
            ensure!(of_client == ["pod1", "reset"], "{of_client:?}");
        }
        Ok(())
    })?;
    // The agent counts after it has ended a connection.
    eventually(|| {
        let cut = resets(world)? - before;
        ensure!(cut >= 1.0, "{cut} connections were reset");
        Ok(())
    })?;
    let target = service.address("NodePort", world, family, To::Http);
    answered_by(&world.client().get(&[target], 4)?, &[1])
}

/// The connections of a Service with a maximum age are reset: those of packets, which `lb monitor`
/// shows, and those of sockets. The same clients connect again and are answered. The connections
/// of another Service stay.
pub fn old_connections_are_reset(world: &mut World, family: Family) -> Result<()> {
    let other = Exposed::publish(world, "Cluster", &[1, 3], |_| {})?;
    let service =
        Exposed::publish(world, "Cluster", &[1, 3], |object| annotate(object, "max-connection-age", "10s"))?;
    for service in [&other, &service] {
        service.wait_until_programmed(world, &[1, 3])?;
    }
    let name = &service.published.service.name;
    for row in world.rows(0, &["services", name])? {
        let age = (row["protocol"] == "TCP").then_some(10);
        ensure!(row["maxConnectionAgeSeconds"].as_u64() == age, "{row}");
    }
    let target = service.address("ClusterIP", world, family, To::Http).to_string();
    let client = world.pod(2).host.address(family).to_string();
    let explanation = world.agent(0)?.lb(&["explain", "tcp", &client, &target])?;
    ensure!(explanation.contains("AGE        the connection is reset 8 to 10 s"), "{explanation}");

    let resets = |world: &World, path: &str| {
        metric(world.node(0), "sluice_age_resets_total", &format!("path=\"{path}\""))
    };
    let before = [resets(world, "packet")?, resets(world, "socket")?];
    let monitor = Monitor::start(world, &[name, "--kind", "closed"])?;
    let mut kept = hold_two_of_each(world, &other, family)?;
    let mut held = hold_two_of_each(world, &service, family)?;
    // Sockets are seen up to 10 s after they have connected.
    eventually_within(Duration::from_secs(180), || {
        for (number, connection) in held.iter_mut().enumerate() {
            let exchange = connection.request()?;
            ensure!(exchange.result.is_err(), "connection {number} is open: {exchange:?}");
        }
        Ok(())
    })?;
    // The agent counts after it has ended a connection.
    eventually(|| {
        for (path, before) in ["packet", "socket"].into_iter().zip(before) {
            let count = resets(world, path)? - before;
            ensure!(count >= 2.0, "{count} connections were reset ({path})");
        }
        Ok(())
    })?;
    for connection in &mut kept {
        answered_by(&[connection.request()?], &[1, 3])?;
    }
    held = hold_two_of_each(world, &service, family)?;
    let address = service.address("NodePort", world, family, To::Http).to_string();
    let aged =
        json!({"kind": "closed", "reason": "aged", "path": null, "protocol": "TCP", "address": address});
    // On a busy machine the command may be too late to renew its lease: then an event is missing.
    eventually_within(Duration::from_secs(180), || {
        if held.iter_mut().any(|connection| connection.request().is_ok_and(|it| it.result.is_err())) {
            held = hold_two_of_each(world, &service, family)?;
        }
        let event = monitor.event(&aged)?;
        ensure!(event["service"]["name"] == name.as_str(), "{event}");
        Ok(())
    })
}

/// The age of a connection at a socket does not begin anew with a restart of the agent: the
/// connection is reset although no agent runs as long as that.
pub fn ages_of_sockets_survive_restarts(world: &mut World) -> Result<()> {
    let family = Family::V4;
    let service =
        Exposed::publish(world, "Cluster", &[1, 3], |object| annotate(object, "max-connection-age", "40s"))?;
    service.wait_until_programmed(world, &[1, 3])?;
    let target = service.address("ClusterIP", world, family, To::Http);
    let mut held = world.pod(2).host.hold_http(target)?;
    answered_by(&[held.request()?], &[1, 3])?;
    let began = Instant::now();
    loop {
        world.take_agent(0)?.stop()?;
        world.start_agent(0)?;
        let started = Instant::now();
        // Less than three quarters of the age, and than what the spread of a start adds.
        while started.elapsed() < Duration::from_secs(22) {
            if held.request()?.result.is_err() {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(200));
        }
        ensure!(began.elapsed() < patient(Duration::from_secs(240)), "the connection is not reset");
    }
}

/// Writes the Nodes. The second one drains if `drains`.
fn write_nodes(world: &World, drains: bool) -> Result<()> {
    let mut nodes = [0, 1].map(|number| manifests::node(world.node(number)));
    if drains {
        annotate(&mut nodes[1], "drain", "");
        nodes[1]["spec"]["unschedulable"] = true.into();
    }
    world.topology.manifests.write("nodes.yaml", &nodes)
}

pub(super) fn annotate(object: &mut Value, name: &str, value: &str) {
    object["metadata"]["annotations"][format!("lb.sluice.dev/{name}")] = value.into();
}

/// Returns the slice of one endpoint with a weight. Its name ends with `number`.
pub(super) fn weighted_slice(
    service: &ServiceManifest,
    family: Family,
    pod: &Pod,
    number: usize,
    weight: u32,
) -> Value {
    let mut slice = service.slice(family, &[pod]);
    slice["metadata"]["name"] = format!("{}-{number}", service.name).into();
    annotate(&mut slice, "weight", &weight.to_string());
    slice
}

/// Returns which pod answers each of several requests.
fn answers(requester: &Requester<'_>, requests: u32) -> Result<Vec<String>> {
    let exchanges = requester.send(requests)?;
    ensure!(exchanges.len() == requests as usize, "{} of {requests} requests were sent", exchanges.len());
    let pod = |exchange: Exchange| {
        Ok(exchange.result.map_err(|failure| anyhow::anyhow!("{failure}"))?.greeting.pod)
    };
    exchanges.into_iter().map(pod).collect::<Result<_>>().context("a request failed")
}
