//! `lb explain` reports what happens to real traffic with the same addresses, and changes no map.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lb_common::reason::Reason;
use lb_datapath::inspect::{AffinityEntry, AgentMaps};
use lb_datapath::{FlowEntry, Pins};
use lb_testbed::agent::{cleanup, lb_on};
use lb_testbed::host::{Datagrams, HTTP_PORT, Host, LoadKind, UDP_PORT};
use lb_testbed::report::Exchange;
use lb_testbed::{Family, pass_programs};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::json;

use crate::check::{answered_by, eventually, eventually_within, refused, unanswered};
use crate::world::{Published, To, World};

/// The JSON output of `lb explain`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Explanation {
    service: Option<Service>,
    endpoints: Vec<SocketAddr>,
    chosen: Option<SocketAddr>,
    verdict: String,
    reason: Option<String>,
    source_rewritten: bool,
    #[serde(deserialize_with = "address_and_port")]
    source_after: Option<SocketAddr>,
    why: Why,
}

/// Parses an address with a port. Pings have an address without a port, which gets port 0.
fn address_and_port<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SocketAddr>, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    let parse = |text: String| {
        text.parse()
            .or_else(|_| text.parse().map(|ip: IpAddr| SocketAddr::new(ip, 0)))
            .map_err(D::Error::custom)
    };
    text.map(parse).transpose()
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Service {
    name: String,
    kind: String,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Why {
    chosen: Option<String>,
}

impl Explanation {
    /// Returns the fields that are the same in each run: all except the port of a rewritten source.
    fn decision(&self) -> Self {
        let source_after = self.source_after.map(|source| SocketAddr::new(source.ip(), 0));
        Self { source_after, ..self.clone() }
    }
}

fn arguments(world: &World, to: To, source: &str, target: SocketAddr) -> Vec<String> {
    let protocol = if to == To::Udp { "udp" } else { "tcp" };
    let arguments = ["explain", protocol, source, &target.to_string(), "-o", "json"].map(str::to_owned);
    let mut arguments = arguments.to_vec();
    // The outside client is a namespace of the same kernel, so `lb explain` would classify it as a
    // pod.
    let ip = source.parse::<SocketAddr>().map(|source| source.ip()).or_else(|_| source.parse());
    if ip.is_ok_and(|ip| ip == world.client().address(Family::of(ip))) {
        arguments.extend(["--in", "external"].map(str::to_owned));
    }
    arguments
}

/// Runs `lb explain` on the first node.
fn explain(world: &World, to: To, source: &str, target: SocketAddr) -> Result<Explanation> {
    let arguments = arguments(world, to, source, target);
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let text = world.agent(0)?.lb(&arguments)?;
    serde_json::from_str(&text).with_context(|| format!("parse the output of lb {arguments:?}: {text}"))
}

/// Checks that `lb explain` reports the result of a cell of the [matrix](super::matrix).
pub fn agrees_with_cell(
    world: &World,
    source: &str,
    target: SocketAddr,
    to: To,
    kind: &str,
    cell: &str,
) -> Result<()> {
    let family = Family::of(target.ip());
    let from_pod = |pod: usize, node: usize, origin| (world.pod(pod).host.address(family), node, origin);
    let (address, node, origin) = match source {
        "pod here" => from_pod(2, 0, "pod"),
        // Requests of this pod to a nodePort of the first node arrive there as packets.
        "pod there" if kind == "NodePort" => from_pod(4, 0, "external"),
        "pod there" => from_pod(4, 1, "pod"),
        "outside" => (world.client().address(family), 0, "external"),
        _ => (world.node(0).host.address(family), 0, "node"),
    };
    let target = match (source, family) {
        ("localhost", Family::V4) => SocketAddr::new([127, 0, 0, 1].into(), target.port()),
        ("localhost", Family::V6) => SocketAddr::new(std::net::Ipv6Addr::LOCALHOST.into(), target.port()),
        _ => target,
    };
    let protocol = if to == To::Udp { "udp" } else { "tcp" };
    let arguments =
        ["explain", protocol, &address.to_string(), &target.to_string(), "--in", origin, "-o", "json"];
    let text = world.agent(node)?.lb(&arguments)?;
    let explanation: Explanation = serde_json::from_str(&text).with_context(|| format!("parse {text}"))?;
    let what = || format!("lb {arguments:?} printed {text}");
    let verdict = match cell {
        "refused" => "reject",
        "unreachable" | "drop" => "drop",
        _ => "forward",
    };
    ensure!(explanation.verdict == verdict, "the verdict should be {verdict}: {}", what());
    ensure!(explanation.service.as_ref().is_some_and(|service| service.kind == kind), "{}", what());
    let port = if to == To::Udp { UDP_PORT } else { HTTP_PORT };
    // Each endpoint that answers, and whether it sees the node's address instead of the client's.
    let mut answering = Vec::new();
    for word in if verdict == "forward" { cell.split_whitespace() } else { "".split_whitespace() } {
        let pod = world.pod(word.trim_end_matches('\'').parse()?);
        answering.push((pod.host.at(family, port), word.ends_with('\'')));
    }
    answering.sort();
    let endpoints: Vec<_> = answering.iter().map(|(endpoint, _)| *endpoint).collect();
    ensure!(explanation.endpoints == endpoints, "the endpoints should be {endpoints:?}: {}", what());
    let chosen =
        explanation.chosen.and_then(|chosen| answering.iter().find(|(endpoint, _)| *endpoint == chosen));
    ensure!(chosen.is_some() == (verdict == "forward"), "{}", what());
    ensure!(explanation.source_rewritten == chosen.is_some_and(|(_, rewritten)| *rewritten), "{}", what());
    Ok(())
}

fn send(host: &Host, to: To, target: SocketAddr) -> Result<Vec<Exchange>> {
    match to {
        To::Udp => host
            .send_datagrams(target, Datagrams { connected: true, count: 4, size: 32, dont_fragment: false }),
        _ => host.get(&[target], 4),
    }
}

/// A ping to a Service's address is answered, a ping to a pod passes. Source and destination are
/// addresses without ports.
pub fn pings(world: &mut World, family: Family) -> Result<()> {
    let service = world.publish(&[1])?;
    let (client, agent) = (client_address(world, family), world.agent(0)?);
    for (target, verdict, reason) in [
        (service.cluster_ip(family, To::Http).ip(), "forward", Some("echo_answered")),
        (world.pod(1).host.address(family), "pass", None),
    ] {
        let text =
            agent.lb(&["explain", "icmp", &client, &target.to_string(), "--in", "external", "-o", "json"])?;
        let explanation: Explanation = serde_json::from_str(&text)?;
        ensure!(
            (explanation.verdict.as_str(), explanation.reason.as_deref()) == (verdict, reason),
            "{target}: {explanation:?}"
        );
    }
    Ok(())
}

/// Compares `lb explain` with traffic for each source, each kind of address, endpoints on this
/// node, on the other node and on both, and TCP and UDP.
pub fn agrees_with_traffic(world: &mut World, family: Family) -> Result<()> {
    for pods in [&[1][..], &[3], &[1, 3]] {
        let service = world.publish(pods)?;
        for to in [To::Http, To::Udp] {
            let port = if to == To::Udp { UDP_PORT } else { HTTP_PORT };
            let mut endpoints: Vec<_> =
                pods.iter().map(|pod| world.pod(*pod).host.at(family, port)).collect();
            endpoints.sort();
            for (kind, target) in [
                ("ClusterIP", service.cluster_ip(family, to)),
                ("NodePort", service.node_port(world.node(0), family, to)),
            ] {
                let (client, node) = (world.client(), &world.node(0).host);
                // Pod 1 is also an endpoint.
                for host in [client, node, &world.pod(1).host, &world.pod(2).host] {
                    let explanation = explain(world, to, &host.address(family).to_string(), target)?;
                    let what = || format!("{} to {target}, endpoints {pods:?}: {explanation:?}", host.name);
                    ensure!(explanation.verdict == "forward", "{}", what());
                    let named = explanation
                        .service
                        .as_ref()
                        .map(|service| (service.name.as_str(), service.kind.as_str()));
                    ensure!(named == Some((service.service.name.as_str(), kind)), "{}", what());
                    ensure!(explanation.endpoints == endpoints, "{}", what());
                    ensure!(
                        explanation.chosen.is_some_and(|chosen| endpoints.contains(&chosen)),
                        "{}",
                        what()
                    );
                    let exchanges = send(host, to, target)?;
                    answered_by(&exchanges, pods).with_context(what)?;
                    if pods.len() > 1 {
                        continue;
                    }
                    for exchange in exchanges {
                        let seen = exchange.result.as_ref().map(|answer| answer.greeting.client.ip());
                        let seen = seen.map_err(|failure| anyhow::anyhow!("{failure}"))?;
                        // For packets of a process of the node, the kernel chooses the source
                        // address by the route to the endpoint.
                        let agrees = if host.name == node.name {
                            !explanation.source_rewritten && world.node(0).addresses().contains(&seen)
                        } else {
                            explanation.source_after.map(|source| source.ip()) == Some(seen)
                        };
                        ensure!(agrees, "the endpoint saw {seen}: {}", what());
                        let rewritten =
                            explanation.source_after.map(|source| source.ip()) != Some(host.address(family));
                        ensure!(explanation.source_rewritten == rewritten, "{}", what());
                    }
                }
            }
        }
    }
    Ok(())
}

/// Publishes a Service with changes to its spec.
fn publish_with(world: &mut World, pods: &[usize], change: serde_json::Value) -> Result<Published> {
    let published = world.new_service();
    let hosts: Vec<_> = pods.iter().map(|pod| world.pod(*pod)).collect();
    let mut objects = published.service.with_endpoints(&hosts);
    for (key, value) in change.as_object().into_iter().flatten() {
        objects[0]["spec"][key] = value.clone();
    }
    world.write(&published, &objects)?;
    Ok(published)
}

/// Without endpoints, `lb explain` reports a rejection and the connection is refused. With policy
/// Local and no local endpoint, it reports a drop and requests time out, but not for pods.
pub fn refusals_agree_with_traffic(world: &mut World, family: Family) -> Result<()> {
    let client = world.client().address(family).to_string();
    let pod = world.pod(2).host.address(family).to_string();

    let without_endpoint = publish_with(world, &[], json!({}))?;
    let target = without_endpoint.node_port(world.node(0), family, To::Http);
    for (source, host) in [(&client, world.client()), (&pod, &world.pod(2).host)] {
        eventually(|| {
            let explanation = explain(world, To::Http, source, target)?;
            ensure!(
                explanation.verdict == "reject"
                    && explanation.endpoints.is_empty()
                    && explanation.chosen.is_none(),
                "{explanation:?}"
            );
            ensure!(explanation.source_after.is_none() && !explanation.source_rewritten, "{explanation:?}");
            Ok(())
        })?;
        refused(&host.get(&[target], 1)?)?;
    }

    let local = publish_with(world, &[3], json!({ "externalTrafficPolicy": "Local" }))?;
    let target = local.node_port(world.node(0), family, To::Http);
    eventually(|| {
        let explanation = explain(world, To::Http, &client, target)?;
        ensure!(
            explanation.verdict == "drop" && explanation.reason.as_deref() == Some("no_endpoint_dropped"),
            "{explanation:?}"
        );
        Ok(())
    })?;
    unanswered(&world.client().get(&[target], 1)?)?;
    let explanation = explain(world, To::Http, &pod, target)?;
    ensure!(
        explanation.verdict == "forward"
            && explanation.chosen == Some(world.pod(3).host.at(family, HTTP_PORT)),
        "{explanation:?}"
    );
    answered_by(&world.pod(2).host.get(&[target], 2)?, &[3])
}

/// Map entries and counters that the programs write.
type Written = (Vec<FlowEntry>, Vec<AffinityEntry>, Vec<(Reason, u64)>);

fn written(world: &World) -> Result<Written> {
    let maps = AgentMaps::open(&Pins::new(&world.node(0).bpffs))?;
    let (mut flows, mut affinity) = (maps.flows()?, maps.affinity()?);
    flows.sort_by_key(|flow| (flow.client, flow.service, flow.protocol));
    affinity.sort_by_key(|entry| format!("{entry:?}"));
    Ok((flows, affinity, maps.counters()?))
}

/// `lb explain` reports an open connection and a stored affinity. It changes no flow, affinity or
/// counter.
pub fn leaves_no_trace(world: &mut World, family: Family) -> Result<()> {
    let service = publish_with(world, &[1, 3], json!({ "sessionAffinity": "ClientIP" }))?;
    world.wait_until_served(&service, &[1, 3])?;
    let target = service.node_port(world.node(0), family, To::Http);
    let load = world.client().start_load(LoadKind::OneConnection, target, 5)?;
    let maps = AgentMaps::open(&Pins::new(&world.node(0).bpffs))?;
    let mut flow = None;
    eventually(|| {
        flow = maps.flows()?.into_iter().find(|flow| flow.service == target);
        ensure!(flow.is_some(), "no flow to {target}");
        Ok(())
    })?;
    let flow = flow.context("no flow")?;

    let explanation = explain(world, To::Http, &flow.client.to_string(), target)?;
    ensure!(
        (explanation.chosen, explanation.source_after) == (Some(flow.backend), Some(flow.source)),
        "{explanation:?}, not {flow:?}"
    );
    ensure!(
        explanation.why.chosen.as_ref().is_some_and(|why| why.contains("connection is open")),
        "{explanation:?}"
    );
    // A new connection of the same client goes to the same endpoint.
    for _ in 0..4 {
        let explanation = explain(world, To::Http, &client_address(world, family), target)?;
        ensure!(
            explanation.chosen == Some(flow.backend) && explanation.endpoints.len() == 2,
            "{explanation:?}, not {flow:?}"
        );
        ensure!(
            explanation.why.chosen.as_ref().is_some_and(|why| why.contains("affinity")),
            "{explanation:?}"
        );
    }
    load.finish()?;

    let stranger = match family {
        Family::V4 => "10.10.0.99",
        Family::V6 => "fd00:10::99",
    };
    // At first, the last packets of the connection may still change the maps. Changes by
    // `lb explain` would occur in each attempt, which takes seconds: the command loads programs.
    eventually_within(Duration::from_secs(120), || {
        let before = written(world)?;
        for to in [To::Http, To::Udp] {
            let target = service.node_port(world.node(0), family, to);
            for source in [stranger, &flow.client.to_string(), &world.pod(2).host.address(family).to_string()]
            {
                ensure!(explain(world, to, source, target)?.verdict == "forward");
            }
        }
        ensure!(before == written(world)?, "`lb explain` changed the maps");
        Ok(())
    })
}

fn client_address(world: &World, family: Family) -> String {
    world.client().address(family).to_string()
}

/// Before an agent is installed, `lb explain --manifests` reports what the agent will do. It leaves
/// no maps or pins.
pub fn without_an_agent(world: &mut World, family: Family) -> Result<()> {
    let client = client_address(world, family);
    let mut cases = Vec::new();
    for pod in [1, 3] {
        let service = world.publish(&[pod])?;
        for target in
            [service.cluster_ip(family, To::Http), service.node_port(world.node(0), family, To::Http)]
        {
            for source in [client.clone(), world.node(0).host.address(family).to_string()] {
                cases.push((explain(world, To::Http, &source, target)?, source, target));
            }
        }
    }
    world.take_agent(0)?.stop()?;
    cleanup(world.node(0))?;

    let error = lb_on(world.node(0), &["explain", "tcp", &client, &cases[0].2.to_string()]);
    let error = error.map_or_else(|error| format!("{error:#}"), |text| format!("no error: {text}"));
    ensure!(
        error.contains("there are no maps of a running Sluice") && error.contains("--manifests"),
        "{error}"
    );
    for (expected, source, target) in &cases {
        let mut arguments = arguments(world, To::Http, source, *target);
        let folder = world.topology.manifests.path().display().to_string();
        arguments.extend(["--manifests", &folder, "--node", &world.node(0).host.name].map(str::to_owned));
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let explanation: Explanation = serde_json::from_str(&lb_on(world.node(0), &arguments)?)?;
        ensure!(
            explanation.decision() == expected.decision(),
            "{source} to {target}: {explanation:?}, not {expected:?}"
        );
    }
    let left: Vec<_> = std::fs::read_dir(&world.node(0).bpffs)?
        .flatten()
        .map(|entry| entry.file_name())
        .filter(|name| !name.to_string_lossy().ends_with(".debug"))
        .collect();
    ensure!(left.is_empty(), "left in the BPF file system: {left:?}");
    world.start_agent(0)
}

/// A program of another owner is at the hook of the program of Sluice. The text names it, and the
/// order of the two, which the agent may change meanwhile.
pub fn names_other_programs(world: &mut World) -> Result<()> {
    let service = world.publish(&[3])?;
    let world = &*world;
    let node = world.node(0);
    let ifindex = node.host.place.ifindex("eth0")?;
    let source = SocketAddr::new(world.client().v4.into(), 40_000).to_string();
    let target = service.node_port(node, Family::V4, To::Http).to_string();
    let explain = || lb_on(node, &["explain", "tcp", &source, &target, "--in", "external"]);
    let alone = explain()?;
    ensure!(!alone.contains("OTHERS"), "there is no other program:\n{alone}");
    let other = node.host.place.inside(|| pass_programs::attach_first(ifindex))??;
    let beside = explain();
    drop(other);
    let beside = beside?;
    let line = beside.lines().find(|line| line.starts_with("OTHERS"));
    let line = line.with_context(|| format!("the other program is not named:\n{beside}"))?;
    ensure!(line.contains("at tc ingress of eth0: runs "), "{line}");
    Ok(())
}
