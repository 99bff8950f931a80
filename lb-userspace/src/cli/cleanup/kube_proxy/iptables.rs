//! iptables mode, and the iptables rules of IPVS mode.
//!
//! Chains go by name, jumps into them by target and comment. A chain of kube-proxy that a rule of somebody else jumps to cannot be
//! deleted, and deleting the rest around it would change what that rule means: it stays, with all it leads to.

use std::collections::BTreeSet;
use std::fs;

use super::leftovers::{Answer, Leftovers, Removal};
use super::programs::Call;

/// Chains by table (pkg/proxy/iptables/cleanup.go; pkg/proxy/ipvs/proxier.go, iptablesCleanupChains).
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

/// Marks packets that [`POSTROUTING`] shall masquerade. Also others use it, for example CNI's portmap.
const MARK_MASQ: &str = "KUBE-MARK-MASQ";
const POSTROUTING: &str = "KUBE-POSTROUTING";

/// Chains of Services and endpoints, in the nat table. KUBE-XLB- became KUBE-EXT- in Kubernetes 1.24.
const PREFIXES: [&str; 6] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-FW-", "KUBE-EXT-", "KUBE-XLB-"];

/// Target and comment of the rules that kube-proxy puts into the chains of the kernel (iptablesJumpChains,
/// iptablesJumpChain). Their other conditions differ by version.
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

pub(super) fn find(found: &mut Leftovers) {
    // Both variants have rules of their own in the kernel, and a node may have had a kube-proxy with either.
    for (family, tables) in
        [("iptables", "/proc/net/ip_tables_names"), ("ip6tables", "/proc/net/ip6_tables_names")]
    {
        let legacy = find_in(found, &format!("{family}-legacy"));
        let nft = find_in(found, &format!("{family}-nft"));
        // Where there is one variant only, it has no name of its own.
        if !(legacy || nft || find_in(found, family)) {
            found.notes.push(format!("rules of {family} were not looked at: {family}-save is not installed"));
        }
        // The kernel tells of these tables by itself.
        if nft && !legacy && fs::read_to_string(tables).is_ok_and(|names| !names.is_empty()) {
            let reason = format!("{family}-legacy-save is not installed");
            found.unreachable.push((format!("rules  {family}-legacy"), reason));
        }
    }
}

/// Whether the variant is installed.
fn find_in(found: &mut Leftovers, variant: &str) -> bool {
    let text = match found.ask(&format!("rules  {variant}"), &Call::new(format!("{variant}-save"), &[])) {
        Answer::Text(text) => text,
        Answer::Failed => return true,
        Answer::NotInstalled => return false,
    };
    for line in text.lines().filter(|line| line.starts_with("# Table `") && line.contains("is incompatible"))
    {
        // iptables-nft shows no table that nft was used on.
        found.notes.push(format!("{variant} cannot show a table: {}", line.trim_start_matches("# ")));
    }
    for table in tables(&text) {
        let plan = Plan::of(&table);
        found.notes.extend(plan.kept.iter().map(|kept| format!("{variant} {} {kept}", table.name)));
        found.removals.extend(plan.removal(variant, &table));
    }
    true
}

/// A table as iptables-save prints it.
struct Table<'a> {
    name: &'a str,
    /// Chains that somebody made.
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

fn tables(text: &str) -> Vec<Table<'_>> {
    let mut tables = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            tables.push(Table { name, chains: BTreeSet::new(), rules: Vec::new() });
            continue;
        }
        let Some(table) = tables.last_mut() else { continue };
        if let Some(chain) = line.strip_prefix(':') {
            // Chains of the kernel have a policy.
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

/// Splits as iptables-restore does: at spaces outside double quotes; a backslash in quotes takes the next character as it is.
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

fn is_kube_proxys(table: &str, chain: &str) -> bool {
    CHAINS.iter().any(|(name, chains)| *name == table && chains.contains(&chain))
        || (table == "nat" && PREFIXES.iter().any(|prefix| chain.starts_with(prefix)))
}

/// What goes from a table, and what stays although it is kube-proxy's.
struct Plan<'a> {
    chains: BTreeSet<&'a str>,
    jumps: Vec<&'a Rule<'a>>,
    kept: Vec<String>,
}

impl<'a> Plan<'a> {
    fn of(table: &'a Table<'a>) -> Self {
        let mut chains: BTreeSet<&str> =
            table.chains.iter().copied().filter(|chain| is_kube_proxys(table.name, chain)).collect();
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
                kept.push(format!("{chain} stays: a rule of somebody else uses it (-A {})", rule.text));
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

        let goes =
            |rule: &&Rule| is_jump(rule) && rule.target.as_deref().is_some_and(|to| chains.contains(to));
        let jumps = table.rules.iter().filter(goes).collect();
        Self { chains, jumps, kept }
    }

    /// One transaction: the kernel takes all of it, or nothing.
    fn removal(&self, variant: &str, table: &Table) -> Option<Removal> {
        if self.chains.is_empty() {
            return None;
        }
        let (mut what, mut text) = (Vec::new(), format!("*{}\n", table.name));
        // Naming a chain empties it, so that nothing refers to another one when it is deleted.
        for chain in &self.chains {
            text.push_str(&format!(":{chain} - [0:0]\n"));
        }
        for rule in &self.jumps {
            what.push(format!("rule   {variant} {} {}", table.name, rule.text));
            text.push_str(&format!("-D {}\n", rule.text));
        }
        for chain in &self.chains {
            what.push(format!("chain  {variant} {} {chain}", table.name));
            text.push_str(&format!("-X {chain}\n"));
        }
        text.push_str("COMMIT\n");
        // --noflush: all that is not named stays. --wait: others may hold the lock for a moment.
        let call = Call::new(format!("{variant}-restore"), &["--noflush", "--wait=10"]).with_input(text);
        Some(Removal { what, call })
    }
}

#[cfg(test)]
mod tests;
