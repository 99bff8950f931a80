//! Start, crash, restart and cleanup of the agent.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use lb_testbed::agent::{Agent, AgentOptions, cleanup, program};
use lb_testbed::command::output;
use lb_testbed::host::LoadKind;
use lb_testbed::programs::features;
use lb_testbed::topology::Node;
use lb_testbed::{AttachMode, Family, Topology, Underlay};

use crate::check::{answered_by, eventually, refused, without_failure};
use crate::world::{To, World};

/// The programs are attached as the data path of the run requires. Otherwise an XDP run could pass
/// although only tc is attached.
pub fn attached_as_configured(world: &mut World) -> Result<()> {
    let Topology { underlay, datapath, .. } = world.topology;
    for node in &world.topology.nodes {
        if datapath == AttachMode::Xdp
            && let Some(device) = underlay.xdp_device()
        {
            let link = node.host.place.run("ip", ["-details", "link", "show", "dev", device])?;
            if underlay == Underlay::Bond && !link.contains("prog/xdp") {
                // The driver of bonds has XDP from Linux 5.15 on.
                let log = world.agent(0)?.log()?;
                ensure!(log.contains("the driver has no native XDP"), "{}: {link}", node.host.name);
            } else {
                ensure!(link.contains("prog/xdp"), "{}: {link}", node.host.name);
            }
        }
        let device = underlay.node_device();
        let link = node.host.place.run("ip", ["-details", "link", "show", "dev", device])?;
        ensure!(datapath == AttachMode::Xdp || !link.contains("prog/xdp"), "{}: {link}", node.host.name);
        let filters = node.host.place.run("tc", ["filter", "show", "dev", device, "ingress"])?;
        let clsact = filters.contains("lb_tc_ingress");
        let as_filters = datapath == AttachMode::Clsact || !features()?.tcx;
        ensure!(clsact == as_filters, "{}: {filters}", node.host.name);
        ensure!(!link.contains("xdpgeneric"), "generic XDP is attached on {}: {link}", node.host.name);
        let all = node.host.place.run("ip", ["link", "show"])?;
        ensure!(all.matches("prog/xdp").count() <= 1, "XDP is attached to a device that is not a NIC: {all}");
    }
    Ok(())
}

/// Connections are served while no agent runs. The next agent applies changes, and `lb` reads its
/// maps.
pub fn agent_restarts(world: &mut World) -> Result<()> {
    let service = world.publish(&[1, 3])?;
    let outside = Family::BOTH.map(|family| service.node_port(world.node(0), family, To::Http));
    let inside = Family::BOTH.map(|family| service.cluster_ip(family, To::Http));
    let served = |world: &World, pods: &[usize]| {
        answered_by(&world.client().get(&outside, 3)?, pods)?;
        answered_by(&world.pod(2).host.get(&inside, 3)?, pods)
    };
    world.take_agent(0)?.stop()?;
    served(world, &[1, 3])?;
    world.start_agent(0)?;
    served(world, &[1, 3])?;
    let mut held = world.client().hold_http(outside[0])?;
    answered_by(&[held.request()?], &[1, 3])?;
    let services = world.agent(0)?.lb(&["get", "services"])?;
    ensure!(services.contains(&service.service.name), "not listed by lb get services: {services}");
    let flows = world.agent(0)?.lb(&["get", "flows"])?;
    ensure!(flows.contains(&outside[0].to_string()), "not listed by lb get flows: {flows}");
    let client = world.client().address(Family::V4).to_string();
    let target = outside[0].to_string();
    let explained = world.agent(0)?.lb(&["explain", "--in", "external", "tcp", &client, &target])?;
    ensure!(explained.contains(&service.service.name), "not named by lb explain: {explained}");
    world.set_endpoints(&service, &[4])?;
    world.wait_until_served(&service, &[4])?;
    served(world, &[4])
}

