//! Writes Kubernetes Events about faulty objects, so that `kubectl describe` shows the problem.
//!
//! Every agent of a cluster finds the same problem, and finds it again after a restart. The name of
//! an Event is a digest of its content: the first agent creates the Event, the requests of the
//! others fail because it exists. The API server deletes Events after an hour. `event_limit`
//! limits the Events about each object, and the recorder limits their total rate.
//!
//! `kube::runtime::events::Recorder` does not fit. It derives the name from the time, so that every
//! agent would create an Event of its own; it treats two Events as equal if only their notes
//! differ; and it has no limits.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass, ServiceCIDR};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client, Resource};
use lb_model::{ObjectName, Problem, Severity};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{debug, warn};

use super::event_limit::{Admission, EventLimit};

/// The number of Events that can wait. Further ones appear only in the log.
const QUEUE: usize = 256;
/// The time between two Events. It bounds the load on the API server of a cluster with many faults.
const PACE: Duration = Duration::from_millis(200);
/// The pauses before further attempts if the API server does not respond.
const RETRIES: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(20)];
const CONTROLLER: &str = "sluice.dev/agent";
/// The maximum length of a note in bytes (pkg/apis/core/validation/events.go).
const NOTE_MAX: usize = 1024;
/// The part of the object's name that the name of an Event contains. A name has at most 253
/// characters (DNS subdomain); a dot and 16 digits follow.
const NAME_MAX: usize = 253 - 17;

/// A message about an object, nearly always a warning. [`EventRecorder`] writes it as an Event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectWarning {
    kind: &'static str,
    /// Empty for kinds without namespaces.
    namespace: String,
    name: String,
    /// UpperCamelCase.
    reason: String,
    action: &'static str,
    /// `Warning` or `Normal`.
    event_type: &'static str,
    note: String,
    /// The warning concerns this node only: each node writes an Event of its own.
    node_specific: bool,
    /// The warning stands for all similar ones that follow.
    combined: bool,
}

impl ObjectWarning {
    /// Returns the warning about a problem. Returns `None` for mere notes, and for problems that
    /// concern no API object.
    pub fn from_problem(problem: &Problem) -> Option<Self> {
        let (kind, namespace, name) = problem.object_reference()?;
        let field = match &*problem.field {
            "" => String::new(),
            field => format!("{field}: "),
        };
        (problem.severity == Severity::Error).then(|| Self {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            reason: upper_camel_case(problem.kind.code()),
            action: "Serve",
            event_type: "Warning",
            note: format!("{field}{}: {}", problem.reason, problem.remedy),
            node_specific: false,
            combined: false,
        })
    }

    /// Returns the warning that the health check port of a Service cannot be opened. The reason is
    /// that of kube-proxy.
    pub fn health_check_failed(service: &ObjectName, note: String) -> Self {
        Self::of_this_node(service, "FailedToStartServiceHealthcheck", "Listen", "Warning", note)
    }

    /// Returns the message that an endpoint of a Service that drains has no connections through
    /// this node any more.
    pub fn drained(service: &ObjectName, note: String) -> Self {
        Self::of_this_node(service, "EndpointDrained", "Drain", "Normal", note)
    }

    /// Returns the warning that an endpoint of a Service gets no new connections for a while.
    pub fn left_out(service: &ObjectName, note: String) -> Self {
        Self::of_this_node(service, "EndpointLeftOut", "LeaveOut", "Warning", note)
    }

    /// Returns a message about a Service that concerns this node only.
    fn of_this_node(
        service: &ObjectName,
        reason: &str,
        action: &'static str,
        event_type: &'static str,
        note: String,
    ) -> Self {
        Self {
            kind: "Service",
            namespace: service.namespace().to_owned(),
            name: service.name().to_owned(),
            reason: reason.to_owned(),
            action,
            event_type,
            note,
            node_specific: true,
            combined: false,
        }
    }

