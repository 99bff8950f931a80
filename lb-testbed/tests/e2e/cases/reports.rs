//! Faults that users of other load balancers reported.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lb_testbed::Family;
use lb_testbed::kernel::lacks;
use lb_testbed::place::Place;

use crate::check::{answered, eventually};
use crate::world::{To, World};

/// A client with few ports uses each of them again and again, also within TIME_WAIT. No connection
/// waits for a repeated SYN (cilium#45863).
pub fn ports_are_reused(world: &mut World, family: Family) -> Result<()> {
    const ROUNDS: usize = 4;
    let service = world.publish(&[3])?;
    let target = service.node_port(world.node(0), family, To::Http);
    let client = world.client();
    let before = client.place.run("cat", ["/proc/sys/net/ipv4/ip_local_port_range"])?;
    let settings = ["net/ipv4/ip_local_port_range=40000 40031", "net/ipv4/tcp_tw_reuse=1"];
    client.place.sysctl(&settings)?;
    let connect = || {
        for _ in 0..ROUNDS {
            answered(&client.get(&[target], 14)?, &[3], &world.node(0).addresses())?;
            // The kernel reuses a port in TIME_WAIT only after a second (tcp_tw_reuse_delay).
            sleep(Duration::from_millis(1100));
        }
        Ok(())
    };
    let repeated = repeated_syns(&client.place)?;
    let connected: Result<()> = connect();
    let after = repeated_syns(&client.place)?;
    client.place.sysctl(&[&format!("net/ipv4/ip_local_port_range={}", before.trim())])?;
    connected?;
    // A busy machine loses a packet now and then. With the fault, nearly every connection repeats
    // its SYN after the first round.
    let repeated = after - repeated;
    ensure!(repeated < ROUNDS as u64, "the client repeated {repeated} SYNs");
    Ok(())
}

/// Returns the number of repeated SYNs of a network namespace.
fn repeated_syns(place: &Place) -> Result<u64> {
    let text = place.run("cat", ["/proc/thread-self/net/netstat"])?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
    let (names, values) = lines.next().zip(lines.next()).context("no TcpExt in netstat")?;
    let mut counters = names.split_whitespace().zip(values.split_whitespace());
    let (_, count) = counters.find(|(name, _)| *name == "TCPSynRetrans").context("no TCPSynRetrans")?;
    count.parse().context("the counter is a number")
}

/// A host with a network namespace of its own is behind a pod, which masquerades its packets (a VPN
/// gateway). It reaches a ClusterIP if programs are attached to the device of the pod
/// (cilium#26847).
pub fn namespace_behind_a_pod(world: &mut World, family: Family) -> Result<()> {
    let pod = world.pod(2).host.clone();
    let mut behind = pod.clone();
    let name = format!("behind-{family}").to_lowercase();
    let id = world.topology.id();
    behind.place = Place::create(id.netns(&name), id.cgroup()?.join(&name))?;
    let (gateway, host, prefix, any) = match family {
        Family::V4 => ("172.30.0.1", "172.30.0.2", 24, "0.0.0.0/0"),
        Family::V6 => ("fd00:30::1", "fd00:30::2", 64, "::/0"),
    };
    pod.place.ip(&format!(
        "link add behind type veth peer name eth0 netns {}\n\
         link set behind up\n\
         address add {gateway}/{prefix} dev behind\n",
        behind.place.netns()
    ))?;
    behind.place.sysctl(&["net/ipv6/conf/all/disable_ipv6=0", "net/ipv6/conf/default/accept_dad=0"])?;
    pod.place.sysctl(&["net/ipv4/ip_forward=1", "net/ipv6/conf/all/forwarding=1"])?;
    behind.place.ip(&format!(
        "link set lo up\nlink set eth0 up\naddress add {host}/{prefix} dev eth0\n\
         route add {any} via {gateway}\n"
    ))?;
    let rules = "add table inet gateway
        add chain inet gateway out { type nat hook postrouting priority srcnat; }
        add rule inet gateway out oifname eth0 masquerade";
    pod.place.run("nft", [rules]).map_err(|error| lacks(error, "masquerading (CONFIG_NFT_MASQ)"))?;
    let mut asked = Ok(());
    for endpoint in [1, 3] {
        let service = world.publish(&[endpoint])?;
        let target = service.cluster_ip(family, To::Http);
        asked = eventually(|| answered(&behind.get(&[target], 3)?, &[endpoint], &[pod.address(family)]));
        if asked.is_err() {
            break;
        }
    }
    pod.place.run("nft", ["delete table inet gateway"])?;
    pod.place.ip("link delete behind\n")?;
    asked
}

/// A rule sends the packets of a pod out of a second NIC, as the AWS VPC CNI does. Replies to
/// requests that came in by the first NIC leave by the first NIC (amazon-vpc-cni-k8s#75, #231).
pub fn second_nic_with_rules(world: &mut World, family: Family) -> Result<()> {
    let service = world.publish(&[1])?;
    let (node, client, pod) = (&world.node(0).host, world.client(), &world.pod(1).host);
    let (version, near, far, prefix) = match family {
        Family::V4 => ("-4", "10.30.0.11", "10.30.0.1", 24),
        Family::V6 => ("-6", "fd00:31::11", "fd00:31::1", 64),
    };
    client.place.ip(&format!(
        "link add second type veth peer name eth1 netns {}\n\
         link set second up\naddress add {far}/{prefix} dev second\n",
        node.place.netns()
    ))?;
    let source = pod.address(family);
    node.place.ip(&format!(
        "link set eth1 up\naddress add {near}/{prefix} dev eth1\n\
         route add default via {far} dev eth1 table 200\n"
    ))?;
    let from = source.to_string();
    let rule = |what| node.place.run("ip", [version, "rule", what, "from", &from, "lookup", "200"]);
    rule("add")?;
    // As that CNI does: the rule also applies to the reverse path of the translated request.
    node.place.sysctl(&["net/ipv4/conf/eth0/rp_filter=2"])?;
    client.place.run(
        "nft",
        ["add table inet second
          add chain inet second in { type filter hook prerouting priority raw; }
          add rule inet second in iifname second meta l4proto tcp counter"],
    )?;
    let check = || {
        let to = client.address(family).to_string();
        let device = world.pod(1).device();
        let route = node.place.run("ip", ["route", "get", &to, "from", &from, "iif", &device])?;
        ensure!(route.contains("dev eth1"), "the rule does not apply: {route}");
        let target = service.node_port(world.node(0), family, To::Http);
        let by_second = || client.place.run("nft", ["list chain inet second in"]);
        let connect = || answered(&client.get(&[target], 3)?, &[1], &[client.address(family)]);
        // The agent attaches to the new device some time after it appeared.
        eventually(|| {
            let before = by_second()?;
            connect()?;
            ensure!(by_second()? == before, "replies leave by the second NIC");
            Ok(())
        })
    };
    let checked = check();
    rule("delete")?;
    node.place.sysctl(&["net/ipv4/conf/eth0/rp_filter=1"])?;
    client.place.run("nft", ["delete table inet second"])?;
    client.place.ip("link delete second\n")?;
    checked
}