/// After SIGTERM and SIGKILL the data path keeps working, without an agent and during the start of
/// the next agent.
pub fn agent_restarts_under_load(world: &mut World, family: Family) -> Result<()> {
    let service = world.publish(&[1, 3])?;
    let inside = service.cluster_ip(family, To::Http);
    let outside = |to| service.node_port(world.node(0), family, to);
    let (pod, client) = (&world.pod(2).host, world.client());
    let loads = [
        ("pod, new connections", pod.start_load(LoadKind::NewConnections, inside, 100)?),
        ("pod, one connection", pod.start_load(LoadKind::OneConnection, inside, 100)?),
        ("outside, new connections", client.start_load(LoadKind::NewConnections, outside(To::Http), 100)?),
        ("outside, one connection", client.start_load(LoadKind::OneConnection, outside(To::Http), 100)?),
        ("outside, new sockets", client.start_load(LoadKind::NewSockets, outside(To::Udp), 100)?),
        ("outside, one socket", client.start_load(LoadKind::OneSocket, outside(To::Udp), 100)?),
    ];
    let outside = outside(To::Http);
    for node in 0..2 {
        world.take_agent(node)?.stop()?;
        answered_by(&world.client().get(&[outside], 5)?, &[1, 3])?;
        answered_by(&world.pod(2).host.get(&[inside], 5)?, &[1, 3])?;
        world.start_agent(node)?;
    }
    for node in 0..2 {
        world.take_agent(node)?.kill();
        answered_by(&world.client().get(&[outside], 5)?, &[1, 3])?;
        answered_by(&world.pod(2).host.get(&[inside], 5)?, &[1, 3])?;
        world.start_agent(node)?;
    }
    for (what, load) in loads {
        without_failure(what, &load.finish()?)?;
    }
    // The new agents apply changes.
    world.set_endpoints(&service, &[4])?;
    world.wait_until_served(&service, &[4])
}

/// `lb log-level` and changes of the configuration file are applied without a restart. The log
/// names changes that need one.
pub fn settings_change_while_running(world: &mut World) -> Result<()> {
    let service = world.publish(&[1, 3])?;
    let outside = Family::BOTH.map(|family| service.node_port(world.node(0), family, To::Http));
    let served = |world: &World| answered_by(&world.client().get(&outside, 3)?, &[1, 3]);
    let config = world.topology.folder().join("changing.yaml");
    fs::write(&config, "logLevel: info\n")?;
    world.take_agent(0)?.stop()?;
    world.start_agent_with(0, &[&format!("--config={}", config.display())])?;
    let logs = |world: &World, text: &str| {
        let log = world.agent(0)?.log()?;
        ensure!(log.contains(text), "not logged: {text}");
        Ok(())
    };

    ensure!(logs(world, "updated service maps").is_err(), "the level is not info");
    let mut command = world.node(0).host.place.command(program()?)?;
    let output = output(command.args(["log-level", "debug"]))?;
    ensure!(output.status.success(), "{output:?}");
    world.set_endpoints(&service, &[3])?;
    eventually(|| logs(world, "updated service maps"))?;
    world.set_endpoints(&service, &[1, 3])?;
    eventually(|| served(world))?;

    fs::write(&config, "nodeportAddresses: 203.0.113.0/24\nmaxFlows: 4096\n")?;
    eventually(|| logs(world, "a restart of this agent: maxFlows"))?;
    eventually(|| logs(world, "applied changes of the configuration file: nodeportAddresses"))?;
    eventually(|| {
        let answers = world.client().get(&outside[..1], 1)?;
        ensure!(answered_by(&answers, &[1, 3]).is_err(), "the address still serves nodePorts");
        Ok(())
    })?;
    fs::write(&config, "nodeportAddresses: everywhere\n")?;
    eventually(|| logs(world, "the settings stay as they are"))?;
    fs::write(&config, "logLevel: info\n")?;
    eventually(|| served(world))?;

    world.take_agent(0)?.stop()?;
    world.start_agent(0)
}

pub fn second_agent_is_refused(world: &mut World) -> Result<()> {
    let (status, output) = Agent::start_refused(&world.topology, world.node(0), &AgentOptions::default())?;
    ensure!(!status.success(), "two agents run on one node");
    let first = world.agent(0)?.pid().to_string();
    ensure!(output.contains(&first), "the error does not name the process {first}: {output}");
    let service = world.publish(&[1, 3])?;
    answered_by(&world.pod(2).host.get(&[service.cluster_ip(Family::V4, To::Http)], 5)?, &[1, 3])
}

