use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Something in the input that cannot be used as it stands. The rest of the object, and every other object, is served.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Problem {
    pub severity: Severity,
    /// Where the object was read, if from a manifest folder.
    pub location: Option<Arc<ManifestLocation>>,
    /// Kind, namespace and name, such as `Service default/web`; empty when a file could not be read that far.
    pub object: Arc<str>,
    /// Path of the field inside the object, such as `spec.ports[1].nodePort`; empty when it is the whole object.
    pub field: Box<str>,
    pub kind: ProblemKind,
    pub reason: Box<str>,
    /// What a person can do, and what becomes of the object until then.
    pub remedy: Box<str>,
}

impl Problem {
    /// Kind, namespace and name of the API object; none when it is about something else. Objects without a namespace have an
    /// empty one.
    pub fn object_reference(&self) -> Option<(&'static str, &str, &str)> {
        let (kind, name) = self.object.split_once(' ')?;
        let kind = OBJECT_KINDS.into_iter().find(|known| *known == kind)?;
        let (namespace, name) = name.split_once('/').unwrap_or(("", name));
        Some((kind, namespace, name))
    }
}

/// The kinds of API object that problems are about.
const OBJECT_KINDS: [&str; 5] = ["Service", "EndpointSlice", "Endpoints", "Node", "ServiceCIDR"];

/// What is wrong, in one word: stable, for the labels of metrics and the reasons of Events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProblemKind {
    /// A file, folder or document cannot be read at all.
    Unreadable,
    /// The API server refuses a list or a watch, or is not reached.
    Api,
    /// Something that must be there is not.
    Missing,
    /// The value does not have the type of its field.
    WrongType,
    /// A word that is not among those of its field.
    UnknownValue,
    /// A number outside the limits of its field.
    OutOfRange,
    InvalidAddress,
    InvalidCidr,
    /// An address of a family that its object or list is not of.
    WrongFamily,
    /// Said twice in one object, or an object that is there twice.
    Duplicate,
    /// Two fields of one object do not go together.
    Contradiction,
    /// An address and port that another Service port holds.
    AddressTaken,
    /// An external IP that the operator does not allow.
    NotAllowed,
    /// An EndpointSlice of a Service that does not exist.
    NoService,
}

impl ProblemKind {
    pub fn code(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::Api => "api",
            Self::Missing => "missing",
            Self::WrongType => "wrong_type",
            Self::UnknownValue => "unknown_value",
            Self::OutOfRange => "out_of_range",
            Self::InvalidAddress => "invalid_address",
            Self::InvalidCidr => "invalid_cidr",
            Self::WrongFamily => "wrong_family",
            Self::Duplicate => "duplicate",
            Self::Contradiction => "contradiction",
            Self::AddressTaken => "address_taken",
            Self::NotAllowed => "not_allowed",
            Self::NoService => "no_service",
        }
    }
}

impl fmt::Display for ProblemKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// Part of what was asked for is not served, or is hardly what was meant.
    Error,
    /// Nothing is wrong for sure: the state often passes by itself, or is meant.
    Note,
}

/// A document in a file of the manifest folder.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ManifestLocation {
    pub file: Arc<Path>,
    /// Number of the document in the file, from 1.
    pub document: u32,
    /// Line in the file, from 1: of the error if it is known, else of the beginning of the document.
    pub line: u32,
}

impl fmt::Display for ManifestLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: document {} (line {})", self.file.display(), self.document, self.line)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(location) = &self.location {
            write!(f, "{location}: ")?;
        }
        for part in [&*self.object, &*self.field] {
            if !part.is_empty() {
                write!(f, "{part}: ")?;
            }
        }
        write!(f, "{}: {}", self.reason, self.remedy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_subject_of_a_problem_is_an_api_object() {
        let about = |object: &str| Problem {
            severity: Severity::Error,
            location: None,
            object: object.into(),
            field: "".into(),
            kind: ProblemKind::Missing,
            reason: "".into(),
            remedy: "".into(),
        };
        for (object, expected) in [
            ("Service default/web", Some(("Service", "default", "web"))),
            ("Node worker-1", Some(("Node", "", "worker-1"))),
            ("", None),
            ("/etc/sluice/web.yaml", None),
            ("cannot list services", None),
        ] {
            assert_eq!(about(object).object_reference(), expected, "{object}");
        }
    }
}
