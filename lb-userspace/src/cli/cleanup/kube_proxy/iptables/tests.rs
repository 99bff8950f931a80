//! Tests with captured and written rules of iptables.

use super::*;
use crate::testing::assert_golden;

/// The rules that kube-proxy 1.37 writes for the Services of its test TestOverallIPTablesRules
/// (pkg/proxy/iptables/proxier_test.go), as iptables-nft-save 1.8.9 prints them.
const CAPTURE: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/captures/kube-proxy-iptables.txt"));

fn removals(text: &str) -> Vec<Removal> {
    let removal = |table: &IptablesTable| TableCleanup::of(table).removal("iptables-nft", table);
    tables(text).iter().filter_map(removal).collect()
}

/// Returns the input of iptables-restore for a nat table with `rules`, and the notes about chains
/// that stay.
fn nat(rules: &str) -> (String, Vec<String>) {
    let text = format!("*nat\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n{rules}COMMIT\n");
    let tables = tables(&text);
    let cleanup = TableCleanup::of(&tables[0]);
    let removal = cleanup.removal("iptables", &tables[0]);
    let input = removal.map(|removal| removal.command.input().to_owned());
    (input.unwrap_or_default(), cleanup.kept)
}

#[test]
fn everything_of_kube_proxy_is_removed() {
    let removals = removals(CAPTURE);
    let inputs: String = removals.iter().map(|removal| removal.command.input()).collect();
    assert_golden("cleanup-kube-proxy-iptables.txt", &inputs);
    let items: Vec<_> = removals.iter().flat_map(|removal| &removal.items).collect();
    assert_eq!(items[0], "chain  iptables-nft mangle KUBE-PROXY-CANARY");
    assert_eq!(
        items[1],
        "rule   iptables-nft filter INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes \
         externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES"
    );
}

#[test]
fn every_removed_chain_is_emptied_and_deleted() {
    for removal in removals(CAPTURE) {
        let input = removal.command.input();
        for chain in input.lines().filter_map(|line| line.strip_prefix(':')) {
            let delete = format!("-X {}", first_word(chain));
            assert!(input.lines().any(|line| line == delete), "no {delete} in\n{input}");
        }
    }
}

#[test]
fn chains_of_the_kubelet_and_other_programs_stay() {
    let text = "\
*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*filter
:INPUT ACCEPT [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-ROUTER-INPUT - [0:0]
:KUBE-SVC-XPGD46QRK7WJZT7O - [0:0]
-A INPUT -j KUBE-FIREWALL
-A INPUT -m comment --comment \"kubernetes forwarding rules\" -j ACCEPT
-A INPUT -m comment --comment \"kube-router netpol\" -j KUBE-ROUTER-INPUT
COMMIT
*nat
:KUBE-MARK-DROP - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
-A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000
COMMIT
";
    assert_eq!(removals(text), []);
}

#[test]
fn a_comment_is_not_taken_for_a_jump() {
    let rules = ":MINE - [0:0]\n:KUBE-SERVICES - [0:0]\n\
                 -A OUTPUT -m comment --comment \"not \\\"a jump\\\" -j KUBE-SERVICES\" -j MINE\n";
    let (input, kept) = nat(rules);
    assert_eq!(input, "*nat\n:KUBE-SERVICES - [0:0]\n-X KUBE-SERVICES\nCOMMIT\n");
    assert!(kept.is_empty(), "{kept:?}");
}

#[test]
fn a_chain_that_another_program_uses_stays_with_its_targets() {
    let (input, kept) = nat("\
:MINE - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-A - [0:0]
:KUBE-SVC-B - [0:0]
:KUBE-SEP-A - [0:0]
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A KUBE-SERVICES -j KUBE-SVC-A
-A KUBE-SERVICES -j KUBE-SVC-B
-A KUBE-SVC-A -j KUBE-SEP-A
-A MINE -g KUBE-SVC-A
");
    let expected = "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-B - [0:0]\n\
                    -D OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
                    -X KUBE-SERVICES\n-X KUBE-SVC-B\nCOMMIT\n";
    assert_eq!(input, expected);
    assert_eq!(kept, ["KUBE-SVC-A stays: a rule of another program uses it (-A MINE -g KUBE-SVC-A)"]);
}

/// The CNI plugin portmap can mark packets in KUBE-MARK-MASQ (`externalSetMarkChain`). The mark has
/// an effect only if KUBE-POSTROUTING stays too.
#[test]
fn masquerading_stays_if_another_program_marks_packets() {
    let (input, kept) = nat("\
:CNI-HOSTPORT-SETMARK - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A CNI-HOSTPORT-SETMARK -j KUBE-MARK-MASQ
");
    assert_eq!(input, "*nat\n:KUBE-SERVICES - [0:0]\n-X KUBE-SERVICES\nCOMMIT\n");
    assert_eq!(kept.len(), 1);
}

/// The rule jumps to a chain of kube-proxy, but it does not have the comment of kube-proxy.
#[test]
fn a_jump_of_another_program_stays() {
    let (input, kept) = nat(":KUBE-SERVICES - [0:0]\n-A OUTPUT -d 10.96.0.10/32 -j KUBE-SERVICES\n");
    assert_eq!(input, "");
    assert_eq!(kept.len(), 1);
}

#[test]
fn words_are_split_as_iptables_restore_does() {
    assert_eq!(
        words(r#"-m comment --comment "a \"b\" \\ c" -j X"#),
        ["-m", "comment", "--comment", r#"a "b" \ c"#, "-j", "X"]
    );
    assert_eq!(words(r#"--comment "" -j X"#), ["--comment", "", "-j", "X"]);
}
