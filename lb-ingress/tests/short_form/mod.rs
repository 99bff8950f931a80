//! The short form of Ingresses and Services in `cases/ingress/*.txt`.

use serde_json::{Map, Value, json};

/// One step of a case.
#[derive(Default)]
pub struct Step {
    pub objects: Vec<Value>,
    /// Host and path of each request.
    pub requests: Vec<String>,
    /// Ingresses without a class are served.
    pub without_class: bool,
    /// The Service for requests that no Ingress matches.
    pub default_backend: Option<String>,
}

/// Returns the objects that the short form of a step describes.
pub fn expand(step: &str) -> Step {
    let mut expanded = Step::default();
    let parsed: Map<String, Value> =
        serde_saphyr::from_str(step).unwrap_or_else(|error| panic!("{error}\n{step}"));
    let mut items = vec![json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IngressClass", "metadata": {"name": "lb"},
        "spec": {"controller": "sluice.dev/ingress"},
    })];
    for (key, value) in parsed {
        match key.split_whitespace().collect::<Vec<_>>()[..] {
            ["service", name] => items.push(service(name, &value)),
            ["secret", name] => items.push(json!({
                "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": value,
            })),
            ["class", name] => items.push(json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "IngressClass", "spec": {"controller": value["controller"]},
                "metadata": {"name": name, "annotations": {
                    "ingressclass.kubernetes.io/is-default-class": value["default"].to_string(),
                }},
            })),
            ["ingress", name] => items.push(ingress(name, &value)),
            ["requests"] => expanded.requests = serde_json::from_value(value).unwrap(),
            ["without", "class"] => expanded.without_class = true,
            ["default", "backend"] => {
                expanded.default_backend = Some(value.as_str().unwrap().to_owned());
            }
            _ => panic!("no such object: {key}"),
        }
    }
    Step { objects: items, ..expanded }
}

/// `[80, http 8080]`, `ExternalName` or `headless 80`.
fn service(name: &str, value: &Value) -> Value {
    let port = |port: &Value| match port.as_str().and_then(|text| text.split_once(' ')) {
        Some((name, number)) => json!({"name": name, "port": number.parse::<u16>().unwrap()}),
        None => json!({"port": port}),
    };
    let spec = match value.as_str() {
        Some("ExternalName") => json!({"type": "ExternalName", "externalName": "www.example.org"}),
        Some(text) => {
            let number: u16 = text.strip_prefix("headless ").unwrap().parse().unwrap();
            json!({"clusterIP": "None", "ports": [{"port": number}]})
        }
        None => json!({"ports": value.as_array().unwrap().iter().map(port).collect::<Vec<_>>()}),
    };
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

/// `rules: [HOST TYPE PATH SERVICE:PORT]`, `default: SERVICE:PORT`, `tls: [SECRET HOST…]`.
/// Annotations without a slash have the prefix of ingress-nginx. The class is `lb` unless it is
/// set.
fn ingress(name: &str, value: &Value) -> Value {
    let annotations: Map<String, Value> = (value["annotations"].as_object().into_iter().flatten())
        .map(|(name, value)| {
            let prefix = if name.contains('/') { "" } else { "nginx.ingress.kubernetes.io/" };
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            (format!("{prefix}{name}"), text.into())
        })
        .collect();
    let texts = |field: &str| -> Vec<String> {
        let list = value[field].as_array().into_iter().flatten();
        list.map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    let rules: Vec<_> = texts("rules")
        .iter()
        .map(|rule| {
            let [host, kind, path, to] = rule.split(' ').collect::<Vec<_>>()[..] else {
                panic!("no rule: {rule}")
            };
            let host = if host == "*" { "" } else { host };
            json!({"host": host, "http": {"paths": [{"path": path, "pathType": kind, "backend": backend(to)}]}})
        })
        .collect();
    let tls: Vec<_> = texts("tls")
        .iter()
        .map(|entry| {
            let words: Vec<_> = entry.split(' ').collect();
            let secret = if words[0] == "-" { Value::Null } else { words[0].into() };
            json!({"secretName": secret, "hosts": words[1..]})
        })
        .collect();
    let class = match value.get("class") {
        Some(class) => class.clone(),
        None => "lb".into(),
    };
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
        "metadata": {"name": name, "annotations": annotations, "creationTimestamp": value["created"]},
        "spec": {
            "ingressClassName": class, "rules": rules, "tls": tls,
            "defaultBackend": value["default"].as_str().map(backend),
        },
    })
}

fn backend(text: &str) -> Value {
    let (name, port) = text.split_once(':').unwrap();
    match (name, port.parse::<u16>()) {
        ("resource", _) => json!({"resource": {"kind": "StorageBucket", "name": port}}),
        (_, Ok(number)) => json!({"service": {"name": name, "port": {"number": number}}}),
        (_, Err(_)) => json!({"service": {"name": name, "port": {"name": port}}}),
    }
}
