//! Converts Secrets.

use k8s_openapi::api::core::v1;
use lb_model::Secret;

use super::converted::{Converted, object_name};

/// Converts a Secret. `stringData`, which only manifests have, replaces `data`, as at the API
/// server.
pub fn secret(secret: &v1::Secret) -> Converted<Secret> {
    let mut data: std::collections::BTreeMap<&str, &[u8]> =
        secret.data.iter().flatten().map(|(key, value)| (key.as_str(), value.0.as_slice())).collect();
    data.extend(secret.string_data.iter().flatten().map(|(key, value)| (key.as_str(), value.as_bytes())));
    let value = Secret {
        location: None,
        kind: secret.type_.as_deref().unwrap_or("Opaque").into(),
        data: data.into_iter().map(|(key, value)| (key.into(), value.into())).collect(),
    };
    Converted { name: object_name(&secret.metadata), value: Some(value), problems: Vec::new() }
}
