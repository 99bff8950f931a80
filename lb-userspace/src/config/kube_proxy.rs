//! Translates the configuration of kube-proxy (`KubeProxyConfiguration`, v1alpha1) into settings of
//! `lb agent`.
//!
//! The fields are those of staging/src/k8s.io/kube-proxy/config/v1alpha1/types.go (Kubernetes
//! 1.37). A field without a value, or with the value zero, selects a default there: it is left out
//! here.

use std::path::{Path, PathBuf};

use lb_model::Algorithm;
use serde_json::Value;

/// A configuration that cannot be translated.
#[derive(Debug, thiserror::Error)]
pub enum KubeProxyError {
    #[error("cannot read the configuration of kube-proxy {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: {reason}", path.display())]
    Syntax { path: PathBuf, reason: String },
    #[error(
        "{} has the kind {kind:?}: give a KubeProxyConfiguration, or the ConfigMap of kubeadm that \
         contains one (key config.conf)",
        path.display()
    )]
    Kind { path: PathBuf, kind: String },
}

/// The settings that a configuration of kube-proxy is equivalent to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Translation {
    pub settings: Vec<TranslatedSetting>,
    pub ignored: Vec<IgnoredField>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TranslatedSetting {
    /// The key in the file of `lb agent --config`.
    pub key: &'static str,
    pub value: String,
    /// The fields of kube-proxy that it comes from.
    pub fields: String,
}

/// A field that has no effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IgnoredField {
    pub field: String,
    pub reason: String,
}

/// Fields without an equivalent, with the reason. A name with a dot at its end stands for all
/// fields below it.
const IGNORED: [(&str, &str); 24] = [
    ("bindAddress", "the addresses of the node are read from the kernel"),
    ("bindAddressHardFail", "a port that cannot be opened always ends the agent"),
    ("clientConnection.", "the client of the API server has no such setting"),
    ("clusterCIDR", "the agent finds out which pods are on its node, see --cluster-cidr"),
    ("configSyncPeriod", "the agent watches the API server and needs no period"),
    ("conntrack.maxPerCore", "connections are in a table of Sluice, see --max-flows"),
    ("conntrack.min", "connections are in a table of Sluice, see --max-flows"),
    ("conntrack.tcpBeLiberal", "packets outside the window never break a connection"),
    ("detectLocal.", "the agent finds out which pods are on its node"),
    ("detectLocalMode", "the agent finds out which pods are on its node"),
    ("enableProfiling", "the agent has no profiling over HTTP"),
    ("featureGates.", "the features of kube-proxy are not those of Sluice"),
    ("iptables.", "Sluice has no iptables rules"),
    ("ipvs.excludeCIDRs", "Sluice removes no rules of others"),
    ("ipvs.strictARP", "Sluice assigns no addresses to devices"),
    ("ipvs.", "Sluice does not use IPVS"),
    ("logging.", "see --log-level and --log-format"),
    ("mode", "Sluice has its own data path, see --mode"),
    ("nftables.", "Sluice has no nftables rules"),
    ("oomScoreAdj", "the DaemonSet sets the quality of service of the agent"),
    ("portRange", "kube-proxy has ignored it since 1.25"),
    ("showHiddenMetricsForVersion", "Sluice hides no metrics"),
    ("windowsRunAsService", "Sluice runs on Linux"),
    ("winkernel.", "Sluice runs on Linux"),
];

impl Translation {
    /// Reads a file. It contains a `KubeProxyConfiguration`, or a ConfigMap with one.
    pub fn read(path: &Path) -> Result<Self, KubeProxyError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| KubeProxyError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// Translates a text. `path` is for error messages.
    pub fn parse(path: &Path, text: &str) -> Result<Self, KubeProxyError> {
        let syntax = |reason: String| KubeProxyError::Syntax { path: path.to_owned(), reason };
        let document: Value = serde_saphyr::from_str(text).map_err(|error| syntax(error.to_string()))?;
        match document["kind"].as_str() {
            Some("KubeProxyConfiguration") => Ok(Self::of(&document)),
            Some("ConfigMap") if document["data"]["config.conf"].is_string() => {
                Self::parse(path, document["data"]["config.conf"].as_str().unwrap_or_default())
            }
            kind => {
                Err(KubeProxyError::Kind { path: path.to_owned(), kind: kind.unwrap_or_default().to_owned() })
            }
        }
    }

