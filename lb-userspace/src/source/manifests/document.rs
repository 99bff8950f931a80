//! From the text of a file to objects.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::{core, discovery, networking};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::model::{self, Converted, Node, ObjectName, Place, Problem, Service, Severity, Slice};
use crate::source::Event;

/// Identity of an object that the planner wants.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Key {
    /// There is one at most, the own.
    Node,
    ServiceCidr(ObjectName),
    Service(ObjectName),
    Slice(ObjectName),
}

/// What a file holds.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    /// Each as the event that tells of it.
    pub objects: Vec<(Key, Event, Arc<Place>)>,
    pub problems: Vec<Problem>,
    /// Some document or object could not be read at all: what it was is not known.
    pub incomplete: bool,
}

/// Reads a file. `this_node` selects the Node object and decides which endpoints are local.
pub(super) fn parse(file: &Arc<Path>, text: &str, this_node: &str) -> Parsed {
    let mut parsed = Parsed::default();
    let json = file.extension().is_some_and(|extension| extension == "json");
    let documents = if json { vec![(1, 0..text.len())] } else { documents(text) };
    for (number, (first_line, range)) in (1..).zip(documents) {
        let place = Place { file: file.clone(), document: number, line: first_line };
        let value = if json { read_json(&text[range]) } else { read_yaml(&text[range], first_line) };
        match value {
            Ok(value) => Reader { place: place.into(), this_node, parsed: &mut parsed }.document(value),
            Err((line, reason)) => {
                parsed.incomplete = true;
                parsed.problems.push(Problem {
                    severity: Severity::Error,
                    place: Some(Place { line: line.unwrap_or(first_line), ..place }.into()),
                    object: "".into(),
                    field: "".into(),
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
struct Reader<'a> {
    place: Arc<Place>,
    this_node: &'a str,
    parsed: &'a mut Parsed,
}

impl Reader<'_> {
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
                let converted = Service::from_api(&service);
                reader.take(converted, Key::Service, |place, name, service| {
                    Event::Service(name, Some(Arc::new(Service { place, ..service })))
                });
            }),
            ("v1", "Endpoints") => self.object(value, &kind, |reader, endpoints: core::v1::Endpoints| {
                let (slices, problems) = Slice::from_endpoints(&endpoints, reader.this_node);
                reader.complain(problems);
                for (name, slice) in slices {
                    let slice = Slice { place: Some(reader.place.clone()), ..slice };
                    reader.keep(Key::Slice(name.clone()), Event::Slice(name, Some(Arc::new(slice))));
                }
            }),
            ("discovery.k8s.io/v1", "EndpointSlice") => {
                self.object(value, &kind, |reader, slice: discovery::v1::EndpointSlice| {
                    let converted = Slice::from_api(&slice, reader.this_node);
                    reader.take(converted, Key::Slice, |place, name, slice| {
                        Event::Slice(name, Some(Arc::new(Slice { place, ..slice })))
                    });
                });
            }
            ("networking.k8s.io/v1", "ServiceCIDR") => {
                self.object(value, &kind, |reader, cidr: networking::v1::ServiceCIDR| {
                    let converted = model::service_cidrs(&cidr);
                    reader.take(converted, Key::ServiceCidr, |_, name, cidrs| {
                        Event::ServiceCidr(name, Some(cidrs.into()))
                    });
                });
            }
            ("v1", "Node") => self.object(value, &kind, |reader, node: core::v1::Node| {
                if node.metadata.name.as_deref() == Some(reader.this_node) {
                    reader.take(Node::from_api(&node), |_| Key::Node, |_, _, node| Event::Node(Some(Arc::new(node))));
                }
            }),
            (_, "Service" | "Endpoints" | "EndpointSlice" | "ServiceCIDR" | "Node") => self.complain_one(
                format!("{kind} {}", name_of(&value)),
                "apiVersion",
                format!("`{version}` is not a version of {kind} that is served here"),
                "use v1 (discovery.k8s.io/v1 for EndpointSlice, networking.k8s.io/v1 for ServiceCIDR); it is not served",
            ),
            (_, "") => self.complain_one(
                String::new(),
                "kind",
                "is missing: this is not a Kubernetes object".to_owned(),
                "write apiVersion and kind; the document is not used",
            ),
            _ => tracing::debug!(place = %self.place, kind, "not of a kind that matters here"),
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

    /// Makes the API type of a value. A part that does not fit the type is reported and left out: the element of a
    /// list that it is in, or else the field.
    fn object<T: DeserializeOwned>(
        &mut self,
        mut value: Value,
        kind: &str,
        use_it: impl FnOnce(&mut Self, T),
    ) {
        let name = name_of(&value);
        let object = format!("{kind} {name}");
        if value.pointer("/metadata/name").and_then(Value::as_str).is_none_or(str::is_empty) {
            self.complain_one(
                object,
                "metadata.name",
                "is missing".to_owned(),
                "write one; the object is not served",
            );
            return;
        }
        loop {
            let error = match serde_path_to_error::deserialize::<_, T>(&value) {
                Ok(api_object) => return use_it(self, api_object),
                Err(error) => error,
            };
            let field = error.path().to_string();
            let left_out = leave_out(&mut value, &field);
            self.complain_one(
                object.clone(),
                &field,
                error.inner().to_string(),
                if left_out {
                    "correct it; this part is left out"
                } else {
                    "correct it; the object is not read"
                },
            );
            if !left_out {
                self.parsed.incomplete = true;
                return;
            }
        }
    }

    fn take<T>(
        &mut self,
        converted: Converted<T>,
        key: impl FnOnce(ObjectName) -> Key,
        event: impl FnOnce(Option<Arc<Place>>, ObjectName, T) -> Event,
    ) {
        self.complain(converted.problems);
        if let Some(value) = converted.value {
            let event = event(Some(self.place.clone()), converted.name.clone(), value);
            self.keep(key(converted.name), event);
        }
    }

    fn keep(&mut self, key: Key, event: Event) {
        self.parsed.objects.push((key, event, self.place.clone()));
    }

    fn complain(&mut self, problems: Vec<Problem>) {
        let placed =
            problems.into_iter().map(|problem| Problem { place: Some(self.place.clone()), ..problem });
        self.parsed.problems.extend(placed);
    }

    fn complain_one(&mut self, object: String, field: &str, reason: String, remedy: &str) {
        self.complain(vec![Problem {
            severity: Severity::Error,
            place: None,
            object: object.into(),
            field: field.into(),
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

/// Removes the innermost list element around `path` (such as `spec.ports[1].port`), or the field itself if it is in no
/// list. False if there is nothing to remove.
fn leave_out(value: &mut Value, path: &str) -> bool {
    let steps: Vec<&str> = path.split(['.', '[']).map(|step| step.trim_end_matches(']')).collect();
    let innermost_element = steps.iter().rposition(|step| step.parse::<usize>().is_ok());
    let target = innermost_element.unwrap_or(steps.len() - 1);
    let parent = steps[..target].iter().try_fold(value, |value, step| match value {
        Value::Array(elements) => elements.get_mut(step.parse::<usize>().ok()?),
        Value::Object(fields) => fields.get_mut(*step),
        _ => None,
    });
    match parent {
        Some(Value::Array(elements)) => match steps[target].parse() {
            Ok(index) if index < elements.len() => {
                elements.remove(index);
                true
            }
            _ => false,
        },
        Some(Value::Object(fields)) => fields.remove(steps[target]).is_some(),
        _ => false,
    }
}
