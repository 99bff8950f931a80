//! Converts Ingresses and IngressClasses.

use k8s_openapi::api::networking::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use lb_model::{
    Ingress, IngressBackend, IngressClass, IngressPath, IngressRule, IngressTls, PathType, PortRef,
    ProblemKind, Problems, PublishedAddress,
};

use super::converted::{Converted, object_name};

/// Annotations of Ingresses that concern Ingress controllers begin with one of these texts.
const ANNOTATIONS: [&str; 3] = ["kubernetes.io/ingress.", "nginx.ingress.kubernetes.io/", "lb.sluice.dev/"];

const DEFAULT_CLASS_ANNOTATION: &str = "ingressclass.kubernetes.io/is-default-class";

/// Converts an Ingress. Hosts, paths and annotations are not checked here, but by `lb-ingress`.
pub fn ingress(ingress: &v1::Ingress) -> Converted<Ingress> {
    let name = object_name(&ingress.metadata);
    let mut problems = Problems::of("Ingress", &name);
    let spec = ingress.spec.as_ref();
    if spec.is_none() {
        problems.error(ProblemKind::Missing, "spec", "is missing", "add one; the Ingress has no routes");
    }
    let value = Ingress {
        created: ingress.metadata.creation_timestamp.as_ref().map(|time| time.0.as_second()),
        location: None,
        class: spec.and_then(|spec| spec.ingress_class_name.as_deref()).map(Into::into),
        annotations: annotations(&ingress.metadata),
        default_backend: spec
            .and_then(|spec| spec.default_backend.as_ref())
            .and_then(|found| backend("spec.defaultBackend", found, &mut problems)),
        rules: rules(spec, &mut problems),
        tls: tls(spec),
        addresses: addresses(ingress),
    };
    Converted { name, value: Some(value), problems: problems.into_vec() }
}

/// Converts an IngressClass.
pub fn ingress_class(class: &v1::IngressClass) -> Converted<IngressClass> {
    let name = lb_model::ObjectName::new("", class.metadata.name.as_deref().unwrap_or_default());
    let mut problems = Problems::of("IngressClass", name.name());
    let spec = class.spec.as_ref();
    let controller = spec.and_then(|spec| spec.controller.as_deref()).unwrap_or_default();
    if controller.is_empty() {
        problems.error(
            ProblemKind::Missing,
            "spec.controller",
            "is missing",
            "name the controller; no controller serves the class",
        );
    }
    let annotation = class.metadata.annotations.as_ref().and_then(|all| all.get(DEFAULT_CLASS_ANNOTATION));
    let value = IngressClass {
        location: None,
        controller: controller.into(),
        default: annotation.is_some_and(|value| value == "true"),
    };
    Converted { name, value: Some(value), problems: problems.into_vec() }
}

fn annotations(metadata: &ObjectMeta) -> Box<[(Box<str>, Box<str>)]> {
    let all = metadata.annotations.iter().flatten();
    all.filter(|(name, _)| ANNOTATIONS.iter().any(|prefix| name.starts_with(prefix)))
        .map(|(name, value)| (name.as_str().into(), value.as_str().into()))
        .collect()
}

/// An entry with an IP address and a name gives two addresses.
fn addresses(ingress: &v1::Ingress) -> Box<[PublishedAddress]> {
    let balancer = ingress.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let entries = balancer.and_then(|balancer| balancer.ingress.as_deref()).unwrap_or_default();
    let texts = entries.iter().flat_map(|entry| entry.ip.iter().chain(&entry.hostname));
    texts.filter(|text| !text.is_empty()).map(|text| text.as_str().into()).collect()
}

fn rules(spec: Option<&v1::IngressSpec>, problems: &mut Problems) -> Box<[IngressRule]> {
    let rules = spec.and_then(|spec| spec.rules.as_deref()).unwrap_or_default();
    let mut converted = Vec::with_capacity(rules.len());
    for (number, rule) in rules.iter().enumerate() {
        let paths = rule.http.as_ref().map_or(&[][..], |http| &http.paths);
        let paths = paths.iter().enumerate().map(|(index, path)| {
            let field = |name: &str| format!("spec.rules[{number}].http.paths[{index}].{name}");
            IngressPath {
                path: path.path.as_deref().unwrap_or_default().into(),
                path_type: path_type(&field("pathType"), &path.path_type, problems),
                backend: backend(&field("backend"), &path.backend, problems),
            }
        });
        converted.push(IngressRule {
            paths: paths.collect(),
            host: rule.host.as_deref().unwrap_or_default().into(),
        });
    }
    converted.into()
}

fn path_type(field: &str, text: &str, problems: &mut Problems) -> PathType {
    match text {
        "Exact" => PathType::Exact,
        "Prefix" => PathType::Prefix,
        "ImplementationSpecific" => PathType::ImplementationSpecific,
        "" => {
            problems.error(
                ProblemKind::Missing,
                field,
                "is not set",
                "use Exact, Prefix or ImplementationSpecific; it is served as Prefix",
            );
            PathType::Prefix
        }
        unknown => {
            problems.error(
                ProblemKind::UnknownValue,
                field,
                format_args!("`{unknown}` is not a type of path"),
                "use Exact, Prefix or ImplementationSpecific; it is served as Exact",
            );
            PathType::Exact
        }
    }
}

fn backend(field: &str, backend: &v1::IngressBackend, problems: &mut Problems) -> Option<IngressBackend> {
    if let Some(resource) = &backend.resource {
        return Some(IngressBackend::Resource {
            kind: resource.kind.as_str().into(),
            name: resource.name.as_str().into(),
        });
    }
    let service = backend.service.as_ref().filter(|service| !service.name.is_empty());
    let Some(service) = service else {
        problems.error(
            ProblemKind::Missing,
            format_args!("{field}.service.name"),
            "is not set",
            "name a Service; requests are answered with 503",
        );
        return None;
    };
    let port = service.port.as_ref();
    let name = port.and_then(|port| port.name.as_deref()).filter(|name| !name.is_empty());
    let number = port.and_then(|port| port.number).filter(|number| *number != 0);
    let port = match (name, number) {
        (Some(name), _) => PortRef::Name(name.into()),
        (None, Some(number)) => {
            PortRef::Number(problems.port(format_args!("{field}.service.port.number"), number)?)
        }
        (None, None) => {
            problems.error(
                ProblemKind::Missing,
                format_args!("{field}.service.port"),
                "has neither a name nor a number",
                "set one of them; requests are answered with 503",
            );
            return None;
        }
    };
    Some(IngressBackend::Service { name: service.name.as_str().into(), port })
}

fn tls(spec: Option<&v1::IngressSpec>) -> Box<[IngressTls]> {
    let entries = spec.and_then(|spec| spec.tls.as_deref()).unwrap_or_default();
    entries
        .iter()
        .map(|entry| IngressTls {
            hosts: entry.hosts.iter().flatten().map(|host| host.as_str().into()).collect(),
            secret: entry.secret_name.as_deref().filter(|name| !name.is_empty()).map(Into::into),
        })
        .collect()
}