    fn of(document: &Value) -> Self {
        let mut fields = Vec::new();
        collect("", document, &mut fields);
        let mut translation = Self::default();
        let is_ipvs = document["mode"] == "ipvs";
        let mut timeouts = Timeouts::default();
        for (field, value) in fields {
            match (field.as_str(), text(&value)) {
                ("apiVersion" | "kind", _) => {}
                ("clientConnection.kubeconfig", value) => translation.set("kubeconfig", value, &field),
                ("hostnameOverride", value) => translation.set("nodeName", value.to_lowercase(), &field),
                ("healthzBindAddress", value) => {
                    translation.set("healthBind", with_port(&value, 10256), &field);
                }
                ("metricsBindAddress", value) => {
                    translation.set("metricsBind", with_port(&value, 10249), &field);
                }
                ("nodePortAddresses", value) => translation.set("nodeportAddresses", value, &field),
                ("logging.format", value) if value == "json" => {
                    translation.set("logFormat", value, &field);
                }
                ("logging.verbosity", value) => {
                    let level = match value.parse() {
                        Ok(0..=3) => "info",
                        Ok(4..=5) => "debug",
                        _ => "trace",
                    };
                    translation.set("logLevel", level.to_owned(), &field);
                }
                ("ipvs.scheduler", value) if is_ipvs => {
                    match Algorithm::named(&value).or_else(|| Algorithm::substitute(&value)) {
                        Some(algorithm) => translation.set("algorithm", algorithm.to_string(), &field),
                        None => translation.ignore(field, &format!("Sluice has no algorithm {value}")),
                    }
                }
                ("conntrack.tcpEstablishedTimeout", value) => timeouts.set("tcp", &value, field),
                ("conntrack.tcpCloseWaitTimeout", value) => timeouts.set("tcp-close-wait", &value, field),
                ("conntrack.udpTimeout", value) => timeouts.set("udp", &value, field),
                ("conntrack.udpStreamTimeout", value) => timeouts.set("udp-stream", &value, field),
                ("ipvs.tcpTimeout", value) if is_ipvs => timeouts.set("tcp", &value, field),
                ("ipvs.tcpFinTimeout", value) if is_ipvs => timeouts.set("tcpfin", &value, field),
                ("ipvs.udpTimeout", value) if is_ipvs => timeouts.set("udp", &value, field),
                _ => {
                    let reason = IGNORED.iter().find(|(known, _)| {
                        *known == field || (known.ends_with('.') && field.starts_with(known))
                    });
                    let reason = reason.map_or("not known to this version", |(_, reason)| reason);
                    translation.ignore(field, reason);
                }
            }
        }
        if is_ipvs && document["ipvs"]["scheduler"].as_str().is_none_or(str::is_empty) {
            translation.set("algorithm", "rr".to_owned(), "mode");
            translation.ignored.retain(|ignored| ignored.field != "mode");
        }
        for (field, value) in timeouts.wrong {
            translation.ignore(field, &format!("{value} is not a number of whole seconds"));
        }
        if !timeouts.items.is_empty() {
            let value: Vec<_> =
                timeouts.items.iter().map(|(name, seconds, _)| format!("{name}={seconds}")).collect();
            let fields: Vec<_> = timeouts.items.iter().map(|(.., field)| field.as_str()).collect();
            translation.set("flowTimeouts", value.join(","), &fields.join(", "));
        }
        translation
    }

    fn set(&mut self, key: &'static str, value: String, fields: &str) {
        self.settings.push(TranslatedSetting { key, value, fields: fields.to_owned() });
    }

