//! The result type of all conversions, and the collector of problems.

use std::fmt::Display;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use lb_model::{ObjectName, Problem, ProblemKind, Protocol, Severity};

/// The result of converting an API object.
#[derive(Debug, Clone)]
pub struct Converted<T> {
    pub name: ObjectName,
    /// `None` if the object does not concern this proxy.
    pub value: Option<T>,
    /// The invalid parts of the object, at most nine.
    pub problems: Vec<Problem>,
}

/// Returns `metadata.namespace` and `metadata.name`. The namespace of a manifest without one is
/// `default`, as for `kubectl apply`.
pub(super) fn object_name(metadata: &ObjectMeta) -> ObjectName {
    ObjectName::new(
        metadata.namespace.as_deref().unwrap_or("default"),
        metadata.name.as_deref().unwrap_or_default(),
    )
}

pub(super) fn has_label(metadata: &ObjectMeta, label: &str) -> bool {
    metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(label))
}

/// The number of problems of one object that are reported individually. A slice can have a thousand
/// endpoints that are all invalid for the same reason.
const REPORTED_PER_OBJECT: usize = 8;

/// Collects the problems of one object.
pub(super) struct Problems {
    object: Arc<str>,
    reported: Vec<Problem>,
    suppressed: usize,
}

impl Problems {
    pub fn of(kind: &str, name: impl Display) -> Self {
        Self { object: format!("{kind} {name}").into(), reported: Vec::new(), suppressed: 0 }
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
        if self.reported.len() == REPORTED_PER_OBJECT {
            self.suppressed += 1;
            return;
        }
        self.reported.push(Problem {
            severity,
            location: None,
            object: self.object.clone(),
            field: field.to_string().into(),
            kind,
            reason: reason.to_string().into(),
            remedy: remedy.to_string().into(),
        });
    }

    /// Returns the problems. The last one counts those that were suppressed, if any.
    pub fn into_vec(mut self) -> Vec<Problem> {
        if let (1.., Some(kind)) = (self.suppressed, self.reported.last().map(|last| last.kind)) {
            self.reported.push(Problem {
                severity: Severity::Error,
                location: None,
                object: self.object,
                field: "".into(),
                kind,
                reason: format!("{} more fields are invalid", self.suppressed).into(),
                remedy: "correct the reported fields first".into(),
            });
        }
        self.reported
    }

    /// Converts a port number. Reports a number outside 1 to 65535 and returns `None` for it.
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

    /// Parses the protocol of a port; the default is TCP. Reports an unknown protocol and returns
    /// `None` for it.
    pub fn protocol(&mut self, field: impl Display, protocol: Option<&str>) -> Option<Protocol> {
        match protocol {
            None | Some("" | "TCP") => Some(Protocol::Tcp),
            Some("UDP") => Some(Protocol::Udp),
            Some("SCTP") => Some(Protocol::Sctp),
            Some(unknown) => {
                self.error(
                    ProblemKind::UnknownValue,
                    field,
                    format_args!("`{unknown}` is not a supported protocol"),
                    "use TCP, UDP or SCTP; the port is ignored",
                );
                None
            }
        }
    }
}
