//! Converts the forms of Ingress that Kubernetes removed in 1.22 to `networking.k8s.io/v1`.
//!
//! No API server accepts them, but many documents that people learn from use them.

use serde_json::{Map, Value, json};

/// The versions in the old form.
pub(super) const VERSIONS: [&str; 2] = ["extensions/v1beta1", "networking.k8s.io/v1beta1"];

/// Rewrites an Ingress in place: `serviceName` and `servicePort` become `service`, `spec.backend`
/// becomes `spec.defaultBackend`, and a path without a type is ImplementationSpecific.
pub(super) fn convert(ingress: &mut Value) {
    ingress["apiVersion"] = "networking.k8s.io/v1".into();
    let Some(spec) = ingress.get_mut("spec").and_then(Value::as_object_mut) else { return };
    if let Some(mut backend) = spec.remove("backend") {
        convert_backend(&mut backend);
        spec.entry("defaultBackend").or_insert(backend);
    }
    let rules = spec.get_mut("rules").and_then(Value::as_array_mut);
    for rule in rules.into_iter().flatten() {
        let paths = rule.pointer_mut("/http/paths").and_then(Value::as_array_mut);
        for path in paths.into_iter().flatten().filter_map(Value::as_object_mut) {
            path.entry("pathType").or_insert_with(|| "ImplementationSpecific".into());
            if let Some(backend) = path.get_mut("backend") {
                convert_backend(backend);
            }
        }
    }
}

fn convert_backend(backend: &mut Value) {
    let Some(fields) = backend.as_object_mut() else { return };
    let (name, port) = (fields.remove("serviceName"), fields.remove("servicePort"));
    if name.is_none() && port.is_none() {
        return;
    }
    let mut service = Map::new();
    service.extend(name.map(|name| ("name".to_owned(), name)));
    service.extend(port.map(|port| {
        // `servicePort: "80"` is the number, as a name has a letter (RFC 6335 5.1).
        let number = port.as_str().and_then(|text| text.parse::<u16>().ok());
        let port = match (number, port) {
            (Some(number), _) => json!({"number": number}),
            (None, Value::String(name)) => json!({"name": name}),
            (None, other) => json!({"number": other}),
        };
        ("port".to_owned(), port)
    }));
    fields.insert("service".to_owned(), service.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_fields_get_their_new_names() {
        let mut ingress = json!({
            "apiVersion": "extensions/v1beta1",
            "spec": {
                "backend": {"serviceName": "other", "servicePort": "80"},
                "rules": [{"host": "a.example", "http": {"paths": [
                    {"backend": {"serviceName": "tomcat", "servicePort": 8080}},
                    {"path": "/x", "pathType": "Exact", "backend": {"serviceName": "web", "servicePort": "http"}},
                ]}}, {"host": "b.example"}],
            },
        });
        convert(&mut ingress);
        let service = |name: &str, port| json!({"service": {"name": name, "port": port}});
        assert_eq!(
            ingress,
            json!({
                "apiVersion": "networking.k8s.io/v1",
                "spec": {
                    "defaultBackend": service("other", json!({"number": 80})),
                    "rules": [{"host": "a.example", "http": {"paths": [
                        {"pathType": "ImplementationSpecific", "backend": service("tomcat", json!({"number": 8080}))},
                        {"path": "/x", "pathType": "Exact", "backend": service("web", json!({"name": "http"}))},
                    ]}}, {"host": "b.example"}],
                },
            })
        );
    }
}
