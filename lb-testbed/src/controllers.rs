//! Replaces the API server and the controllers of a cluster: reads manifests as a user writes them,
//! assigns ClusterIPs, places the replicas of Deployments on the testbed's pods, and creates the
//! EndpointSlices.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::family::Family;
use crate::host::Listen;
use crate::manifest_dir::ManifestDir;
use crate::manifests::{Protocol, ServiceManifest, ServicePort};
use crate::topology::Pod;

/// A Service from a manifest, with everything that the cluster adds to it.
#[derive(Debug, Clone)]
pub struct AppliedService {
    /// The Service with its addresses. Named target ports are resolved to numbers. A Service of
    /// type ExternalName has neither addresses nor ports.
    pub service: ServiceManifest,
    /// `ClusterIP`, `NodePort`, `LoadBalancer` or `ExternalName`.
    pub service_type: String,
    /// 0-based indices of its endpoints among the pods that it was applied with.
    pub pods: Vec<usize>,
    object: Value,
    file: String,
}

impl AppliedService {
    /// Writes the Service and the EndpointSlices of these pods into the agents' manifest folder.
    pub fn publish(&self, manifests: &ManifestDir, pods: &[&Pod]) -> Result<()> {
        let mut objects = vec![self.object.clone()];
        objects.extend(self.service.slices(pods));
        manifests.write(&self.file, &objects)
    }

    /// Removes the Service from the agents' manifest folder.
    pub fn withdraw(&self, manifests: &ManifestDir) -> Result<()> {
        manifests.remove(&self.file)
    }

    /// Returns the ClusterIP of a family, or `None` for a Service without one.
    pub fn cluster_ip(&self, family: Family) -> Option<IpAddr> {
        self.service.cluster_ips.iter().copied().find(|ip| Family::of(*ip) == family)
    }
}

/// Reads every YAML file of a folder and adds to each Service what the cluster would add. Replicas
/// are placed on pods `0..pods` in turn. The result is in the order of the file names.
pub fn apply(folder: &Path, pods: usize) -> Result<Vec<AppliedService>> {
    let mut objects = Vec::new();
    let mut files: Vec<_> = fs::read_dir(folder)
        .with_context(|| format!("read the folder {}", folder.display()))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    files.sort();
    for path in &files {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(&text).with_context(|| format!("parse {}", path.display()))?;
        let file = path.file_stem().unwrap_or_default().to_string_lossy();
        objects.extend(documents.into_iter().map(|object| (file.clone().into_owned(), object)));
    }
    let of_kind = |kind: &'static str| objects.iter().filter(move |(_, object)| object["kind"] == kind);
    let deployments: Vec<_> = of_kind("Deployment").map(|(_, object)| object).collect();
    let mut applied = Vec::new();
    for (number, (file, object)) in (1..).zip(of_kind("Service")) {
        let name = text(&object["metadata"]["name"]).unwrap_or_default();
        let service = assign(number, file, object, &deployments, pods);
        applied.push(service.with_context(|| format!("Service {name} in {file}.yaml"))?);
    }
    Ok(applied)
}

/// Returns the ports that the servers behind these Services must listen on, by the index of the
/// pod.
pub fn listeners(services: &[AppliedService]) -> BTreeMap<usize, Listen> {
    let mut listeners: BTreeMap<usize, Listen> = BTreeMap::new();
    for applied in services {
        for pod in &applied.pods {
            let listen = listeners.entry(*pod).or_default();
            for port in &applied.service.ports {
                let ports = match port.protocol {
                    Protocol::Tcp => &mut listen.http,
                    Protocol::Udp => &mut listen.udp,
                    Protocol::Sctp => &mut listen.sctp,
                };
                if !ports.contains(&port.target) {
                    ports.push(port.target);
                }
            }
        }
    }
    listeners
}

