//! Renders the report of `lb preflight`.

use std::fmt::Write as _;

use lb_ingress::migration::{FindingKind, IngressReport, Report};
use serde_json::{Value, json};

use super::table::TextTable;

/// Option `-o` of `lb preflight`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum ReportFormat {
    /// A table of the Ingresses, and the findings about each
    #[default]
    Table,
    /// A JSON object
    Json,
    /// Markdown, for a ticket or a page
    Markdown,
}

/// Renders the report.
pub fn render_report(report: &Report, format: ReportFormat) -> Result<String, serde_json::Error> {
    Ok(match format {
        ReportFormat::Table => table(report),
        ReportFormat::Json => serde_json::to_string_pretty(&json(report))? + "\n",
        ReportFormat::Markdown => markdown(report),
    })
}

fn table(report: &Report) -> String {
    let mut table = TextTable::new(vec!["INGRESS", "CLASS", "HOSTS", "RESULT", "TAKEN OVER"]);
    for ingress in &report.ingresses {
        table.push(vec![
            ingress.name.to_string(),
            ingress.class.to_string(),
            ingress.hosts.join(","),
            ingress.result().to_owned(),
            ingress.taken_over.join(","),
        ]);
    }
    let mut text = table.to_string();
    for ingress in report.ingresses.iter().filter(|ingress| !ingress.findings.is_empty()) {
        write!(text, "\n{}\n", ingress.name).unwrap_or_default();
        for finding in &ingress.findings {
            writeln!(text, "  {:<8} {}", finding.kind.word(), finding.field).unwrap_or_default();
            writeln!(text, "           {}: {}", finding.reason, finding.remedy).unwrap_or_default();
        }
    }
    for problem in &report.incomplete {
        write!(text, "\nnot checked: {problem}\n").unwrap_or_default();
    }
    write!(text, "\n{}\n", summary(report)).unwrap_or_default();
    text
}

fn summary(report: &Report) -> String {
    let count = |result: &str| report.ingresses.iter().filter(|ingress| ingress.result() == result).count();
    format!(
        "{} Ingresses: {} the same, {} differ, {} break, {} of other controllers",
        report.ingresses.len(),
        count("same"),
        count("differs"),
        count("breaks"),
        count("other"),
    )
}

fn markdown(report: &Report) -> String {
    let mut text = format!("# Move from ingress-nginx\n\n{}.\n\n", summary(report));
    text.push_str("| Ingress | Class | Hosts | Result | Taken over |\n|---|---|---|---|---|\n");
    for ingress in &report.ingresses {
        let cells = [
            ingress.name.to_string(),
            ingress.class.to_string(),
            ingress.hosts.join(", "),
            ingress.result().into(),
        ];
        let cells = cells.map(|cell| escape(&cell));
        writeln!(text, "| {} | {} |", cells.join(" | "), escape(&ingress.taken_over.join(", ")))
            .unwrap_or_default();
    }
    for ingress in report.ingresses.iter().filter(|ingress| !ingress.findings.is_empty()) {
        write!(text, "\n## {}\n\n", ingress.name).unwrap_or_default();
        for finding in &ingress.findings {
            writeln!(
                text,
                "- **{}** `{}`: {}: {}",
                finding.kind.word(),
                finding.field,
                escape(&finding.reason),
                escape(&finding.remedy)
            )
            .unwrap_or_default();
        }
    }
    for problem in &report.incomplete {
        write!(text, "\nNot checked: {}\n", escape(problem)).unwrap_or_default();
    }
    text
}

/// Characters of values that would change a table.
fn escape(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}

fn json(report: &Report) -> Value {
    let ingresses: Vec<_> = report.ingresses.iter().map(ingress_json).collect();
    json!({"breaks": report.breaks(), "ingresses": ingresses, "notChecked": report.incomplete})
}

fn ingress_json(ingress: &IngressReport) -> Value {
    let of_kind = |kind: FindingKind| -> Vec<Value> {
        let findings = ingress.findings.iter().filter(|finding| finding.kind == kind);
        findings
            .map(
                |finding| json!({"field": finding.field, "reason": finding.reason, "remedy": finding.remedy}),
            )
            .collect()
    };
    json!({
        "namespace": ingress.name.namespace(),
        "name": ingress.name.name(),
        "class": ingress.class,
        "hosts": ingress.hosts,
        "result": ingress.result(),
        "takenOver": ingress.taken_over,
        "breaks": of_kind(FindingKind::Breaks),
        "differs": of_kind(FindingKind::Differs),
        "faults": of_kind(FindingKind::Fault),
        "notes": of_kind(FindingKind::Note),
    })
}

#[cfg(test)]
mod tests {
    use lb_ingress::ingress::NamedSecrets;
    use lb_model::{ResourceSet, WatchedResource};
    use lb_objects::{ObjectSelection, manifests};

    use super::*;
    use crate::testing::assert_golden;

    /// A small cluster of ingress-nginx.
    const OBJECTS: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {ports: [{port: 80}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: shop
  annotations:
    nginx.ingress.kubernetes.io/proxy-body-size: 8m
    nginx.ingress.kubernetes.io/ssl-redirect: "false"
spec:
  ingressClassName: nginx
  rules:
  - host: shop.example
    http:
      paths:
      - {path: /api/, pathType: ImplementationSpecific, backend: {service: {name: web, port: {number: 80}}}}
      - {path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: api
  annotations:
    kubernetes.io/ingress.class: nginx
    nginx.ingress.kubernetes.io/rewrite-target: /$2
    nginx.ingress.kubernetes.io/server-snippet: "deny all;"
    nginx.ingress.kubernetes.io/enable-access-log: "false"
spec:
  rules:
  - host: api.example
    http:
      paths:
      - {path: "/v1(/|$)(.*)", pathType: ImplementationSpecific, backend: {service: {name: none, port: {number: 80}}}}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: docs}
spec:
  rules:
  - host: api.example
    http:
      paths:
      - {path: /docs, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: plain}
spec: {defaultBackend: {service: {name: web, port: {number: 80}}}}
---
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: other}
spec: {controller: example.org/other}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: foreign}
spec: {ingressClassName: other}
"#;

    #[test]
    fn reports() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("cluster.yaml"), OBJECTS).unwrap();
        let selection = ObjectSelection {
            resources: ResourceSet::of(&WatchedResource::OF_INGRESSES),
            ..ObjectSelection::of_ingresses("here")
        };
        let events = manifests::load(folder.path(), selection).unwrap();
        let report = lb_ingress::migration::check(events, lb_ingress::migration::rules(), NamedSecrets::All);
        assert!(report.breaks());
        for (format, file) in [
            (ReportFormat::Table, "preflight.txt"),
            (ReportFormat::Json, "preflight.json"),
            (ReportFormat::Markdown, "preflight.md"),
        ] {
            assert_golden(file, &render_report(&report, format).unwrap());
        }
    }
}
