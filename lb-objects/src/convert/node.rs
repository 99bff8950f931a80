//! Converts Nodes.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1;
use lb_model::{DRAIN_ANNOTATION, Node, NodeDrain, ObjectName, ProblemKind, Problems};

use super::address::{parse_cidr, parse_ip};
use super::balancing;
use super::converted::Converted;

const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// The cluster autoscaler sets this taint before it removes a node (KEP-3836).
const TO_BE_DELETED_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// Converts the Node of this process. Its [`ObjectName`] has an empty namespace.
///
/// Reports a drain annotation that has no effect. Only the process on the node itself does so.
pub fn node(node: &v1::Node) -> Converted<Node> {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let mut problems = Problems::of("Node", name);
    let spec = node.spec.as_ref();
    let drain = balancing::node_drain(&node.metadata, &mut problems);
    if drain.is_some() && !is_cordoned(node) {
        problems.error(
            ProblemKind::Contradiction,
            format_args!("metadata.annotations[{DRAIN_ANNOTATION}]"),
            "has no effect on a node that is not cordoned",
            format_args!("use `lb drain --node {name}` or `kubectl cordon {name}`, or remove it"),
        );
    }
    let value = Node {
        zone: (node.metadata.labels.as_ref().and_then(|labels| labels.get(ZONE_LABEL)))
            .filter(|zone| !zone.is_empty())
            .map(|zone| zone.as_str().into()),
        pod_cidrs: spec.map(|spec| pod_cidrs(spec, &mut problems)).unwrap_or_default(),
        addresses: addresses(node, &mut problems),
        eligible: node.metadata.deletion_timestamp.is_none()
            && !spec.is_some_and(|spec| {
                spec.taints.iter().flatten().any(|taint| taint.key == TO_BE_DELETED_TAINT)
            }),
    };
    Converted { name: ObjectName::new("", name), value: Some(value), problems: problems.into_vec() }
}

/// Converts a Node into its drain. Returns no value for a Node that does not drain. Returns no
/// problems: [`node`] reports them.
pub fn node_drain(node: &v1::Node) -> Converted<NodeDrain> {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let drain = balancing::node_drain(&node.metadata, &mut Problems::of("Node", name));
    let value = drain.filter(|_| is_cordoned(node));
    Converted { name: ObjectName::new("", name), value, problems: Vec::new() }
}

/// Returns whether a Node gets no new pods.
pub fn is_cordoned(node: &v1::Node) -> bool {
    node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true))
}

fn pod_cidrs(spec: &v1::NodeSpec, problems: &mut Problems) -> Box<[IpNet]> {
    let texts = match spec.pod_cidrs.as_deref() {
        Some(list) if !list.is_empty() => list,
        _ => spec.pod_cidr.as_slice(),
    };
    let mut cidrs = Vec::new();
    for (index, text) in texts.iter().enumerate().filter(|(_, text)| !text.is_empty()) {
        match parse_cidr(text) {
            Some(cidr) => cidrs.push(cidr),
            None => problems.error(
                ProblemKind::InvalidCidr,
                format_args!("spec.podCIDRs[{index}]"),
                format_args!("`{text}` is not a CIDR"),
                "correct it; until then the pods in this range count as clients outside the \
                 cluster",
            ),
        }
    }
    cidrs.into()
}

fn addresses(node: &v1::Node, problems: &mut Problems) -> Box<[IpAddr]> {
    let listed = node.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    let mut addresses = Vec::new();
    for address_type in ["InternalIP", "ExternalIP"] {
        let of_type = listed.iter().enumerate().filter(|(_, address)| address.type_ == address_type);
        for (index, address) in of_type {
            match parse_ip(&address.address) {
                Some(ip) => addresses.push(ip),
                None => problems.error(
                    ProblemKind::InvalidAddress,
                    format_args!("status.addresses[{index}].address"),
                    format_args!("`{}` is not an IP address", address.address),
                    "correct it; the address is ignored",
                ),
            }
        }
    }
    addresses.into()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(mut object: Value) -> Node {
        object["metadata"]["name"] = "here".into();
        let node: v1::Node = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": object["metadata"], "spec": object["spec"], "status": object["status"],
        }))
        .unwrap();
        super::node(&node).value.unwrap()
    }

    #[test]
    fn pod_cidrs_of_both_families_or_the_legacy_field() {
        let cidrs =
            |spec| node(json!({"spec": spec})).pod_cidrs.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            cidrs(json!({"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.0.0/24", "fd00::/64"]})),
            ["10.0.0.0/24", "fd00::/64"]
        );
        assert_eq!(cidrs(json!({"podCIDR": "10.0.0.0/24"})), ["10.0.0.0/24"]);
        assert_eq!(cidrs(json!({"podCIDR": ""})), [""; 0]);
    }

    #[test]
    fn internal_addresses_come_first() {
        let addresses = json!([
            {"type": "Hostname", "address": "here"},
            {"type": "ExternalIP", "address": "203.0.113.1"},
            {"type": "InternalIP", "address": "192.0.2.1"},
            {"type": "InternalIP", "address": "fd00::1"},
        ]);
        let addresses = node(json!({"status": {"addresses": addresses}})).addresses;
        assert_eq!(
            addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["192.0.2.1", "fd00::1", "203.0.113.1"]
        );
    }

    #[test]
    fn a_node_that_is_about_to_be_removed_is_not_eligible() {
        assert!(node(json!({})).eligible);
        assert!(node(json!({"spec": {"taints": [{"key": "other", "effect": "NoSchedule"}]}})).eligible);
        let taint = json!({"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"});
        assert!(!node(json!({"spec": {"taints": [taint]}})).eligible);
        assert!(!node(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})).eligible);
    }
}
