//! The report about all Ingresses.

use std::collections::{BTreeMap, BTreeSet};

use lb_model::{Ingress, ObjectName, Problem, SourceEvent};

use super::finding::{Finding, FindingKind};
use super::quirks;
use crate::ingress::{ClassRules, NamedSecrets, Settings, Translator, class_of};

/// The report about all Ingresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// By name.
    pub ingresses: Vec<IngressReport>,
    /// Problems of files and of requests to the API server: the report is not complete.
    pub incomplete: Vec<String>,
}

/// The report about one Ingress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngressReport {
    pub name: ObjectName,
    /// Empty if the Ingress has none.
    pub class: Box<str>,
    pub hosts: Vec<Box<str>>,
    /// Another controller serves the Ingress.
    pub of_other_controller: bool,
    /// The annotations that are taken over, without their prefix.
    pub taken_over: Vec<Box<str>>,
    /// The worst first.
    pub findings: Vec<Finding>,
}

impl IngressReport {
    /// Returns the result in one word: `breaks`, `differs`, `same`, or `other` for the Ingress of
    /// another controller.
    pub fn result(&self) -> &'static str {
        if self.of_other_controller {
            return "other";
        }
        match self.findings.first().map(|finding| finding.kind) {
            Some(kind @ (FindingKind::Breaks | FindingKind::Differs)) => kind.word(),
            _ => "same",
        }
    }
}

impl Report {
    /// Returns whether something would break, or may break because it could not be read.
    pub fn breaks(&self) -> bool {
        !self.incomplete.is_empty() || self.ingresses.iter().any(|ingress| ingress.result() == "breaks")
    }
}

/// Returns the classes of ingress-nginx beside those of this controller.
pub fn rules() -> ClassRules {
    let own = ClassRules::default();
    ClassRules {
        controllers: own.controllers.into_iter().chain(["k8s.io/ingress-nginx".into()]).collect(),
        names: own.names.into_iter().chain(["nginx".into()]).collect(),
        without_class: true,
    }
}

/// Translates the objects of these events, which must be complete lists, and reports about them.
pub fn check(events: Vec<SourceEvent>, classes: ClassRules, named_secrets: NamedSecrets) -> Report {
    let mut translator = Translator::new(Settings { classes, named_secrets, ..Settings::default() });
    translator.update(events);
    let served: BTreeSet<&ObjectName> = translator.served().collect();
    let mut by_ingress: BTreeMap<ObjectName, Vec<&Problem>> = BTreeMap::new();
    let mut incomplete = Vec::new();
    for problem in translator.problems().iter() {
        match problem.object_reference() {
            Some(("Ingress", namespace, name)) => {
                by_ingress.entry(ObjectName::new(namespace, name)).or_default().push(problem);
            }
            // Services and Secrets have their own reports.
            Some(_) => {}
            None => incomplete.push(problem.to_string()),
        }
    }
    let mut quirks = quirks::find(translator.ingresses().filter(|(name, _)| served.contains(name)));
    let ingresses = translator.ingresses().map(|(name, ingress)| {
        let problems = by_ingress.get(name).into_iter().flatten();
        let of_other_controller = !served.contains(name);
        let mut findings: Vec<Finding> = problems.map(|problem| Finding::from(*problem)).collect();
        let faulty: BTreeSet<Box<str>> = findings.iter().map(|finding| finding.field.clone()).collect();
        findings.extend(quirks.remove(name).unwrap_or_default());
        findings.sort();
        IngressReport {
            name: name.clone(),
            class: class_of(ingress).unwrap_or_default().into(),
            hosts: hosts_of(ingress),
            of_other_controller,
            taken_over: if of_other_controller { Vec::new() } else { taken_over(ingress, &faulty) },
            findings,
        }
    });
    Report { ingresses: ingresses.collect(), incomplete }
}

fn hosts_of(ingress: &Ingress) -> Vec<Box<str>> {
    let hosts =
        ingress.rules.iter().map(|rule| if rule.host.is_empty() { "*".into() } else { rule.host.clone() });
    let hosts: BTreeSet<Box<str>> = hosts.collect();
    hosts.into_iter().collect()
}

/// Returns the annotations without a finding.
fn taken_over(ingress: &Ingress, faulty: &BTreeSet<Box<str>>) -> Vec<Box<str>> {
    let names = ingress.annotations.iter().filter_map(|(name, _)| {
        let short = name.strip_prefix("nginx.ingress.kubernetes.io/")?;
        let field = format!("metadata.annotations[{name}]");
        (!faulty.contains(field.as_str())).then(|| short.into())
    });
    names.collect()
}
