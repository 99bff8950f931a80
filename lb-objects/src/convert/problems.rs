//! What the conversions have in common: a value, and the problems met on the way to it.

use std::fmt::Display;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use lb_model::{ObjectName, Problem, ProblemKind, Protocol, Severity};

/// What became of an API object. No value: nothing of it concerns the proxy.
#[derive(Debug, Clone)]
pub struct Converted<T> {
    pub name: ObjectName,
    pub value: Option<T>,
    pub problems: Vec<Problem>,
}

/// `metadata.namespace` and `metadata.name`. An object of a manifest folder without a namespace is in `default`, as
/// `kubectl apply` would put it.
pub(super) fn object_name(metadata: &ObjectMeta) -> ObjectName {
    ObjectName::new(
        metadata.namespace.as_deref().unwrap_or("default"),
        metadata.name.as_deref().unwrap_or_default(),
    )
}

pub(super) fn has_label(metadata: &ObjectMeta, label: &str) -> bool {
    metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(label))
}

/// How many problems of one object are told one by one. A slice can have a thousand endpoints, all wrong in one way.
const TOLD_PER_OBJECT: usize = 8;

/// Collects the problems of one object.
pub(super) struct Problems {
    object: Arc<str>,
    told: Vec<Problem>,
    untold: usize,
}

impl Problems {
    pub fn of(kind: &str, name: impl Display) -> Self {
        Self { object: format!("{kind} {name}").into(), told: Vec::new(), untold: 0 }
    }

    pub fn error(
        &mut self,
        kind: ProblemKind,
        field: impl Display,
        reason: impl Display,
        remedy: impl Display,
    ) {
        self.add((Severity::Error, kind), field, reason, remedy);
    }

    pub fn note(
        &mut self,
        kind: ProblemKind,
        field: impl Display,
        reason: impl Display,
        remedy: impl Display,
    ) {
        self.add((Severity::Note, kind), field, reason, remedy);
    }

    fn add(
        &mut self,
        (severity, kind): (Severity, ProblemKind),
        field: impl Display,
        reason: impl Display,
        remedy: impl Display,
    ) {
        if self.told.len() == TOLD_PER_OBJECT {
            self.untold += 1;
            return;
        }
        self.told.push(Problem {
            severity,
            location: None,
            object: self.object.clone(),
            field: field.to_string().into(),
            kind,
            reason: reason.to_string().into(),
            remedy: remedy.to_string().into(),
        });
    }

    pub fn into_vec(mut self) -> Vec<Problem> {
        if let (1.., Some(kind)) = (self.untold, self.told.last().map(|last| last.kind)) {
            self.told.push(Problem {
                severity: Severity::Error,
                location: None,
                object: self.object,
                field: "".into(),
                kind,
                reason: format!("{} more parts are invalid", self.untold).into(),
                remedy: "correct those above first".into(),
            });
        }
        self.told
    }

    /// A port number that traffic can have.
    pub fn port(&mut self, field: impl Display, number: i32) -> Option<u16> {
        let port = u16::try_from(number).ok().filter(|port| *port != 0);
        if port.is_none() {
            self.error(
                ProblemKind::OutOfRange,
                field,
                format_args!("{number} is not a port number"),
                "use a number from 1 to 65535",
            );
        }
        port
    }

    /// The protocol of a port; the API's default is TCP.
    pub fn protocol(&mut self, field: impl Display, protocol: Option<&str>) -> Option<Protocol> {
        match protocol {
            None | Some("" | "TCP") => Some(Protocol::Tcp),
            Some("UDP") => Some(Protocol::Udp),
            Some("SCTP") => Some(Protocol::Sctp),
            Some(other) => {
                self.error(
                    ProblemKind::UnknownValue,
                    field,
                    format_args!("`{other}` is not a protocol that Services know"),
                    "use TCP, UDP or SCTP; this port is left out",
                );
                None
            }
        }
    }
}
