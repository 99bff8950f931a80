//! Parses the text of a manifest file into objects.

use std::ops::Range;
use std::path::Path as FilePath;
use std::sync::Arc;

use k8s_openapi::api::{core, discovery, networking};
use kube::core::PartialObjectMeta;
use lb_model::{
    EndpointSlice, Ingress, IngressClass, ManifestLocation, ObjectName, Problem, ProblemKind, Secret,
    Service, Severity, SourceEvent, WatchedResource,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use serde_path_to_error::{Path, Segment};

use super::old_ingress;
use crate::convert::{self, Converted};
use crate::selection::{ObjectSelection, ServiceSelection};

/// Identifies an object of a manifest folder.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum ObjectKey {
    /// The Node of this process. Other Nodes are ignored.
    Node,
    /// A Node that drains.
    DrainingNode(ObjectName),
    Pod(ObjectName),
    ServiceCidr(ObjectName),
    Service(ObjectName),
    EndpointSlice(ObjectName),
    Ingress(ObjectName),
    IngressClass(ObjectName),
    Secret(ObjectName),
}

/// The content of a manifest file.
#[derive(Debug, Default)]
pub(super) struct ParsedFile {
    /// Each object with the event that announces it.
    pub objects: Vec<(ObjectKey, SourceEvent, Arc<ManifestLocation>)>,
    pub problems: Vec<Problem>,
    /// A document or object could not be parsed, so that its identity is unknown.
    pub incomplete: bool,
}

/// Parses a file: JSON if its extension is `json`, otherwise YAML.
pub(super) fn parse(file: &Arc<FilePath>, text: &str, selection: &ObjectSelection) -> ParsedFile {
    let mut parsed = ParsedFile::default();
    let json = file.extension().is_some_and(|extension| extension == "json");
    let documents = if json { vec![(1, 0..text.len())] } else { documents(text) };
    for (number, (first_line, range)) in (1..).zip(documents) {
        let location = ManifestLocation { file: file.clone(), document: number, line: first_line };
        let value = if json { read_json(&text[range]) } else { read_yaml(&text[range], first_line) };
        match value {
            Ok(value) => {
                let location = location.into();
                DocumentReader { location, selection, parsed: &mut parsed }.read(value);
            }
            Err((line, reason)) => {
                parsed.incomplete = true;
                parsed.problems.push(Problem {
                    severity: Severity::Error,
                    location: Some(ManifestLocation { line: line.unwrap_or(first_line), ..location }.into()),
                    object: "".into(),
                    field: "".into(),
                    kind: ProblemKind::Unreadable,
                    reason: reason.into(),
                    remedy: "correct it; until then the other documents and the previous objects \
                             of the file are served"
                        .into(),
                });
            }
        }
    }
    parsed
}

/// Splits a YAML stream and returns the first line and the bytes of each document. Text before the
/// first `---` is no document if it contains only comments and directives. A line that begins with
/// `---` cannot occur inside a document (YAML 1.2.2, section 9.1.1).
fn documents(text: &str) -> Vec<(u32, Range<usize>)> {
    let mut documents = Vec::new();
    let (mut first_line, mut start, mut offset) = (1, 0, 0);
    for (line, content) in (1..).zip(text.split_inclusive('\n')) {
        let rest = content
            .strip_prefix("---")
            .filter(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if rest.is_some() {
            documents.push((first_line, start..offset));
            (first_line, start) = (line, offset + "---".len());
        }
        offset += content.len();
    }
    documents.push((first_line, start..offset));
    if is_blank(&text[documents[0].1.clone()]) {
        documents.remove(0);
    }
    documents
}

fn is_blank(document: &str) -> bool {
    document.lines().all(|line| line.trim_start().is_empty() || line.trim_start().starts_with(['#', '%']))
}

/// The line of the error in the file, if it is known, and the reason.
type Unreadable = (Option<u32>, String);

fn read_yaml(document: &str, first_line: u32) -> Result<Value, Unreadable> {
    if is_blank(document) {
        return Ok(Value::Null);
    }
    // A dump of a whole cluster is one document with millions of nodes. The limits that prevent
    // exponential alias expansion remain.
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_nodes: usize::MAX, max_events: usize::MAX, max_total_scalar_bytes: usize::MAX },
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(document, options).map_err(|error| {
        let error = error.without_snippet();
        let line = error.location().and_then(|location| u32::try_from(location.line()).ok());
        let text = error.to_string();
        // The library counts lines from the start of the document. The location of the problem has
        // the line in the file instead.
        let reason = match error.location() {
            Some(location) => {
                let suffix = format!(" at line {}, column {}", location.line(), location.column());
                text.replacen(&suffix, "", 1)
            }
            None => text,
        };
        (line.map(|line| line + first_line - 1), format!("is not YAML: {reason}"))
    })
}

