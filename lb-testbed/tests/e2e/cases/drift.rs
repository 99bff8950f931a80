//! Another program changes what the agent has attached, pinned or written. The agent notices and
//! repairs it, and counts it.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lb_datapath::namespace_cookie;
use lb_testbed::agent::metric;
use lb_testbed::{Agent, AgentOptions, AttachMode, Family, Host, pass_programs};
use serde_json::Value;

use crate::check::{answered_by, eventually_within};
use crate::world::{Published, To, World};

/// The agent compares the kernel's state every ten seconds.
const LIMIT: Duration = Duration::from_secs(60);

/// Returns how many changes of this kind the agent of the first node has repaired.
fn repairs(world: &World, kind: &str) -> Result<u64> {
    Ok(metric(world.node(0), "sluice_repairs_total", &format!("kind=\"{kind}\""))? as u64)
}

/// Checks that the node serves its nodePorts.
fn served(world: &World, service: &Published) -> Result<()> {
    for family in Family::BOTH {
        let outside = service.node_port(world.node(0), family, To::Http);
        answered_by(&world.client().get(&[outside], 4)?, &[1, 3])?;
    }
    Ok(())
}

/// Makes a change, and waits until the agent has repaired it and the node serves.
fn is_repaired(
    world: &World,
    service: &Published,
    kind: &str,
    change: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let before = repairs(world, kind)?;
    change()?;
    eventually_within(LIMIT, || {
        ensure!(repairs(world, kind)? > before, "no repair of {kind} is counted");
        served(world, service)
    })
}

/// Returns the path of a pin of the first node's agent.
fn pin(world: &World, name: &str) -> Result<PathBuf> {
    let versions = fs::read_dir(world.node(0).bpffs.join("sluice"))?;
    let mut pins = versions.flatten().map(|version| version.path().join(name));
    pins.find(|pin| pin.exists()).with_context(|| format!("no pin {name}"))
}

/// Detaches the program of a pinned link. The pin stays.
fn detach(world: &World, link: &str) -> Result<()> {
    let path = pin(world, link)?.to_string_lossy().into_owned();
    world.node(0).host.place.run("bpftool", ["link", "detach", "pinned", &path]).map(drop)
}

/// Programs of a device are detached.
pub fn programs(world: &mut World) -> Result<()> {
    let service = world.publish(&[1, 3])?;
    served(world, &service)?;
    let world = &*world;
    let place = &world.node(0).host.place;
    let link = |hook: &str| {
        Ok::<_, anyhow::Error>(format!("links/{hook}-{}", world.node(0).host.place.ifindex("eth0")?))
    };
    if world.topology.datapath == AttachMode::Clsact {
        let commands: [&[&str]; 4] = [
            &["filter", "del", "dev", "eth0", "ingress"],
            &["filter", "del", "dev", "eth0", "egress"],
            &["qdisc", "del", "dev", "eth0", "clsact"],
            &["qdisc", "del", "dev", "eth0", "clsact"],
        ];
        for command in commands {
            is_repaired(world, &service, "tc", || place.run("tc", command).map(drop))
                .with_context(|| format!("after tc {}", command.join(" ")))?;
        }
        // A CNI makes a new clsact queueing discipline at start.
        return is_repaired(world, &service, "tc", || {
            place.run("tc", ["qdisc", "del", "dev", "eth0", "clsact"])?;
            place.run("tc", ["qdisc", "add", "dev", "eth0", "clsact"]).map(drop)
        });
    }
    let mut hooks = vec![("tc", "tc-ingress"), ("tc", "tc-egress")];
    if world.topology.datapath == AttachMode::Xdp {
        hooks.push(("xdp", "xdp"));
        ensure!(
            place.run("ip", ["link", "set", "dev", "eth0", "xdpdrv", "off"]).is_err(),
            "the kernel detaches an XDP link for a program that does not own it"
        );
    }
    for (kind, hook) in hooks {
        is_repaired(world, &service, kind, || detach(world, &link(hook)?))
            .with_context(|| format!("after {hook} was detached"))?;
        is_repaired(world, &service, kind, || Ok(fs::remove_file(pin(world, &link(hook)?)?)?))
            .with_context(|| format!("after the pin of {hook} was removed"))?;
        pin(world, &link(hook)?)?;
    }
    if world.topology.datapath == AttachMode::Xdp {
        let link = place.run("ip", ["-details", "link", "show", "dev", "eth0"])?;
        ensure!(link.contains("prog/xdp"), "XDP is not attached again: {link}");
    }
    Ok(())
}

