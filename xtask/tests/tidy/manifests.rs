//! Kubernetes manifests: each is one that `kubectl apply` accepts.

use std::collections::BTreeSet;

use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    core::v1::{ConfigMap, Endpoints, Namespace, Node, Pod, Service, ServiceAccount},
    discovery::v1::EndpointSlice,
    networking::v1::IngressClass,
    rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{TextFile, assert_none, text_files};

#[test]
fn manifests_hold_valid_objects_without_unknown_fields() {
    let mut problems = Vec::new();
    let mut count = 0;
    // The templates of the chart are no YAML: what they render is checked.
    let is_manifest = |file: &&TextFile| {
        let is_values = file.path.to_string_lossy().ends_with("values.yaml");
        let in_folder = |folder: &str| file.path.starts_with(folder);
        let is_source = in_folder("deploy") && !in_folder("deploy/chart");
        file.has_extension("yaml") && !is_values && (is_source || in_folder("xtask/tests/deploy/golden"))
    };
    for file in text_files().iter().filter(is_manifest) {
        let path = file.path.display();
        match serde_saphyr::from_multiple::<Value>(&file.text) {
            Ok(documents) => {
                count += documents.len();
                for (number, document) in documents.iter().enumerate() {
                    problems.extend(
                        check(document).into_iter().map(|p| format!("{path}, document {}: {p}", number + 1)),
                    );
                }
            }
            Err(error) => problems.push(format!("{path}: {error}")),
        }
    }
    assert!(count > 5, "the manifests in deploy/ were not found");
    assert_none("manifests", &problems);
}

fn check(object: &Value) -> Vec<String> {
    let field = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default();
    match (field("apiVersion"), field("kind")) {
        ("v1", "Namespace") => check_as::<Namespace>(object),
        ("v1", "ConfigMap") => check_as::<ConfigMap>(object),
        ("v1", "ServiceAccount") => check_as::<ServiceAccount>(object),
        ("v1", "Service") => check_as::<Service>(object),
        ("v1", "Endpoints") => check_as::<Endpoints>(object),
        ("v1", "Node") => check_as::<Node>(object),
        ("v1", "Pod") => check_as::<Pod>(object),
        ("apps/v1", "DaemonSet") => check_as::<DaemonSet>(object),
        ("apps/v1", "Deployment") => check_as::<Deployment>(object),
        ("discovery.k8s.io/v1", "EndpointSlice") => check_as::<EndpointSlice>(object),
        ("networking.k8s.io/v1", "IngressClass") => check_as::<IngressClass>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => check_as::<ClusterRole>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => check_as::<ClusterRoleBinding>(object),
        ("rbac.authorization.k8s.io/v1", "Role") => check_as::<Role>(object),
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => check_as::<RoleBinding>(object),
        // kubectl reads this file and the API server does not. Another test checks its list of
        // resources.
        ("kustomize.config.k8s.io/v1beta1", "Kustomization") => Vec::new(),
        // Objects of the Prometheus operator. The part `deploy` of the tests checks them.
        ("monitoring.coreos.com/v1", "PodMonitor" | "PrometheusRule") => Vec::new(),
        (version, kind) => vec![format!("{version} {kind:?} is not in the table of this test: add it")],
    }
}

/// Parses the object as `T`, and reports the fields that are missing afterwards: the types of the
/// API drop unknown fields.
fn check_as<T: DeserializeOwned + Serialize>(object: &Value) -> Vec<String> {
    match serde_json::from_value::<T>(object.clone()).and_then(serde_json::to_value) {
        Ok(known) => {
            let mut unknown = Vec::new();
            lost(object, &known, "", &mut unknown);
            unknown
        }
        Err(error) => vec![error.to_string()],
    }
}

fn lost(given: &Value, known: &Value, path: &str, unknown: &mut Vec<String>) {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => {
            for (name, value) in given {
                let path = format!("{path}.{name}");
                match known.get(name) {
                    Some(known) => lost(value, known, &path, unknown),
                    None if value.is_null() => {}
                    None => unknown.push(format!("unknown field {path}")),
                }
            }
        }
        (Value::Array(given), Value::Array(known)) => {
            for (number, (given, known)) in given.iter().zip(known).enumerate() {
                lost(given, known, &format!("{path}[{number}]"), unknown);
            }
        }
        _ => {}
    }
}

#[test]
fn kustomizations_list_every_manifest_of_their_folder() {
    let files = text_files();
    let kustomizations: Vec<_> =
        files.iter().filter(|file| file.path.ends_with("kustomization.yaml")).collect();
    assert!(!kustomizations.is_empty(), "there is no kustomization.yaml");
    for kustomization in &kustomizations {
        let folder = kustomization.path.parent().expect("a folder");
        let content: Value = serde_saphyr::from_str(&kustomization.text).expect("YAML");
        let resources = content["resources"].as_array().expect("a list of resources");
        let (bases, listed): (Vec<_>, Vec<_>) =
            resources.iter().filter_map(Value::as_str).partition(|name| name.starts_with("../"));
        for base in bases {
            let beside = folder.parent().expect("a folder above").join(base.trim_start_matches("../"));
            let found = kustomizations.iter().any(|other| other.path.parent() == Some(&beside));
            assert!(found, "{}: there is no {base}", kustomization.path.display());
        }
        let listed: BTreeSet<_> = listed.iter().map(|name| folder.join(name)).collect();
        let present: BTreeSet<_> = files
            .iter()
            .filter(|file| file.path.parent() == Some(folder) && file.has_extension("yaml"))
            .filter(|file| file.path != kustomization.path)
            .map(|file| file.path.clone())
            .collect();
        assert_eq!(listed, present, "{}", kustomization.path.display());
    }
}

#[test]
fn a_misspelt_field_and_a_wrong_type_are_found() {
    let object = |spec: &str| {
        let text = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec: {spec}\n");
        serde_saphyr::from_str::<Value>(&text).expect("YAML")
    };
    assert_eq!(check(&object("{ports: [{port: 80, nodePort: 30088}]}")), Vec::<String>::new());
    assert_eq!(
        check(&object("{ports: [{port: 80, nodeport: 30088}]}")),
        ["unknown field .spec.ports[0].nodeport"]
    );
    assert_eq!(check(&object("{ports: [{port: eighty}]}")).len(), 1);
}