fn assign(
    number: u16,
    file: &str,
    object: &Value,
    deployments: &[&Value],
    pods: usize,
) -> Result<AppliedService> {
    let mut object = object.clone();
    let (metadata, spec) = (&object["metadata"], &object["spec"]);
    let name = text(&metadata["name"]).context("has no name")?.to_owned();
    let namespace = text(&metadata["namespace"]).unwrap_or("default").to_owned();
    let service_type = text(&spec["type"]).unwrap_or("ClusterIP").to_owned();
    let mut service = ServiceManifest { namespace, name, cluster_ips: Vec::new(), ports: Vec::new() };
    let mut endpoints = Vec::new();
    if service_type != "ExternalName" {
        let deployment = deployments
            .iter()
            .find(|deployment| selects(&spec["selector"], deployment, &service.namespace))
            .context("its selector matches no Deployment")?;
        let replicas = deployment["spec"]["replicas"].as_u64().unwrap_or(1) as usize;
        endpoints = (0..replicas).map(|replica| replica % pods).collect();
        service.ports = list(&spec["ports"]).map(|port| port_of(port, deployment)).collect::<Result<_>>()?;
        service.cluster_ips = vec![
            Ipv4Addr::new(10, 96, 0, 10 + number as u8).into(),
            Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0x10 + number).into(),
        ];
        let addresses = service.cluster_ips.iter().map(IpAddr::to_string).collect::<Vec<_>>();
        object["spec"]["clusterIP"] = addresses[0].clone().into();
        object["spec"]["clusterIPs"] = addresses.into();
        object["spec"]["ipFamilies"] = serde_json::json!(["IPv4", "IPv6"]);
    }
    object["metadata"]["namespace"] = service.namespace.clone().into();
    // Each Service has its own file, so that several Services of one example change independently.
    let file = format!("{file}-{}.yaml", service.name);
    Ok(AppliedService { service, service_type, pods: endpoints, object, file })
}

fn selects(selector: &Value, deployment: &Value, namespace: &str) -> bool {
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    let same_namespace = text(&deployment["metadata"]["namespace"]).unwrap_or("default") == namespace;
    let matches =
        |selector: &serde_json::Map<_, _>| selector.iter().all(|(key, value)| labels[key] == *value);
    same_namespace && selector.as_object().is_some_and(|selector| !selector.is_empty() && matches(selector))
}

fn port_of(port: &Value, deployment: &Value) -> Result<ServicePort> {
    let protocol = match text(&port["protocol"]).unwrap_or("TCP") {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        unknown => bail!("Services do not support the protocol {unknown}"),
    };
    let number = number(&port["port"])?.context("a port has no number")?;
    let target = match text(&port["targetPort"]) {
        Some(name) => container_port(name, deployment)?,
        None => self::number(&port["targetPort"])?.unwrap_or(number),
    };
    let name = text(&port["name"]).unwrap_or_default().to_owned();
    Ok(ServicePort { name, protocol, port: number, target, node_port: self::number(&port["nodePort"])? })
}

/// Returns the number of the container port with this name.
fn container_port(name: &str, deployment: &Value) -> Result<u16> {
    let port = list(&deployment["spec"]["template"]["spec"]["containers"])
        .flat_map(|container| list(&container["ports"]))
        .find(|port| text(&port["name"]) == Some(name))
        .with_context(|| format!("no container has a port {name:?}"))?;
    number(&port["containerPort"])?.with_context(|| format!("container port {name:?} has no number"))
}

fn number(value: &Value) -> Result<Option<u16>> {
    let Some(value) = value.as_u64() else { return Ok(None) };
    value.try_into().map(Some).with_context(|| format!("{value} is not a port number"))
}

fn text(value: &Value) -> Option<&str> {
    value.as_str()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_get_ports_endpoints_and_cluster_ips() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
        let applied = apply(&folder, 3).expect("the examples");
        let find = |name: &str| applied.iter().find(|one| one.service.name == name).expect(name);
        let ports = |name: &str| -> Vec<_> {
            find(name).service.ports.iter().map(|port| (port.port, port.target, port.node_port)).collect()
        };
        assert_eq!(ports("web"), [(8080, 8080, None)]);
        assert_eq!(find("web").pods, [0, 1, 2]);
        assert_eq!(ports("web-nodeport"), [(8080, 8080, Some(30088))]);
        assert_eq!(ports("shop"), [(3000, 443, Some(30080))]);
        assert_eq!(ports("ingress-controller"), [(80, 8081, Some(31188)), (443, 8443, Some(31443))]);
        assert_eq!(find("ingress-controller").service.namespace, "ingress");
        assert_eq!(ports("echo"), [(7, 8007, Some(30007))]);
        assert_eq!(ports("signalling"), [(3868, 8068, Some(30868))]);
        assert!(find("database").service.cluster_ips.is_empty());
        assert_eq!(find("web").service.cluster_ips.len(), 2);
    }
}
