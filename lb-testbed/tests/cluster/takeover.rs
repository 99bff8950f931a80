//! Takeover from a real kube-proxy on the node, and back, under load. The API server is the same
//! for both. `cargo xtask test takeover` runs these cases.

use anyhow::{Context as _, Result, ensure};
use lb_testbed::check::{answered_by, eventually};
use lb_testbed::control_plane::{KubeProxy, KubeProxyMode};
use lb_testbed::host::{Held, Load, LoadKind};
use lb_testbed::manifests::ServiceManifest;
use lb_testbed::{Family, agent, http};
use serde_json::json;

use crate::cases::{Run, finish};
use crate::world::{World, cluster_ip};

pub const CASES: &[(&str, Run)] = &[
    ("takeover::iptables", |world| takeover(world, KubeProxyMode::Iptables)),
    ("takeover::nftables", |world| takeover(world, KubeProxyMode::Nftables)),
];

/// Namespace and name of kube-proxy's service account, as kubeadm creates it.
const KUBE_PROXY_ACCOUNT: (&str, &str) = ("kube-system", "kube-proxy");

/// Requests per second of each load.
const RATE: u32 = 20;

/// The steps are those of docs/operations.md.
fn takeover(world: &mut World, mode: KubeProxyMode) -> Result<()> {
    world.stop_agent()?;
    agent::cleanup(world.node())?;
    let pod_network = PodNetwork::create(world)?;
    let taken_over = from_kube_proxy_and_back(world, mode);
    pod_network.remove(world)?;
    taken_over?;
    world.start_agent()
}

fn from_kube_proxy_and_back(world: &mut World, mode: KubeProxyMode) -> Result<()> {
    let kubeconfig = kube_proxy_account(world)?;
    let logs = world.topology.folder();
    let service = world.new_service();
    world.apply(&service.object())?;
    world.set_endpoints(&service, &[1, 3])?;
    let mut kube_proxy = KubeProxy::start(world.node(), mode, &kubeconfig, &logs)?;
    kube_proxy.wait_until_served(&service.cluster_ips)?;
    world.wait_until_served(&service, &[1, 3]).with_context(|| kube_proxy.log_tail())?;

    let mut opened_before = Connections::open(world, &service)?;
    let loads = start_loads(world, &service)?;
    kube_proxy.stop()?;
    world.start_agent()?;
    // kube-proxy does not run, so it is the agent that serves the new endpoint.
    world.set_endpoints(&service, &[1, 3, 4])?;
    world.wait_until_served(&service, &[1, 3, 4])?;
    opened_before.are_alive().context("connections that kube-proxy opened")?;
    finish(loads).context("while the agent took over")?;

    let loads = start_loads(world, &service)?;
    ensure!(!mode.rules(&world.node().host.place)?.is_empty(), "the rules of kube-proxy did not stay");
    let removed = agent::lb_on(world.node(), &["cleanup", "--kube-proxy"])?;
    let left = mode.rules(&world.node().host.place)?;
    ensure!(left.is_empty(), "{removed}\nleft:\n{left}");
    let later = world.publish(&[2, 4])?;
    opened_before.are_alive().context("connections that kube-proxy opened, without its rules")?;
    finish(loads).context("while the rules of kube-proxy were removed")?;

    let health_port = publish_local(world)?;
    wait_for_health(world, health_port)?;
    let mut opened_before = Connections::open(world, &service)?;
    let loads = start_loads(world, &service)?;
    let mut kube_proxy = KubeProxy::start(world.node(), mode, &kubeconfig, &logs)?;
    kube_proxy.wait_until_served(&[service.cluster_ips.clone(), later.cluster_ips.clone()].concat())?;
    world.stop_agent()?;
    world.start_retired_agent()?;
    // The healthCheckNodePort was in use when kube-proxy started.
    kube_proxy.stop()?;
    let kube_proxy = KubeProxy::start(world.node(), mode, &kubeconfig, &logs)?;
    wait_for_health(world, health_port).with_context(|| kube_proxy.log_tail())?;
    // The agent has no Service, so it is kube-proxy that serves the changed endpoints.
    world.set_endpoints(&later, &[1, 3])?;
    world.wait_until_served(&later, &[1, 3]).with_context(|| kube_proxy.log_tail())?;
    opened_before.are_alive().context("connections that Sluice opened")?;
    finish(loads).context("while kube-proxy took over")?;

    let mut opened_before = Connections::open(world, &service)?;
    let loads = start_loads(world, &service)?;
    world.stop_agent()?;
    let removed = agent::cleanup(world.node())?;
    ensure!(removed.contains("removed"), "{removed}");
    world.wait_until_served(&service, &[1, 3, 4]).with_context(|| kube_proxy.log_tail())?;
    opened_before.are_alive().context("connections that kube-proxy opened beside Sluice")?;
    finish(loads).context("while the programs of Sluice were removed")?;

    kube_proxy.stop()?;
    agent::lb_on(world.node(), &["cleanup", "--kube-proxy"]).map(drop)
}

