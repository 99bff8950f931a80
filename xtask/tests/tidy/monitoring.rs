//! Metrics in documents and in `deploy/monitoring/`: the agent exports each of them.

use std::collections::BTreeSet;

use crate::{assert_none, text_files};

/// Outputs of `/metrics`, which tests of `lb-userspace` compare with the program.
const EXPORTED: &str = "lb-userspace/tests/golden";

#[test]
fn metrics_and_reasons_in_monitoring_exist() {
    let files = text_files();
    let outputs = files.iter().filter(|file| file.path.starts_with(EXPORTED));
    let outputs: Vec<_> =
        outputs.filter(|file| file.path.to_string_lossy().ends_with("metrics.txt")).collect();
    let known: BTreeSet<_> = outputs.iter().flat_map(|file| names(&file.text)).collect();
    for metric in ["sluice_packets_total", "process_cpu_seconds_total"] {
        assert!(known.contains(metric), "{EXPORTED} has no {metric}");
    }
    let reasons =
        files.iter().find(|file| file.path.ends_with("lb-common/src/reason.rs")).expect("the reasons");

    let mut problems = Vec::new();
    let mut count = 0;
    for file in files.iter().filter(|file| is_about_metrics(&file.path.to_string_lossy())) {
        let path = file.path.display();
        for metric in names(&file.text) {
            count += 1;
            if !known.contains(metric) {
                problems.push(format!("{path}: the agent does not export {metric}"));
            }
        }
        for reason in selected(&file.text, "reason") {
            if !reasons.text.contains(&format!("\"{reason}\", ")) {
                problems.push(format!("{path}: there is no reason {reason}"));
            }
        }
    }
    assert!(count > 30, "the metrics of deploy/monitoring were not found");
    assert_none("metrics that the agent does not export", &problems);
}

fn is_about_metrics(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    path.starts_with("deploy/monitoring/") || name == "alerts.test.yaml" || path == "docs/operations.md"
}

/// Returns the names of metrics in a text.
fn names(text: &str) -> Vec<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let prefixes = ["sluice_", "kubeproxy_", "process_", "rest_client_"];
    words.filter(|word| prefixes.iter().any(|prefix| word.starts_with(prefix))).collect()
}

/// Returns the values of a label that selectors require or exclude: `reason=~"a|b"`.
fn selected<'a>(text: &'a str, label: &str) -> Vec<&'a str> {
    let mut found = Vec::new();
    for rest in text.split(label).skip(1) {
        let quoted = ["=~\"", "!~\"", "=\"", "!=\""].iter().find_map(|operator| rest.strip_prefix(operator));
        let values = quoted.and_then(|rest| rest.split('"').next());
        found.extend(values.into_iter().flat_map(|values| values.split('|')));
    }
    found
}

#[test]
fn names_and_selected_values_are_found() {
    let text =
        "rate(sluice_a_total{reason=~\"x|y\", node=\"n\"}[5m]) / `process_b`, a_sluice_c reason!=\"z\"";
    assert_eq!(names(text), ["sluice_a_total", "process_b"]);
    assert_eq!(selected(text, "reason"), ["x", "y", "z"]);
}
