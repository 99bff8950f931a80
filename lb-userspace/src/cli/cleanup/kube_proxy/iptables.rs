//! iptables mode, and the iptables rules of IPVS mode.
//!
//! Chains are recognised by their name, jumps into them by target and comment. If a rule of another
//! program jumps to a chain of kube-proxy, the kernel refuses to delete that chain. The chain
//! stays, together with all chains that it jumps to, so that the rule keeps its effect.

use std::collections::BTreeSet;
use std::fs;

use super::leftovers::{Leftovers, ListOutcome, Removal};
use super::programs::NodeCommand;

/// Chains of kube-proxy by table (pkg/proxy/iptables/cleanup.go; pkg/proxy/ipvs/proxier.go,
/// iptablesCleanupChains).
const CHAINS: [(&str, &[&str]); 3] = [
    (
        "nat",
        &[
            "KUBE-SERVICES",
            "KUBE-NODEPORTS",
            POSTROUTING,
            MARK_MASQ,
            "KUBE-PROXY-CANARY",
            "KUBE-NODE-PORT",
            "KUBE-LOAD-BALANCER",
        ],
    ),
    (
        "filter",
        &[
            "KUBE-SERVICES",
            "KUBE-EXTERNAL-SERVICES",
            "KUBE-FORWARD",
            "KUBE-NODEPORTS",
            "KUBE-PROXY-FIREWALL",
            "KUBE-PROXY-CANARY",
            "KUBE-NODE-PORT",
            "KUBE-SOURCE-RANGES-FIREWALL",
            "KUBE-IPVS-FILTER",
            "KUBE-IPVS-OUT-FILTER",
        ],
    ),
    ("mangle", &["KUBE-PROXY-CANARY"]),
];

/// Marks packets that [`POSTROUTING`] masquerades. Other programs use it too, for example the CNI
/// plugin portmap.
const MARK_MASQ: &str = "KUBE-MARK-MASQ";
const POSTROUTING: &str = "KUBE-POSTROUTING";

/// Name prefixes of the chains of Services and endpoints, in the nat table. Kubernetes 1.24 renamed
/// KUBE-XLB- to KUBE-EXT-.
const PREFIXES: [&str; 6] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-FW-", "KUBE-EXT-", "KUBE-XLB-"];

/// Target and comment of the rules that kube-proxy adds to built-in chains (iptablesJumpChains,
/// iptablesJumpChain). The other conditions of these rules differ by version.
const JUMPS: [(&str, &str); 10] = [
    ("KUBE-SERVICES", "kubernetes service portals"),
    ("KUBE-EXTERNAL-SERVICES", "kubernetes externally-visible service portals"),
    ("KUBE-NODEPORTS", "kubernetes health check service ports"),
    ("KUBE-FORWARD", "kubernetes forwarding rules"),
    ("KUBE-PROXY-FIREWALL", "kubernetes load balancer firewall"),
    (POSTROUTING, "kubernetes postrouting rules"),
    ("KUBE-NODE-PORT", "kubernetes health check rules"),
    ("KUBE-PROXY-FIREWALL", "kube-proxy firewall rules"),
    ("KUBE-IPVS-FILTER", "kubernetes ipvs access filter"),
    ("KUBE-IPVS-OUT-FILTER", "kubernetes ipvs access filter"),
];

/// Adds the chains and rules of kube-proxy to `found`.
pub(super) fn find(found: &mut Leftovers) {
    // The legacy and the nft variant have separate rules in the kernel. kube-proxy may have used
    // either.
    for (family, tables) in
        [("iptables", "/proc/net/ip_tables_names"), ("ip6tables", "/proc/net/ip6_tables_names")]
    {
        let legacy = find_in(found, &format!("{family}-legacy"));
        let nft = find_in(found, &format!("{family}-nft"));
        // If only one variant is installed, its programs may have no suffix.
        if !(legacy || nft || find_in(found, family)) {
            let note = format!("rules of {family} were not checked: {family}-save is not installed");
            found.notes.push(note);
        }
        // procfs lists the tables of the legacy variant.
        if nft && !legacy && fs::read_to_string(tables).is_ok_and(|names| !names.is_empty()) {
            let reason = format!("{family}-legacy-save is not installed");
            found.unreachable.push((format!("rules  {family}-legacy"), reason));
        }
    }
}

/// Adds the chains and rules of one variant to `found`. Returns whether the variant is installed.
fn find_in(found: &mut Leftovers, variant: &str) -> bool {
    let save = NodeCommand::new(format!("{variant}-save"), &[]);
    let text = match found.list(&format!("rules  {variant}"), &save) {
        ListOutcome::Text(text) => text,
        ListOutcome::Failed => return true,
        ListOutcome::NotInstalled => return false,
    };
    for line in text.lines().filter(|line| line.starts_with("# Table `") && line.contains("is incompatible"))
    {
        // iptables-nft does not print tables that contain rules of nft.
        found.notes.push(format!("{variant} cannot show a table: {}", line.trim_start_matches("# ")));
    }
    for table in tables(&text) {
        let cleanup = TableCleanup::of(&table);
        found.notes.extend(cleanup.kept.iter().map(|kept| format!("{variant} {} {kept}", table.name)));
        found.removals.extend(cleanup.removal(variant, &table));
    }
    true
}

