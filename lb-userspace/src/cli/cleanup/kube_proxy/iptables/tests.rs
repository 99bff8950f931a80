use super::*;
use crate::testing::assert_golden;

/// What kube-proxy 1.37 writes for the Services of its own test (TestOverallIPTablesRules in
/// pkg/proxy/iptables/proxier_test.go), as iptables-nft-save 1.8.9 prints it.
const CAPTURE: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/captures/kube-proxy-iptables.txt"));

fn removals(text: &str) -> Vec<Removal> {
    tables(text).iter().filter_map(|table| Plan::of(table).removal("iptables-nft", table)).collect()
}

/// What iptables-restore is given for the only table of `text`, and what is said to stay.
fn nat(rules: &str) -> (String, Vec<String>) {
    let text = format!("*nat\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n{rules}COMMIT\n");
    let tables = tables(&text);
    let plan = Plan::of(&tables[0]);
    let input = plan.removal("iptables", &tables[0]).map(|removal| removal.call.input().to_owned());
    (input.unwrap_or_default(), plan.kept)
}

#[test]
fn all_that_kube_proxy_writes_goes() {
    let removals = removals(CAPTURE);
    let inputs: String = removals.iter().map(|removal| removal.call.input()).collect();
    assert_golden("cleanup-kube-proxy-iptables.txt", &inputs);
    let what: Vec<_> = removals.iter().flat_map(|removal| &removal.what).collect();
    assert_eq!(what[0], "chain  iptables-nft mangle KUBE-PROXY-CANARY");
    assert_eq!(
        what[1],
        "rule   iptables-nft filter INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes \
         externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES"
    );
}

#[test]
fn every_chain_that_goes_is_emptied_and_deleted() {
    for removal in removals(CAPTURE) {
        let input = removal.call.input();
        for chain in input.lines().filter_map(|line| line.strip_prefix(':')) {
            let delete = format!("-X {}", first_word(chain));
            assert!(input.lines().any(|line| line == delete), "no {delete} in\n{input}");
        }
    }
}

#[test]
fn chains_of_the_kubelet_and_of_others_stay() {
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
fn a_comment_is_no_jump() {
    let rules = ":MINE - [0:0]\n:KUBE-SERVICES - [0:0]\n\
                 -A OUTPUT -m comment --comment \"not \\\"a jump\\\" -j KUBE-SERVICES\" -j MINE\n";
    let (input, kept) = nat(rules);
    assert_eq!(input, "*nat\n:KUBE-SERVICES - [0:0]\n-X KUBE-SERVICES\nCOMMIT\n");
    assert!(kept.is_empty(), "{kept:?}");
}

#[test]
fn a_chain_that_others_use_stays_with_all_it_leads_to() {
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
    assert_eq!(kept, ["KUBE-SVC-A stays: a rule of somebody else uses it (-A MINE -g KUBE-SVC-A)"]);
}

/// CNI's portmap marks with `externalSetMarkChain: KUBE-MARK-MASQ`; the mark means something only where it is acted on.
#[test]
fn masquerading_stays_for_others_that_mark_for_it() {
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

/// The chain is kube-proxy's, the rule that leads to it has not its comment.
#[test]
fn a_jump_that_somebody_else_made_stays() {
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