fn read_json(document: &str) -> Result<Value, Unreadable> {
    serde_json::from_str(document)
        .map_err(|error| (u32::try_from(error.line()).ok(), format!("is not JSON: {error}")))
}

/// Extracts the objects of one document.
struct DocumentReader<'a> {
    location: Arc<ManifestLocation>,
    selection: &'a ObjectSelection,
    parsed: &'a mut ParsedFile,
}

impl DocumentReader<'_> {
    fn read(&mut self, mut value: Value) {
        if value.is_null() {
            return;
        }
        let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (version, kind) = (text("apiVersion"), text("kind"));
        if let Some(item_kind) = kind.strip_suffix("List") {
            self.read_list(value, &version, item_kind);
            return;
        }
        let is_selected = |resource| self.selection.resources.contains(resource);
        let is_drain = kind == "Node" && is_selected(WatchedResource::CordonedNodes);
        if !is_drain && resource_of(&kind).is_some_and(|resource| !is_selected(resource)) {
            return;
        }
        match (version.as_str(), kind.as_str()) {
            ("v1", "Service") => self.read_object(value, &kind, |reader, service| {
                let converted = match reader.selection.services {
                    ServiceSelection::OfThisProxy => convert::service(&service),
                    ServiceSelection::PortsOfAll => convert::service_ports(&service),
                };
                reader.add(converted, ObjectKey::Service, |location, name, service| {
                    SourceEvent::Service(name, Some(Arc::new(Service { location, ..service })))
                });
            }),
            ("v1", "Endpoints") => {
                self.read_object(value, &kind, |reader, endpoints: core::v1::Endpoints| {
                    let (slices, problems) = convert::endpoints(&endpoints, &reader.selection.this_node);
                    reader.report(problems);
                    for (name, slice) in slices {
                        let slice = EndpointSlice { location: Some(reader.location.clone()), ..slice };
                        reader.insert(
                            ObjectKey::EndpointSlice(name.clone()),
                            SourceEvent::EndpointSlice(name, Some(Arc::new(slice))),
                        );
                    }
                });
            }
            ("discovery.k8s.io/v1", "EndpointSlice") => {
                self.read_object(value, &kind, |reader, slice: discovery::v1::EndpointSlice| {
                    let this_node = &reader.selection.this_node;
                    let converted = match reader.selection.services {
                        ServiceSelection::OfThisProxy => convert::endpoint_slice(&slice, this_node),
                        ServiceSelection::PortsOfAll => {
                            convert::endpoint_slice_of_any_service(&slice, this_node)
                        }
                    };
                    reader.add(converted, ObjectKey::EndpointSlice, |location, name, slice| {
                        SourceEvent::EndpointSlice(name, Some(Arc::new(EndpointSlice { location, ..slice })))
                    });
                });
            }
            ("networking.k8s.io/v1", "ServiceCIDR") => {
                self.read_object(value, &kind, |reader, cidr: networking::v1::ServiceCIDR| {
                    let converted = convert::service_cidrs(&cidr);
                    reader.add(converted, ObjectKey::ServiceCidr, |_, name, cidrs| {
                        SourceEvent::ServiceCidr(name, Some(cidrs.into()))
                    });
                });
            }
            ("v1", "Node") => self.read_object(value, &kind, |reader, node: core::v1::Node| {
                if reader.selection.resources.contains(WatchedResource::CordonedNodes) {
                    let drain = convert::node_drain(&node);
                    reader.add(drain, ObjectKey::DrainingNode, |_, name, drain| {
                        SourceEvent::NodeDrain(name, Some(drain))
                    });
                }
                if reader.selection.resources.contains(WatchedResource::Node)
                    && node.metadata.name.as_deref() == Some(&reader.selection.this_node)
                {
                    reader.add(
                        convert::node(&node),
                        |_| ObjectKey::Node,
                        |_, _, node| SourceEvent::Node(Some(Arc::new(node))),
                    );
                }
            }),
            ("v1", "Pod") => {
                self.read_object(value, &kind, |reader, pod: PartialObjectMeta<core::v1::Pod>| {
                    let converted = convert::pod_weight(&pod);
                    reader.add(converted, ObjectKey::Pod, |_, name, weight| {
                        SourceEvent::PodWeight(name, Some(weight))
                    });
                });
            }
            ("networking.k8s.io/v1", "Ingress") => self.read_ingress(value),
            (old, "Ingress") if old_ingress::VERSIONS.contains(&old) => {
                self.report(vec![Problem {
                    severity: Severity::Note,
                    location: None,
                    object: format!("Ingress {}", name_of(&value)).into(),
                    field: "apiVersion".into(),
                    kind: ProblemKind::UnknownValue,
                    reason: format!("{old} was removed in Kubernetes 1.22").into(),
                    remedy: "use networking.k8s.io/v1 (service.name, service.port and pathType); \
                             until then the Ingress is converted"
                        .into(),
                }]);
                old_ingress::convert(&mut value);
                self.read_ingress(value);
            }
            ("networking.k8s.io/v1" | "networking.k8s.io/v1beta1", "IngressClass") => {
                self.read_object(value, &kind, |reader, class: networking::v1::IngressClass| {
                    let converted = convert::ingress_class(&class);
                    reader.add(converted, ObjectKey::IngressClass, |location, name, class| {
                        SourceEvent::IngressClass(name, Some(Arc::new(IngressClass { location, ..class })))
                    });
                });
            }
            ("v1", "Secret") => self.read_object(value, &kind, |reader, secret: core::v1::Secret| {
                let converted = convert::secret(&secret);
                reader.add(converted, ObjectKey::Secret, |location, name, secret| {
                    SourceEvent::Secret(name, Some(Arc::new(Secret { location, ..secret })))
                });
            }),
            (_, known) if resource_of(known).is_some() => self.report_one(
                format!("{kind} {}", name_of(&value)),
                ("apiVersion", ProblemKind::UnknownValue),
                format!("`{version}` is not a supported version of {kind}"),
                match known {
                    "EndpointSlice" => "use discovery.k8s.io/v1; the object is not served",
                    "ServiceCIDR" | "Ingress" | "IngressClass" => {
                        "use networking.k8s.io/v1; the object is not served"
                    }
                    _ => "use v1; the object is not served",
                },
            ),
            (_, "") => self.report_one(
                String::new(),
                ("kind", ProblemKind::Missing),
                "is missing: the document is not a Kubernetes object".to_owned(),
                "add apiVersion and kind; the document is not used",
            ),
            _ => tracing::debug!(location = %self.location, kind, "ignored an object of another kind"),
        }
    }

    fn read_ingress(&mut self, value: Value) {
        self.read_object(value, "Ingress", |reader, ingress: networking::v1::Ingress| {
            let converted = convert::ingress(&ingress);
            reader.add(converted, ObjectKey::Ingress, |location, name, ingress| {
                SourceEvent::Ingress(name, Some(Arc::new(Ingress { location, ..ingress })))
            });
        });
    }

    /// Reads the items of a `List`, or of a typed list such as `ServiceList`. The API server omits
    /// kind and version in the items of typed lists.
    fn read_list(&mut self, mut list: Value, version: &str, item_kind: &str) {
        let Some(Value::Array(items)) = list.get_mut("items").map(Value::take) else { return };
        for mut item in items {
            if let (false, Some(fields)) = (item_kind.is_empty(), item.as_object_mut()) {
                fields.entry("apiVersion").or_insert_with(|| version.into());
                fields.entry("kind").or_insert_with(|| item_kind.into());
            }
            self.read(item);
        }
    }

    /// Parses an object of API type `T` and passes it to `convert`.
    ///
    /// Reports each field that has the wrong type, and replaces it by a placeholder that fits the
    /// type but is not valid.
    fn read_object<T: DeserializeOwned>(
        &mut self,
        mut value: Value,
        kind: &str,
        convert: impl FnOnce(&mut Self, T),
    ) {
        let object = format!("{kind} {}", name_of(&value));
        if value.pointer("/metadata/name").and_then(Value::as_str).is_none_or(str::is_empty) {
            self.report_one(
                object,
                ("metadata.name", ProblemKind::Missing),
                "is missing".to_owned(),
                "add one; the object is not served",
            );
            return;
        }
        let mut mistyped: Vec<String> = Vec::new();
        loop {
            let error = match serde_path_to_error::deserialize::<_, T>(&value) {
                Ok(api_object) => {
                    let before = self.parsed.problems.len();
                    convert(self, api_object);
                    // The conversion reports the placeholders again: drop these reports.
                    let mut added = self.parsed.problems.split_off(before);
                    added.retain(|problem| !is_within(&problem.field, &mistyped));
                    self.parsed.problems.extend(added);
                    return;
                }
                Err(error) => error,
            };
            let field = error.path().to_string();
            // The reason of the library quotes the value.
            let reason = match kind {
                "Secret" => "does not have the form of a Secret".to_owned(),
                _ => error.inner().to_string(),
            };
            let replaced =
                mistyped.len() < MISTYPED_PER_OBJECT && put_placeholder::<T>(&mut value, error.path());
            self.report_one(
                object.clone(),
                (&field, ProblemKind::WrongType),
                reason,
                if replaced {
                    "correct it; the rest of the object is served"
                } else {
                    "correct it; until then the previous version of the object is served, if any"
                },
            );
            if !replaced {
                self.parsed.incomplete = true;
                return;
            }
            mistyped.push(field);
        }
    }

    fn add<T>(
        &mut self,
        converted: Converted<T>,
        key: impl FnOnce(ObjectName) -> ObjectKey,
        event: impl FnOnce(Option<Arc<ManifestLocation>>, ObjectName, T) -> SourceEvent,
    ) {
        self.report(converted.problems);
        if let Some(value) = converted.value {
            let event = event(Some(self.location.clone()), converted.name.clone(), value);
            self.insert(key(converted.name), event);
        }
    }

    fn insert(&mut self, key: ObjectKey, event: SourceEvent) {
        self.parsed.objects.push((key, event, self.location.clone()));
    }

    fn report(&mut self, problems: Vec<Problem>) {
        let placed =
            problems.into_iter().map(|problem| Problem { location: Some(self.location.clone()), ..problem });
        self.parsed.problems.extend(placed);
    }

    fn report_one(
        &mut self,
        object: String,
        (field, kind): (&str, ProblemKind),
        reason: String,
        remedy: &str,
    ) {
        self.report(vec![Problem {
            severity: Severity::Error,
            location: None,
            object: object.into(),
            field: field.into(),
            kind,
            reason: reason.into(),
            remedy: remedy.into(),
        }]);
    }
}

