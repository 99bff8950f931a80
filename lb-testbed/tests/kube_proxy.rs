//! Tests of `lb cleanup --kube-proxy` with the real iptables, nft and ipset, in a network
//! namespace. They need root.
//!
//! Many kernels lack IPVS, so the tests create only the iptables rules, the ipsets and the device
//! of that mode.

use std::fs;
use std::process::Stdio;

use lb_testbed::agent;
use lb_testbed::place::Place;
use lb_testbed::run::{self, RunId};

/// Rules of kube-proxy. The unit tests of `lb` use the same file.
const KUBE_PROXY: &str = include_str!("../../lb-userspace/tests/captures/kube-proxy-iptables.txt");

/// Rules of the kubelet, CNI plug-ins and users. Some of them resemble those of kube-proxy.
const FOREIGN_RULES: &str = r#"*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-ROUTER-FORWARD - [0:0]
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j ACCEPT
-A FORWARD -m comment --comment "no jump: -j KUBE-SERVICES \"at all\"" -j KUBE-ROUTER-FORWARD
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL -m comment --comment "block invalid" -m conntrack --ctstate INVALID -j DROP
COMMIT
*nat
:CNI-HOSTPORT-DNAT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-MARK-DROP - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A POSTROUTING -p udp -m udp --dport 4789 -j MASQUERADE
-A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000
COMMIT
"#;

const VARIANTS: [&str; 4] = ["iptables-legacy", "iptables-nft", "ip6tables-legacy", "ip6tables-nft"];

/// A node without an agent.
struct Node {
    id: RunId,
    place: Place,
}

impl Node {
    fn create() -> Self {
        // Build `lb` first, if necessary.
        agent::program().expect("lb");
        let id = RunId::claim().expect("a name for the run");
        let place = Place::create(id.netns("node"), id.cgroup().expect("cgroup v2").join("node"));
        Self { place: place.expect("a network namespace"), id }
    }

    fn run(&self, program: &str, arguments: &[&str]) -> String {
        self.place.run(program, arguments).expect("a program that `cargo xtask test` installs")
    }

    /// Adds rules with each variant of iptables.
    fn add(&self, rules: &str) {
        let file = self.id.folder().join("rules");
        for variant in VARIANTS {
            let rules = if variant.starts_with("ip6") { without_ipv4(rules) } else { rules.to_owned() };
            fs::write(&file, rules).expect("a file of rules");
            let file = file.to_str().expect("a plain path");
            self.run(&format!("{variant}-restore"), &["--noflush", "--wait=60", file]);
        }
    }

    fn cleanup(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let lb = agent::program()?.to_str().expect("a plain path");
        self.place.run(lb, [&["cleanup", "--kube-proxy"], arguments].concat())
    }

    /// Returns the output of all programs that list rules, tables, sets and devices.
    fn state(&self) -> String {
        let rules: String =
            VARIANTS.iter().map(|variant| self.run(&format!("{variant}-save"), &[])).collect();
        // Comment lines contain the time.
        let rules = rules.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n");
        let lists = [("nft", ["list", "tables"].as_slice()), ("ipset", &["save"]), ("ip", &["-br", "link"])];
        let lists: String = lists.iter().map(|(program, arguments)| self.run(program, arguments)).collect();
        format!("{rules}\n{lists}")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Err(error) = run::remove_everything_of(&self.id) {
            eprintln!("{error:#}");
        }
    }
}

/// Returns the rules without those that contain an IPv4 address or an ICMPv4 message.
fn without_ipv4(rules: &str) -> String {
    let v4 = |line: &&str| {
        ![" -s ", " -d ", "--to-destination", "--mask ", "icmp-port"].iter().any(|word| line.contains(word))
    };
    rules.lines().filter(v4).map(|line| format!("{line}\n")).collect()
}

