//! IPVS mode: virtual servers, the device that holds their addresses, and sets. Its iptables rules: see [`super::iptables`].
//!
//! kube-proxy's own cleanup removes every virtual server; this one those that kube-proxy made: at an address of its
//! device, or at a port of its sets of node ports.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};

use super::leftovers::{Answer, Leftovers, Removal};
use super::programs::{Call, ProgramError};

const DEVICE: &str = "kube-ipvs0";

/// The sets (pkg/proxy/ipvs/proxier.go, ipsetInfo) without the beginning of their names, [`PREFIXES`].
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

/// Of IPv4 and of IPv6. The longer one first: the other begins it.
const PREFIXES: [&str; 2] = ["KUBE-6-", "KUBE-"];

/// ipvsadm's words for the protocol of a virtual server, and the set of node ports of that protocol.
const PROTOCOLS: [(&str, &str); 3] =
    [("-t", "NODE-PORT-TCP"), ("-u", "NODE-PORT-UDP"), ("--sctp-service", "NODE-PORT-SCTP-HASH")];

pub(super) fn find(found: &mut Leftovers) {
    let sets = Call::new("ipset", &["save"]).run().unwrap_or_else(|error| {
        // The program is there without the kernel's part of it on many nodes that never had sets.
        if !matches!(error, ProgramError::Missing(_)) {
            found.notes.push(format!("sets of ipset were not looked at: {error}"));
        }
        String::new()
    });
    let device = is_listed("/proc/net/dev", |line| line.trim_start().starts_with(&format!("{DEVICE}:")));
    let mut addresses = Some(BTreeSet::new());
    if device {
        let call = Call::new("ip", &["-o", "address", "show", "dev", DEVICE]);
        addresses = asked(found, &format!("device {DEVICE}"), &call).map(|text| addresses_in(&text));
    }
    // After a heading, one line for each virtual server and each of its endpoints. Without IPVS there is no such file.
    if let Some(addresses) = &addresses
        && is_listed("/proc/net/ip_vs", |line| {
            ["TCP ", "UDP ", "SCTP "].iter().any(|name| line.starts_with(name))
        })
        && let Some(text) = asked(found, "server IPVS", &Call::new("ipvsadm", &["-S", "-n"]))
    {
        found.removals.extend(servers(&text, addresses, &node_ports(&sets)));
    }
    if device && addresses.is_some() {
        let what = format!("device {DEVICE}");
        found.removals.push(Removal::one(what, "ip", &["link", "delete", "dev", DEVICE]));
    }
    let destroy = |set| Removal::one(format!("ipset  {set}"), "ipset", &["destroy", set]);
    found.removals.extend(sets_in(&sets).map(destroy));
}

fn is_listed(file: &str, is_wanted: impl Fn(&str) -> bool) -> bool {
    fs::read_to_string(file).is_ok_and(|text| text.lines().any(is_wanted))
}

/// The answer about something that is there: that its program is missing is a failure.
fn asked(found: &mut Leftovers, what: &str, call: &Call) -> Option<String> {
    match found.ask(what, call) {
        Answer::Text(text) => return Some(text),
        Answer::NotInstalled => {
            found.unreachable.push((what.to_owned(), format!("{} is not installed", call.program())));
        }
        Answer::Failed => {}
    }
    None
}

/// `saved` is what `ipset save` prints.
fn sets_in(saved: &str) -> impl Iterator<Item = &str> {
    saved.lines().filter_map(|line| {
        let (set, _) = line.strip_prefix("create ")?.split_once(' ')?;
        SETS.contains(&kind(set)?).then_some(set)
    })
}

/// The name of a set without its beginning.
fn kind(set: &str) -> Option<&str> {
    PREFIXES.iter().find_map(|prefix| set.strip_prefix(prefix))
}

/// Ports with ipvsadm's word for their protocol, from what `ipset save` prints: `add KUBE-NODE-PORT-TCP 30080`,
/// `add KUBE-NODE-PORT-SCTP-HASH 192.0.2.1,sctp:30080`.
fn node_ports(saved: &str) -> BTreeSet<(&'static str, u16)> {
    let port = |line: &str| {
        let mut words = line.strip_prefix("add ")?.split(' ');
        let set = kind(words.next()?)?;
        let (protocol, _) = PROTOCOLS.into_iter().find(|(_, ports)| *ports == set)?;
        let member = words.next()?;
        Some((protocol, member.rsplit(':').next().unwrap_or(member).parse().ok()?))
    };
    saved.lines().filter_map(port).collect()
}

/// `listing` is what `ip -o address` prints.
fn addresses_in(listing: &str) -> BTreeSet<IpAddr> {
    let address = |line: &str| {
        let mut words = line.split_whitespace().skip_while(|word| !["inet", "inet6"].contains(word)).skip(1);
        words.next()?.split('/').next()?.parse().ok()
    };
    listing.lines().filter_map(address).collect()
}

/// `saved` is what `ipvsadm -S -n` prints: `-A -t 10.96.0.1:443 -s rr` for a virtual server, `-a …` for an endpoint.
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
        let is_ours = addresses.contains(&address.ip()) || node_ports.contains(&(protocol, address.port()));
        let what = format!("server IPVS {protocol} {text}");
        is_ours.then(|| Removal::one(what, "ipvsadm", &["-D", protocol, text]))
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
    fn only_the_sets_of_kube_proxy_go() {
        let sets: Vec<_> = sets_in(SAVED_SETS).collect();
        let ours = ["KUBE-CLUSTER-IP", "KUBE-6-CLUSTER-IP", "KUBE-NODE-PORT-TCP", "KUBE-NODE-PORT-SCTP-HASH"];
        assert_eq!(sets, ours);
    }

    #[test]
    fn virtual_servers_go_by_address_of_the_device_and_by_node_port() {
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
        let whats: Vec<_> = removals.iter().flat_map(|removal| &removal.what).collect();
        let ours = [
            "server IPVS -t 10.96.0.10:53",
            "server IPVS -u [fd00:96::a]:53",
            "server IPVS -t 192.0.2.1:30080",
            "server IPVS --sctp-service 192.0.2.1:30081",
        ];
        assert_eq!(whats, ours);
        assert_eq!(removals[0].call, Call::new("ipvsadm", &["-D", "-t", "10.96.0.10:53"]));
    }
}