/// Applies a LoadBalancer Service with policy Local and an endpoint on the node, and returns its
/// healthCheckNodePort.
fn publish_local(world: &mut World) -> Result<u16> {
    let service = world.new_service();
    // No other Service has this port.
    let port = 2000 + service.ports[0].node_port.context("the port has no nodePort")?;
    let mut object = service.object();
    object["spec"]["type"] = "LoadBalancer".into();
    object["spec"]["externalTrafficPolicy"] = "Local".into();
    object["spec"]["healthCheckNodePort"] = port.into();
    world.apply(&object)?;
    world.set_endpoints(&service, &[1])?;
    Ok(port)
}

/// Waits until a healthCheckNodePort of the node reports a local endpoint.
fn wait_for_health(world: &World, port: u16) -> Result<()> {
    eventually(|| {
        let server = world.node().host.at(Family::V4, port);
        let answer = http::get(&world.topology.client.place, server, "/")?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    })
}

/// Creates the service account of kube-proxy and returns its kubeconfig.
fn kube_proxy_account(world: &World) -> Result<std::path::PathBuf> {
    let (namespace, name) = KUBE_PROXY_ACCOUNT;
    world.admin.apply(&json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": name, "namespace": namespace },
    }))?;
    world.admin.apply(&json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": { "name": "kubeadm:node-proxier" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node-proxier" },
        "subjects": [{ "kind": "ServiceAccount", "name": name, "namespace": namespace }],
    }))?;
    world.control_plane.kubeconfig_of(namespace, name, &world.control_plane.address())
}

/// The masquerading rules of a CNI plug-in. With them, the kernel goes on translating the
/// connections of kube-proxy after the removal of its rules.
struct PodNetwork([(&'static str, [String; 2]); 2]);

impl PodNetwork {
    fn create(world: &World) -> Result<Self> {
        let node = world.node();
        let rules = [
            ("iptables", [node.pod_cidr_v4(), "10.0.0.0/8".to_owned()]),
            ("ip6tables", [node.pod_cidr_v6(), "fd00::/16".to_owned()]),
        ];
        let network = Self(rules);
        network.change(world, "-A")?;
        Ok(network)
    }

    fn remove(self, world: &World) -> Result<()> {
        self.change(world, "-D")
    }

    fn change(&self, world: &World, action: &str) -> Result<()> {
        for (program, [pods, cluster]) in &self.0 {
            let rule = ["-s", pods, "!", "-d", cluster, "-j", "MASQUERADE"];
            let arguments = [&["-w", "-t", "nat", action, "POSTROUTING"], &rule[..]].concat();
            world.node().host.place.run(program, arguments)?;
        }
        Ok(())
    }
}

/// TCP connections to a Service that stay open, of a pod and from outside.
struct Connections(Vec<(&'static str, Held, usize)>);

impl Connections {
    fn open(world: &World, service: &ServiceManifest) -> Result<Self> {
        let mut held = Vec::new();
        for family in Family::BOTH {
            let inside = cluster_ip(service, family).http;
            let outside = world.node_port_of(service, family)?.http;
            held.push(("pod", world.pod(2).host.hold_http(inside)?));
            held.push(("outside", world.topology.client.hold_http(outside)?));
        }
        let with_endpoint = held.into_iter().map(|(client, mut held)| {
            let pod = endpoint_of(&mut held)?;
            Ok((client, held, pod))
        });
        Ok(Self(with_endpoint.collect::<Result<_>>()?))
    }

    /// Checks that each connection still leads to the endpoint that it was opened to.
    fn are_alive(&mut self) -> Result<()> {
        for (client, held, pod) in &mut self.0 {
            let exchange = held.request()?;
            answered_by(std::slice::from_ref(&exchange), &[*pod])
                .with_context(|| format!("client: {client}"))?;
        }
        Ok(())
    }
}

/// Sends a request and returns the number of the pod that answers.
fn endpoint_of(held: &mut Held) -> Result<usize> {
    let exchange = held.request()?;
    let answer = exchange.result.map_err(|failure| anyhow::anyhow!("{failure}"))?;
    Ok(answer.greeting.pod.trim_start_matches("pod").parse()?)
}

/// Starts loads of each kind from a pod and from outside.
fn start_loads(world: &World, service: &ServiceManifest) -> Result<Vec<(String, Load)>> {
    let mut loads = Vec::new();
    for family in Family::BOTH {
        let (inside, outside) = (cluster_ip(service, family), world.node_port_of(service, family)?);
        for (client, host, target) in
            [("pod", &world.pod(2).host, inside), ("outside", &world.topology.client, outside)]
        {
            for (kind, address) in [
                (LoadKind::NewConnections, target.http),
                (LoadKind::OneConnection, target.http),
                (LoadKind::NewSockets, target.udp),
                (LoadKind::OneSocket, target.udp),
            ] {
                let name = format!("{client}, {family}, {kind:?}");
                loads.push((name, host.start_load(kind, address, RATE)?));
            }
        }
    }
    Ok(loads)
}
