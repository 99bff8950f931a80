use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Something in the input that cannot be used as it stands. The rest of the object, and every other object, is served.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Problem {
    pub severity: Severity,
    /// Where the object was read, if from a manifest folder.
    pub place: Option<Arc<Place>>,
    /// Kind, namespace and name, such as `Service default/web`; empty when a file could not be read that far.
    pub object: Arc<str>,
    /// Path of the field inside the object, such as `spec.ports[1].nodePort`; empty when it is the whole object.
    pub field: Box<str>,
    pub reason: Box<str>,
    /// What a person can do, and what becomes of the object until then.
    pub remedy: Box<str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// Part of what was asked for is not served.
    Error,
    /// Nothing is wrong for sure: the state often passes by itself, or is meant.
    Note,
}

/// A document in a file of the manifest folder.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    pub file: Arc<Path>,
    /// Number of the document in the file, from 1.
    pub document: u32,
    /// Line in the file, from 1: of the error if it is known, else of the beginning of the document.
    pub line: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: document {} (line {})", self.file.display(), self.document, self.line)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        for part in [&*self.object, &*self.field] {
            if !part.is_empty() {
                write!(f, "{part}: ")?;
            }
        }
        write!(f, "{}: {}", self.reason, self.remedy)
    }
}