    fn api_version(&self) -> &'static str {
        match self.kind {
            "EndpointSlice" => "discovery.k8s.io/v1",
            "ServiceCIDR" | "Ingress" | "IngressClass" => "networking.k8s.io/v1",
            _ => "v1",
        }
    }

    /// Returns the namespace of the Event: `default` for objects without a namespace.
    fn namespace(&self) -> &str {
        if self.namespace.is_empty() { "default" } else { &self.namespace }
    }

    /// Kind, namespace and name.
    fn object(&self) -> String {
        format!("{} {}/{}", self.kind, self.namespace, self.name)
    }

    fn event(&self, uid: String, node: &str, now: Timestamp) -> Event {
        let reporter = if self.node_specific { node } else { "" };
        let (note, digest) = if self.combined {
            let note = format!("(combined from similar events): {}", self.note);
            (note, fnv1a(&[&uid, reporter, &self.reason]))
        } else {
            (self.note.clone(), fnv1a(&[&uid, reporter, &self.reason, &self.note]))
        };
        // Names are ASCII.
        let name = self.name.get(..NAME_MAX).unwrap_or(&self.name);
        Event {
            metadata: ObjectMeta {
                namespace: Some(self.namespace().to_owned()),
                name: Some(format!("{name}.{digest:016x}")),
                ..ObjectMeta::default()
            },
            event_time: Some(MicroTime(now)),
            reporting_controller: Some(CONTROLLER.to_owned()),
            reporting_instance: Some(node.to_owned()),
            type_: Some(self.event_type.to_owned()),
            reason: Some(self.reason.clone()),
            action: Some(self.action.to_owned()),
            note: Some(note[..note.floor_char_boundary(NOTE_MAX)].to_owned()),
            regarding: Some(ObjectReference {
                api_version: Some(self.api_version().to_owned()),
                kind: Some(self.kind.to_owned()),
                namespace: Some(self.namespace.clone()).filter(|namespace| !namespace.is_empty()),
                name: Some(self.name.clone()),
                // `kubectl describe` shows only Events with the UID of the object.
                uid: Some(uid),
                ..ObjectReference::default()
            }),
            ..Event::default()
        }
    }
}

fn upper_camel_case(word: &str) -> String {
    let capitalized = |part: &str| {
        let (first, rest) = part.split_at_checked(1).unwrap_or((part, ""));
        first.to_ascii_uppercase() + rest
    };
    word.split('_').map(capitalized).collect()
}

/// Returns the FNV-1a hash. Agents of all versions must compute the same value, and the hash of the
/// standard library may change.
fn fnv1a(parts: &[&str]) -> u64 {
    // UTF-8 text does not contain the separator 0xff.
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0xff]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Accepts warnings without waiting, and writes them as Events in a task.
#[derive(Debug, Clone)]
pub struct EventRecorder {
    queue: mpsc::Sender<ObjectWarning>,
    limit: Arc<Mutex<EventLimit>>,
}

impl EventRecorder {
    /// Starts the task, which ends when the last clone of the recorder is dropped. `node` is the
    /// name of the Node of this process.
    pub fn start(client: Client, node: &str) -> Self {
        let (queue, warnings) = mpsc::channel(QUEUE);
        tokio::spawn(write_events(client, node.to_owned(), warnings));
        Self { queue, limit: Arc::default() }
    }

    /// Queues a warning. Drops it if the limit of its object is reached, or if the queue is full.
    pub fn record(&self, mut warning: ObjectWarning) {
        let note = fnv1a(&[&warning.note]);
        let admission = (self.limit.lock().unwrap_or_else(PoisonError::into_inner)).admit(
            &warning.object(),
            &warning.reason,
            note,
            Instant::now(),
        );
        match admission {
            Admission::Individual => {}
            Admission::Combined => warning.combined = true,
            Admission::Suppressed => {
                debug!(object = warning.object(), "Event suppressed: limit of the object");
                return;
            }
        }
        if let Err(TrySendError::Full(warning)) = self.queue.try_send(warning) {
            debug!(object = warning.object(), "Event suppressed: queue is full");
        }
    }
}