/// Returns the resource that is selected to read objects of this kind. Returns `None` for kinds
/// that no source reads.
fn resource_of(kind: &str) -> Option<WatchedResource> {
    Some(match kind {
        "Service" => WatchedResource::Services,
        "EndpointSlice" | "Endpoints" => WatchedResource::EndpointSlices,
        "Node" => WatchedResource::Node,
        "Pod" => WatchedResource::Pods,
        "ServiceCIDR" => WatchedResource::ServiceCidrs,
        "Ingress" => WatchedResource::Ingresses,
        "IngressClass" => WatchedResource::IngressClasses,
        "Secret" => WatchedResource::Secrets,
        _ => return None,
    })
}

/// Returns `namespace/name` of an object that need not be valid, or only the name if its kind has
/// no namespace.
fn name_of(value: &Value) -> String {
    let text = |field: &str| value.pointer(field).and_then(Value::as_str);
    let name = text("/metadata/name").unwrap_or("without a name");
    match value.get("kind").and_then(Value::as_str) {
        Some("Node" | "ServiceCIDR" | "IngressClass") => name.to_owned(),
        _ => format!("{}/{name}", text("/metadata/namespace").unwrap_or("default")),
    }
}

/// An object with more mistyped fields is not read: it is probably not an object of its kind.
const MISTYPED_PER_OBJECT: usize = 16;