/// The program of another owner is put before the ingress program.
pub fn order(world: &mut World) -> Result<()> {
    let service = world.publish(&[1, 3])?;
    served(world, &service)?;
    let world = &*world;
    let node = world.node(0);
    let place = &node.host.place;
    if world.topology.datapath == AttachMode::Clsact {
        let program = node.bpffs.join("another_owner");
        let path = program.to_string_lossy().into_owned();
        let result = is_repaired(world, &service, "tc_order", || {
            pass_programs::pin_tc(&program)?;
            let filter = ["dev", "eth0", "ingress", "protocol", "all", "prio", "1", "handle", "1"];
            let bpf = ["bpf", "direct-action", "pinned", &path];
            place.run("tc", [&["filter", "add"], &filter[..], &bpf[..]].concat()).map(drop)
        });
        fs::remove_file(&program)?;
        result?;
        let filters = place.run("tc", ["filter", "show", "dev", "eth0", "ingress"])?;
        let position = |handle: &str| filters.find(handle).with_context(|| format!("{handle}: {filters}"));
        ensure!(position("handle 0x534c4345")? < position("handle 0x1 ")?, "not the first one: {filters}");
        let filter = ["dev", "eth0", "ingress", "protocol", "all", "prio", "1", "handle", "1", "bpf"];
        return place.run("tc", [&["filter", "del"], &filter[..]].concat()).map(drop);
    }
    let ifindex = world.node(0).host.place.ifindex("eth0")?;
    let mut other = None;
    is_repaired(world, &service, "tc_order", || {
        other = Some(place.inside(|| pass_programs::attach_first(ifindex))??);
        Ok(())
    })?;
    drop(other);
    served(world, &service)
}

/// Socket programs are detached.
pub fn sockets(world: &mut World) -> Result<()> {
    let service = world.publish(&[1, 3])?;
    let world = &*world;
    for family in Family::BOTH {
        let name = match family {
            Family::V4 => "links/cgroup-connect4",
            Family::V6 => "links/cgroup-connect6",
        };
        let targets = [service.cluster_ip(family, To::Http)];
        let connects = || answered_by(&world.node(0).host.get(&targets, 4)?, &[1, 3]);
        connects()?;
        is_repaired(world, &service, "socket", || detach(world, name))?;
        eventually_within(LIMIT, connects)?;
        is_repaired(world, &service, "socket", || Ok(fs::remove_file(pin(world, name)?)?))?;
        eventually_within(LIMIT, connects)?;
    }
    Ok(())
}

/// Entries are changed, deleted and added.
pub fn entries(world: &mut World) -> Result<()> {
    let service = world.publish(&[1, 3])?;
    let world = &*world;
    let maps = [
        "SERVICES_V4",
        "SERVICES_V6",
        "SERVICE_NAMES",
        "BACKENDS_V4",
        "SLOTS",
        "ADDRESSES_V4",
        "DEVICES",
        "NETWORKS_V4",
        "NAMESPACES",
        "FILTER",
    ];
    let cookies: Vec<Digits> = nodes_and_pods(world).map(cookie).collect::<Result<_>>()?;
    let addresses: Vec<Digits> = nodes_and_pods(world).map(|host| digits(&host.v4.octets())).collect();
    let content = |map: &str| {
        let path = pin(world, &format!("maps/{map}"))?.to_string_lossy().into_owned();
        let mut entries = bytes_of_entries(world, &path)?;
        // The agent finds the namespaces of other runs on this machine too. They come and go.
        match map {
            "NAMESPACES" => entries.retain(|(key, _)| cookies.contains(key)),
            "NETWORKS_V4" => entries.retain(|(key, _)| addresses.iter().any(|ip| key.ends_with(ip))),
            _ => {}
        }
        entries.sort();
        anyhow::Ok(entries)
    };
    let before: Vec<_> = maps.iter().map(|map| content(map)).collect::<Result<_>>()?;
    is_repaired(world, &service, "map_entry", || {
        for map in maps {
            let path = pin(world, &format!("maps/{map}"))?.to_string_lossy().into_owned();
            change_entries(world, &path).with_context(|| format!("entries of {map}"))?;
        }
        Ok(())
    })?;
    for (map, before) in maps.iter().zip(before) {
        if *map == "SLOTS" {
            // Slots that no Service uses have any content.
            continue;
        }
        eventually_within(LIMIT, || {
            let now = content(map)?;
            ensure!(now == before, "{map}: {now:?}, not {before:?}");
            Ok(())
        })?;
    }
    served(world, &service)?;
    // An added entry redirects the traffic of an address that no Service has.
    let path = pin(world, "maps/SERVICES_V4")?.to_string_lossy().into_owned();
    let before = content("SERVICES_V4")?;
    is_repaired(world, &service, "map_entry", || {
        let (mut key, value) = bytes_of_entries(world, &path)?.swap_remove(0);
        for (byte, digits) in key.iter_mut().zip(["c0", "00", "02", "09"]) {
            *byte = digits.to_owned();
        }
        update(world, &path, &key, &value)
    })?;
    eventually_within(LIMIT, || {
        ensure!(content("SERVICES_V4")? == before, "the entry is still there");
        Ok(())
    })
}

/// The bytes of a key or value, each as two hexadecimal digits.
type Digits = Vec<String>;

