//! The agent in the container of `deploy/daemonset.yaml`: without `privileged`, with the
//! capabilities listed there, read-only `/proc/sys`, `/sys` and root file system.

use std::fs;
use std::process;

use anyhow::{Context, Result, ensure};
use lb_testbed::Family;
use lb_testbed::agent::{Agent, AgentOptions, cleanup, program};
use lb_testbed::container::Container;
use lb_testbed::host::LoadKind;
use lb_testbed::report::FailureKind;
use rustix::thread::CapabilitySet;
use serde_json::Value;

use crate::check::{answered_by, eventually, failed_as, without_failure};
use crate::world::{Published, To, World};

const DAEMONSET: &str = include_str!("../../../../deploy/daemonset.yaml");
const IP_FORWARD: &str = "net/ipv4/ip_forward=0";

/// Returns the container of the DaemonSet. Its writable mount of `/proc/sys/net` is in the
/// testbed's folder.
fn container(world: &World) -> Result<Container> {
    let daemonset: Value = serde_saphyr::from_str(DAEMONSET)?;
    let container = &daemonset["spec"]["template"]["spec"]["containers"][0];
    let context = &container["securityContext"];
    ensure!(context["readOnlyRootFilesystem"] == true, "the root file system is writable: {context}");
    Container::of_manifest(context, &world.topology.folder())
}

fn options(container: &Container) -> AgentOptions {
    AgentOptions { container: Some(container.clone()), ..AgentOptions::default() }
}

/// The agent installs everything, enables forwarding, serves every kind of traffic, closes sockets
/// in pods, and takes over the maps of its predecessor, without a warning.
pub fn serves_with_least_privilege(world: &mut World) -> Result<()> {
    let container = container(world)?;
    let service = world.publish(&[3])?;
    world.take_agent(0)?.stop()?;
    cleanup(world.node(0))?;
    world.node(0).host.place.sysctl(&[IP_FORWARD])?;
    for start in ["on an empty node", "on the maps of its predecessor"] {
        world.set_endpoints(&service, &[3])?;
        let log = world.start_agent_as(0, &options(&container))?;
        let is_problem = |line: &&str| line.contains(" WARN ") || line.contains(" ERROR ");
        // The devices of the testbed have strict reverse path filtering.
        let mut problems = log.lines().filter(is_problem).filter(|line| !line.contains("rp_filter"));
        ensure!(problems.next().is_none(), "{start}: {log}");
        // A machine that is a container itself may lack some of them.
        let expected = container.capabilities & effective(process::id())?;
        let capabilities = effective(world.agent(0)?.pid())?;
        ensure!(capabilities == expected, "the agent has {capabilities:?}");
        let forwards = world.node(0).host.place.run("cat", ["/proc/sys/net/ipv4/ip_forward"])?;
        ensure!(forwards.trim() == "1", "{start}: forwarding is off");

        world.wait_until_served(&service, &[3])?;
        for family in Family::BOTH {
            let outside = service.node_port(world.node(0), family, To::Http);
            eventually(|| answered_by(&world.client().get(&[outside], 3)?, &[3]))?;
            let mut held = world.pod(2).host.hold_udp(service.cluster_ip(family, To::Udp))?;
            answered_by(&[held.request()?], &[3])?;
            world.set_endpoints(&service, &[1])?;
            eventually(|| failed_as(&[held.request()?], FailureKind::Aborted))?;
            world.set_endpoints(&service, &[3])?;
            world.wait_until_served(&service, &[3])?;
        }
        commands_in_the_container(world, &container, &service)?;
        let log = world.agent(0)?.log()?;
        let denied = log.lines().find(|line| line.contains("not permitted") || line.contains("denied"));
        ensure!(denied.is_none(), "{start}: {denied:?}");
        world.take_agent(0)?.stop()?;
    }
    world.start_agent(0)?;
    world.wait_until_served(&service, &[3])
}

/// Commands of docs/operations.md for `kubectl exec`, beside the agent of the container. Nothing
/// else of `kubectl exec` is tested: it needs a kubelet.
fn commands_in_the_container(world: &World, container: &Container, service: &Published) -> Result<()> {
    let node = world.node(0);
    let exec = |arguments: &[&str]| container.exec(&node.host.place, program()?, &node.bpffs, arguments);
    let name = service.service.name.as_str();
    let services = exec(&["get", "services"])?;
    ensure!(services.contains(name), "lb get services: {services}");
    let outside = service.node_port(node, Family::V4, To::Http);
    let load = world.client().start_load(LoadKind::NewConnections, outside, 20)?;
    let is_opened = |event: &Value| event["kind"] == "opened" && event["address"] == outside.to_string();
    // On a busy machine, a second may pass before the command reads events.
    let monitored = eventually(|| {
        let events = exec(&["monitor", "-o", "json", "--for", "1s", name])?;
        let events = events.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
        ensure!(events.iter().any(is_opened), "lb monitor: {events:?}");
        Ok(())
    });
    without_failure("requests while lb monitor runs", &load.finish()?)?;
    monitored
}

/// Without CAP_SYS_ADMIN the agent cannot enter the network namespaces of pods. It serves Services
/// all the same, and logs what is lost. Without one of the others it exits with its name.
pub fn names_missing_capabilities(world: &mut World) -> Result<()> {
    let container = container(world)?.without(CapabilitySet::SYS_ADMIN);
    let service = world.publish(&[1, 3])?;
    world.take_agent(0)?.stop()?;
    for (lost, name) in [
        (CapabilitySet::BPF, "CAP_BPF"),
        (CapabilitySet::PERFMON, "CAP_PERFMON"),
        (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"),
    ] {
        let options = options(&container.without(lost));
        let (status, output) = Agent::start_refused(&world.topology, world.node(0), &options)?;
        ensure!(!status.success(), "an agent runs without {name}");
        ensure!(output.contains(&format!("this process lacks {name}\n")), "without {name}: {output}");
    }
    cleanup(world.node(0))?;
    let log = world.start_agent_as(0, &options(&container))?;
    ensure!(log.contains("CAP_SYS_ADMIN"), "the log does not name the capability: {log}");
    world.wait_until_served(&service, &[1, 3])?;
    for family in Family::BOTH {
        let outside = service.node_port(world.node(0), family, To::Http);
        eventually(|| answered_by(&world.client().get(&[outside], 3)?, &[1, 3]))?;
    }
    world.take_agent(0)?.stop()?;
    world.start_agent(0)?;
    world.wait_until_served(&service, &[1, 3])
}

/// Returns the effective capabilities of a process.
fn effective(process: u32) -> Result<CapabilitySet> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let digits = status.lines().find_map(|line| line.strip_prefix("CapEff:")).context("no CapEff")?;
    Ok(CapabilitySet::from_bits_retain(u64::from_str_radix(digits.trim(), 16)?))
}