/// Replaces the field at `path` by a placeholder that its type accepts. Returns whether one fits.
///
/// The field is not removed, because a missing field can have a meaning of its own. Without its
/// source ranges a Service would admit every source, and without its label the Service of another
/// proxy would be served.
fn put_placeholder<T: DeserializeOwned>(value: &mut Value, path: &Path) -> bool {
    let placeholders = [json!("?"), json!(0), json!(false), json!(["?"]), json!({}), Value::Null];
    placeholders.into_iter().any(|placeholder| {
        let Some(part) = part_at(value, path) else { return false };
        *part = placeholder;
        let remaining = serde_path_to_error::deserialize::<_, T>(&*value).err();
        remaining.is_none_or(|error| !is_within(&error.path().to_string(), &[path.to_string()]))
    })
}

fn part_at<'a>(value: &'a mut Value, path: &Path) -> Option<&'a mut Value> {
    path.iter().try_fold(value, |value, segment| match (value, segment) {
        (Value::Array(elements), Segment::Seq { index }) => elements.get_mut(*index),
        (Value::Object(fields), Segment::Map { key }) => fields.get_mut(key),
        _ => None,
    })
}

/// Returns whether a field is one of the outer fields, or inside one.
fn is_within(field: &str, outer: &[String]) -> bool {
    outer.iter().any(|outer| {
        field.strip_prefix(outer.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses a file. Returns one line for each object and problem.
    fn read(file: &str, text: &str) -> Vec<String> {
        read_selected(file, text, &ObjectSelection::of_services("here"))
    }

    fn read_selected(file: &str, text: &str, selection: &ObjectSelection) -> Vec<String> {
        let parsed = parse(&FilePath::new(file).into(), text, selection);
        let objects = parsed.objects.iter().map(|(key, _, location)| format!("{key:?} at {location}"));
        let problems = parsed.problems.iter().map(|problem| problem.to_string());
        objects.chain(problems).map(|line| line.replace("ObjectName(\"", "").replace("\")", "")).collect()
    }

    /// Of a Pod only the metadata is read: the type of another field does not matter.
    #[test]
    fn pods_are_read_if_they_are_selected() {
        let text = "{apiVersion: v1, kind: Pod, spec: 1, metadata: {name: a, annotations: {lb.sluice.dev/weight: '3'}}}
--- {apiVersion: v1, kind: Pod, metadata: {name: b}}
--- {apiVersion: v1, kind: Pod, metadata: {name: c, annotations: {lb.sluice.dev/weight: heavy}}}
";
        assert_eq!(read("a.yaml", text), [""; 0]);
        let selection = ObjectSelection::of_services("here").with_pod_weights(true);
        let lines = read_selected("a.yaml", text, &selection);
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert_eq!(lines[0], "Pod(default/a) at a.yaml: document 1 (line 1)");
        assert!(
            lines[1].contains("Pod default/c: metadata.annotations[lb.sluice.dev/weight]: `heavy`"),
            "{lines:?}"
        );
    }

    #[test]
    fn several_documents_and_kinds_that_are_ignored() {
        let text = "\
# The web shop.
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.10
  ports:
  - port: 80
--- # an empty document
---
apiVersion: v1
kind: Node
metadata: {name: elsewhere}
---
{apiVersion: v1, kind: Node, metadata: {name: here}}
...
";
        assert_eq!(
            read("web.yaml", text),
            ["Service(shop/web) at web.yaml: document 2 (line 6)", "Node at web.yaml: document 5 (line 19)"]
        );
    }

    #[test]
    fn a_document_marker_in_a_block_scalar_is_ignored() {
        let text = "\
apiVersion: v1
kind: ConfigMap
metadata: {name: web}
data:
  text: |
    ---
    more
---\r
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: kubernetes}
spec: {cidrs: [10.96.0.0/12]}
";
        assert_eq!(read("web.yaml", text), ["ServiceCidr(/kubernetes) at web.yaml: document 2 (line 8)"]);
    }

    #[test]
    fn lists_of_kubectl_and_of_the_api_server() {
        let items = r#"{"metadata": {"name": "a"}, "spec": {"clusterIP": "None"}}"#;
        let list = format!(r#"{{"apiVersion": "v1", "kind": "ServiceList", "items": [{items}]}}"#);
        assert_eq!(read("a.json", &list), ["Service(default/a) at a.json: document 1 (line 1)"]);
        let text = "\
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: None}}
- {apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a-1, labels: {kubernetes.io/service-name: a}}, addressType: IPv4}
";
        assert_eq!(
            read("a.yml", text),
            [
                "Service(default/a) at a.yml: document 1 (line 1)",
                "EndpointSlice(default/a-1) at a.yml: document 1 (line 1)"
            ]
        );
    }

    #[test]
    fn an_error_names_file_document_line_object_field_and_reason() {
        let text = "\
apiVersion: v1
kind: Service
metadata: {name: good}
spec: {clusterIP: None}
---
apiVersion: v1
kind: Service
metadata: {name: web
spec: {clusterIP: 10.96.0.10}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.10
  ports: [{port: 80, nodePort: high}, {port: 99999}]
---
apiVersion: discovery.k8s.io/v1beta1
kind: EndpointSlice
metadata: {name: old}
---
kind: Service
apiVersion: v1
metadata: {namespace: shop}
---
just: something
";
        assert_eq!(
            read("web.yaml", text),
            [
                "Service(default/good) at web.yaml: document 1 (line 1)",
                "Service(default/web) at web.yaml: document 3 (line 10)",
                "web.yaml: document 2 (line 9): is not YAML: while parsing a flow mapping, did \
                 not find expected ',' or '}': correct it; until then the other documents and the \
                 previous objects of the file are served",
                "web.yaml: document 3 (line 10): Service default/web: spec.ports[0].nodePort: \
                 invalid type: string \
                 \"high\", expected i32: correct it; the rest of the object is served",
                "web.yaml: document 3 (line 10): Service default/web: spec.ports[1].port: 99999 \
                 is not a port number: use a number from 1 to 65535",
                "web.yaml: document 4 (line 17): EndpointSlice default/old: apiVersion: \
                 `discovery.k8s.io/v1beta1` is not a supported version of EndpointSlice: use \
                 discovery.k8s.io/v1; the object is not served",
                "web.yaml: document 5 (line 21): Service shop/without a name: metadata.name: is \
                 missing: add one; the object is not served",
                "web.yaml: document 6 (line 25): kind: is missing: the document is not a \
                 Kubernetes object: add apiVersion and kind; the document is not used",
            ]
        );
    }

    #[test]
    fn json_that_does_not_parse() {
        assert_eq!(
            read("a.json", "{\n  \"kind\": \n}"),
            ["a.json: document 1 (line 3): is not JSON: expected value at line 3 column 1: \
                 correct it; until then the other documents and the previous objects of the file \
                 are served"]
        );
    }

    #[test]
    fn mistyped_fields_are_reported_once_and_admit_nothing() {
        const OTHER_PROXY: &str = ", labels: {service.kubernetes.io/service-proxy-name: 5}";
        let text = |label| {
            format!(
                "\
apiVersion: v1
kind: Service
metadata: {{name: web, creationTimestamp: yesterday{label}}}
spec:
  clusterIP: 10.96.0.10
  loadBalancerSourceRanges: 10.0.0.0/8
  ports: [x, {{port: http}}, {{port: 80, protocol: 6}}]
"
            )
        };
        let line = |field: &str, reason: &str| {
            format!(
                "a.yaml: document 1 (line 1): Service default/web: {field}: {reason}: correct it; \
                 the rest of the object is served"
            )
        };
        let integer = |number| format!("invalid type: integer `{number}`, expected a string");
        let string = |text, expected| format!("invalid type: string \"{text}\", expected {expected}");
        let expected = [
            line(
                "metadata.creationTimestamp",
                "failed to parse four digit integer as year: invalid digit, expected 0-9 but got y",
            ),
            line("metadata.labels.service.kubernetes.io/service-proxy-name", &integer(5)),
            line("spec.loadBalancerSourceRanges", &string("10.0.0.0/8", "a sequence")),
            line("spec.ports[0]", &string("x", "ServicePort")),
            line("spec.ports[1].port", &string("http", "i32")),
            line("spec.ports[2].protocol", &integer(6)),
        ];
        assert_eq!(read("a.yaml", &text(OTHER_PROXY))[1..], expected);
        let parsed = parse(&FilePath::new("a.yaml").into(), &text(""), &ObjectSelection::of_services("here"));
        let [(_, SourceEvent::Service(_, Some(service)), _)] = &parsed.objects[..] else {
            panic!("{parsed:?}")
        };
        assert!(service.ports.is_empty());
        assert_eq!(service.source_ranges.v4.as_deref(), Some(&[][..]), "no source is admitted");
        let parsed =
            parse(&FilePath::new("a.yaml").into(), &text(OTHER_PROXY), &ObjectSelection::of_services("here"));
        let [(_, SourceEvent::Service(_, Some(service)), _)] = &parsed.objects[..] else {
            panic!("{parsed:?}")
        };
        assert!(service.other_proxy && service.ports.is_empty(), "another proxy serves it");
    }

    #[test]
    fn ingresses_classes_and_secrets_are_read_if_they_are_selected() {
        let text = "\
apiVersion: extensions/v1beta1
kind: Ingress
metadata: {name: tomcat}
spec: {backend: {serviceName: tomcat, servicePort: 8080}}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web}
spec:
  rules:
  - http:
      paths:
      - {path: /a, pathType: prefix, backend: {service: {name: web, port: {number: 80}}}}
      - {path: /b, pathType: Exact, backend: {service: {name: web}}}
      - {path: /c, pathType: Exact, backend: {service: {port: {number: 80}}}}
---
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: lb}
---
apiVersion: v1
kind: Secret
metadata: {name: tls}
stringData: {tls.crt: text}
---
apiVersion: v1
kind: Secret
metadata: {name: broken}
data: {tls.key: '*hush*'}
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: a, labels: {kubernetes.io/service-name: headless, service.kubernetes.io/headless: ''}}
addressType: IPv4
endpoints: []
";
        let lines = read_selected("a.yaml", text, &ObjectSelection::of_ingresses("here"));
        assert_eq!(
            lines,
            [
                "Ingress(default/tomcat) at a.yaml: document 1 (line 1)",
                "Ingress(default/web) at a.yaml: document 2 (line 5)",
                "IngressClass(/lb) at a.yaml: document 3 (line 16)",
                "Secret(default/tls) at a.yaml: document 4 (line 20)",
                "Secret(default/broken) at a.yaml: document 5 (line 25)",
                "Service(default/headless) at a.yaml: document 6 (line 30)",
                "EndpointSlice(default/a) at a.yaml: document 7 (line 35)",
                "a.yaml: document 1 (line 1): Ingress default/tomcat: apiVersion: \
                 extensions/v1beta1 was removed in Kubernetes 1.22: use networking.k8s.io/v1 \
                 (service.name, service.port and pathType); until then the Ingress is converted",
                "a.yaml: document 2 (line 5): Ingress default/web: \
                 spec.rules[0].http.paths[0].pathType: `prefix` is not a type of path: use Exact, \
                 Prefix or ImplementationSpecific; it is served as Exact",
                "a.yaml: document 2 (line 5): Ingress default/web: \
                 spec.rules[0].http.paths[1].backend.service.port: has neither a name nor a \
                 number: set one of them; requests are answered with 503",
                "a.yaml: document 2 (line 5): Ingress default/web: \
                 spec.rules[0].http.paths[2].backend.service.name: is not set: name a Service; \
                 requests are answered with 503",
                "a.yaml: document 3 (line 16): IngressClass lb: spec.controller: is missing: name \
                 the controller; no controller serves the class",
                "a.yaml: document 5 (line 25): Secret default/broken: data.tls.key: does not have \
                 the form of a Secret: correct it; the rest of the object is served",
            ]
        );
        assert!(
            read("a.yaml", text).iter().all(|line| !line.contains("Ingress") && !line.contains("Secret"))
        );
    }
}
