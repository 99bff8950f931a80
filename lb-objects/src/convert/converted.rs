//! The result type of all conversions, and metadata of objects.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use lb_model::{ObjectName, Problem};

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