/// `lb cleanup` removes everything that the agent installed. A new agent can start after it.
pub fn cleanup_removes_everything(world: &mut World) -> Result<()> {
    let service = world.publish(&[1, 3])?;
    let outside = service.node_port(world.node(0), Family::V4, To::Http);
    answered_by(&world.client().get(&[outside], 3)?, &[1, 3])?;
    world.take_agent(0)?.stop()?;
    // Leftovers of kube-proxy are reported, but kept: the user may be about to return to
    // kube-proxy.
    let table = ["table", "ip", "kube-proxy"];
    let nft = |verb| world.node(0).host.place.run("nft", [&[verb], &table[..]].concat());
    nft("add")?;
    let output = cleanup(world.node(0))?;
    nft("delete")?;
    ensure!(
        output.contains("`lb cleanup --kube-proxy` removes them"),
        "kube-proxy's table is not reported: {output}"
    );
    // The kernel creates maps.debug and progs.debug in every BPF file system.
    let left: Vec<_> = fs::read_dir(&world.node(0).bpffs)?
        .flatten()
        .map(|entry| entry.file_name())
        .filter(|name| !name.to_string_lossy().ends_with(".debug"))
        .collect();
    ensure!(left.is_empty(), "left in the BPF file system: {left:?}");
    // The kernel detaches a link some time after its last pin is removed.
    eventually(|| {
        refused(&world.client().get(&[outside], 1)?)?;
        let links = world.node(0).host.place.run("ip", ["link", "show"])?;
        ensure!(!links.contains("prog/xdp"), "still attached: {links}");
        let filters = world.node(0).host.place.run("tc", ["filter", "show", "dev", "eth0", "ingress"])?;
        ensure!(filters.trim().is_empty(), "still attached: {filters}");
        Ok(())
    })?;
    world.start_agent(0)?;
    world.wait_until_served(&service, &[1, 3])
}

/// If the egress program cannot be attached to a device, the agent detaches the ingress programs
/// too. It tries again until both are attached.
pub fn no_ingress_without_egress(world: &mut World) -> Result<()> {
    if world.topology.datapath == AttachMode::Clsact {
        // Filters have no pins, by which this case makes attaching fail.
        return Ok(());
    }
    let service = world.publish(&[1, 3])?;
    let outside = service.node_port(world.node(0), Family::V4, To::Http);
    answered_by(&world.client().get(&[outside], 3)?, &[1, 3])?;
    world.take_agent(0)?.stop()?;

    // A folder at the place of the pin makes attaching fail.
    let node = world.node(0);
    let (pin, place) = (egress_pin(node)?, node.host.place.clone());
    let log = world.topology.folder().join(format!("{}-agent.log", node.host.name));
    fs::remove_file(&pin)?;
    fs::create_dir(&pin)?;
    world.start_agent(0)?;
    let failed = "cannot attach to eth0";
    eventually(|| {
        let log = fs::read_to_string(&log)?;
        ensure!(log.contains(failed), "the log does not contain {failed:?}");
        refused(&world.client().get(&[outside], 1)?)?;
        let link = place.run("ip", ["-details", "link", "show", "dev", "eth0"])?;
        ensure!(!link.contains("prog/xdp"), "XDP is attached without egress: {link}");
        Ok(())
    })?;
    fs::remove_dir(&pin)?;
    eventually(|| answered_by(&world.client().get(&[outside], 3)?, &[1, 3]))
}

/// Returns the path of the pinned egress link of eth0.
fn egress_pin(node: &Node) -> Result<PathBuf> {
    let name = format!("tc-egress-{}", node.host.place.ifindex("eth0")?);
    let versions = fs::read_dir(node.bpffs.join("sluice"))?;
    let mut pins = versions.flatten().map(|version| version.path().join("links").join(&name));
    pins.find(|pin| pin.exists()).with_context(|| format!("no pin {name}"))
}
