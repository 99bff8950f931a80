//! Writes the addresses of the proxies to the status of Ingresses, and finds these addresses.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::Ingress as ApiIngress;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client};
use lb_model::{Ingress, ObjectName, PublishedAddress};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::convert;

/// How often a status is written again if other programs change the Ingress in between.
const CONFLICTS: usize = 5;

/// The result of writing a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusWrite {
    Written,
    /// The Ingress has other routes or another class than `decided`, or does not exist any more.
    /// The watch sends the change.
    Outdated,
}

/// Writes `status.loadBalancer.ingress` of an Ingress, unless the Ingress has changed since
/// `decided` was read. The status of another change than this one is never lost: the request names
/// the version that was read.
///
/// # Errors
/// Fails if the API server refuses the request or does not answer, or after several conflicts.
pub async fn write_ingress_status(
    client: &Client,
    name: &ObjectName,
    decided: &Ingress,
    addresses: &[PublishedAddress],
) -> kube::Result<StatusWrite> {
    let ingresses = Api::<ApiIngress>::namespaced(client.clone(), name.namespace());
    let mut attempts = 0;
    loop {
        let Some(current) = ingresses.get_opt(name.name()).await? else { return Ok(StatusWrite::Outdated) };
        let found = convert::ingress(&current).value;
        if !found.is_some_and(|found| found.has_routes_of(decided)) {
            return Ok(StatusWrite::Outdated);
        }
        let patch = json!({
            "metadata": { "resourceVersion": current.metadata.resource_version },
            "status": { "loadBalancer": { "ingress": entries(addresses) } },
        });
        attempts += 1;
        match ingresses.patch_status(name.name(), &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => return Ok(StatusWrite::Written),
            Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(StatusWrite::Outdated),
            Err(kube::Error::Api(status)) if status.is_conflict() && attempts < CONFLICTS => {}
            Err(error) => return Err(error),
        }
    }
}

/// `null` removes the list.
fn entries(addresses: &[PublishedAddress]) -> Value {
    let entry = |address: &PublishedAddress| match address {
        PublishedAddress::Ip(ip) => json!({ "ip": ip.to_string() }),
        PublishedAddress::HostName(name) => json!({ "hostname": name }),
    };
    if addresses.is_empty() { Value::Null } else { addresses.iter().map(entry).collect() }
}

/// The time after which the addresses of a Node are read again.
const NODE_AGE: Duration = Duration::from_secs(600);

/// Finds the addresses of a Service that publishes the proxies.
pub struct PublishedService {
    client: Client,
    name: ObjectName,
    /// The addresses of Nodes that were read, with the time.
    nodes: HashMap<String, (Vec<PublishedAddress>, Instant)>,
}

impl PublishedService {
    pub fn new(client: Client, name: ObjectName) -> Self {
        Self { client, name, nodes: HashMap::new() }
    }

    /// Reads the addresses. They are empty if the Service does not exist or has none yet.
    ///
    /// | Service | addresses |
    /// |---|---|
    /// | with externalIPs | these, and those of its load balancer |
    /// | of type LoadBalancer | those of its load balancer |
    /// | of type NodePort, or headless | those of the Nodes that have a ready endpoint |
    /// | of type ExternalName | its name |
    /// | of type ClusterIP | its ClusterIPs |
    ///
    /// # Errors
    /// Fails if the API server refuses a request or does not answer.
    pub async fn addresses(&mut self) -> kube::Result<Vec<PublishedAddress>> {
        let services = Api::<Service>::namespaced(self.client.clone(), self.name.namespace());
        let Some(service) = services.get_opt(self.name.name()).await? else { return Ok(Vec::new()) };
        match of_service(&service) {
            OfService::Known(addresses) => Ok(addresses),
            OfService::OfNodes => self.of_nodes().await,
        }
    }

    async fn of_nodes(&mut self) -> kube::Result<Vec<PublishedAddress>> {
        let slices = Api::<EndpointSlice>::namespaced(self.client.clone(), self.name.namespace());
        let label = format!("kubernetes.io/service-name={}", self.name.name());
        let slices = slices.list(&ListParams::default().labels(&label)).await?.items;
        let names = ready_nodes(&slices);
        self.nodes.retain(|name, (_, read)| names.contains(name) && read.elapsed() < NODE_AGE);
        let nodes = Api::<Node>::all(self.client.clone());
        for name in &names {
            if !self.nodes.contains_key(name)
                && let Some(node) = nodes.get_opt(name).await?
            {
                self.nodes.insert(name.clone(), (of_node(&node), Instant::now()));
            }
        }
        Ok(self.nodes.values().flat_map(|(addresses, _)| addresses).cloned().collect())
    }
}

