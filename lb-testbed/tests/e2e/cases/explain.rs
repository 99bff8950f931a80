//! `lb explain` says what real traffic of the same addresses meets, and leaves no trace.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use lb_common::layout::direction;
use lb_common::reason::Reason;
use lb_datapath::inspect::{AffinityEntry, Maps};
use lb_datapath::{FlowEntry, Pins};
use lb_testbed::Family;
use lb_testbed::agent::{cleanup, lb_on};
use lb_testbed::host::{Datagrams, HTTP_PORT, Host, LoadKind, UDP_PORT};
use lb_testbed::report::Exchange;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::json;

use crate::check::{answered_by, eventually, refused, unanswered};
use crate::world::{Published, To, World};

/// The JSON of `lb explain`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Said {
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

/// Of pings an address alone: port 0.
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

impl Said {
    /// What is the same in each run: all but the port of a rewritten source.
    fn decision(&self) -> Self {
        let source_after = self.source_after.map(|source| SocketAddr::new(source.ip(), 0));
        Self { source_after, ..self.clone() }
    }
}

fn arguments(world: &World, to: To, source: &str, target: SocketAddr) -> Vec<String> {
    let protocol = if to == To::Udp { "udp" } else { "tcp" };
    let arguments = ["explain", protocol, source, &target.to_string(), "-o", "json"].map(str::to_owned);
    let mut arguments = arguments.to_vec();
    // The client outside is a namespace of the same kernel here, and its address would be taken for
    // a pod's.
    let ip = source.parse::<SocketAddr>().map(|source| source.ip()).or_else(|_| source.parse());
    if ip.is_ok_and(|ip| ip == world.client().address(Family::of(ip))) {
        arguments.extend(["--in", "external"].map(str::to_owned));
    }
    arguments
}

/// What the first node's programs would do.
fn explain(world: &World, to: To, source: &str, target: SocketAddr) -> Result<Said> {
    let arguments = arguments(world, to, source, target);
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let text = world.agent(0)?.lb(&arguments)?;
    serde_json::from_str(&text).with_context(|| format!("read what lb {arguments:?} printed: {text}"))
}

/// Whether `lb explain` says of a request what a cell of the [matrix](super::matrix) says of its
/// traffic.
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
        // What it asks at a nodePort of the first node comes there as a packet.
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
    let said: Said = serde_json::from_str(&text).with_context(|| format!("read {text}"))?;
    let what = || format!("lb {arguments:?} says {text}");
    let verdict = match cell {
        "refused" => "reject",
        "unreachable" | "drop" => "drop",
        _ => "forward",
    };
    ensure!(said.verdict == verdict, "the verdict should be {verdict}: {}", what());
    ensure!(said.service.as_ref().is_some_and(|service| service.kind == kind), "{}", what());
    let port = if to == To::Udp { UDP_PORT } else { HTTP_PORT };
    // Each endpoint that answers, and whether it sees the node in the client's place.
    let mut answering = Vec::new();
    for word in if verdict == "forward" { cell.split_whitespace() } else { "".split_whitespace() } {
        let pod = world.pod(word.trim_end_matches('\'').parse()?);
        answering.push((pod.host.at(family, port), word.ends_with('\'')));
    }
    answering.sort();
    let endpoints: Vec<_> = answering.iter().map(|(endpoint, _)| *endpoint).collect();
    ensure!(said.endpoints == endpoints, "the endpoints should be {endpoints:?}: {}", what());
    let chosen = said.chosen.and_then(|chosen| answering.iter().find(|(endpoint, _)| *endpoint == chosen));
    ensure!(chosen.is_some() == (verdict == "forward"), "{}", what());
    ensure!(said.source_rewritten == chosen.is_some_and(|(_, rewritten)| *rewritten), "{}", what());
    Ok(())
}

fn ask(host: &Host, to: To, target: SocketAddr) -> Result<Vec<Exchange>> {
    match to {
        To::Udp => host
            .send_datagrams(target, Datagrams { connected: true, count: 4, size: 32, dont_fragment: false }),
        _ => host.get(&[target], 4),
    }
}

