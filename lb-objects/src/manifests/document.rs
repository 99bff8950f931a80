//! From the text of a file to objects.

use std::ops::Range;
use std::path::Path as FilePath;
use std::sync::Arc;

use k8s_openapi::api::{core, discovery, networking};
use lb_model::{
    EndpointSlice, ManifestLocation, ObjectName, Problem, ProblemKind, Service, Severity, SourceEvent,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use serde_path_to_error::{Path, Segment};

use crate::convert::{self, Converted};

/// Identity of an object that the planner wants.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum ObjectKey {
    /// There is one at most, the own.
    Node,
    ServiceCidr(ObjectName),
    Service(ObjectName),
    EndpointSlice(ObjectName),
}

/// What a file holds.
#[derive(Debug, Default)]
pub(super) struct ParsedFile {
    /// Each as the event that tells of it.
    pub objects: Vec<(ObjectKey, SourceEvent, Arc<ManifestLocation>)>,
    pub problems: Vec<Problem>,
    /// Some document or object could not be read at all: what it was is not known.
    pub incomplete: bool,
}

/// Reads a file. `this_node` selects the Node object and decides which endpoints are local.
pub(super) fn parse(file: &Arc<FilePath>, text: &str, this_node: &str) -> ParsedFile {
    let mut parsed = ParsedFile::default();
    let json = file.extension().is_some_and(|extension| extension == "json");
    let documents = if json { vec![(1, 0..text.len())] } else { documents(text) };
    for (number, (first_line, range)) in (1..).zip(documents) {
        let location = ManifestLocation { file: file.clone(), document: number, line: first_line };
        let value = if json { read_json(&text[range]) } else { read_yaml(&text[range], first_line) };
        match value {
            Ok(value) => {
                DocumentReader { location: location.into(), this_node, parsed: &mut parsed }.document(value)
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
                    remedy: "correct it; until then what the file said before stays, and the other documents are served"
                        .into(),
                });
            }
        }
    }
    parsed
}

/// The documents of a YAML stream: the first line and the bytes of each. What stands before the first `---` is none if
/// there are only comments and directives in it. (YAML 1.2.2, 9.1.1: the marker cannot occur inside a document.)
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

type Unreadable = (Option<u32>, String);

