//! `lb agent --print-config`: prints the effective configuration as a file for `--config`.

use std::ffi::OsStr;
use std::fmt::Write as _;

use clap::ArgMatches;
use clap::parser::ValueSource;
use serde_json::{Map, Value};

use super::file::ConfigFile;
use super::kube_proxy::{IgnoredField, TranslatedSetting, Translation};
use super::schema::settings;

/// Width of comment lines.
const COLUMNS: usize = 100;

/// Returns the effective settings as YAML. Each has its help and the origin of its value.
///
/// `agent` is the command with the values of the file as defaults, `matches` are its matches.
pub fn effective_yaml(agent: &clap::Command, matches: &ArgMatches, file: Option<&ConfigFile>) -> String {
    let mut text = String::from(
        "# Effective configuration of `lb agent`. Precedence: flag, environment, file, default.\n",
    );
    let mut heading = "";
    for setting in settings(agent) {
        let id = setting.arg.get_id().as_str();
        if let Some(next) = setting.arg.get_help_heading().filter(|next| *next != heading) {
            heading = next;
            let _ = write!(text, "\n## {heading}\n");
        }
        text.push('\n');
        let help = setting.arg.get_help().map(ToString::to_string).unwrap_or_default();
        for line in wrap(&help, COLUMNS) {
            let _ = writeln!(text, "# {line}");
        }
        let choices: Vec<_> =
            setting.arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
        if !choices.is_empty() && !setting.arg.is_hide_possible_values_set() {
            let _ = writeln!(text, "# One of: {}.", choices.join(", "));
        }

        let origin = match matches.value_source(id) {
            Some(ValueSource::CommandLine) => {
                format!("flag --{}", setting.arg.get_long().unwrap_or_default())
            }
            Some(ValueSource::EnvVariable) => {
                format!("environment {}", setting.arg.get_env().unwrap_or_default().to_string_lossy())
            }
            _ => file.and_then(|file| file.origin(id)).unwrap_or_else(|| "default".to_owned()),
        };
        let values: Vec<&OsStr> = matches.get_raw(id).into_iter().flatten().collect();
        match values.first().map(|value| value.to_string_lossy()).filter(|value| !value.is_empty()) {
            Some(value) => {
                let _ = writeln!(text, "{}: {}  # {origin}", setting.key, yaml(&value));
            }
            None => {
                let _ = writeln!(text, "# {}: not set", setting.key);
            }
        }
    }
    text
}

/// Returns the file for `lb agent --config` that is equivalent to a configuration of kube-proxy.
pub fn translated_yaml(translation: &Translation) -> String {
    let mut text =
        String::from("# Settings of `lb agent` that are equivalent to this configuration of kube-proxy.\n");
    for TranslatedSetting { key, value, fields } in &translation.settings {
        let _ = writeln!(text, "{key}: {}  # {fields}", yaml(value));
    }
    if !translation.ignored.is_empty() {
        text.push_str("\n# Without an equivalent:\n");
    }
    for IgnoredField { field, reason } in &translation.ignored {
        let _ = writeln!(text, "# {field}: {reason}");
    }
    text
}

/// Returns the effective settings by file key. A setting that is not set is null.
pub fn effective_json(agent: &clap::Command, matches: &ArgMatches) -> Map<String, Value> {
    let value = |id| {
        let text = matches.get_raw(id).into_iter().flatten().next()?.to_string_lossy();
        Some(json(&text)).filter(|_| !text.is_empty())
    };
    settings(agent)
        .map(|setting| (setting.key, value(setting.arg.get_id().as_str()).unwrap_or_default()))
        .collect()
}

/// Converts a value to JSON. A comma-separated value becomes a list.
fn json(value: &str) -> Value {
    let scalar = |text: &str| match (text.parse::<u64>(), text.parse::<bool>()) {
        (Ok(number), _) if number.to_string() == text => number.into(),
        (_, Ok(boolean)) => boolean.into(),
        _ => text.into(),
    };
    match items(value).as_slice() {
        [one] => scalar(one),
        items => items.iter().map(|item| scalar(item)).collect(),
    }
}

fn items(value: &str) -> Vec<&str> {
    value.split(',').map(str::trim).filter(|item| !item.is_empty()).collect()
}

/// Converts a value to YAML. A comma-separated value becomes a list in brackets. Strings are quoted
/// if YAML requires it.
fn yaml(value: &str) -> String {
    match items(value).as_slice() {
        [one] => scalar(one, ""),
        items => {
            format!("[{}]", items.iter().map(|item| scalar(item, ",[]{}")).collect::<Vec<_>>().join(", "))
        }
    }
}

/// Converts one scalar to YAML. It is quoted if YAML could read it as another type or if it
/// contains a character of `special`.
fn scalar(text: &str, special: &str) -> String {
    let number = text.parse::<u64>().is_ok_and(|number| number.to_string() == text);
    let word = |c: char| c.is_ascii_alphanumeric() || "/._-+=:*?,[]{}~".contains(c);
    let starts_plain = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/');
    let ambiguous = ["true", "false", "null", "yes", "no", "on"].contains(&text.to_lowercase().as_str())
        || text.parse::<f64>().is_ok()
        // Other notations of numbers: 0x10, 0o17, 1_000.
        || (text.starts_with(|c: char| c.is_ascii_digit())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'))
        || text.ends_with(':');
    let plain = starts_plain && text.chars().all(word) && !text.contains(|c| special.contains(c));
    if number || matches!(text, "true" | "false") || (plain && !ambiguous) {
        text.to_owned()
    } else {
        // A JSON string is a double-quoted YAML scalar (YAML 1.2, chapter 1.3).
        Value::from(text).to_string()
    }
}

/// Breaks a text at spaces into lines of at most `columns` characters.
fn wrap(text: &str, columns: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= columns => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_survive_yaml() {
        for (value, expected) in [
            ("auto", "auto"),
            ("10256", "10256"),
            ("false", "false"),
            ("0.0.0.0:10256", "0.0.0.0:10256"),
            ("[::]:10256", "\"[::]:10256\""),
            ("0010", "\"0010\""),
            ("1e3", "\"1e3\""),
            ("eth*,*0", "[eth*, \"*0\"]"),
            ("0x10", "\"0x10\""),
            ("61000-65535", "61000-65535"),
            ("no", "\"no\""),
            ("a b", "\"a b\""),
        ] {
            assert_eq!(yaml(value), expected);
        }
    }

    #[test]
    fn values_keep_their_type_in_json() {
        for (value, expected) in [
            ("auto", serde_json::json!("auto")),
            ("10256", serde_json::json!(10256)),
            ("0010", serde_json::json!("0010")),
            ("true", serde_json::json!(true)),
            ("10.0.0.0/8, fd00::/8", serde_json::json!(["10.0.0.0/8", "fd00::/8"])),
        ] {
            assert_eq!(json(value), expected);
        }
    }

    #[test]
    fn wrapping_breaks_at_spaces_only() {
        assert_eq!(wrap("aa bb cc", 5), ["aa bb", "cc"]);
        assert_eq!(wrap("abcdefgh i", 3), ["abcdefgh", "i"]);
    }
}
