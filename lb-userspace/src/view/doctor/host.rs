//! Findings about the host: file systems, ports, forwarding, other proxies, the API server.

use ipnet::IpNet;

use super::distribution::Distribution;
use super::facts::{ApiServer, Facts, FileSystem, FirewallPolicy, HostFacts, KubeProxyFacts, NamespaceFacts};
use super::finding::Finding;

pub fn findings(facts: &Facts) -> Vec<Finding> {
    let host = &facts.host;
    let mut findings: Vec<Finding> =
        host.distribution.iter().map(|found| Finding::ok("distribution", found.name())).collect();
    findings.extend([cgroups(host), file_system("cgroup folder", &host.cgroup)]);
    findings.push(file_system("BPF file system", &host.bpffs));
    findings.push(ports(host));
    findings.extend(forwarding(host));
    findings.push(ipsec(facts));
    findings.extend(firewall(&host.firewall));
    findings.extend(kube_proxy(&host.kube_proxy, host.distribution));
    findings.push(namespaces(&host.namespaces));
    findings
}

fn cgroups(host: &HostFacts) -> Finding {
    const CHECK: &str = "cgroups";
    let mounts = match &host.cgroups {
        Ok(mounts) => mounts,
        Err(reason) => return Finding::unchecked(CHECK, reason),
    };
    // 36 35 0:31 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw
    let types: Vec<&str> =
        mounts.lines().filter_map(|line| line.split_once(" - ")?.1.split(' ').next()).collect();
    match (types.contains(&"cgroup2"), types.contains(&"cgroup")) {
        (true, false) => Finding::ok(CHECK, "version 2"),
        (true, true) => Finding::note(
            CHECK,
            "hybrid: the controllers are in version 1. Socket programs use the version 2 hierarchy",
        ),
        (false, _) => Finding::error(
            CHECK,
            "no cgroup-v2 file system is mounted: connections of processes are not translated at the \
             socket",
            "mount it beside the controllers: `mount -t cgroup2 none /sys/fs/cgroup/unified`",
        ),
    }
}

fn file_system(check: &'static str, folder: &FileSystem) -> Finding {
    match &folder.error {
        None => Finding::ok(check, folder.path.display().to_string()),
        Some((reason, remedy)) => Finding::error(check, reason, remedy),
    }
}

fn ports(host: &HostFacts) -> Finding {
    const CHECK: &str = "source ports";
    let ((first, last), (local_first, local_last)) = match (&host.snat_ports, &host.local_ports) {
        (Ok(rewritten), Ok(local)) => (*rewritten, *local),
        (Err(reason), _) | (_, Err(reason)) => return Finding::unchecked(CHECK, reason),
    };
    let ranges =
        format!("--snat-ports is {first}-{last}, net.ipv4.ip_local_port_range is {local_first}-{local_last}");
    if first <= local_last && local_first <= last {
        Finding::warning(
            CHECK,
            format!(
                "{ranges}: they overlap, so a connection of this node can get the port of a \
                     translated one"
            ),
            format!(
                "set another range with --snat-ports, or `sysctl -w net.ipv4.ip_local_port_range=\"{} \
                 60999\"`",
                u32::from(last) + 1
            ),
        )
    } else {
        Finding::ok(CHECK, ranges)
    }
}

fn forwarding(host: &HostFacts) -> Vec<Finding> {
    const CHECK: &str = "forwarding";
    const REVERSE_PATH: &str = "reverse path filter";
    let forwarding = match &host.forwarding {
        Ok(forwarding) => forwarding,
        Err(reason) => return vec![Finding::unchecked(CHECK, reason)],
    };
    let off: Vec<&str> = [
        (!forwarding.v4).then_some("net.ipv4.ip_forward"),
        (forwarding.v6 == Some(false)).then_some("net.ipv6.conf.all.forwarding"),
    ]
    .into_iter()
    .flatten()
    .collect();
    let switches = if off.is_empty() {
        Finding::ok(CHECK, "the kernel forwards packets to pods")
    } else {
        Finding::warning(
            CHECK,
            format!(
                "{} {} 0: packets from outside do not reach the pods of this node",
                off.join(" and "),
                if off.len() == 1 { "is" } else { "are" }
            ),
            "start `lb agent`, which sets it, or set it to 1 with `sysctl -w`",
        )
    };
    let devices = forwarding.strict_rp_filter.join(", ");
    let reverse_path = if devices.is_empty() {
        Finding::ok(REVERSE_PATH, "strict on no device")
    } else {
        Finding::note(
            REVERSE_PATH,
            format!(
                "strict on {devices}: the kernel drops packets there if the route to their source \
                     leads to another device"
            ),
        )
    };
    vec![switches, reverse_path]
}

fn ipsec(facts: &Facts) -> Finding {
    const CHECK: &str = "IPsec";
    let HostFacts { ipsec, by_kernel, .. } = &facts.host;
    let policies = match ipsec {
        Ok(policies) => policies,
        Err(reason) => return Finding::unchecked(CHECK, reason),
    };
    let covered = |network: &&IpNet| by_kernel.iter().any(|other| other.contains(*network));
    let uncovered: Vec<_> =
        policies.iter().filter(|network| !covered(network)).map(ToString::to_string).collect();
    if facts.datapath.installed == Ok(true) && !uncovered.is_empty() {
        return Finding::warning(
            CHECK,
            format!(
                "policies apply to packets to {}, but the programs send translated packets there themselves: \
                 they are not encrypted",
                uncovered.join(", ")
            ),
            "start the agent with `--forward auto`, or `stack`",
        );
    }
    match (by_kernel.len(), policies.len()) {
        (0, 0) => Finding::ok(CHECK, "no policy applies to packets that leave"),
        (0, policies) => Finding::ok(CHECK, format!("policies apply to {policies} networks")),
        (networks, _) => {
            Finding::ok(CHECK, format!("the kernel forwards translated packets to {networks} networks"))
        }
    }
}