#[derive(Debug, PartialEq, Eq)]
enum OfService {
    Known(Vec<PublishedAddress>),
    OfNodes,
}

fn of_service(service: &Service) -> OfService {
    let spec = service.spec.clone().unwrap_or_default();
    let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let entries = balancer.and_then(|balancer| balancer.ingress.as_deref()).unwrap_or_default();
    let texts: Vec<&String> = match kind {
        "ExternalName" => spec.external_name.iter().collect(),
        _ => {
            let of_balancer = entries.iter().flat_map(|entry| entry.ip.iter().chain(&entry.hostname));
            let external = spec.external_ips.iter().flatten();
            external.chain(of_balancer.filter(|_| kind == "LoadBalancer")).collect()
        }
    };
    let is_headless = spec.cluster_ip.as_deref() == Some("None");
    let known =
        |texts: Vec<&String>| OfService::Known(texts.iter().map(|text| text.as_str().into()).collect());
    match kind {
        "ClusterIP" | "NodePort" if !texts.is_empty() => known(texts),
        "NodePort" => OfService::OfNodes,
        "ClusterIP" if is_headless => OfService::OfNodes,
        "ClusterIP" => known(spec.cluster_ips.iter().flatten().collect()),
        _ => known(texts),
    }
}

/// Returns the names of the Nodes that have a ready endpoint.
fn ready_nodes(slices: &[EndpointSlice]) -> BTreeSet<String> {
    let endpoints = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten());
    let ready =
        endpoints.filter(|it| it.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true));
    ready.filter_map(|endpoint| endpoint.node_name.clone()).collect()
}

/// Returns the external addresses of a Node, or the internal ones if it has no external one.
fn of_node(node: &Node) -> Vec<PublishedAddress> {
    let addresses = node.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    let of_type = |kind: &str| -> Vec<PublishedAddress> {
        addresses.iter().filter(|it| it.type_ == kind).map(|it| it.address.as_str().into()).collect()
    };
    let external = of_type("ExternalIP");
    if external.is_empty() { of_type("InternalIP") } else { external }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(spec: Value, status: Value) -> OfService {
        let object = json!({ "metadata": {}, "spec": spec, "status": status });
        of_service(&serde_json::from_value(object).unwrap())
    }

    fn known(texts: &[&str]) -> OfService {
        OfService::Known(texts.iter().map(|text| (*text).into()).collect())
    }

    #[test]
    fn addresses_depend_on_the_type_of_the_service() {
        let balancer =
            json!({ "loadBalancer": { "ingress": [{ "ip": "192.0.2.1" }, { "hostname": "lb.example" }] } });
        let of_type =
            |kind: &str| service(json!({ "type": kind, "clusterIPs": ["10.96.0.9"] }), balancer.clone());
        assert_eq!(of_type("LoadBalancer"), known(&["192.0.2.1", "lb.example"]));
        assert_eq!(of_type("NodePort"), OfService::OfNodes, "the status is of an earlier type");
        assert_eq!(of_type("ClusterIP"), known(&["10.96.0.9"]));
        assert_eq!(service(json!({ "type": "LoadBalancer" }), json!({})), known(&[]), "it has none yet");
        assert_eq!(service(json!({ "clusterIP": "None" }), json!({})), OfService::OfNodes);
        let named = json!({ "type": "ExternalName", "externalName": "lb.example" });
        assert_eq!(service(named, json!({})), known(&["lb.example"]));
        let external = json!({ "type": "NodePort", "externalIPs": ["203.0.113.7"] });
        assert_eq!(service(external, json!({})), known(&["203.0.113.7"]));
    }

    #[test]
    fn nodes_with_a_ready_endpoint_are_reached() {
        let slice = json!({ "metadata": {}, "addressType": "IPv4", "endpoints": [
            { "addresses": ["10.0.0.1"], "nodeName": "a" },
            { "addresses": ["10.0.0.2"], "nodeName": "b", "conditions": { "ready": false } },
            { "addresses": ["10.0.0.3"], "nodeName": "c", "conditions": { "ready": true } },
            { "addresses": ["10.0.0.4"] },
        ] });
        let names = ready_nodes(&[serde_json::from_value(slice).unwrap()]);
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["a", "c"]);
        let node = |addresses: Value| {
            of_node(
                &serde_json::from_value(json!({ "metadata": {}, "status": { "addresses": addresses } }))
                    .unwrap(),
            )
        };
        let internal = json!({ "type": "InternalIP", "address": "10.1.0.1" });
        let external = json!({ "type": "ExternalIP", "address": "203.0.113.1" });
        let name = json!({ "type": "Hostname", "address": "a" });
        assert_eq!(node(json!([name, internal])), ["10.1.0.1".into()]);
        assert_eq!(node(json!([internal, external])), ["203.0.113.1".into()]);
    }
}
