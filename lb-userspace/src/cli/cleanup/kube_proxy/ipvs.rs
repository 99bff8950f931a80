//! IPVS mode: virtual servers, the device that holds their addresses, and ipsets.
//! [`super::iptables`] handles the iptables rules of this mode.
//!
//! `kube-proxy --cleanup` removes every virtual server. `lb cleanup` removes only those of
//! kube-proxy: their address is on the device of kube-proxy, or their port is in an ipset of node
//! ports.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};

use super::leftovers::{Leftovers, ListOutcome, Removal};
use super::programs::{NodeCommand, ProgramError};

const DEVICE: &str = "kube-ipvs0";

/// The names of the ipsets without their prefix (pkg/proxy/ipvs/proxier.go, ipsetInfo).
const SETS: [&str; 17] = [
    "LOOP-BACK",
    "CLUSTER-IP",
    "EXTERNAL-IP",
    "EXTERNAL-IP-LOCAL",
    "LOAD-BALANCER",
    "LOAD-BALANCER-FW",
    "LOAD-BALANCER-LOCAL",
    "LOAD-BALANCER-SOURCE-IP",
    "LOAD-BALANCER-SOURCE-CIDR",
    "NODE-PORT-TCP",
    "NODE-PORT-LOCAL-TCP",
    "NODE-PORT-UDP",
    "NODE-PORT-LOCAL-UDP",
    "NODE-PORT-SCTP-HASH",
    "NODE-PORT-LOCAL-SCTP-HASH",
    "HEALTH-CHECK-NODE-PORT",
    "IPVS-IPS",
];

/// The prefixes of ipset names, for IPv6 and IPv4. The longer one comes first, because the shorter
/// one is a prefix of it.
const PREFIXES: [&str; 2] = ["KUBE-6-", "KUBE-"];

/// ipvsadm's option for the protocol of a virtual server, and the ipset of node ports of that
/// protocol.
const PROTOCOLS: [(&str, &str); 3] =
    [("-t", "NODE-PORT-TCP"), ("-u", "NODE-PORT-UDP"), ("--sctp-service", "NODE-PORT-SCTP-HASH")];

/// Adds the virtual servers, the device and the ipsets of kube-proxy to `found`.
pub(super) fn find(found: &mut Leftovers) {
    let sets = NodeCommand::new("ipset", &["save"]).run().unwrap_or_else(|error| {
        // On many nodes without ipsets the program is installed but the kernel module is not
        // loaded.
        if !matches!(error, ProgramError::Missing(_)) {
            found.notes.push(format!("ipsets were not checked: {error}"));
        }
        String::new()
    });
    let has_device = is_listed("/proc/net/dev", |line| line.trim_start().starts_with(&format!("{DEVICE}:")));
    let mut addresses = Some(BTreeSet::new());
    if has_device {
        let command = NodeCommand::new("ip", &["-o", "address", "show", "dev", DEVICE]);
        addresses =
            list_existing(found, &format!("device {DEVICE}"), &command).map(|text| addresses_in(&text));
    }
    // The file has a heading, then one line for each virtual server and for each of its endpoints.
    // It does not exist if the IPVS module is not loaded.
    if let Some(addresses) = &addresses
        && is_listed("/proc/net/ip_vs", |line| {
            ["TCP ", "UDP ", "SCTP "].iter().any(|name| line.starts_with(name))
        })
        && let Some(text) = list_existing(found, "server IPVS", &NodeCommand::new("ipvsadm", &["-S", "-n"]))
    {
        found.removals.extend(servers(&text, addresses, &node_ports(&sets)));
    }
    if has_device && addresses.is_some() {
        let item = format!("device {DEVICE}");
        found.removals.push(Removal::one(item, "ip", &["link", "delete", "dev", DEVICE]));
    }
    let destroy = |set| Removal::one(format!("ipset  {set}"), "ipset", &["destroy", set]);
    found.removals.extend(sets_in(&sets).map(destroy));
}

/// Returns whether a file has a line that meets the condition.
fn is_listed(file: &str, condition: impl Fn(&str) -> bool) -> bool {
    fs::read_to_string(file).is_ok_and(|text| text.lines().any(condition))
}

/// Runs a command that lists items which exist. If the program is missing, that is a failure.
fn list_existing(found: &mut Leftovers, item: &str, command: &NodeCommand) -> Option<String> {
    match found.list(item, command) {
        ListOutcome::Text(text) => return Some(text),
        ListOutcome::NotInstalled => {
            let reason = format!("{} is not installed", command.program());
            found.unreachable.push((item.to_owned(), reason));
        }
        ListOutcome::Failed => {}
    }
    None
}

/// Returns the names of kube-proxy's ipsets in `saved`, the output of `ipset save`.
fn sets_in(saved: &str) -> impl Iterator<Item = &str> {
    saved.lines().filter_map(|line| {
        let (set, _) = line.strip_prefix("create ")?.split_once(' ')?;
        SETS.contains(&without_prefix(set)?).then_some(set)
    })
}

/// Returns the name of an ipset without its prefix.
fn without_prefix(set: &str) -> Option<&str> {
    PREFIXES.iter().find_map(|prefix| set.strip_prefix(prefix))
}

