//! The names of objects.

use std::fmt;
use std::sync::Arc;

/// `namespace/name` of an object. Several indices hold the same name, so the string is shared:
/// a clone allocates nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ObjectName(Arc<str>);

impl ObjectName {
    /// `namespace` is empty for objects without a namespace.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self(format!("{namespace}/{name}").into())
    }

    /// Returns the namespace. It is empty for objects without a namespace.
    pub fn namespace(&self) -> &str {
        self.split().0
    }

    /// Returns the name without the namespace.
    pub fn name(&self) -> &str {
        self.split().1
    }

    fn split(&self) -> (&str, &str) {
        // A namespace is a DNS label and contains no slash: the first slash ends it.
        self.0.split_once('/').unwrap_or(("", &self.0))
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
