//! Problems of API objects, with their remedies.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// A part of the input that cannot be used. The rest of the object and all other objects are
/// served.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Problem {
    pub severity: Severity,
    /// Set if the object was read from a manifest folder.
    pub location: Option<Arc<ManifestLocation>>,
    /// Kind, namespace and name, such as `Service default/web`. For files it is the path, for
    /// watches the request that failed. Empty if a document could not be parsed.
    pub object: Arc<str>,
    /// Path of the field in the object, such as `spec.ports[1].nodePort`. Empty if the problem
    /// concerns the whole object.
    pub field: Box<str>,
    pub kind: ProblemKind,
    /// The fault of the field or object, such as "is not set".
    pub reason: Box<str>,
    /// The remedy for a person, and how the object is served until then.
    pub remedy: Box<str>,
}

impl Problem {
    /// Returns kind, namespace and name of the API object. The namespace is empty for kinds without
    /// namespaces. Returns `None` if the problem concerns no API object.
    pub fn object_reference(&self) -> Option<(&'static str, &str, &str)> {
        let (kind, name) = self.object.split_once(' ')?;
        let kind = OBJECT_KINDS.into_iter().find(|known| *known == kind)?;
        let (namespace, name) = name.split_once('/').unwrap_or(("", name));
        Some((kind, namespace, name))
    }
}

/// The kinds of API object that can have problems.
const OBJECT_KINDS: [&str; 9] = [
    "Service",
    "EndpointSlice",
    "Endpoints",
    "Node",
    "Pod",
    "ServiceCIDR",
    "Ingress",
    "IngressClass",
    "Secret",
];

/// The category of a problem. Its code is stable: metrics have it as a label, Events as the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProblemKind {
    /// A file, folder or document cannot be read or parsed.
    Unreadable,
    /// The API server refuses a list or watch request, or cannot be reached.
    Api,
    /// A required field is missing.
    Missing,
    /// The value does not have the type of its field.
    WrongType,
    /// A string that is not an allowed value of its field.
    UnknownValue,
    /// A number outside the range of its field.
    OutOfRange,
    InvalidAddress,
    InvalidCidr,
    /// An address whose family the object or list does not have.
    WrongFamily,
    /// A value that occurs twice in one object, or an object that exists twice.
    Duplicate,
    /// Two fields of one object contradict each other.
    Contradiction,
    /// An address and port that belong to another Service port.
    AddressTaken,
    /// An external IP that the configuration of the agent does not allow.
    NotAllowed,
    /// An EndpointSlice or an Ingress of a Service that does not exist, or does not have the port.
    NoService,
    /// A host and path that belong to another Ingress.
    RouteTaken,
    /// A class of Ingress, or a Secret, that does not exist.
    NoObject,
    /// A feature that is not implemented, or is refused.
    Unsupported,
    /// A setting without effect: the object is served without it.
    Ignored,
    /// An annotation whose value cannot be used.
    InvalidAnnotation,
    /// The agent reaches the API server at an address that only the agent itself serves.
    ApiServerIsService,
}

impl ProblemKind {
    /// Returns the code in snake case, such as `address_taken`.
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
            Self::RouteTaken => "route_taken",
            Self::NoObject => "no_object",
            Self::Unsupported => "unsupported",
            Self::Ignored => "ignored",
            Self::InvalidAnnotation => "invalid_annotation",
            Self::ApiServerIsService => "api_server_is_service",
        }
    }
}

impl fmt::Display for ProblemKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// Whether a problem is certain. Errors are logged as warnings and written as Events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// Part of the object is not served, or is probably not served as its author intended.
    Error,
    /// Perhaps intended, or a state that ends without intervention.
    Note,
}

/// A document in a file of the manifest folder.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ManifestLocation {
    pub file: Arc<Path>,
    /// Number of the document in the file, counted from 1.
    pub document: u32,
    /// Line in the file, counted from 1: the line of the error if it is known, otherwise the first
    /// line of the document.
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
    fn object_reference_is_set_for_api_objects_only() {
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