async fn write_events(client: Client, node: String, mut warnings: mpsc::Receiver<ObjectWarning>) {
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut forbidden = false;
    while let Some(warning) = warnings.recv().await {
        pace.tick().await;
        match publish(&client, &warning, &node).await {
            Err(error) if is_status(&error, FORBIDDEN) && !forbidden => {
                forbidden = true;
                warn!(
                    "cannot write Events: {error}: grant the agent's account the verb create on \
                     events.events.k8s.io (see the ClusterRole in deploy/)"
                );
            }
            Err(error) => debug!(?warning, "cannot write an Event: {error}"),
            Ok(()) => {}
        }
    }
}

const FORBIDDEN: u16 = 403;
const NOT_FOUND: u16 = 404;
const CONFLICT: u16 = 409;

fn is_status(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

async fn publish(client: &Client, warning: &ObjectWarning, node: &str) -> kube::Result<()> {
    let mut retries = RETRIES.into_iter();
    loop {
        match try_publish(client, warning, node).await {
            // The object has been deleted, or the Event exists.
            Err(error) if is_status(&error, NOT_FOUND) || is_status(&error, CONFLICT) => return Ok(()),
            Err(error @ kube::Error::Api(_)) => return Err(error),
            Err(error) => match retries.next() {
                Some(pause) => sleep(pause).await,
                None => return Err(error),
            },
            Ok(()) => return Ok(()),
        }
    }
}

async fn try_publish(client: &Client, warning: &ObjectWarning, node: &str) -> kube::Result<()> {
    let ObjectWarning { kind, namespace, name, .. } = warning;
    let uid = match *kind {
        "Service" => uid(Api::<Service>::namespaced(client.clone(), namespace), name).await?,
        "EndpointSlice" => uid(Api::<EndpointSlice>::namespaced(client.clone(), namespace), name).await?,
        "Pod" => uid(Api::<Pod>::namespaced(client.clone(), namespace), name).await?,
        "Node" => uid(Api::<Node>::all(client.clone()), name).await?,
        "ServiceCIDR" => uid(Api::<ServiceCIDR>::all(client.clone()), name).await?,
        "Ingress" => uid(Api::<Ingress>::namespaced(client.clone(), namespace), name).await?,
        "IngressClass" => uid(Api::<IngressClass>::all(client.clone()), name).await?,
        "Secret" => uid(Api::<Secret>::namespaced(client.clone(), namespace), name).await?,
        // No program reads other kinds from an API server.
        _ => return Ok(()),
    };
    let event = warning.event(uid, node, Timestamp::now());
    let events = Api::<Event>::namespaced(client.clone(), warning.namespace());
    events.create(&PostParams::default(), &event).await.map(drop)
}

async fn uid<K: Resource + Clone + std::fmt::Debug + DeserializeOwned>(
    api: Api<K>,
    name: &str,
) -> kube::Result<String> {
    Ok(api.get_metadata(name).await?.metadata.uid.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use lb_model::ProblemKind;

    use super::*;

    fn problem(severity: Severity, object: &str) -> Problem {
        Problem {
            severity,
            location: None,
            object: object.into(),
            field: "spec.externalIPs".into(),
            kind: ProblemKind::AddressTaken,
            reason: "203.0.113.1 belongs to Service default/shop".into(),
            remedy: "choose another one".into(),
        }
    }

    fn warning(object: &str) -> Option<ObjectWarning> {
        ObjectWarning::from_problem(&problem(Severity::Error, object))
    }

    #[test]
    fn an_event_describes_the_problem_of_an_object() {
        let event =
            warning("Service default/web").unwrap().event("u-1".into(), "node-1", Timestamp::UNIX_EPOCH);
        assert_eq!(
            serde_json::to_value(&event).unwrap(),
            serde_json::json!({
                "apiVersion": "events.k8s.io/v1",
                "kind": "Event",
                "metadata": { "namespace": "default", "name": event.metadata.name },
                "eventTime": "1970-01-01T00:00:00.000000Z",
                "reportingController": "sluice.dev/agent",
                "reportingInstance": "node-1",
                "type": "Warning",
                "reason": "AddressTaken",
                "action": "Serve",
                "note": "spec.externalIPs: 203.0.113.1 belongs to Service default/shop: choose another one",
                "regarding": {
                    "apiVersion": "v1", "kind": "Service", "namespace": "default", "name": "web", "uid": "u-1",
                },
            })
        );
    }

    #[test]
    fn notes_and_problems_without_an_object_have_no_event() {
        assert_eq!(ObjectWarning::from_problem(&problem(Severity::Note, "Service default/web")), None);
        assert_eq!(warning("cannot list services"), None);
        assert_eq!(warning("/etc/sluice/web.yaml"), None);
    }

    #[test]
    fn the_name_of_an_event_depends_on_the_object_and_the_problem_only() {
        let name = |warning: &ObjectWarning, uid: &str, node: &str| {
            warning.event(uid.into(), node, Timestamp::now()).metadata.name.unwrap()
        };
        let everywhere = warning("Service default/web").unwrap();
        assert_eq!(name(&everywhere, "u-1", "node-1"), name(&everywhere, "u-1", "node-2"));
        assert_ne!(name(&everywhere, "u-1", "node-1"), name(&everywhere, "u-2", "node-1"));
        // A combined Event stands for any of the similar ones.
        let combined = |object| ObjectWarning { combined: true, ..warning(object).unwrap() };
        let similar = ObjectWarning { note: "198.51.100.1".into(), ..combined("Service default/web") };
        assert_eq!(name(&combined("Service default/web"), "u-1", "a"), name(&similar, "u-1", "b"));
        assert_ne!(name(&similar, "u-1", "a"), name(&everywhere, "u-1", "a"));
        let web = ObjectName::new("default", "web");
        let here = ObjectWarning::health_check_failed(&web, "address in use".into());
        assert_ne!(name(&here, "u-1", "node-1"), name(&here, "u-1", "node-2"));
        // The published offset basis of FNV-1a.
        assert_eq!(fnv1a(&[]), 0xcbf2_9ce4_8422_2325);
        assert_ne!(fnv1a(&["ab", ""]), fnv1a(&["a", "b"]));
    }

    #[test]
    fn the_recorder_queues_a_limited_number_of_warnings_about_an_object() {
        let (queue, mut warnings) = mpsc::channel(QUEUE);
        let recorder = EventRecorder { queue, limit: Arc::default() };
        for number in 0..100 {
            let note = format!("spec.externalIPs: 203.0.113.{number} belongs to Service default/shop");
            recorder.record(ObjectWarning { note, ..warning("Service default/web").unwrap() });
        }
        recorder.record(warning("Service default/api").unwrap());
        let queued: Vec<_> = std::iter::from_fn(|| warnings.try_recv().ok()).collect();
        assert_eq!(queued.len(), 12);
        assert!(queued[..10].iter().all(|warning| !warning.combined));
        assert!(queued[10].combined);
        let event = queued[10].event("u-1".into(), "node-1", Timestamp::UNIX_EPOCH);
        assert_eq!(
            event.note.as_deref(),
            Some(
                "(combined from similar events): spec.externalIPs: 203.0.113.10 belongs to Service \
                 default/shop"
            )
        );
        assert_eq!(queued[11].name, "api");
    }

    #[test]
    fn long_notes_and_names_are_truncated() {
        let long = Problem { reason: "é".repeat(2000).into(), ..problem(Severity::Error, "Node worker-1") };
        let event =
            ObjectWarning::from_problem(&long).unwrap().event("u".into(), "worker-1", Timestamp::now());
        assert!(event.note.unwrap().len() <= NOTE_MAX);
        assert_eq!(event.metadata.namespace.as_deref(), Some("default"));
        assert_eq!(event.regarding.unwrap().namespace, None);
        let event =
            warning(&format!("Node {}", "n".repeat(253))).unwrap().event("u".into(), "", Timestamp::now());
        assert_eq!(event.metadata.name.unwrap().len(), 253);
    }
}
