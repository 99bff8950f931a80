//! The Kubernetes objects of the cluster, as JSON.

use std::fmt;
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::family::Family;
use crate::topology::{Node, Pod};

/// The protocol of a Service port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A port of a Service, with the port number that its endpoints listen on.
#[derive(Debug, Clone)]
pub struct ServicePort {
    /// May be empty if the Service has only one port.
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
    /// The number that the endpoints listen on.
    pub target: u16,
    pub node_port: Option<u16>,
}

impl ServicePort {
    /// Returns a TCP port without a nodePort.
    pub fn tcp(name: &str, port: u16, target: u16) -> Self {
        Self { name: name.to_owned(), protocol: Protocol::Tcp, port, target, node_port: None }
    }

    /// Returns a UDP port without a nodePort.
    pub fn udp(name: &str, port: u16, target: u16) -> Self {
        Self { name: name.to_owned(), protocol: Protocol::Udp, port, target, node_port: None }
    }

    /// Returns an SCTP port without a nodePort.
    pub fn sctp(name: &str, port: u16, target: u16) -> Self {
        Self { name: name.to_owned(), protocol: Protocol::Sctp, port, target, node_port: None }
    }

    /// Returns the port with a nodePort.
    pub fn node_port(self, port: u16) -> Self {
        Self { node_port: Some(port), ..self }
    }
}

/// A Service. Its Kubernetes objects, and those of its endpoints, are made from this.
#[derive(Debug, Clone)]
pub struct ServiceManifest {
    pub namespace: String,
    pub name: String,
    pub cluster_ips: Vec<IpAddr>,
    pub ports: Vec<ServicePort>,
}

impl ServiceManifest {
    /// Returns the Service object and one EndpointSlice per family. All these pods are ready.
    pub fn with_endpoints(&self, pods: &[&Pod]) -> Vec<Value> {
        let mut objects = vec![self.object()];
        objects.extend(self.slices(pods));
        objects
    }

    /// Returns the Service object.
    pub fn object(&self) -> Value {
        let ports: Vec<_> = self
            .ports
            .iter()
            .map(|port| {
                let mut value = json!({
                    "name": port.name, "protocol": port.protocol.as_str(), "port": port.port, "targetPort": port.target,
                });
                if let Some(node_port) = port.node_port {
                    value["nodePort"] = node_port.into();
                }
                value
            })
            .collect();
        let node_ports = self.ports.iter().any(|port| port.node_port.is_some());
        let families: Vec<_> = self.cluster_ips.iter().map(|ip| Family::of(*ip).to_string()).collect();
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": self.name, "namespace": self.namespace },
            "spec": {
                "type": if node_ports { "NodePort" } else { "ClusterIP" },
                "selector": { "app": self.name },
                "clusterIP": self.cluster_ips[0].to_string(),
                "clusterIPs": self.cluster_ips.iter().map(IpAddr::to_string).collect::<Vec<_>>(),
                "ipFamilies": families,
                "ipFamilyPolicy": if families.len() == 2 { "RequireDualStack" } else { "SingleStack" },
                "ports": ports,
            },
        })
    }

    /// Returns one EndpointSlice per family of the Service, with these pods as ready endpoints.
    pub fn slices(&self, pods: &[&Pod]) -> Vec<Value> {
        let families = self.cluster_ips.iter().map(|ip| Family::of(*ip));
        families.map(|family| self.slice(family, pods)).collect()
    }

    /// Returns the EndpointSlice of one family, as the EndpointSlice controller would create it.
    pub fn slice(&self, family: Family, pods: &[&Pod]) -> Value {
        let ports: Vec<_> = self
            .ports
            .iter()
            .map(|port| json!({ "name": port.name, "protocol": port.protocol.as_str(), "port": port.target }))
            .collect();
        let endpoints: Vec<_> = pods
            .iter()
            .map(|pod| {
                json!({
                    "addresses": [pod.host.address(family).to_string()],
                    "conditions": { "ready": true, "serving": true, "terminating": false },
                    "nodeName": pod.node,
                    "targetRef": { "kind": "Pod", "name": pod.host.name, "namespace": self.namespace },
                })
            })
            .collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{}-{}", self.name, family.to_string().to_lowercase()),
                "namespace": self.namespace,
                "labels": { "kubernetes.io/service-name": self.name },
            },
            "addressType": family.to_string(),
            "ports": ports,
            "endpoints": endpoints,
        })
    }
}

/// Returns the Node object of a testbed node.
pub fn node(node: &Node) -> Value {
    let cidrs = [node.pod_cidr_v4(), node.pod_cidr_v6()];
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": node.host.name, "labels": { "kubernetes.io/hostname": node.host.name } },
        "spec": { "podCIDR": cidrs[0], "podCIDRs": cidrs },
        "status": { "addresses": [
            { "type": "InternalIP", "address": node.host.v4.to_string() },
            { "type": "InternalIP", "address": node.host.v6.to_string() },
            { "type": "Hostname", "address": node.host.name },
        ]},
    })
}