#[test]
fn leftovers_of_kube_proxy_are_removed_and_nothing_else() {
    let node = Node::create();
    node.add(FOREIGN_RULES);
    node.run("nft", &["add table inet kube-proxy; add table ip mine"]);
    node.run("ipset", &["create", "KUBE-ROUTER-PODS", "hash:ip"]);
    let before = node.state();

    node.add(KUBE_PROXY);
    node.run("nft", &["add table ip kube-proxy; add table ip6 kube-proxy"]);
    node.run("nft", &["add chain ip kube-proxy services; add rule ip kube-proxy services return"]);
    node.run("ipset", &["create", "KUBE-CLUSTER-IP", "hash:ip,port"]);
    node.run("ipset", &["create", "KUBE-6-CLUSTER-IP", "hash:ip,port", "family", "inet6"]);
    // A set can be removed only after the last rule that refers to it.
    let rule = ["-t", "nat", "-A", "KUBE-SERVICES", "-m", "set", "--match-set", "KUBE-CLUSTER-IP", "dst,dst"];
    node.run("iptables-legacy", &[&rule[..], &["-j", "ACCEPT"]].concat());
    node.run("ip", &["link", "add", "kube-ipvs0", "type", "bridge"]);
    let with_leftovers = node.state();

    let listed = node.cleanup(&["--dry-run"]).expect("a list");
    assert_eq!(node.state(), with_leftovers, "--dry-run changed something");
    let output = node.cleanup(&[]).expect("everything removed");
    assert_eq!(node.state(), before, "{output}");
    assert_eq!(output, listed.replace("would remove ", "removed "));
    for line in [
        "removed chain  ip6tables-legacy nat KUBE-SERVICES\n",
        "removed chain  iptables-nft nat KUBE-SEP-SXIVWICOYRO3J4NJ\n",
        "removed table  nftables ip6 kube-proxy\n",
        "removed device kube-ipvs0\n",
        "removed ipset  KUBE-6-CLUSTER-IP\n",
    ] {
        assert!(output.contains(line), "no {line:?} in\n{output}");
    }
    assert_eq!(node.cleanup(&[]).expect("a node without leftovers"), "nothing to remove\n");
}

/// A chain that a foreign rule uses is kept with all its rules.
#[test]
fn a_chain_in_use_is_kept_and_the_others_are_removed() {
    let node = Node::create();
    node.add(KUBE_PROXY);
    node.run("iptables-nft", &["-t", "nat", "-N", "CNI-HOSTPORT-SETMARK"]);
    node.run("iptables-nft", &["-t", "nat", "-A", "CNI-HOSTPORT-SETMARK", "-j", "KUBE-MARK-MASQ"]);
    let output = node.cleanup(&[]).expect("everything else removed");
    assert!(output.contains("note: iptables-nft nat KUBE-MARK-MASQ stays: "), "{output}");
    let left = node.run("iptables-nft-save", &[]);
    let chains: Vec<_> = left.lines().filter_map(|line| line.strip_prefix(":KUBE-")).collect();
    assert_eq!(chains, ["MARK-MASQ - [0:0]", "POSTROUTING - [0:0]"], "{left}");
    let jump = "-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING";
    assert!(left.lines().any(|line| line == jump), "{left}");
}

#[test]
fn cleanup_is_refused_while_kube_proxy_runs() {
    let node = Node::create();
    node.add(KUBE_PROXY);
    let before = node.state();
    let kube_proxy = node.id.folder().join("kube-proxy");
    fs::copy("/bin/sleep", &kube_proxy).expect("a program of that name");
    let mut process = node.place.command(&kube_proxy).expect("the node");
    let mut process = process.arg("60").stdin(Stdio::null()).spawn().expect("a process of that name");
    let refusal = node.cleanup(&[]).expect_err("a refusal");
    let list = node.cleanup(&["--dry-run"]);
    process.kill().expect("kill the process");
    process.wait().expect("wait for the process");
    let reason = format!("kube-proxy runs on this node: process {}", process.id());
    assert!(format!("{refusal:#}").contains(&reason), "{refusal:#}");
    assert!(list.is_ok(), "{list:?}");
    assert_eq!(node.state(), before);
    node.cleanup(&[]).expect("cleanup after kube-proxy has ended");
}
