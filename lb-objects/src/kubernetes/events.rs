//! Kubernetes Events: what is wrong with an object is said where its owner looks, in `kubectl describe`.
//!
//! Every agent of a cluster sees the same faulty object, and each one again when it starts. The name of an Event follows
//! from what it says, so the first to say it creates it and the others find it there; the API server forgets Events after
//! an hour.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, ObjectReference, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client, Resource};
use lb_model::{ObjectName, Problem, Severity};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{debug, warn};

/// Events that may wait. More than these are in the log alone.
const QUEUE: usize = 256;
/// Between two Events: a cluster full of faults must not become a load on its API server.
const PACE: Duration = Duration::from_millis(200);
/// Pauses before further attempts, when the API server does not answer.
const RETRIES: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(20)];
const CONTROLLER: &str = "sluice.dev/agent";
/// In bytes (pkg/apis/core/validation/events.go).
const NOTE_MAX: usize = 1024;
/// A DNS subdomain has 253 characters; the rest is for the dot and the digits.
const NAME_MAX: usize = 253 - 17;

/// Something to say of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectWarning {
    kind: &'static str,
    /// Empty for kinds without namespaces.
    namespace: String,
    name: String,
    /// UpperCamelCase.
    reason: String,
    action: &'static str,
    note: String,
    /// True here and not everywhere: each node says it by itself.
    of_this_node: bool,
}

