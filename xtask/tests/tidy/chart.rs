//! `deploy/chart/values.schema.json` has the settings of `lb agent`.

use std::{env, fs};

use serde_json::{Map, Value, json};

use crate::root;

const SCHEMA: &str = "deploy/chart/values.schema.json";
/// The output of `lb agent --print-config`. A test of `lb-userspace` keeps it up to date.
const SETTINGS: &str = "lb-userspace/tests/golden/print-config.yaml";

/// Settings that the DaemonSet sets, or that name files of its container.
const NOT_IN_THE_CHART: [&str; 7] =
    ["kubeconfig", "manifests", "nodeName", "cgroup", "netnsDir", "sysctlDir", "bpffs"];

#[test]
fn the_schema_of_the_chart_has_every_setting() {
    let read =
        |path: &str| fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    let (schema, settings) = (read(SCHEMA), read(SETTINGS));
    let start = "\"description\": \"The file of `lb agent --config`\",\n      \"type\": \"object\",\n      \
                 \"additionalProperties\": false,\n      \"properties\": {";
    let (before, rest) = schema.split_once(start).expect("the settings of the schema");
    let (_, after) = rest.split_once("}\n    },\n    \"labels\"").expect("the end of the settings");
    let lines: Vec<_> = properties(&settings)
        .iter()
        .filter(|(key, _)| !NOT_IN_THE_CHART.contains(&key.as_str()))
        .map(|(key, property)| format!("\n        {}: {property}", Value::from(key.as_str())))
        .collect();
    assert!(lines.len() > 20, "the settings were not found in {SETTINGS}");
    let expected = format!("{before}{start}{}\n      }}\n    }},\n    \"labels\"{after}", lines.join(","));
    if env::var_os("SLUICE_BLESS").is_some() {
        fs::write(root().join(SCHEMA), &expected).expect("written");
        return;
    }
    assert!(schema == expected, "{SCHEMA} differs from {SETTINGS}; write it with SLUICE_BLESS=1");
}

/// Returns the settings in the output of `--print-config`, in its order, with their properties in a
/// JSON schema: a description, and either the possible values or the types.
fn properties(printed: &str) -> Vec<(String, Value)> {
    let mut properties = Vec::new();
    let mut comment: Vec<&str> = Vec::new();
    for line in printed.lines() {
        let text = line.trim_start_matches("# ");
        let key = text.split_once(':').map(|(key, _)| key).filter(|key| is_key(key));
        // A comment is a key only if the setting has no value: `# mode: not set`.
        match key.filter(|_| !line.starts_with('#') || text.ends_with(": not set")) {
            Some(key) => properties.push((key.to_owned(), property(&comment, value_in(line)))),
            None if line.starts_with("# ") => {
                comment.push(text);
                continue;
            }
            None => {}
        }
        comment.clear();
    }
    properties
}

fn is_key(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase()) && text.chars().all(|c| c.is_ascii_alphanumeric())
}

/// Returns the value of a setting in its line, without the comment on its origin.
fn value_in(line: &str) -> &str {
    let value = line.split_once(": ").map_or("", |(_, value)| value);
    value.split_once("  # ").map_or(value, |(value, _)| value)
}

fn property(comment: &[&str], value: &str) -> Value {
    let mut property = Map::new();
    let values = comment.iter().find_map(|line| line.strip_prefix("One of: ")?.strip_suffix('.'));
    let text: Vec<_> = comment.iter().copied().filter(|line| !line.starts_with("One of: ")).collect();
    property.insert("description".into(), text.join(" ").into());
    match values {
        Some(values) => property.insert("enum".into(), values.split(", ").collect::<Vec<_>>().into()),
        // The agent reads both forms.
        None if value == "true" || value == "false" => {
            property.insert("enum".into(), json!([true, false, "true", "false"]))
        }
        None => property.insert("type".into(), json!(["string", "integer", "boolean", "array"])),
    };
    property.into()
}

#[test]
fn settings_are_found() {
    let printed = "# Head.\n\n## Group\n\n# How: or\n# not\n# One of: a, b.\nmode: a  # default\n\n# S\nswitch: false  # default\n\n# C\n# maxX: not set\n";
    let found = properties(printed);
    assert_eq!(found[0], ("mode".into(), json!({"description": "How: or not", "enum": ["a", "b"]})));
    assert_eq!(found[1].1["enum"], json!([true, false, "true", "false"]));
    assert_eq!((found.len(), found[2].0.as_str()), (3, "maxX"));
    assert_eq!(found[2].1["description"], "C");
}
