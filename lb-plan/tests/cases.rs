//! The rules of Services as data: `cases/*.txt`, one file for each topic and one case for each
//! rule.
//!
//! ```text
//! === name of the case, which states the rule
//! # The source of the rule, and what to look at.
//! service web: {clusterIP: 10.96.0.10, ports: [{port: 80}]}
//! slice web-1 of web: {ports: [{port: 8080}], endpoints: [10.0.0.1, 10.0.0.2 @there terminating]}
//! =>
//! the plan in the format of `DesiredServicePort`, and a line for each problem:
//! ! kind: object: field: reason: remedy (`?` instead of `!` for notes)
//! then
//! all objects after the next change; objects that are not listed are deleted
//! =>
//! the changes (`+ id`, `- id`), and the new plan
//! ```
//!
//! The input of a step is YAML. Each key is an object, its value contains the fields of the `spec`
//! and optionally `labels`, `annotations`, `status`, `created` and `namespace`. The value of a
//! slice contains its fields. An endpoint is an address followed by any of `@NODE`, `in=ZONE`,
//! `unready`, `notserving`, `terminating` (which implies `unready`, as in Kubernetes), `zones=A,B`
//! `nodes=A,B`, `pod=NAME` and `uid=UID` (of that pod). The name of this node is `here`. `node`
//! contains the fields of its `spec`, `zone`, `addresses` and `annotations`. `node NAME` is another
//! node. `pod NAME` contains `uid` and the fields of its metadata.
//!
//! Each step is read by the reader of manifest folders and by that of the API server. Both must
//! return the same plan, and the changes must lead to the plan of a fresh start.
//!
//! With `SLUICE_BLESS=1` in the environment the test rewrites the files with the actual results.
//! Check the difference before you commit it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use lb_model::{Algorithm, IpFamily, Node, ObjectName, Problem, Severity, SourceEvent};
use lb_objects::{ObjectSelection, kubernetes, manifests};
use lb_plan::desired::{DesiredServicePort, ServicePortId};
use lb_plan::{Changes, HealthCheck, Planner, PlannerSettings};
use serde_json::{Map, Value, json};

#[test]
fn every_case_has_the_expected_plan() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let bless = std::env::var_os("SLUICE_BLESS").is_some();
    let mut failures = String::new();
    let mut count = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let mut blessed = String::new();
        for (number, case) in text.split_inclusive("\n=== ").enumerate() {
            let body = case.strip_suffix("=== ").unwrap_or(case);
            let body = if number == 0 {
                body.strip_prefix("=== ").expect("a file starts with a case")
            } else {
                body
            };
            let (name, steps) = body.split_once('\n').expect("a case has a body");
            let actual = run(steps);
            count += 1;
            if actual.trim_end() != steps.trim_end() {
                let file = path.file_name().unwrap().to_string_lossy();
                write!(failures, "\n{file}: {name}\n{}", difference(steps, &actual)).unwrap();
            }
            write!(blessed, "=== {name}\n{}\n\n", actual.trim_end()).unwrap();
        }
        if bless {
            fs::write(&path, blessed.trim_end().to_owned() + "\n").unwrap();
        }
    }
    assert!(count > 0);
    assert!(bless || failures.is_empty(), "{failures}\n(`-` expected, `+` actual)");
}

/// Runs the steps of a case. Returns them with the actual results.
fn run(steps: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut source = manifests::ManifestFolder::new(folder.path().to_owned(), selection());
    let mut state = State::default();
    let mut planner = None;
    let mut written = String::new();
    for (number, step) in steps.split("\nthen\n").enumerate() {
        let input = step.split("\n=>").next().unwrap();
        let (objects, settings) = expand(input);
        fs::write(folder.path().join("objects.json"), objects.to_string()).unwrap();
        let planner = planner.get_or_insert_with(|| Planner::new(settings.clone()));
        let changes = planner.update(source.scan().unwrap());
        let listed = if number == 0 { String::new() } else { list(&changes) };
        state.apply(changes, planner);
        let manifests = manifests::load(folder.path(), selection()).unwrap();
        assert_eq!(state, fresh_state(manifests, settings.clone()), "after a fresh start, {input}");
        if let Some(events) = events_of_api_server(&objects) {
            let state = state.clone().without_locations();
            assert_eq!(state, fresh_state(events, settings), "from an API server, {input}");
        }
        let then = if number == 0 { "" } else { "then\n" };
        writeln!(written, "{then}{}\n=>\n{listed}{}", input.trim_end(), state.text()).unwrap();
        written = written.trim_end().to_owned() + "\n";
    }
    written
}

fn selection() -> ObjectSelection {
    ObjectSelection::of_services("here").with_pod_weights(true)
}

/// Returns the state after a start with these events.
fn fresh_state(events: Vec<SourceEvent>, settings: PlannerSettings) -> State {
    let mut planner = Planner::new(settings);
    let changes = planner.update(events);
    assert!(changes.complete);
    let mut state = State::default();
    state.apply(changes, &planner);
    state
}