impl ObjectWarning {
    /// None when nothing is wrong for sure, and for what is no object of the API.
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
            note: format!("{field}{}: {}", problem.reason, problem.remedy),
            of_this_node: false,
        })
    }

    /// The port by which load balancers ask cannot be opened. kube-proxy says it with the same reason.
    pub fn health_check_failed(service: &ObjectName, note: String) -> Self {
        Self {
            kind: "Service",
            namespace: service.namespace().to_owned(),
            name: service.name().to_owned(),
            reason: "FailedToStartServiceHealthcheck".to_owned(),
            action: "Listen",
            note,
            of_this_node: true,
        }
    }

    fn api_version(&self) -> &'static str {
        match self.kind {
            "EndpointSlice" => "discovery.k8s.io/v1",
            "ServiceCIDR" => "networking.k8s.io/v1",
            _ => "v1",
        }
    }

    /// Where its Event is: that of an object without a namespace is in `default`.
    fn namespace(&self) -> &str {
        if self.namespace.is_empty() { "default" } else { &self.namespace }
    }

    fn event(&self, uid: String, node: &str, now: Timestamp) -> Event {
        let said_by = if self.of_this_node { node } else { "" };
        let digest = fnv1a(&[&uid, said_by, &self.reason, &self.note]);
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
            type_: Some("Warning".to_owned()),
            reason: Some(self.reason.clone()),
            action: Some(self.action.to_owned()),
            note: Some(self.note[..self.note.floor_char_boundary(NOTE_MAX)].to_owned()),
            regarding: Some(ObjectReference {
                api_version: Some(self.api_version().to_owned()),
                kind: Some(self.kind.to_owned()),
                namespace: Some(self.namespace.clone()).filter(|namespace| !namespace.is_empty()),
                name: Some(self.name.clone()),
                // `kubectl describe` shows only Events that name it.
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

/// FNV-1a: agents of any version must come to the same number.
fn fnv1a(parts: &[&str]) -> u64 {
    // What separates the parts is in no text.
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0xff]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Takes notices and never waits.
#[derive(Debug, Clone)]
pub struct EventRecorder(mpsc::Sender<ObjectWarning>);

impl EventRecorder {
    /// Writes Events in a task that ends with the last recorder.
    pub fn start(client: Client, node: &str) -> Self {
        let (sender, mut notices) = mpsc::channel(QUEUE);
        let node = node.to_owned();
        tokio::spawn(async move {
            let mut pace = interval(PACE);
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut forbidden = false;
            while let Some(notice) = notices.recv().await {
                pace.tick().await;
                match publish(&client, &notice, &node).await {
                    Err(error) if is_status(&error, FORBIDDEN) && !forbidden => {
                        forbidden = true;
                        warn!(
                            "Events cannot be written: {error}: allow the agent's account the verb create on \
                             events.events.k8s.io (deploy/ has the ClusterRole)"
                        );
                    }
                    Err(error) => debug!(?notice, "cannot write an Event: {error}"),
                    Ok(()) => {}
                }
            }
        });
        Self(sender)
    }

    pub fn record(&self, notice: ObjectWarning) {
        if self.0.try_send(notice).is_err() {
            debug!("too many Events wait: one is left out");
        }
    }
}

const FORBIDDEN: u16 = 403;
const NOT_FOUND: u16 = 404;
const CONFLICT: u16 = 409;

fn is_status(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

async fn publish(client: &Client, notice: &ObjectWarning, node: &str) -> kube::Result<()> {
    let mut retries = RETRIES.into_iter();
    loop {
        match try_publish(client, notice, node).await {
            // The object is gone, or the Event is there.
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

async fn try_publish(client: &Client, notice: &ObjectWarning, node: &str) -> kube::Result<()> {
    let ObjectWarning { kind, namespace, name, .. } = notice;
    let uid = match *kind {
        "Service" => uid(Api::<Service>::namespaced(client.clone(), namespace), name).await?,
        "EndpointSlice" => uid(Api::<EndpointSlice>::namespaced(client.clone(), namespace), name).await?,
        "Node" => uid(Api::<Node>::all(client.clone()), name).await?,
        "ServiceCIDR" => uid(Api::<ServiceCIDR>::all(client.clone()), name).await?,
        // Not read from an API server.
        _ => return Ok(()),
    };
    let event = notice.event(uid, node, Timestamp::now());
    let events = Api::<Event>::namespaced(client.clone(), notice.namespace());
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
            reason: "203.0.113.1 is held by Service default/shop".into(),
            remedy: "choose another one".into(),
        }
    }

    fn notice(object: &str) -> Option<ObjectWarning> {
        ObjectWarning::from_problem(&problem(Severity::Error, object))
    }

    #[test]
    fn an_event_says_what_is_wrong_at_the_object() {
        let event =
            notice("Service default/web").unwrap().event("u-1".into(), "node-1", Timestamp::UNIX_EPOCH);
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
                "note": "spec.externalIPs: 203.0.113.1 is held by Service default/shop: choose another one",
                "regarding": {
                    "apiVersion": "v1", "kind": "Service", "namespace": "default", "name": "web", "uid": "u-1",
                },
            })
        );
    }

    #[test]
    fn what_is_no_fault_of_an_object_makes_no_event() {
        assert_eq!(ObjectWarning::from_problem(&problem(Severity::Note, "Service default/web")), None);
        assert_eq!(notice("cannot list services"), None);
        assert_eq!(notice("/etc/sluice/web.yaml"), None);
    }

    #[test]
    fn the_same_fault_has_the_same_name_on_every_node_until_the_object_is_another() {
        let name = |notice: &ObjectWarning, uid: &str, node: &str| {
            notice.event(uid.into(), node, Timestamp::now()).metadata.name.unwrap()
        };
        let everywhere = notice("Service default/web").unwrap();
        assert_eq!(name(&everywhere, "u-1", "node-1"), name(&everywhere, "u-1", "node-2"));
        assert_ne!(name(&everywhere, "u-1", "node-1"), name(&everywhere, "u-2", "node-1"));
        let web = ObjectName::new("default", "web");
        let here = ObjectWarning::health_check_failed(&web, "address in use".into());
        assert_ne!(name(&here, "u-1", "node-1"), name(&here, "u-1", "node-2"));
        // Published values for FNV-1a: agents of different versions must agree.
        assert_eq!(fnv1a(&[]), 0xcbf2_9ce4_8422_2325);
        assert_ne!(fnv1a(&["ab", ""]), fnv1a(&["a", "b"]));
    }

    #[test]
    fn long_texts_and_names_are_cut() {
        let long = Problem { reason: "é".repeat(2000).into(), ..problem(Severity::Error, "Node worker-1") };
        let event =
            ObjectWarning::from_problem(&long).unwrap().event("u".into(), "worker-1", Timestamp::now());
        assert!(event.note.unwrap().len() <= NOTE_MAX);
        assert_eq!(event.metadata.namespace.as_deref(), Some("default"));
        assert_eq!(event.regarding.unwrap().namespace, None);
        let event =
            notice(&format!("Node {}", "n".repeat(253))).unwrap().event("u".into(), "", Timestamp::now());
        assert_eq!(event.metadata.name.unwrap().len(), 253);
    }
}