fn read_yaml(document: &str, first_line: u32) -> Result<Value, Unreadable> {
    if is_blank(document) {
        return Ok(Value::Null);
    }
    // A dump of a whole cluster is one document of millions of nodes; the limits against alias bombs stay.
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_nodes: usize::MAX, max_events: usize::MAX, max_total_scalar_bytes: usize::MAX },
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(document, options).map_err(|error| {
        let error = error.without_snippet();
        let line = error.location().and_then(|location| u32::try_from(location.line()).ok());
        let text = error.to_string();
        // The library counts lines from the beginning of the document: say the line of the file, once, in the place.
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

/// Takes the objects out of one document.
struct DocumentReader<'a> {
    location: Arc<ManifestLocation>,
    this_node: &'a str,
    parsed: &'a mut ParsedFile,
}

impl DocumentReader<'_> {
    fn document(&mut self, value: Value) {
        if value.is_null() {
            return;
        }
        let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (version, kind) = (text("apiVersion"), text("kind"));
        if let Some(item_kind) = kind.strip_suffix("List") {
            self.items(value, &version, item_kind);
            return;
        }
        match (version.as_str(), kind.as_str()) {
            ("v1", "Service") => self.object(value, &kind, |reader, service| {
                let converted = convert::service(&service);
                reader.take(converted, ObjectKey::Service, |location, name, service| {
                    SourceEvent::Service(name, Some(Arc::new(Service { location, ..service })))
                });
            }),
            ("v1", "Endpoints") => self.object(value, &kind, |reader, endpoints: core::v1::Endpoints| {
                let (slices, problems) = convert::endpoints(&endpoints, reader.this_node);
                reader.complain(problems);
                for (name, slice) in slices {
                    let slice = EndpointSlice { location: Some(reader.location.clone()), ..slice };
                    reader.keep(ObjectKey::EndpointSlice(name.clone()), SourceEvent::EndpointSlice(name, Some(Arc::new(slice))));
                }
            }),
            ("discovery.k8s.io/v1", "EndpointSlice") => {
                self.object(value, &kind, |reader, slice: discovery::v1::EndpointSlice| {
                    let converted = convert::endpoint_slice(&slice, reader.this_node);
                    reader.take(converted, ObjectKey::EndpointSlice, |location, name, slice| {
                        SourceEvent::EndpointSlice(name, Some(Arc::new(EndpointSlice { location, ..slice })))
                    });
                });
            }
            ("networking.k8s.io/v1", "ServiceCIDR") => {
                self.object(value, &kind, |reader, cidr: networking::v1::ServiceCIDR| {
                    let converted = convert::service_cidrs(&cidr);
                    reader.take(converted, ObjectKey::ServiceCidr, |_, name, cidrs| {
                        SourceEvent::ServiceCidr(name, Some(cidrs.into()))
                    });
                });
            }
            ("v1", "Node") => self.object(value, &kind, |reader, node: core::v1::Node| {
                if node.metadata.name.as_deref() == Some(reader.this_node) {
                    reader.take(convert::node(&node), |_| ObjectKey::Node, |_, _, node| SourceEvent::Node(Some(Arc::new(node))));
                }
            }),
            (_, "Service" | "Endpoints" | "EndpointSlice" | "ServiceCIDR" | "Node") => self.complain_one(
                format!("{kind} {}", name_of(&value)),
                ("apiVersion", ProblemKind::UnknownValue),
                format!("`{version}` is not a version of {kind} that is served here"),
                "use v1 (discovery.k8s.io/v1 for EndpointSlice, networking.k8s.io/v1 for ServiceCIDR); it is not served",
            ),
            (_, "") => self.complain_one(
                String::new(),
                ("kind", ProblemKind::Missing),
                "is missing: this is not a Kubernetes object".to_owned(),
                "write apiVersion and kind; the document is not used",
            ),
            _ => tracing::debug!(location = %self.location, kind, "not of a kind that matters here"),
        }
    }

    /// `kind: List`, or the `ServiceList` that the API server returns, whose items do not say their kind.
    fn items(&mut self, mut list: Value, version: &str, item_kind: &str) {
        let Some(Value::Array(items)) = list.get_mut("items").map(Value::take) else { return };
        for mut item in items {
            if let (false, Some(fields)) = (item_kind.is_empty(), item.as_object_mut()) {
                fields.entry("apiVersion").or_insert_with(|| version.into());
                fields.entry("kind").or_insert_with(|| item_kind.into());
            }
            self.document(item);
        }
    }

    /// Makes the API type of a value. A part that does not fit the type is reported, and something that fits and means
    /// nothing takes its place.
    fn object<T: DeserializeOwned>(
        &mut self,
        mut value: Value,
        kind: &str,
        use_it: impl FnOnce(&mut Self, T),
    ) {
        let object = format!("{kind} {}", name_of(&value));
        if value.pointer("/metadata/name").and_then(Value::as_str).is_none_or(str::is_empty) {
            self.complain_one(
                object,
                ("metadata.name", ProblemKind::Missing),
                "is missing".to_owned(),
                "write one; the object is not served",
            );
            return;
        }
        let mut misfits: Vec<String> = Vec::new();
        loop {
            let error = match serde_path_to_error::deserialize::<_, T>(&value) {
                Ok(api_object) => {
                    let told = self.parsed.problems.len();
                    use_it(self, api_object);
                    // Nor do the stand-ins mean anything to the conversion: once is enough.
                    let told = self.parsed.problems.split_off(told).into_iter();
                    self.parsed.problems.extend(told.filter(|problem| !is_in(&problem.field, &misfits)));
                    return;
                }
                Err(error) => error,
            };
            let field = error.path().to_string();
            let replaced = misfits.len() < MISFITS_PER_OBJECT && put_stand_in::<T>(&mut value, error.path());
            self.complain_one(
                object.clone(),
                (&field, ProblemKind::WrongType),
                error.inner().to_string(),
                if replaced {
                    "correct it; the rest is served"
                } else {
                    "correct it; the object is not read"
                },
            );
            if !replaced {
                self.parsed.incomplete = true;
                return;
            }
            misfits.push(field);
        }
    }

    fn take<T>(
        &mut self,
        converted: Converted<T>,
        key: impl FnOnce(ObjectName) -> ObjectKey,
        event: impl FnOnce(Option<Arc<ManifestLocation>>, ObjectName, T) -> SourceEvent,
    ) {
        self.complain(converted.problems);
        if let Some(value) = converted.value {
            let event = event(Some(self.location.clone()), converted.name.clone(), value);
            self.keep(key(converted.name), event);
        }
    }

    fn keep(&mut self, key: ObjectKey, event: SourceEvent) {
        self.parsed.objects.push((key, event, self.location.clone()));
    }

    fn complain(&mut self, problems: Vec<Problem>) {
        let placed =
            problems.into_iter().map(|problem| Problem { location: Some(self.location.clone()), ..problem });
        self.parsed.problems.extend(placed);
    }

    fn complain_one(
        &mut self,
        object: String,
        (field, kind): (&str, ProblemKind),
        reason: String,
        remedy: &str,
    ) {
        self.complain(vec![Problem {
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

/// `namespace/name` of whatever a document says it is; only the name if the kind has no namespace.
fn name_of(value: &Value) -> String {
    let text = |field: &str| value.pointer(field).and_then(Value::as_str);
    let name = text("/metadata/name").unwrap_or("without a name");
    match value.get("kind").and_then(Value::as_str) {
        Some("Node" | "ServiceCIDR") => name.to_owned(),
        _ => format!("{}/{name}", text("/metadata/namespace").unwrap_or("default")),
    }
}

/// After so many parts of a wrong type the object as a whole is taken for something else.
const MISFITS_PER_OBJECT: usize = 16;

/// Replaces the part at `path` by a value that the type takes there. None of these values means anything valid, where
/// something has to be said: left out, a range of sources, or a label, would open or proxy what it should not.
fn put_stand_in<T: DeserializeOwned>(value: &mut Value, path: &Path) -> bool {
    let stand_ins = [json!("?"), json!(0), json!(false), json!(["?"]), json!({}), Value::Null];
    stand_ins.into_iter().any(|stand_in| {
        let Some(part) = part_at(value, path) else { return false };
        *part = stand_in;
        let remaining = serde_path_to_error::deserialize::<_, T>(&*value).err();
        remaining.is_none_or(|error| !is_in(&error.path().to_string(), &[path.to_string()]))
    })
}

fn part_at<'a>(value: &'a mut Value, path: &Path) -> Option<&'a mut Value> {
    path.iter().try_fold(value, |value, segment| match (value, segment) {
        (Value::Array(elements), Segment::Seq { index }) => elements.get_mut(*index),
        (Value::Object(fields), Segment::Map { key }) => fields.get_mut(key),
        _ => None,
    })
}

/// Whether a field is one of those, or inside one.
fn is_in(field: &str, outer: &[String]) -> bool {
    outer.iter().any(|outer| {
        field.strip_prefix(outer.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The objects and problems of a file, a line each.
    fn read(file: &str, text: &str) -> Vec<String> {
        let parsed = parse(&FilePath::new(file).into(), text, "here");
        let objects = parsed.objects.iter().map(|(key, _, location)| format!("{key:?} at {location}"));
        let problems = parsed.problems.iter().map(|problem| problem.to_string());
        objects.chain(problems).map(|line| line.replace("ObjectName(\"", "").replace("\")", "")).collect()
    }

    #[test]
    fn several_documents_and_kinds_that_do_not_matter() {
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
--- # nothing in this one
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
    fn a_document_marker_inside_a_text_does_not_count() {
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
                "web.yaml: document 2 (line 9): is not YAML: while parsing a flow mapping, did not find expected ',' \
                 or '}': correct it; until then what the file said before stays, and the other documents are served",
                "web.yaml: document 3 (line 10): Service default/web: spec.ports[0].nodePort: invalid type: string \
                 \"high\", expected i32: correct it; the rest is served",
                "web.yaml: document 3 (line 10): Service default/web: spec.ports[1].port: 99999 is not a port number: \
                 use a number from 1 to 65535",
                "web.yaml: document 4 (line 17): EndpointSlice default/old: apiVersion: `discovery.k8s.io/v1beta1` is \
                 not a version of EndpointSlice that is served here: use v1 (discovery.k8s.io/v1 for EndpointSlice, \
                 networking.k8s.io/v1 for ServiceCIDR); it is not served",
                "web.yaml: document 5 (line 21): Service shop/without a name: metadata.name: is missing: write one; \
                 the object is not served",
                "web.yaml: document 6 (line 25): kind: is missing: this is not a Kubernetes object: write apiVersion \
                 and kind; the document is not used",
            ]
        );
    }

    #[test]
    fn json_that_does_not_parse() {
        assert_eq!(
            read("a.json", "{\n  \"kind\": \n}"),
            [
                "a.json: document 1 (line 3): is not JSON: expected value at line 3 column 1: correct it; until then what \
              the file said before stays, and the other documents are served"
            ]
        );
    }

    #[test]
    fn parts_of_a_wrong_type_are_told_once_and_do_not_open_anything() {
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
        let told = |field: &str, reason: &str| {
            format!(
                "a.yaml: document 1 (line 1): Service default/web: {field}: {reason}: correct it; the rest is served"
            )
        };
        let integer = |number| format!("invalid type: integer `{number}`, expected a string");
        let string = |text, expected| format!("invalid type: string \"{text}\", expected {expected}");
        let expected = [
            told(
                "metadata.creationTimestamp",
                "failed to parse four digit integer as year: invalid digit, expected 0-9 but got y",
            ),
            told("metadata.labels.service.kubernetes.io/service-proxy-name", &integer(5)),
            told("spec.loadBalancerSourceRanges", &string("10.0.0.0/8", "a sequence")),
            told("spec.ports[0]", &string("x", "ServicePort")),
            told("spec.ports[1].port", &string("http", "i32")),
            told("spec.ports[2].protocol", &integer(6)),
        ];
        assert_eq!(read("a.yaml", &text(OTHER_PROXY))[1..], expected);
        let parsed = parse(&FilePath::new("a.yaml").into(), &text(""), "here");
        let [(_, SourceEvent::Service(_, Some(service)), _)] = &parsed.objects[..] else {
            panic!("{parsed:?}")
        };
        assert!(service.ports.is_empty());
        assert_eq!(service.source_ranges.v4.as_deref(), Some(&[][..]), "nobody may come in");
        let parsed = parse(&FilePath::new("a.yaml").into(), &text(OTHER_PROXY), "here");
        let [(_, SourceEvent::Service(_, Some(service)), _)] = &parsed.objects[..] else {
            panic!("{parsed:?}")
        };
        assert!(service.other_proxy && service.ports.is_empty(), "the other proxy serves it");
    }
}