fn digits(bytes: &[u8]) -> Digits {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn nodes_and_pods(world: &World) -> impl Iterator<Item = &Host> {
    let nodes = world.topology.nodes.iter().map(|node| &node.host);
    nodes.chain(world.topology.pods.iter().map(|pod| &pod.host))
}

/// Returns the cookie of a host's network namespace.
fn cookie(host: &Host) -> Result<Digits> {
    let cookie = host.place.inside(namespace_cookie)?.context("the cookie of a namespace")?;
    Ok(digits(&cookie.to_ne_bytes()))
}

/// Deletes the first entry of a map, and changes the others. The entries of an array cannot be
/// deleted.
fn change_entries(world: &World, path: &str) -> Result<()> {
    for (index, (key, mut value)) in bytes_of_entries(world, path)?.into_iter().enumerate() {
        let unused = value.iter().all(|byte| byte == "00");
        if unused {
            continue;
        }
        let digits = key.iter().map(String::as_str);
        let delete = ["map", "delete", "pinned", path, "key", "hex"].into_iter().chain(digits);
        if index == 0 && world.node(0).host.place.run("bpftool", delete).is_ok() {
            continue;
        }
        let last = value.iter().rposition(|byte| byte != "00").context("an unused entry")?;
        value[last] = if value[last] == "01" { "03".into() } else { "01".into() };
        update(world, path, &key, &value)?;
    }
    Ok(())
}

fn update(world: &World, path: &str, key: &[String], value: &[String]) -> Result<()> {
    let arguments = ["map", "update", "pinned", path, "key", "hex"].map(str::to_owned).into_iter();
    let arguments = arguments.chain(key.iter().cloned()).chain(["value".to_owned(), "hex".to_owned()]);
    world.node(0).host.place.run("bpftool", arguments.chain(value.iter().cloned())).map(drop)
}

/// Returns keys and values of the entries of a map, each as hexadecimal digits of its bytes. Of an
/// array it returns the first entries only: arrays are large.
fn bytes_of_entries(world: &World, path: &str) -> Result<Vec<(Digits, Digits)>> {
    const FIRST: u8 = 32;
    let run = |arguments: &[&str]| world.node(0).host.place.run("bpftool", arguments);
    let is_array = run(&["map", "show", "pinned", path])?.contains(": array ");
    let entries: Vec<Value> = match is_array {
        false => serde_json::from_str(&run(&["--json", "map", "dump", "pinned", path])?)?,
        true => (0..FIRST)
            .map(|index| {
                let key = index.to_string();
                let lookup = ["--json", "map", "lookup", "pinned", path, "key", &key, "0", "0", "0"];
                Ok(serde_json::from_str(&run(&lookup)?)?)
            })
            .collect::<Result<_>>()?,
    };
    let digits = |bytes: &Value| -> Result<Digits> {
        let bytes: Digits = serde_json::from_value(bytes.clone())?;
        Ok(bytes.iter().map(|byte| byte.trim_start_matches("0x").to_owned()).collect())
    };
    entries.iter().map(|entry| Ok((digits(&entry["key"])?, digits(&entry["value"])?))).collect()
}

/// Pins of maps are removed and replaced, and then all pins with their folders.
pub fn pins(world: &mut World) -> Result<()> {
    let service = world.publish(&[1, 3])?;
    let world = &*world;
    let node = world.node(0);
    let services = || {
        let mut entries: Vec<_> = world.dump(0, "SERVICES_V4")?.iter().map(ToString::to_string).collect();
        entries.sort();
        anyhow::Ok(entries)
    };
    let before = services()?;
    let [removed, replaced] = ["maps/SERVICES_V4", "maps/SLOTS"].map(|name| pin(world, name));
    let (removed, replaced) = (removed?, replaced?);
    is_repaired(world, &service, "pin", || {
        fs::remove_file(&removed)?;
        fs::rename(pin(world, "maps/NETWORKS_V6")?, &replaced)?;
        Ok(())
    })?;
    eventually_within(LIMIT, || {
        ensure!(services()? == before, "the pin leads to another map");
        let slots = replaced.to_string_lossy().into_owned();
        let map = node.host.place.run("bpftool", ["map", "show", "pinned", &slots])?;
        ensure!(map.contains("SLOTS"), "the pin leads to another map: {map}");
        world.agent(0)?.lb(&["get", "services"]).map(drop)
    })?;

    is_repaired(world, &service, "pin", || Ok(fs::remove_dir_all(node.bpffs.join("sluice"))?))?;
    eventually_within(LIMIT, || {
        ensure!(services()? == before, "the maps have changed");
        world.agent(0)?.lb(&["get", "services"]).map(drop)
    })?;
    let (_, output) = Agent::start_refused(&world.topology, node, &AgentOptions::default())?;
    ensure!(output.contains("already serves this node"), "a second agent: {output}");
    Ok(())
}
