//! The collector of the problems of one object.

use std::fmt::Display;
use std::sync::Arc;

use crate::problem::{ManifestLocation, Problem, ProblemKind, Severity};
use crate::protocol::Protocol;

/// The number of problems of one object that are reported individually. A slice can have a thousand
/// endpoints that are all invalid for the same reason.
const REPORTED_PER_OBJECT: usize = 8;

/// Collects the problems of one object.
#[derive(Debug)]
pub struct Problems {
    object: Arc<str>,
    location: Option<Arc<ManifestLocation>>,
    reported: Vec<Problem>,
    suppressed: usize,
}

impl Problems {
    /// `kind` and `name` are those of the object.
    pub fn of(kind: &str, name: impl Display) -> Self {
        Self { object: format!("{kind} {name}").into(), location: None, reported: Vec::new(), suppressed: 0 }
    }

    /// Sets the place in a manifest folder that the object was read from.
    #[must_use]
    pub fn at(self, location: Option<Arc<ManifestLocation>>) -> Self {
        Self { location, ..self }
    }

    /// Adds an error of a field.
    pub fn error(
        &mut self,
        kind: ProblemKind,
        field: impl Display,
        reason: impl Display,
        remedy: impl Display,
    ) {
        self.add((Severity::Error, kind), field, reason, remedy);
    }

    /// Adds a note about a field.
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
            location: self.location.clone(),
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
                location: self.location,
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
