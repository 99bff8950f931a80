//! Reads the YAML file of `--config`.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::kube_proxy::{TranslatedSetting, Translation};
use super::schema::settings;

/// A configuration file that is not valid.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("cannot read the configuration file {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: {reason}", path.display())]
    Syntax { path: PathBuf, reason: String },
    #[error("{}:{line}: unknown key {key:?}{}", path.display(), nearest.as_ref().map(|n| format!(", did you mean {n:?}?")).unwrap_or_default())]
    UnknownKey { path: PathBuf, line: u64, key: String, nearest: Option<String> },
    #[error("{}:{line}: {key}: {reason}", path.display())]
    Value { path: PathBuf, line: u64, key: String, reason: String },
    #[error("{}: {field}: {reason}", path.display())]
    KubeProxyValue { path: PathBuf, field: String, reason: String },
}

/// The keys and values of a configuration file. All are valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFile {
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    /// Id of the clap argument.
    arg: String,
    /// File and place in it, for messages.
    origin: String,
    value: String,
}

impl ConfigFile {
    /// Reads a file and checks it against the arguments of `lb agent`.
    pub fn read(path: &Path, agent: &clap::Command) -> Result<Self, FileError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| FileError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text, agent)
    }

    /// Checks the text of a file, like [`Self::read`]. `path` is for error messages.
    pub fn parse(path: &Path, text: &str, agent: &clap::Command) -> Result<Self, FileError> {
        let path = path.to_owned();
        let options = serde_saphyr::options! {
            // In YAML 1.2, `off` and `no` are strings. `datapathLog: off` must not become `false`.
            strict_booleans: true,
            with_snippet: false,
        };
        // `None` if the file has only comments.
        let document: Option<Document> = serde_saphyr::from_str_with_options(text, options)
            .map_err(|error| FileError::Syntax { path: path.clone(), reason: error.to_string() })?;

        let mut entries = Vec::new();
        for (key, Spanned { value, referenced, .. }) in document.unwrap_or_default().0 {
            let line = referenced.line();
            let Some(setting) = settings(agent).find(|setting| setting.key == key) else {
                let nearest = nearest(&key, settings(agent).map(|setting| setting.key));
                return Err(FileError::UnknownKey { path, line, key, nearest });
            };
            // A key without a value has no effect.
            let Scalar(Some(value)) = value else { continue };
            if let Err(reason) = check(agent, setting.arg, &value) {
                return Err(FileError::Value { path, line, key, reason });
            }
            let origin = format!("{}:{line}", path.display());
            entries.push(Entry { arg: setting.arg.get_id().to_string(), origin, value });
        }
        Ok(Self { entries })
    }

    /// Returns the settings that are equivalent to a configuration of kube-proxy.
    pub fn of_kube_proxy(
        path: &Path,
        translation: &Translation,
        agent: &clap::Command,
    ) -> Result<Self, FileError> {
        let mut entries = Vec::new();
        for TranslatedSetting { key, value, fields } in &translation.settings {
            let Some(setting) = settings(agent).find(|setting| setting.key == *key) else { continue };
            if let Err(reason) = check(agent, setting.arg, value) {
                let (path, field) = (path.to_owned(), fields.clone());
                return Err(FileError::KubeProxyValue { path, field, reason });
            }
            let origin = format!("{}: {fields}", path.display());
            entries.push(Entry { arg: setting.arg.get_id().to_string(), origin, value: value.clone() });
        }
        Ok(Self { entries })
    }

    /// Adds the settings of `base` that this file does not contain.
    pub fn over(mut self, base: Self) -> Self {
        let missing = base.entries.into_iter().filter(|entry| self.entry(&entry.arg).is_none());
        let missing: Vec<_> = missing.collect();
        self.entries.extend(missing);
        self
    }

    /// Replaces the defaults of the flags by the values in the file.
    pub fn as_defaults(&self, agent: clap::Command) -> clap::Command {
        agent.mut_args(|arg| match self.entry(arg.get_id().as_str()) {
            Some(entry) => arg.default_value(entry.value.clone()),
            None => arg,
        })
    }

    /// Returns file and line of a setting, if it is in this file.
    pub fn origin(&self, arg: &str) -> Option<String> {
        self.entry(arg).map(|entry| entry.origin.clone())
    }

    fn entry(&self, arg: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.arg == arg)
    }
}