/// A ping to a Service's address is answered; one to a pod is none of ours. Source and destination
/// are addresses without ports.
pub fn pings(world: &mut World, family: Family) -> Result<()> {
    let service = world.publish(&[1])?;
    let (client, agent) = (client_address(world, family), world.agent(0)?);
    for (target, verdict, reason) in [
        (service.cluster_ip(family, To::Http).ip(), "forward", Some("echo_answered")),
        (world.pod(1).host.address(family), "pass", None),
    ] {
        let text =
            agent.lb(&["explain", "icmp", &client, &target.to_string(), "--in", "external", "-o", "json"])?;
        let said: Said = serde_json::from_str(&text)?;
        ensure!((said.verdict.as_str(), said.reason.as_deref()) == (verdict, reason), "{target}: {said:?}");
    }
    Ok(())
}

/// Each source × each kind of address × endpoints here, elsewhere and both × TCP and UDP.
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
                // pod1 is an endpoint itself.
                for host in [client, node, &world.pod(1).host, &world.pod(2).host] {
                    let said = explain(world, to, &host.address(family).to_string(), target)?;
                    let what = || format!("{} to {target}, endpoints {pods:?}: {said:?}", host.name);
                    ensure!(said.verdict == "forward", "{}", what());
                    let named =
                        said.service.as_ref().map(|service| (service.name.as_str(), service.kind.as_str()));
                    ensure!(named == Some((service.service.name.as_str(), kind)), "{}", what());
                    ensure!(said.endpoints == endpoints, "{}", what());
                    ensure!(said.chosen.is_some_and(|chosen| endpoints.contains(&chosen)), "{}", what());
                    let exchanges = ask(host, to, target)?;
                    answered_by(&exchanges, pods).with_context(what)?;
                    if pods.len() > 1 {
                        continue;
                    }
                    for exchange in exchanges {
                        let seen = exchange.result.as_ref().map(|answer| answer.greeting.client.ip());
                        let seen = seen.map_err(|failure| anyhow::anyhow!("{failure}"))?;
                        // Of what a process of the node sends, the kernel chooses the source, by
                        // the way to the endpoint.
                        let agrees = if host.name == node.name {
                            !said.source_rewritten && world.node(0).addresses().contains(&seen)
                        } else {
                            said.source_after.map(|source| source.ip()) == Some(seen)
                        };
                        ensure!(agrees, "the endpoint saw {seen}: {}", what());
                        let rewritten =
                            said.source_after.map(|source| source.ip()) != Some(host.address(family));
                        ensure!(said.source_rewritten == rewritten, "{}", what());
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
    world.set_endpoints(&published, pods)?;
    let hosts: Vec<_> = pods.iter().map(|pod| world.pod(*pod)).collect();
    let mut objects = published.service.with_endpoints(&hosts);
    for (key, value) in change.as_object().into_iter().flatten() {
        objects[0]["spec"][key] = value.clone();
    }
    world.topology.manifests.write(&format!("{}.yaml", published.service.name), &objects)?;
    Ok(published)
}

/// No endpoint: rejected as well as refused; none here with a Local policy: dropped and unanswered,
/// but not for pods.
pub fn refusals_agree_with_traffic(world: &mut World, family: Family) -> Result<()> {
    let client = world.client().address(family).to_string();
    let pod = world.pod(2).host.address(family).to_string();

    let nobody = publish_with(world, &[], json!({}))?;
    let target = nobody.node_port(world.node(0), family, To::Http);
    for (source, host) in [(&client, world.client()), (&pod, &world.pod(2).host)] {
        eventually(|| {
            let said = explain(world, To::Http, source, target)?;
            ensure!(
                said.verdict == "reject" && said.endpoints.is_empty() && said.chosen.is_none(),
                "{said:?}"
            );
            ensure!(said.source_after.is_none() && !said.source_rewritten, "{said:?}");
            Ok(())
        })?;
        refused(&host.get(&[target], 1)?)?;
    }

    let local = publish_with(world, &[3], json!({ "externalTrafficPolicy": "Local" }))?;
    let target = local.node_port(world.node(0), family, To::Http);
    eventually(|| {
        let said = explain(world, To::Http, &client, target)?;
        ensure!(said.verdict == "drop" && said.reason.as_deref() == Some("no_endpoint_dropped"), "{said:?}");
        Ok(())
    })?;
    unanswered(&world.client().get(&[target], 1)?)?;
    let said = explain(world, To::Http, &pod, target)?;
    ensure!(
        said.verdict == "forward" && said.chosen == Some(world.pod(3).host.at(family, HTTP_PORT)),
        "{said:?}"
    );
    answered_by(&world.pod(2).host.get(&[target], 2)?, &[3])
}

/// Everything that programs write.
type Written = (Vec<FlowEntry>, Vec<AffinityEntry>, Vec<(Reason, u64)>);

fn written(world: &World) -> Result<Written> {
    let maps = Maps::open(&Pins::new(&world.node(0).bpffs))?;
    let (mut flows, mut affinity) = (maps.flows()?, maps.affinity()?);
    flows.sort_by_key(|flow| (flow.src, flow.dst, flow.protocol));
    affinity.sort_by_key(|entry| format!("{entry:?}"));
    Ok((flows, affinity, maps.counters()?))
}

/// A connection that is open, an affinity that is remembered: both are said, and explaining changes
/// neither them nor a counter.
pub fn leaves_no_trace(world: &mut World, family: Family) -> Result<()> {
    let service = publish_with(world, &[1, 3], json!({ "sessionAffinity": "ClientIP" }))?;
    world.wait_until_served(&service, &[1, 3])?;
    let target = service.node_port(world.node(0), family, To::Http);
    let load = world.client().start_load(LoadKind::OneConnection, target, 5)?;
    let maps = Maps::open(&Pins::new(&world.node(0).bpffs))?;
    let mut flow = None;
    eventually(|| {
        flow =
            maps.flows()?.into_iter().find(|flow| flow.dst == target && flow.direction == direction::REQUEST);
        ensure!(flow.is_some(), "no flow to {target}");
        Ok(())
    })?;
    let flow = flow.context("no flow")?;

    let said = explain(world, To::Http, &flow.src.to_string(), target)?;
    ensure!(
        (said.chosen, said.source_after) == (Some(flow.new_dst), Some(flow.new_src)),
        "{said:?}, not {flow:?}"
    );
    ensure!(said.why.chosen.as_ref().is_some_and(|why| why.contains("connection is open")), "{said:?}");
    // A new connection of the same client goes to the same endpoint.
    for _ in 0..4 {
        let said = explain(world, To::Http, &client_address(world, family), target)?;
        ensure!(said.chosen == Some(flow.new_dst) && said.endpoints.len() == 2, "{said:?}, not {flow:?}");
        ensure!(said.why.chosen.as_ref().is_some_and(|why| why.contains("affinity")), "{said:?}");
    }
    load.finish()?;

    let stranger = match family {
        Family::V4 => "10.10.0.99",
        Family::V6 => "fd00:10::99",
    };
    // The last packets of the connection are still on their way at first; what explaining writes
    // would be there each time.
    eventually(|| {
        let before = written(world)?;
        for to in [To::Http, To::Udp] {
            let target = service.node_port(world.node(0), family, to);
            for source in [stranger, &flow.src.to_string(), &world.pod(2).host.address(family).to_string()] {
                ensure!(explain(world, to, source, target)?.verdict == "forward");
            }
        }
        ensure!(before == written(world)?, "explaining changed the maps");
        Ok(())
    })
}

fn client_address(world: &World, family: Family) -> String {
    world.client().address(family).to_string()
}

/// Before an agent is installed the manifests are explained as it will serve them, and nothing
/// stays behind.
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
        let said: Said = serde_json::from_str(&lb_on(world.node(0), &arguments)?)?;
        ensure!(said.decision() == expected.decision(), "{source} to {target}: {said:?}, not {expected:?}");
    }
    let left: Vec<_> = std::fs::read_dir(&world.node(0).bpffs)?
        .flatten()
        .map(|entry| entry.file_name())
        .filter(|name| !name.to_string_lossy().ends_with(".debug"))
        .collect();
    ensure!(left.is_empty(), "left in the BPF file system: {left:?}");
    world.start_agent(0)
}
