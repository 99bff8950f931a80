//! Behavior of ingress-nginx that its users may not expect, and that this controller does not have
//! (<https://kubernetes.io/blog/2026/02/27/ingress-nginx-before-you-migrate/>).

use std::collections::BTreeMap;
use std::sync::Arc;

use lb_model::{Ingress, IngressPath, ObjectName, PathType};

use super::finding::{Finding, FindingKind};

/// Returns the findings about each Ingress.
pub(super) fn find<'a>(
    ingresses: impl Iterator<Item = (&'a ObjectName, &'a Arc<Ingress>)>,
) -> BTreeMap<ObjectName, Vec<Finding>> {
    let ingresses: Vec<_> = ingresses.collect();
    // The first Ingress with expressions for each host.
    let mut with_regex: BTreeMap<&str, &ObjectName> = BTreeMap::new();
    for (name, ingress) in ingresses.iter().filter(|(_, ingress)| has_regex(ingress)) {
        for rule in &ingress.rules {
            with_regex.entry(&rule.host).or_insert(name);
        }
    }
    let mut found: BTreeMap<ObjectName, Vec<Finding>> = BTreeMap::new();
    for (name, ingress) in &ingresses {
        let mut findings = Vec::new();
        for (number, rule) in ingress.rules.iter().enumerate() {
            let cause = with_regex.get(&*rule.host).copied();
            for (index, path) in rule.paths.iter().enumerate() {
                let field = format!("spec.rules[{number}].http.paths[{index}].path");
                let own = has_regex(ingress);
                findings.extend(cause.and_then(|cause| became_regex(&field, path, cause, own)));
                if cause.is_none() {
                    findings.extend(slash_redirect(&field, path));
                }
            }
        }
        if !findings.is_empty() {
            found.insert((*name).clone(), findings);
        }
    }
    found
}

fn has_regex(ingress: &Ingress) -> bool {
    ingress.annotations.iter().any(|(name, value)| match name.strip_prefix("nginx.ingress.kubernetes.io/") {
        Some("use-regex") => &**value == "true",
        Some("rewrite-target") => !value.is_empty(),
        _ => false,
    })
}

/// ingress-nginx makes every path of a host an expression if one Ingress of the host has one.
fn became_regex(field: &str, path: &IngressPath, cause: &ObjectName, own: bool) -> Option<Finding> {
    let is_path = path.path.len() > 1;
    let exact = path.path_type == PathType::Exact;
    // The paths of an Ingress with expressions of its own are expressions here too.
    if !is_path || (own && !exact) {
        return None;
    }
    let here = if exact { "the whole path must match" } else { "it matches whole segments" };
    Some(Finding {
        kind: FindingKind::Differs,
        field: field.into(),
        reason: format!(
            "ingress-nginx matches {} as a prefix in any case, because Ingress {cause} has \
             use-regex or rewrite-target for the host",
            path.path
        )
        .into(),
        remedy: format!("here {here}; add the annotation use-regex if requests rely on it").into(),
    })
}

/// nginx redirects `/foo` to `/foo/` if only the latter is a location.
fn slash_redirect(field: &str, path: &IngressPath) -> Option<Finding> {
    let without = path.path.strip_suffix('/').filter(|path| !path.is_empty())?;
    let here = match path.path_type {
        PathType::Exact => "here it has no route; add a path for it",
        PathType::ImplementationSpecific => "here it has the same route",
        // ingress-nginx makes a location of its own for it.
        PathType::Prefix => return None,
    };
    Some(Finding {
        kind: FindingKind::Differs,
        field: field.into(),
        reason: format!("ingress-nginx redirects {without} to {}", path.path).into(),
        remedy: here.into(),
    })
}
