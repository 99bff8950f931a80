//! Flags (`--name`) in documents, comments and messages: each one exists.

use std::collections::BTreeSet;

use crate::{TextFile, assert_none, text_files};

/// Flags that no clap definition in this repository contains, by the program that has them.
const OTHERS: [(&str, &[&str]); 17] = [
    ("agnhost connect", &["protocol"]),
    ("lb-testbed/benches/programs", &["bench", "docs", "json"]),
    ("bpf-linker", &["btf", "cpu-features", "disable-expand-memcpy-in-order"]),
    ("cargo", &["bin", "features", "no-default-features", "package", "quiet", "test"]),
    ("clap, as a placeholder in its messages", &["flag"]),
    ("docker buildx imagetools", &["tag"]),
    ("git", &["format"]),
    ("helm", &["install", "reuse-values", "set"]),
    ("ipvsadm", &["sctp-service"]),
    (
        "iptables",
        &[
            "clamp-mss-to-pmtu",
            "comment",
            "ctstate",
            "dport",
            "dst-type",
            "mask",
            "noflush",
            "set-xmark",
            "tcp-flags",
            "wait",
        ],
    ),
    (
        "kube-proxy, kubeadm and kube-apiserver",
        &[
            "cleanup",
            "conntrack-tcp-timeout-close-wait",
            "conntrack-tcp-timeout-established",
            "proxy-mode",
            "service-node-port-range",
            "skip-phases",
        ],
    ),
    ("k3s", &["disable-kube-proxy"]),
    (
        "kubectl",
        &["field-selector", "ignore-not-found", "image", "namespace", "patch-file", "previous", "profile"],
    ),
    ("modprobe", &["all"]),
    ("nsenter", &["net", "target"]),
    ("rustup", &["component", "toolchain"]),
    ("test programs", &["list", "nocapture"]),
];

#[test]
fn every_flag_in_documents_and_messages_exists() {
    let files = text_files();
    let sources = files.iter().filter(|file| file.has_extension("rs"));
    let mut known: BTreeSet<String> = sources.flat_map(|file| defined(&file.text)).collect();
    for flag in ["kubeconfig", "only", "keep"] {
        assert!(known.contains(flag), "the definition of --{flag} was not found");
    }
    known.extend(["help", "version"].map(str::to_owned));
    let of_others = OTHERS.iter().flat_map(|(_, flags)| flags.iter());
    known.extend(of_others.map(|flag| (*flag).to_owned()));

    let mut problems = Vec::new();
    for file in files.iter().filter(|file| is_read_by_people(file)) {
        for (number, line) in file.text.lines().enumerate() {
            for flag in mentioned(line).into_iter().filter(|flag| !known.contains(flag)) {
                problems.push(format!("{}:{}: --{flag}", file.path.display(), number + 1));
            }
        }
    }
    assert_none("flags that no program of this repository has", &problems);
}

/// Captured output of other programs is not checked.
fn is_read_by_people(file: &TextFile) -> bool {
    let text = ["md", "rs", "yaml", "toml"].iter().any(|extension| file.has_extension(extension));
    text && !file.path.iter().any(|part| part == "captures")
}

/// Returns the flags that clap derives from the fields of a source file, and those of tables with
/// a column `long`.
fn defined(source: &str) -> Vec<String> {
    let attributes = source.split("#[arg(").skip(1);
    let table = source.lines().filter_map(|line| line.trim().strip_prefix("long: \"")?.strip_suffix("\","));
    attributes
        .filter_map(|rest| {
            let (attribute, item) = rest.split_once(")]\n")?;
            let long = attribute.split(',').map(str::trim).find(|part| part.starts_with("long"))?;
            if let Some((_, name)) = long.split_once('=') {
                return Some(name.trim().trim_matches('"').to_owned());
            }
            let field = item.lines().map(str::trim).find(|line| !line.starts_with(['#', '/']))?;
            let name = field.split_once(':')?.0.trim_start_matches("pub ").trim_start_matches("pub(crate) ");
            Some(name.replace('_', "-"))
        })
        .chain(table.map(str::to_owned))
        .collect()
}

/// Returns the flags in a line. A string that holds one flag and no other word is an argument for a
/// program: running that program shows whether the flag exists.
fn mentioned(line: &str) -> Vec<String> {
    let mut flags = Vec::new();
    let mut rest = line;
    let mut before = None;
    while let Some(at) = rest.find("--") {
        let previous = rest[..at].chars().next_back().or(before);
        let after = &rest[at + 2..];
        let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '-').unwrap_or(after.len());
        let (flag, tail) = after.split_at(end);
        let begins_a_word = !previous.is_some_and(|c| c.is_alphanumeric() || c == '-' || c == '_');
        let is_argument =
            previous == Some('"') && after.split_once('"').is_some_and(|(text, _)| !text.contains(' '));
        let is_name = flag.starts_with(|c: char| c.is_ascii_lowercase());
        if begins_a_word && is_name && !is_argument {
            flags.push(flag.trim_end_matches('-').to_owned());
        }
        before = Some(flag.chars().next_back().unwrap_or('-'));
        rest = tail;
    }
    flags
}

#[test]
fn definitions_and_mentions_are_found() {
    let source = "#[arg(long, value_name = \"DIR\")]\npub pod_interfaces: A,\n\
                  #[arg(\n    short,\n    long = \"in\",\n)]\ninside: B,\n\
                  #[arg(long)]\n#[serde(default)]\n/// C.\nc: C,\n\
                  #[arg(last = true)]\nd: D,\n\
                  Flag {\n    long: \"max-e\",\n}\n";
    assert_eq!(defined(source), ["pod-interfaces", "in", "c", "max-e"]);
    // The names are put in later, so that this file mentions none of these flags.
    let mentions = |line: &str| mentioned(&line.replace('%', "--")).join(" ");
    assert_eq!(mentions("use `%allow-external-ips`, or %mode=xdp %keep."), "allow-external-ips mode keep");
    assert_eq!(mentions("set \"%all is a message\""), "all");
    assert_eq!(mentions("[\"%argument\", \"%name=value\"] % a%b ──► |%| %-"), "");
}
