//! nftables mode: one table per family.

use super::leftovers::{Answer, Leftovers, Removal};
use super::programs::Call;

/// All that the mode makes (pkg/proxy/nftables/cleanup.go).
const TABLES: [&str; 2] = ["ip kube-proxy", "ip6 kube-proxy"];

pub(super) fn find(found: &mut Leftovers) {
    match found.ask("tables of nftables", &Call::new("nft", &["list", "tables"])) {
        Answer::Text(text) => found.removals.extend(removals(&text)),
        Answer::NotInstalled => {
            found.notes.push("tables of nftables were not looked at: nft is not installed".into());
        }
        Answer::Failed => {}
    }
}

/// `tables` is what `nft list tables` prints.
fn removals(tables: &str) -> impl Iterator<Item = Removal> {
    let ours = |line: &str| TABLES.into_iter().find(|table| line.strip_prefix("table ") == Some(table));
    tables.lines().filter_map(move |line| ours(line.trim())).map(|table| {
        let (family, name) = table.split_once(' ').unwrap_or((table, ""));
        Removal::one(format!("table  nftables {table}"), "nft", &["delete", "table", family, name])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_tables_of_kube_proxy_go() {
        let text = "table ip nat\ntable ip kube-proxy\ntable inet kube-proxy\ntable ip kube-proxy-other\n\
                    table ip6 kube-proxy\ntable arp kube-proxy\n";
        let whats: Vec<_> = removals(text).flat_map(|removal| removal.what).collect();
        assert_eq!(whats, ["table  nftables ip kube-proxy", "table  nftables ip6 kube-proxy"]);
        assert_eq!(
            removals(text).next().unwrap().call,
            Call::new("nft", &["delete", "table", "ip", "kube-proxy"])
        );
    }
}