/// Returns the node ports in `saved`, the output of `ipset save`, with ipvsadm's option for their
/// protocol. Its lines look like `add KUBE-NODE-PORT-TCP 30080` and
/// `add KUBE-NODE-PORT-SCTP-HASH 192.0.2.1,sctp:30080`.
fn node_ports(saved: &str) -> BTreeSet<(&'static str, u16)> {
    let port = |line: &str| {
        let mut words = line.strip_prefix("add ")?.split(' ');
        let set = without_prefix(words.next()?)?;
        let (protocol, _) = PROTOCOLS.into_iter().find(|(_, ports)| *ports == set)?;
        let member = words.next()?;
        Some((protocol, member.rsplit(':').next().unwrap_or(member).parse().ok()?))
    };
    saved.lines().filter_map(port).collect()
}

/// Returns the addresses in `listing`, the output of `ip -o address`.
fn addresses_in(listing: &str) -> BTreeSet<IpAddr> {
    let address = |line: &str| {
        let mut words = line.split_whitespace().skip_while(|word| !["inet", "inet6"].contains(word)).skip(1);
        words.next()?.split('/').next()?.parse().ok()
    };
    listing.lines().filter_map(address).collect()
}

/// Returns the removals of kube-proxy's virtual servers in `saved`, the output of `ipvsadm -S -n`.
/// It has the line `-A -t 10.96.0.1:443 -s rr` for a virtual server, and `-a …` for each of its
/// endpoints.
fn servers(
    saved: &str,
    addresses: &BTreeSet<IpAddr>,
    node_ports: &BTreeSet<(&'static str, u16)>,
) -> Vec<Removal> {
    let removal = |line: &str| {
        let mut words = line.strip_prefix("-A ")?.split_whitespace();
        let word = words.next()?;
        let (protocol, _) = PROTOCOLS.into_iter().find(|(protocol, _)| *protocol == word)?;
        let text = words.next()?;
        let address: SocketAddr = text.parse().ok()?;
        let is_kube_proxy =
            addresses.contains(&address.ip()) || node_ports.contains(&(protocol, address.port()));
        let item = format!("server IPVS {protocol} {text}");
        is_kube_proxy.then(|| Removal::one(item, "ipvsadm", &["-D", protocol, text]))
    };
    saved.lines().filter_map(removal).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED_SETS: &str = "\
create KUBE-CLUSTER-IP hash:ip,port family inet hashsize 1024 maxelem 65536 bucketsize 12 initval 0xf9b852ef
add KUBE-CLUSTER-IP 10.96.0.10,udp:53
create KUBE-6-CLUSTER-IP hash:ip,port family inet6 hashsize 1024 maxelem 65536 bucketsize 12 initval 0x01
create KUBE-NODE-PORT-TCP bitmap:port range 0-65535
add KUBE-NODE-PORT-TCP 30080
create KUBE-NODE-PORT-SCTP-HASH hash:ip,port family inet hashsize 1024 maxelem 65536 bucketsize 12 initval 0x02
add KUBE-NODE-PORT-SCTP-HASH 192.0.2.1,sctp:30081
create KUBE-ROUTER-PODS hash:ip family inet hashsize 1024 maxelem 65536 bucketsize 12 initval 0x03
create cali40all-ipam-pools hash:net family inet hashsize 1024 maxelem 1048576 bucketsize 12 initval 0x04
";

    #[test]
    fn only_ipsets_of_kube_proxy_are_removed() {
        let sets: Vec<_> = sets_in(SAVED_SETS).collect();
        let expected =
            ["KUBE-CLUSTER-IP", "KUBE-6-CLUSTER-IP", "KUBE-NODE-PORT-TCP", "KUBE-NODE-PORT-SCTP-HASH"];
        assert_eq!(sets, expected);
    }

    #[test]
    fn virtual_servers_are_recognised_by_address_and_node_port() {
        let listing = "\
7: kube-ipvs0    inet 10.96.0.10/32 scope global kube-ipvs0\\       valid_lft forever preferred_lft forever
7: kube-ipvs0    inet6 fd00:96::a/128 scope global \\       valid_lft forever preferred_lft forever
";
        let saved = "\
-A -t 10.96.0.10:53 -s rr -p 10800
-a -t 10.96.0.10:53 -r 10.244.0.2:53 -m -w 1
-A -u [fd00:96::a]:53 -s rr
-A -t 192.0.2.1:30080 -s rr
-A -u 192.0.2.1:30080 -s rr
-A --sctp-service 192.0.2.1:30081 -s rr
-A -t 192.0.2.9:80 -s wlc
-A -f 1 -s rr
";
        let removals = servers(saved, &addresses_in(listing), &node_ports(SAVED_SETS));
        let items: Vec<_> = removals.iter().flat_map(|removal| &removal.items).collect();
        let expected = [
            "server IPVS -t 10.96.0.10:53",
            "server IPVS -u [fd00:96::a]:53",
            "server IPVS -t 192.0.2.1:30080",
            "server IPVS --sctp-service 192.0.2.1:30081",
        ];
        assert_eq!(items, expected);
        assert_eq!(removals[0].command, NodeCommand::new("ipvsadm", &["-D", "-t", "10.96.0.10:53"]));
    }
}
