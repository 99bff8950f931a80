//! nftables mode: kube-proxy has one table per IP family.

use super::leftovers::{Leftovers, ListOutcome, Removal};
use super::programs::NodeCommand;

/// All tables that this mode creates (pkg/proxy/nftables/cleanup.go).
const TABLES: [&str; 2] = ["ip kube-proxy", "ip6 kube-proxy"];

/// Adds the nftables tables of kube-proxy to `found`.
pub(super) fn find(found: &mut Leftovers) {
    match found.list("tables of nftables", &NodeCommand::new("nft", &["list", "tables"])) {
        ListOutcome::Text(text) => found.removals.extend(removals(&text)),
        ListOutcome::NotInstalled => {
            found.notes.push("tables of nftables were not checked: nft is not installed".into());
        }
        ListOutcome::Failed => {}
    }
}

/// Returns the removals for `tables`, the output of `nft list tables`.
fn removals(tables: &str) -> impl Iterator<Item = Removal> {
    let kube_proxy_table =
        |line: &str| TABLES.into_iter().find(|table| line.strip_prefix("table ") == Some(table));
    tables.lines().filter_map(move |line| kube_proxy_table(line.trim())).map(|table| {
        let (family, name) = table.split_once(' ').unwrap_or((table, ""));
        Removal::one(format!("table  nftables {table}"), "nft", &["delete", "table", family, name])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tables_of_kube_proxy_are_removed() {
        let text = "table ip nat\ntable ip kube-proxy\ntable inet kube-proxy\ntable ip kube-proxy-other\n\
                    table ip6 kube-proxy\ntable arp kube-proxy\n";
        let items: Vec<_> = removals(text).flat_map(|removal| removal.items).collect();
        assert_eq!(items, ["table  nftables ip kube-proxy", "table  nftables ip6 kube-proxy"]);
        assert_eq!(
            removals(text).next().unwrap().command,
            NodeCommand::new("nft", &["delete", "table", "ip", "kube-proxy"])
        );
    }
}