/// Checks a value with the parser of its flag. Returns the error of clap, without the name of the
/// flag.
fn check(agent: &clap::Command, arg: &clap::Arg, value: &str) -> Result<(), String> {
    let flag = format!("--{}={value}", arg.get_long().unwrap_or_default());
    // The values of environment variables must not be parsed here.
    let alone = agent.clone().mut_args(|arg| arg.env(None::<&str>));
    let Err(error) = alone.try_get_matches_from(["agent", &flag]) else { return Ok(()) };
    let text = error.render().to_string();
    let text = text.split("\n\nFor more information").next().unwrap_or_default();
    let text = text.trim_start_matches("error: ");
    // clap writes "invalid value 'X' for '--flag <VALUE>': reason". The message has the key instead
    // of the flag.
    let text =
        match text.split_once(" for '--").and_then(|(before, rest)| Some((before, rest.split_once('\'')?.1)))
        {
            Some((before, after)) => format!("{before}{after}"),
            None => text.to_owned(),
        };
    Err(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Returns the known key that is most similar to an unknown one.
fn nearest(key: &str, known: impl Iterator<Item = String>) -> Option<String> {
    // Users also write the name of the flag (node-name) or of the variable (NODE_NAME).
    let plain = |text: &str| text.replace(['-', '_'], "").to_lowercase();
    known
        .map(|candidate| (strsim::jaro_winkler(&plain(key), &plain(&candidate)), candidate))
        .filter(|(similarity, _)| *similarity > 0.8)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

/// The content of the file: its keys in their order, and each value with its line.
#[derive(Default)]
struct Document(Vec<(String, Spanned<Scalar>)>);

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Document;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping of settings, like `devices: auto`")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Document, M::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Document(entries))
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

/// A value as text in the format of its flag. A list becomes comma-separated.
struct Scalar(Option<String>);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Words;
        impl<'de> Visitor<'de> for Words {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value or a list of values")
            }

            fn visit_str<E>(self, text: &str) -> Result<Scalar, E> {
                Ok(Scalar(Some(text.to_owned())))
            }

            fn visit_bool<E>(self, value: bool) -> Result<Scalar, E> {
                Ok(Scalar(Some(value.to_string())))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Scalar, E> {
                Ok(Scalar(Some(value.to_string())))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Scalar, E> {
                Ok(Scalar(Some(value.to_string())))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Scalar, E> {
                Ok(Scalar(Some(value.to_string())))
            }

            fn visit_unit<E>(self) -> Result<Scalar, E> {
                Ok(Scalar(None))
            }

            fn visit_seq<S: SeqAccess<'de>>(self, mut list: S) -> Result<Scalar, S::Error> {
                let mut items = Vec::new();
                while let Some(Scalar(item)) = list.next_element()? {
                    let item = item.ok_or_else(|| S::Error::custom("a list item has no value"))?;
                    items.push(item);
                }
                Ok(Scalar(Some(items.join(","))))
            }
        }
        deserializer.deserialize_any(Words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::agent_args::agent_command;

    fn parse(text: &str) -> Result<ConfigFile, FileError> {
        ConfigFile::parse(Path::new("sluice.yaml"), text, &agent_command())
    }

    fn message(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn the_file_of_the_daemonset_is_accepted() {
        let manifest = include_str!("../../../deploy/config.yaml");
        let (_, indented) = manifest.split_once("  config.yaml: |\n").expect("the key config.yaml");
        let text: String = indented
            .lines()
            .map_while(|line| line.strip_prefix("    "))
            .flat_map(|line| [line, "\n"])
            .collect();
        let file = parse(&text).unwrap();
        assert!(file.entries.iter().any(|entry| entry.arg == "wait_lock" && entry.value == "true"), "{text}");
    }

    #[test]
    fn values_are_stored_in_the_format_of_the_flags() {
        let file = parse(
            "# a comment\nnodeName: worker-1\ndevices: [eth*, 'ens3']\nclusterCidr:\n- 10.244.0.0/16\n- fd00::/56\n\
             datapathLog: off\nmaxFlows: 1000000\nwaitLock: true\nkubeconfig:\nhealthBind: '[::]:10256'\n",
        )
        .unwrap();
        let entries: Vec<_> = file.entries.iter().map(|e| (e.arg.as_str(), e.value.as_str())).collect();
        assert_eq!(
            entries,
            [
                ("node_name", "worker-1"),
                ("devices", "eth*,ens3"),
                ("cluster_cidr", "10.244.0.0/16,fd00::/56"),
                ("datapath_log", "off"),
                ("max_flows", "1000000"),
                ("wait_lock", "true"),
                ("health_bind", "[::]:10256"),
            ]
        );
        assert_eq!(file.origin("node_name").as_deref(), Some("sluice.yaml:2"));
        assert_eq!(file.origin("kubeconfig"), None);
    }

    #[test]
    fn an_empty_file_sets_nothing() {
        for text in ["", "\n", "# only a comment\n", "---\n"] {
            assert_eq!(parse(text).unwrap().entries, [], "{text:?}");
        }
    }

    #[test]
    fn an_unknown_key_gets_a_suggestion() {
        assert_eq!(
            message("mode: tc\nnodename: x\n"),
            "sluice.yaml:2: unknown key \"nodename\", did you mean \"nodeName\"?"
        );
        assert_eq!(
            message("node-name: x\n"),
            "sluice.yaml:1: unknown key \"node-name\", did you mean \"nodeName\"?"
        );
        assert_eq!(
            message("device: x\n"),
            "sluice.yaml:1: unknown key \"device\", did you mean \"devices\"?"
        );
        assert_eq!(message("frobnicate: 1\n"), "sluice.yaml:1: unknown key \"frobnicate\"");
        assert_eq!(message("config: x\n").split(',').next(), Some("sluice.yaml:1: unknown key \"config\""));
    }

    #[test]
    fn a_wrong_value_is_reported_with_key_and_accepted_values() {
        assert_eq!(
            message("bpffs: /sys/fs/bpf\nmode: xpd\n"),
            "sluice.yaml:2: mode: invalid value 'xpd' [possible values: auto, xdp, tc]"
        );
        assert_eq!(
            message("snatPorts: 70000-80000\n"),
            "sluice.yaml:1: snatPorts: invalid value '70000-80000': \"70000-80000\" is not a port range; give two ports like \
             `61000-65535`, the smaller one first, none below 1024"
        );
        assert_eq!(
            message("maxFlows: -1\n"),
            "sluice.yaml:1: maxFlows: invalid value '-1': -1 is not in 16..=16777216"
        );
        assert!(message("waitLock: maybe\n").contains("waitLock: invalid value 'maybe'"));
    }

    #[test]
    fn other_yaml_is_refused_with_its_line() {
        assert!(message("- a\n- b\n").starts_with("sluice.yaml: "));
        assert!(message("devices: {a: b}\n").contains("line 1"));
        assert!(message("mode: tc\nmode: xdp\n").contains("duplicate"));
        assert!(message("mode: [tc\n").starts_with("sluice.yaml: "));
    }
}