/// Returns the events of an API server with the same objects, or `None` if it could not store them.
fn events_of_api_server(objects: &Value) -> Option<Vec<SourceEvent>> {
    let items = objects["items"].as_array().unwrap();
    // The control plane would mirror them to slices.
    if items.iter().any(|item| item["kind"] == "Endpoints") {
        return None;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(kubernetes::list(items, "here".into())).ok()
}

/// One line for each changed Service port.
fn list(changes: &Changes) -> String {
    let mut listed = String::new();
    for service in &changes.changed {
        writeln!(listed, "+ {}", service.id).unwrap();
    }
    for id in &changes.removed {
        writeln!(listed, "- {id}").unwrap();
    }
    if listed.is_empty() { "no change\n".to_owned() } else { listed }
}

/// The state that results from all changes so far.
#[derive(Debug, Clone, Default, PartialEq)]
struct State {
    services: BTreeMap<ServicePortId, DesiredServicePort>,
    health_checks: BTreeMap<ObjectName, HealthCheck>,
    problems: BTreeSet<Problem>,
    /// Read from the planner whenever it reports a change, as the agent does.
    node: Option<Node>,
    service_cidrs: Vec<IpNet>,
    other_proxies: BTreeSet<IpAddr>,
}

impl State {
    fn apply(&mut self, changes: Changes, planner: &Planner) {
        for service in changes.changed {
            self.services.insert(service.id.clone(), service);
        }
        for id in changes.removed {
            assert!(self.services.remove(&id).is_some(), "removed but not planned: {id}");
        }
        for (name, health_check) in changes.health_checks {
            match health_check {
                Some(health_check) => drop(self.health_checks.insert(name, health_check)),
                None => assert!(self.health_checks.remove(&name).is_some(), "not open: {name}"),
            }
        }
        for problem in changes.resolved {
            assert!(self.problems.remove(&problem), "resolved but not raised: {problem}");
        }
        for problem in changes.raised {
            assert!(self.problems.insert(problem.clone()), "raised twice: {problem}");
        }
        if changes.node_changed {
            self.node = planner.node().cloned();
        }
        if changes.service_cidrs_changed {
            self.service_cidrs = planner.service_cidrs();
        }
        if changes.other_proxies_changed {
            self.other_proxies = planner.addresses_of_other_proxies();
        }
    }

    /// An API server has no files.
    fn without_locations(mut self) -> Self {
        let problems = std::mem::take(&mut self.problems).into_iter();
        self.problems = problems.map(|problem| Problem { location: None, ..problem }).collect();
        self
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for service in self.services.values() {
            writeln!(text, "{service}").unwrap();
        }
        for (name, check) in &self.health_checks {
            let count = |(family, word)| Some(format!("{} local {word}", check.local_endpoints(family)?));
            let counts: Vec<_> =
                [(IpFamily::V4, "IPv4"), (IpFamily::V6, "IPv6")].into_iter().filter_map(count).collect();
            writeln!(text, "{name} health check on {}: {}", check.port, counts.join(", ")).unwrap();
        }
        if let Some(Node { zone, pod_cidrs, addresses, eligible }) = &self.node {
            let zone = zone.as_deref().unwrap_or("none");
            write!(text, "node: zone {zone}, pods {pod_cidrs:?}, addresses {addresses:?}").unwrap();
            writeln!(text, "{}", if *eligible { "" } else { ", not for load balancers" }).unwrap();
        }
        if !self.service_cidrs.is_empty() {
            writeln!(text, "ServiceCIDRs {:?}", self.service_cidrs).unwrap();
        }
        if !self.other_proxies.is_empty() {
            writeln!(text, "other proxies {:?}", self.other_proxies).unwrap();
        }
        for problem in &self.clone().without_locations().problems {
            let sign = if problem.severity == Severity::Error { "!" } else { "?" };
            writeln!(text, "{sign} {}: {problem}", problem.kind).unwrap();
        }
        if text.is_empty() { "nothing\n".to_owned() } else { text }
    }
}

/// Returns the lines that differ.
fn difference(expected: &str, actual: &str) -> String {
    let (expected, actual): (Vec<_>, Vec<_>) =
        (expected.trim_end().lines().collect(), actual.trim_end().lines().collect());
    let same = expected.iter().zip(&actual).take_while(|(old, new)| old == new).count();
    let same_end = expected[same..]
        .iter()
        .rev()
        .zip(actual[same..].iter().rev())
        .take_while(|(old, new)| old == new)
        .count();
    let mut text = String::new();
    for line in &expected[same..expected.len() - same_end] {
        writeln!(text, "- {line}").unwrap();
    }
    for line in &actual[same..actual.len() - same_end] {
        writeln!(text, "+ {line}").unwrap();
    }
    text
}

/// Returns the objects of a step as a `List`, and its settings.
fn expand(step: &str) -> (Value, PlannerSettings) {
    let mut settings = PlannerSettings { pod_weights: true, ..PlannerSettings::default() };
    let parsed: Option<Map<String, Value>> =
        serde_saphyr::from_str(step).unwrap_or_else(|error| panic!("{error}\n{step}"));
    let mut items = Vec::new();
    for (key, value) in parsed.unwrap_or_default() {
        match key.split_whitespace().collect::<Vec<_>>()[..] {
            ["service", name] => items.push(service(name, value)),
            ["slice", name, "of", of] => items.push(slice(name, of.trim_matches('\''), value)),
            ["endpoints", name] => items.push(
                json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": name}, "subsets": value}),
            ),
            ["pod", name] => items.push(pod(name, value)),
            ["node"] => items.push(node("here", value)),
            ["node", name] => items.push(node(name, value)),
            ["cidr", name] => items.push(json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": name}, "spec": {"cidrs": value}
            })),
            ["default", "algorithm"] => {
                settings.algorithm = Algorithm::named(value.as_str().unwrap()).unwrap();
            }
            ["allowed", "external", "IPs"] => {
                settings.allowed_external_ips = serde_json::from_value(value).unwrap();
            }
            _ => panic!("no such object: {key}"),
        }
    }
    (json!({"apiVersion": "v1", "kind": "List", "items": items}), settings)
}