fn firewall(policies: &[FirewallPolicy]) -> Vec<Finding> {
    const CHECK: &str = "firewall";
    if policies.is_empty() {
        return vec![Finding::unchecked(CHECK, "neither iptables-save nor ip6tables-save is installed")];
    }
    policies
        .iter()
        .map(|FirewallPolicy { program, forward }| match forward {
            Ok(policy) if policy == "DROP" => Finding::warning(
                CHECK,
                format!(
                    "{program}: the policy of FORWARD is DROP, so packets to pods need a rule that \
                         accepts them"
                ),
                "accept the packets of pods in FORWARD, as most CNI plugins do, or set the policy to \
                 ACCEPT",
            ),
            Ok(policy) => Finding::ok(CHECK, format!("{program}: the policy of FORWARD is {policy}")),
            Err(reason) => Finding::unchecked(CHECK, reason),
        })
        .collect()
}

fn kube_proxy(facts: &KubeProxyFacts, distribution: Option<Distribution>) -> Vec<Finding> {
    const CHECK: &str = "kube-proxy";
    let mut findings = Vec::new();
    if let Some(evidence) = &facts.running {
        findings.push(Finding::warning(
            CHECK,
            format!("it runs ({evidence}): two proxies serve the same Services"),
            match distribution.and_then(Distribution::without_kube_proxy) {
                Some(how) => format!("{how}, then run `lb cleanup --kube-proxy`"),
                None => "remove its DaemonSet from this node, then run `lb cleanup --kube-proxy`".to_owned(),
            },
        ));
    } else if !facts.leftovers.is_empty() {
        let count = facts.leftovers.len();
        let first = one_line(&facts.leftovers[0]);
        findings.push(Finding::warning(
            CHECK,
            format!("it left {count} items on this node, the first is: {first}"),
            "run `lb cleanup --kube-proxy`; add --dry-run to list them",
        ));
    } else if facts.unchecked.is_empty() {
        findings.push(Finding::ok(CHECK, "it does not run, and no leftovers were found"));
    } else {
        findings.push(Finding::ok(CHECK, "it does not run, and no leftovers were found, but see below"));
    }
    findings.extend(facts.unchecked.iter().map(|reason| Finding::note(CHECK, one_line(reason))));
    findings
}

/// Replaces each sequence of white space by one space.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn namespaces(facts: &NamespaceFacts) -> Finding {
    const CHECK: &str = "network namespaces";
    let NamespaceFacts { folder, named, elsewhere } = facts;
    let folder = folder.display();
    let (count, text) = match named {
        Ok(0) => (0, format!("none has a name in {folder}")),
        Ok(count) => (*count, format!("{count} have a name in {folder}")),
        Err(reason) => (0, reason.clone()),
    };
    match elsewhere.iter().max_by_key(|(_, count)| *count) {
        _ if count > 0 => Finding::ok(CHECK, text),
        Some((other, count)) => Finding::warning(
            CHECK,
            format!(
                "{text}; {count} in {}: an agent that does not see the processes of pods does not \
                 find their namespaces",
                other.display()
            ),
            format!(
                "start the agent with --netns-dir {0}; with Helm, set hostPaths.netns={0}",
                other.display()
            ),
        ),
        None => Finding::note(CHECK, format!("{text}. Namespaces are found by their processes alone")),
    }
}

/// The API server sends a bookmark about every minute. The agent requests the objects again after
/// 90 s without any.
const SILENT_SECONDS: u64 = 180;

/// Returns nothing if the agent reads no API server.
pub fn watches(ages: &[(String, u64)]) -> Vec<Finding> {
    const CHECK: &str = "watches";
    let silent = ages.iter().filter(|(_, age)| *age > SILENT_SECONDS);
    let mut findings: Vec<Finding> = silent
        .map(|(resource, age)| {
            Finding::warning(
                CHECK,
                format!("the API server has sent nothing about {resource} to the agent for {age} s"),
                "check that the agent reaches the API server: its log has the reason. Until then \
                 changes are not served",
            )
        })
        .collect();
    if let (true, Some(oldest)) = (findings.is_empty(), ages.iter().map(|(_, age)| *age).max()) {
        let text = format!("the API server has sent something about each resource in the last {oldest} s");
        findings.push(Finding::ok(CHECK, text));
    }
    findings
}

pub fn api_server(facts: &Facts) -> Finding {
    const CHECK: &str = "API server";
    match &facts.api_server {
        ApiServer::NotConfigured => Finding::unchecked(CHECK, "no --kubeconfig, and not in a pod"),
        ApiServer::Reachable(version) => Finding::ok(CHECK, format!("reachable, Kubernetes {version}")),
        ApiServer::Unreachable(reason) => Finding::error(
            CHECK,
            format!("unreachable: {reason}"),
            format!(
                "check the address and the credentials of the kubeconfig. Use an address that needs no \
                 Service, because Services depend on this agent{}",
                match facts.host.distribution.and_then(Distribution::api_server) {
                    Some(address) => format!(": {address}"),
                    None => String::new(),
                }
            ),
        ),
    }
}