/// A table as iptables-save prints it.
struct IptablesTable<'a> {
    name: &'a str,
    /// Chains that are not built in.
    chains: BTreeSet<&'a str>,
    rules: Vec<Rule<'a>>,
}

struct Rule<'a> {
    chain: &'a str,
    /// Everything after `-A `.
    text: &'a str,
    target: Option<String>,
    comment: Option<String>,
}

/// Parses the output of iptables-save.
fn tables(text: &str) -> Vec<IptablesTable<'_>> {
    let mut tables = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            tables.push(IptablesTable { name, chains: BTreeSet::new(), rules: Vec::new() });
            continue;
        }
        let Some(table) = tables.last_mut() else { continue };
        if let Some(chain) = line.strip_prefix(':') {
            // Built-in chains have a policy here, others have `-`.
            if let Some((name, "-")) = chain.split_once(' ').map(|(name, rest)| (name, first_word(rest))) {
                table.chains.insert(name);
            }
        } else if let Some(text) = line.strip_prefix("-A ") {
            let words = words(text);
            let after = |options: &[&str]| {
                let at = words.iter().position(|word| options.contains(&word.as_str()))?;
                words.get(at + 1).cloned()
            };
            table.rules.push(Rule {
                chain: first_word(text),
                text,
                target: after(&["-j", "-g"]),
                comment: after(&["--comment"]),
            });
        }
    }
    tables
}

fn first_word(text: &str) -> &str {
    text.split(' ').next().unwrap_or_default()
}

/// Splits a rule into words as iptables-restore does: at spaces outside double quotes. Within
/// quotes, a backslash escapes the next character.
fn words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut begun) = (Vec::new(), String::new(), false, false);
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => (quoted, begun) = (!quoted, true),
            '\\' if quoted => word.extend(characters.next()),
            ' ' if !quoted => {
                if begun {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            _ => {
                word.push(character);
                begun = true;
            }
        }
    }
    if begun {
        words.push(word);
    }
    words
}

fn is_kube_proxy_chain(table: &str, chain: &str) -> bool {
    CHAINS.iter().any(|(name, chains)| *name == table && chains.contains(&chain))
        || (table == "nat" && PREFIXES.iter().any(|prefix| chain.starts_with(prefix)))
}

/// The parts of a table to remove.
struct TableCleanup<'a> {
    chains: BTreeSet<&'a str>,
    /// Rules in built-in chains that jump to `chains`.
    jumps: Vec<&'a Rule<'a>>,
    /// Notes about chains of kube-proxy that stay.
    kept: Vec<String>,
}

impl<'a> TableCleanup<'a> {
    fn of(table: &'a IptablesTable<'a>) -> Self {
        let mut chains: BTreeSet<&str> =
            table.chains.iter().copied().filter(|chain| is_kube_proxy_chain(table.name, chain)).collect();
        let is_jump = |rule: &Rule| {
            let known = |(target, comment): &(&str, &str)| {
                rule.target.as_deref() == Some(target) && rule.comment.as_deref() == Some(comment)
            };
            !table.chains.contains(rule.chain) && JUMPS.iter().any(known)
        };

        let mut kept = Vec::new();
        let mut staying: Vec<&str> = Vec::new();
        for rule in table.rules.iter().filter(|rule| !chains.contains(rule.chain) && !is_jump(rule)) {
            if let Some(chain) = rule.target.as_deref().and_then(|target| chains.get(target)) {
                kept.push(format!("{chain} stays: a rule of another program uses it (-A {})", rule.text));
                staying.push(chain);
                if *chain == MARK_MASQ {
                    staying.extend(chains.get(POSTROUTING));
                }
            }
        }
        while let Some(chain) = staying.pop() {
            if chains.remove(chain) {
                let rules = table.rules.iter().filter(|rule| rule.chain == chain);
                staying.extend(rules.filter_map(|rule| chains.get(rule.target.as_deref()?)));
            }
        }

        let is_removed =
            |rule: &&Rule| is_jump(rule) && rule.target.as_deref().is_some_and(|to| chains.contains(to));
        let jumps = table.rules.iter().filter(is_removed).collect();
        Self { chains, jumps, kept }
    }

    /// Returns the command that removes everything in one transaction: the kernel applies all of it
    /// or nothing.
    fn removal(&self, variant: &str, table: &IptablesTable) -> Option<Removal> {
        if self.chains.is_empty() {
            return None;
        }
        let (mut items, mut text) = (Vec::new(), format!("*{}\n", table.name));
        // The line `:CHAIN` empties a chain. After that, no chain refers to another one.
        for chain in &self.chains {
            text.push_str(&format!(":{chain} - [0:0]\n"));
        }
        for rule in &self.jumps {
            items.push(format!("rule   {variant} {} {}", table.name, rule.text));
            text.push_str(&format!("-D {}\n", rule.text));
        }
        for chain in &self.chains {
            items.push(format!("chain  {variant} {} {chain}", table.name));
            text.push_str(&format!("-X {chain}\n"));
        }
        text.push_str("COMMIT\n");
        // --noflush keeps everything that the input does not name. --wait: another program may hold
        // the lock for a moment.
        let restore = NodeCommand::new(format!("{variant}-restore"), &["--noflush", "--wait=10"]);
        Some(Removal { items, command: restore.with_input(text) })
    }
}

#[cfg(test)]
mod tests;