fn metadata(name: &str, fields: &mut Map<String, Value>) -> Map<String, Value> {
    let mut metadata = Map::new();
    metadata.insert("name".into(), name.into());
    for (short, long) in [
        ("labels", "labels"),
        ("annotations", "annotations"),
        ("created", "creationTimestamp"),
        ("namespace", "namespace"),
        ("uid", "uid"),
    ] {
        if let Some(value) = fields.remove(short) {
            metadata.insert(long.into(), value);
        }
    }
    metadata
}

fn service(name: &str, value: Value) -> Value {
    let Value::Object(mut spec) = value else { panic!("{name}: not a mapping") };
    let metadata = metadata(name, &mut spec);
    let status = spec.remove("status");
    json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec, "status": status})
}

fn pod(name: &str, value: Value) -> Value {
    let Value::Object(mut fields) = value else { panic!("{name}: not a mapping") };
    let metadata = metadata(name, &mut fields);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": fields})
}

fn slice(name: &str, of: &str, value: Value) -> Value {
    let Value::Object(mut slice) = value else { panic!("{name}: not a mapping") };
    let mut metadata = metadata(name, &mut slice);
    let labels = metadata.entry("labels").or_insert_with(|| json!({}));
    labels["kubernetes.io/service-name"] = of.into();
    slice.insert("metadata".into(), metadata.into());
    slice.insert("apiVersion".into(), "discovery.k8s.io/v1".into());
    slice.insert("kind".into(), "EndpointSlice".into());
    slice.entry("addressType").or_insert_with(|| "IPv4".into());
    for endpoint in slice.get_mut("endpoints").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(words) = endpoint.as_str() {
            *endpoint = endpoint_of(words);
        }
    }
    slice.into()
}

fn endpoint_of(words: &str) -> Value {
    let mut words = words.split_whitespace();
    let mut endpoint = json!({"addresses": [words.next()], "conditions": {}});
    let names = |list: &str| list.split(',').map(|name| json!({"name": name})).collect::<Vec<_>>();
    for word in words {
        match word.split_once('=') {
            Some(("in", zone)) => endpoint["zone"] = zone.into(),
            Some(("zones", zones)) => endpoint["hints"]["forZones"] = names(zones).into(),
            Some(("pod", name)) => endpoint["targetRef"] = json!({"kind": "Pod", "name": name}),
            Some(("uid", uid)) => endpoint["targetRef"]["uid"] = uid.into(),
            Some(("nodes", nodes)) => endpoint["hints"]["forNodes"] = names(nodes).into(),
            None if word == "unready" => endpoint["conditions"]["ready"] = false.into(),
            None if word == "notserving" => endpoint["conditions"]["serving"] = false.into(),
            None if word == "terminating" => {
                endpoint["conditions"]["ready"] = false.into();
                endpoint["conditions"]["terminating"] = true.into();
            }
            None if word.starts_with('@') => endpoint["nodeName"] = word[1..].into(),
            _ => panic!("unknown word {word}"),
        }
    }
    endpoint
}

fn node(name: &str, value: Value) -> Value {
    let mut labels = json!({});
    if let Some(zone) = value.get("zone") {
        labels["topology.kubernetes.io/zone"] = zone.clone();
    }
    let status = json!({"addresses": value.get("addresses")});
    let annotations = value.get("annotations");
    let metadata = json!({"name": name, "labels": labels, "annotations": annotations});
    json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": value, "status": status})
}
