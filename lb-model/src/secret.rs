//! Secrets.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::problem::ManifestLocation;

/// A Secret. Its values appear in no log and no error.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret {
    /// Set if the Secret was read from a manifest folder.
    pub location: Option<Arc<ManifestLocation>>,
    /// Such as `kubernetes.io/tls`.
    pub kind: Box<str>,
    /// Keys and decoded values.
    pub data: BTreeMap<Box<str>, Box<[u8]>>,
}

impl Secret {
    /// The type of Secrets with a certificate and its key.
    pub const TLS: &str = "kubernetes.io/tls";

    /// Returns the value of a key.
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        self.data.get(key).map(|value| &**value)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<_> = self.data.iter().map(|(key, value)| (key, value.len())).collect();
        f.debug_struct("Secret").field("kind", &self.kind).field("lengths", &keys).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_not_printed() {
        let data = [("tls.key".into(), b"hush".as_slice().into())].into();
        let secret = Secret { kind: "kubernetes.io/tls".into(), data, ..Secret::default() };
        assert_eq!(
            format!("{secret:?}"),
            r#"Secret { kind: "kubernetes.io/tls", lengths: [("tls.key", 4)], .. }"#
        );
        assert_eq!(secret.get("tls.key"), Some(&b"hush"[..]));
        assert_eq!(secret.get("tls.crt"), None);
    }
}
