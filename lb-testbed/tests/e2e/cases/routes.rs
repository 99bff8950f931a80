//! The way of translated packets to an endpoint on another node: neighbours that move, and rules.

use anyhow::{Context, Result, ensure};
use lb_testbed::Family;
use lb_testbed::host::{Datagrams, FloodKind};
use lb_testbed::place::Place;

use crate::check::{answered, answered_by, eventually};
use crate::world::{Published, To, World};

/// No device has this address when a case starts.
const NEW_MAC: &str = "02:53:4c:55:43:45";

fn datagrams(world: &World, service: &Published, family: Family) -> Result<()> {
    let datagrams = Datagrams { connected: true, count: 1, size: 32, dont_fragment: false };
    let target = service.node_port(world.node(0), family, To::Udp);
    answered(&world.client().send_datagrams(target, datagrams)?, &[3], &world.node(0).addresses())
}

/// Returns the MAC address of the node's NIC.
fn mac(place: &Place) -> Result<String> {
    let link = place.run("ip", ["-oneline", "link", "show", "dev", "eth0"])?;
    let mut words = link.split_whitespace().skip_while(|word| *word != "link/ether");
    Ok(words.nth(1).context("eth0 has a MAC address")?.to_owned())
}

/// The second node gets another MAC address, and does not announce it. The first node sends packets
/// to the address that it knows, which no host has any more. Its kernel sees that the neighbour is
/// gone, although the programs send the packets, and finds the new address.
pub fn neighbour_moves(world: &mut World, family: Family) -> Result<()> {
    let service = world.publish(&[3])?;
    let target = service.node_port(world.node(0), family, To::Udp);
    let (sender, next_hop) = (&world.node(0).host.place, &world.node(1).host);
    let (version, protocol) = match family {
        Family::V4 => ("-4", "ipv4"),
        Family::V6 => ("-6", "ipv6"),
    };
    let address = next_hop.address(family).to_string();
    datagrams(world, &service, family)?;
    let old_mac = mac(&next_hop.place)?;
    let setting = |name: &str| format!("net/{protocol}/neigh/eth0/{name}");
    let before = ["delay_first_probe_time", "retrans_time_ms"].map(|name| {
        let value = sender.run("cat", [format!("/proc/sys/{}", setting(name))])?;
        Ok::<_, anyhow::Error>(format!("{}={}", setting(name), value.trim()))
    });
    sender.sysctl(&[&setting("delay_first_probe_time=0"), &setting("retrans_time_ms=50")])?;
    let know = |place: &Place, mac: &str| {
        let entry = ["neighbour", "replace", &address, "lladdr", mac, "dev", "eth0", "nud", "stale"];
        place.run("ip", [&[version][..], &entry].concat()).map(drop)
    };
    let check = || {
        next_hop.place.run("ip", ["link", "set", "dev", "eth0", "address", NEW_MAC])?;
        know(sender, &old_mac)?;
        eventually(|| {
            // The servers do not answer these datagrams: no packet of the second node shows its new
            // address.
            world.client().flood(FloodKind::Datagrams, target, 1)?;
            let entry = sender.run("ip", [version, "neighbour", "show", &address, "dev", "eth0"])?;
            ensure!(entry.contains(NEW_MAC), "the first node sends packets to a dead MAC address: {entry}");
            Ok(())
        })?;
        eventually(|| datagrams(world, &service, family))
    };
    let checked = check();
    next_hop.place.run("ip", ["link", "set", "dev", "eth0", "address", &old_mac])?;
    // An ARP request that the second node broadcast meanwhile has taught the new address to the
    // client, too. The client uses it for eight seconds before it sends an ARP request itself.
    for place in [sender, &world.client().place] {
        know(place, &old_mac)?;
    }
    for setting in before {
        sender.sysctl(&[&setting?])?;
    }
    checked?;
    eventually(|| datagrams(world, &service, family))?;
    let second_node = service.node_port(world.node(1), family, To::Http);
    answered_by(&world.client().get(&[second_node], 1)?, &[3])
}

/// With `--forward stack`, the rules of policy routing apply to translated packets, also those by
/// ports, which a lookup of the programs does not have.
pub fn rules_of_the_kernel(world: &mut World, family: Family) -> Result<()> {
    let service = world.publish(&[3])?;
    let node = &world.node(0).host.place;
    datagrams(world, &service, family)?;
    let version = match family {
        Family::V4 => "-4",
        Family::V6 => "-6",
    };
    let port = lb_testbed::host::UDP_PORT.to_string();
    let rule = |what| {
        let rule = [version, "rule", what, "pref", "100", "ipproto", "udp", "dport", &port, "prohibit"];
        node.run("ip", rule).map(drop)
    };
    rule("add")?;
    let prohibited = datagrams(world, &service, family);
    rule("delete")?;
    ensure!(prohibited.is_err(), "the rule does not apply to translated packets");
    eventually(|| datagrams(world, &service, family))
}
