//! Alerts, scrape settings and the dashboard, checked by promtool.

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{documents, root, tools::output};

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Writes a file for promtool to a temporary folder. JSON is YAML.
fn temporary(name: &str, content: &Value) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join(name), content.to_string()).expect("written");
    folder
}

fn path(folder: &TempDir, name: &str) -> String {
    folder.path().join(name).display().to_string()
}

fn rules() -> Value {
    documents(&read("deploy/monitoring/alerts.yaml")).remove(0)["spec"].take()
}

#[test]
fn alerts_are_valid() {
    let file = temporary("rules.json", &rules());
    let found = output("promtool", &["check", "rules", &path(&file, "rules.json")]);
    assert!(found.contains("SUCCESS"), "{found}");
}

/// `alerts.test.yaml` has series of metrics, and the alerts that fire, with their summaries.
#[test]
fn alerts_fire_when_they_should() {
    let mut rules = rules();
    for rule in rules["groups"][0]["rules"].as_array_mut().expect("rules") {
        let annotations = rule["annotations"].as_object_mut().expect("annotations");
        annotations.retain(|name, _| name == "summary");
    }
    let file = temporary("rules.json", &rules);
    let mut tests = documents(&read("xtask/tests/deploy/alerts.test.yaml")).remove(0);
    tests["rule_files"] = json!(["rules.json"]);
    let tested = tests["tests"].as_array().expect("tests");
    let alerts = rules["groups"][0]["rules"].as_array().expect("rules");
    for alert in alerts.iter().filter_map(|rule| rule["alert"].as_str()) {
        let fires = |test: &Value| {
            test["alert_rule_test"].as_array().is_some_and(|cases| {
                cases.iter().any(|case| case["alertname"] == alert && case["exp_alerts"] != json!([]))
            })
        };
        assert!(tested.iter().any(fires), "alerts.test.yaml does not show when {alert} fires");
    }
    fs::write(path(&file, "tests.json"), tests.to_string()).expect("written");
    output("promtool", &["test", "rules", &path(&file, "tests.json")]);
}

/// The rules for labels of the PodMonitor are valid in a configuration of Prometheus, where their
/// names have another spelling.
#[test]
fn the_pod_monitor_is_valid() {
    let monitor = documents(&read("deploy/monitoring/pod-monitor.yaml")).remove(0);
    let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
    let relabelings = endpoint["relabelings"].to_string();
    let relabelings =
        relabelings.replace("sourceLabels", "source_labels").replace("targetLabel", "target_label");
    let relabelings: Value = serde_json::from_str(&relabelings).expect("JSON");
    let config = json!({"scrape_configs": [{
        "job_name": "sluice/sluice",
        "metrics_path": endpoint["path"],
        "kubernetes_sd_configs": [{"role": "pod"}],
        "relabel_configs": relabelings,
    }]});
    let file = temporary("prometheus.json", &config);
    output("promtool", &["check", "config", "--syntax-only", &path(&file, "prometheus.json")]);
}

/// Each panel has an expression that Prometheus can parse, and a place of its own.
#[test]
fn the_dashboard_is_valid() {
    let dashboard: Value = serde_json::from_str(&read("deploy/monitoring/dashboard.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    assert!(panels.len() > 10);
    let mut rules = Vec::new();
    let mut places: Vec<[u64; 4]> = Vec::new();
    for panel in panels {
        let title = panel["title"].as_str().expect("a title");
        let at = ["x", "y", "w", "h"].map(|name| panel["gridPos"][name].as_u64().expect("a number"));
        assert!(at[0] + at[2] <= 24, "{title} is wider than the dashboard");
        let apart = |other: &[u64; 4]| {
            at[0] + at[2] <= other[0]
                || other[0] + other[2] <= at[0]
                || at[1] + at[3] <= other[1]
                || other[1] + other[3] <= at[1]
        };
        assert!(places.iter().all(apart), "{title} overlaps another panel");
        places.push(at);
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().expect("an expression");
            let expression = expression.replace("$__rate_interval", "5m").replace("$node", ".*");
            rules.push(json!({"record": format!("sluice:panel{}", rules.len()), "expr": expression}));
        }
    }
    let ids = panels.iter().filter_map(|panel| panel["id"].as_u64());
    assert_eq!(ids.collect::<std::collections::BTreeSet<_>>().len(), panels.len(), "ids of panels");
    let file = temporary("rules.json", &json!({"groups": [{"name": "dashboard", "rules": rules}]}));
    output("promtool", &["check", "rules", &path(&file, "rules.json")]);
}

#[test]
fn the_runbook_has_a_section_for_each_alert() {
    let operations = read("docs/operations.md");
    for rule in rules()["groups"][0]["rules"].as_array().expect("rules") {
        let runbook = rule["annotations"]["runbook"].as_str().expect("a runbook");
        let (document, section) = runbook.split_once(", ").expect("a document and a section");
        assert_eq!(document, "docs/operations.md");
        let heading = section.trim_matches('"');
        let found = operations.lines().any(|line| line.trim_start_matches('#').trim() == heading);
        assert!(found, "docs/operations.md has no section {section}");
    }
}