    fn ignore(&mut self, field: String, reason: &str) {
        self.ignored.push(IgnoredField { field, reason: reason.to_owned() });
    }

    /// Removes the setting `kubeconfig` unless its file exists here. In a pod, kube-proxy has one
    /// in a ConfigMap; the service account takes its place.
    pub fn without_missing_kubeconfig(mut self) -> Self {
        let missing = self
            .settings
            .iter()
            .position(|setting| setting.key == "kubeconfig" && !Path::new(&setting.value).is_file());
        if let Some(index) = missing {
            let TranslatedSetting { value, fields, .. } = self.settings.remove(index);
            self.ignore(fields, &format!("there is no file {value}: the service account of the pod is used"));
        }
        self
    }
}

/// The time-outs of connections, with the fields that they come from.
#[derive(Default)]
struct Timeouts {
    items: Vec<(&'static str, u64, String)>,
    /// Fields whose value is not a time.
    wrong: Vec<(String, String)>,
}

impl Timeouts {
    /// Sets a time-out. A field of IPVS comes after those of conntrack, and replaces them.
    fn set(&mut self, name: &'static str, value: &str, field: String) {
        match seconds(value) {
            Some(0) => {}
            Some(seconds) => {
                self.items.retain(|(known, ..)| *known != name);
                self.items.push((name, seconds, field));
            }
            None => self.wrong.push((field, value.to_owned())),
        }
    }
}

/// Collects the fields that have a value, by their path. A list is one value.
fn collect(path: &str, value: &Value, fields: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                collect(&path, value, fields);
            }
        }
        Value::Null | Value::Bool(false) => {}
        Value::String(text) if text.is_empty() || seconds(text) == Some(0) => {}
        Value::Number(number) if number.as_i64() == Some(0) => {}
        Value::Array(items) if items.is_empty() => {}
        value => fields.push((path.to_owned(), value.clone())),
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// Returns an address with its port. kube-proxy accepts an address without one.
fn with_port(address: &str, port: u16) -> String {
    if address.parse::<std::net::SocketAddr>().is_ok() {
        return address.to_owned();
    }
    match address.parse::<std::net::IpAddr>() {
        Ok(ip) => std::net::SocketAddr::new(ip, port).to_string(),
        Err(_) => address.to_owned(),
    }
}

/// Parses a duration of Go, like `1h0m30s`. Returns its whole seconds, at least one unless it is
/// zero.
fn seconds(text: &str) -> Option<u64> {
    const UNITS: [(&str, f64); 6] =
        [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("h", 3600.0), ("m", 60.0)];
    if text == "0" {
        return Some(0);
    }
    let (mut rest, mut total) = (text, 0.0);
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let (unit, factor) = match UNITS.iter().find(|(unit, _)| rest.starts_with(unit)) {
            Some(unit) => *unit,
            None => rest.starts_with('s').then_some(("s", 1.0))?,
        };
        rest = &rest[unit.len()..];
        total += number * factor;
    }
    Some(if total > 0.0 { total.max(1.0) as u64 } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::assert_golden;

    fn parse(text: &str) -> Result<Translation, KubeProxyError> {
        Translation::parse(Path::new("kube-proxy.yaml"), text)
    }

    fn settings(text: &str) -> Vec<(&'static str, String)> {
        let text = format!("kind: KubeProxyConfiguration\n{text}");
        let settings = parse(&text).unwrap().settings;
        settings.into_iter().map(|setting| (setting.key, setting.value)).collect()
    }

    /// Every field has a value that is not its default.
    const ALL_FIELDS: &str = include_str!("../../tests/captures/kube-proxy-config.yaml");

    #[test]
    fn every_field_of_kube_proxy_is_translated_or_ignored_with_a_reason() {
        let translation = parse(ALL_FIELDS).unwrap();
        assert_golden("migrate-kube-proxy.yaml", &super::super::print::translated_yaml(&translation));
        let unknown = translation.ignored.iter().filter(|ignored| ignored.reason.contains("not known"));
        assert_eq!(unknown.map(|ignored| ignored.field.as_str()).collect::<Vec<_>>(), ["linux.newField"]);
    }

    #[test]
    fn the_config_map_of_kubeadm_is_read() {
        // As kubeadm 1.37 writes it: fields without a value are null, zero or empty.
        let config = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nbindAddress: 0.0.0.0\n\
                      bindAddressHardFail: false\nclientConnection:\n  acceptContentTypes: \"\"\n  \
                      burst: 0\n  kubeconfig: /nonexistent/kubeconfig.conf\n  qps: 0\n\
                      clusterCIDR: 10.244.0.0/16\nconfigSyncPeriod: 0s\nconntrack:\n  \
                      maxPerCore: null\n  tcpEstablishedTimeout: null\nhostnameOverride: \"\"\n\
                      ipvs:\n  scheduler: \"\"\n  tcpTimeout: 0s\nkind: KubeProxyConfiguration\n\
                      metricsBindAddress: \"\"\nmode: \"\"\nnodePortAddresses: null\n";
        let map = serde_json::json!({"kind": "ConfigMap", "data": {"config.conf": config}}).to_string();
        let translation = parse(&map).unwrap().without_missing_kubeconfig();
        assert_eq!(translation.settings, []);
        let fields: Vec<_> = translation.ignored.iter().map(|ignored| ignored.field.as_str()).collect();
        assert_eq!(fields, ["bindAddress", "clusterCIDR", "clientConnection.kubeconfig"]);
    }

    #[test]
    fn the_scheduler_counts_in_ipvs_mode_only() {
        let algorithm = |text: &str| settings(text).into_iter().find(|(key, _)| *key == "algorithm");
        assert_eq!(algorithm("mode: ipvs\nipvs: {scheduler: sh}\n"), Some(("algorithm", "sh".into())));
        assert_eq!(algorithm("mode: ipvs\nipvs: {scheduler: lblc}\n"), Some(("algorithm", "wlc".into())));
        assert_eq!(algorithm("mode: ipvs\n"), Some(("algorithm", "rr".into())), "the default of kube-proxy");
        assert_eq!(algorithm("mode: nftables\nipvs: {scheduler: sh}\n"), None);
        assert_eq!(algorithm("mode: ipvs\nipvs: {scheduler: no-such}\n"), None);
    }

    #[test]
    fn addresses_have_a_port() {
        assert_eq!(settings("healthzBindAddress: 0.0.0.0\n"), [("healthBind", "0.0.0.0:10256".to_owned())]);
        assert_eq!(settings("metricsBindAddress: '::1'\n"), [("metricsBind", "[::1]:10249".to_owned())]);
        assert_eq!(settings("healthzBindAddress: '[::]:9'\n"), [("healthBind", "[::]:9".to_owned())]);
    }

    #[test]
    fn durations_are_those_of_go() {
        for (text, expected) in [
            ("24h0m0s", Some(86400)),
            ("1h0m0s", Some(3600)),
            ("1m30s", Some(90)),
            ("0s", Some(0)),
            ("0", Some(0)),
            ("250ms", Some(1)),
            ("1.5h", Some(5400)),
            ("", None),
            ("5", None),
            ("iptables", None),
        ] {
            assert_eq!(seconds(text), expected, "{text}");
        }
        assert_eq!(settings("conntrack: {udpTimeout: 45s}\n"), [("flowTimeouts", "udp=45".to_owned())]);
    }

    #[test]
    fn other_documents_are_refused() {
        for (text, expected) in [
            ("kind: KubeletConfiguration\n", "kube-proxy.yaml has the kind \"KubeletConfiguration\""),
            ("kind: ConfigMap\n", "give a KubeProxyConfiguration"),
            ("a: [\n", "kube-proxy.yaml: "),
        ] {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
