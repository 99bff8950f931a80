//! The kernel refuses a program, or file systems are missing: what the agent reports, and what it
//! still serves.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use lb_testbed::Family;
use lb_testbed::agent::{Agent, AgentOptions, cleanup};
use lb_testbed::doctored::{Fault, lb_with_refused};
use lb_testbed::kernel::needs;
use lb_testbed::programs::features;
use lb_testbed::run::cgroup2_root;

use crate::check::{answered_by, eventually, refused, unanswered};
use crate::world::{To, World};

/// The kernel refuses a program. The agent logs the kernel, the program, the reason and a remedy,
/// in the same order each time, and serves what the other programs can.
pub fn refused_programs_are_reported(world: &mut World) -> Result<()> {
    let service = world.publish(&[1, 3])?;
    let outside = [service.node_port(world.node(0), Family::V4, To::Http)];
    let inside = [service.cluster_ip(Family::V4, To::Http)];
    // Refused programs, the reason, whether packets are served, and whether calls at sockets are
    // served.
    let without: [(&[&str], Fault, bool, bool); 3] = [
        (&["lb_xdp", "lb_xdp_linear"], Fault::TooComplex, true, true),
        (&["lb_sendmsg6", "lb_connect4"], Fault::UnsetRegister, true, false),
        (&["lb_tc_ingress"], Fault::UnknownHelper, false, true),
    ];
    for (programs, fault, packets, sockets) in without {
        world.take_agent(0)?.stop()?;
        cleanup(world.node(0))?;
        let lb = Some(lb_with_refused(programs, fault, &world.topology.folder())?);
        let log = world.start_agent_as(0, &AgentOptions { lb, ..AgentOptions::default() })?;
        for expected in expected_refusals(programs, fault) {
            ensure!(log.contains(&expected), "the log does not contain {expected:?}: {log}");
        }
        let order: Vec<_> =
            log.split("refuses lb_").skip(1).filter_map(|rest| rest.split(':').next()).collect();
        ensure!(order.is_sorted(), "the order of the refused programs: {order:?}");
        eventually(|| match packets {
            true => answered_by(&world.client().get(&outside, 3)?, &[1, 3]),
            false => refused(&world.client().get(&outside, 1)?),
        })?;
        eventually(|| match sockets {
            true => answered_by(&world.pod(2).host.get(&inside, 3)?, &[1, 3]),
            false => unanswered(&world.pod(2).host.get(&inside, 1)?),
        })?;
    }

    world.take_agent(0)?.stop()?;
    let nothing = ["lb_connect4", "lb_tc_egress"];
    let lb = Some(lb_with_refused(&nothing, Fault::UnsetRegister, &world.topology.folder())?);
    let options = AgentOptions { lb, ..AgentOptions::default() };
    let (status, output) = Agent::start_refused(&world.topology, world.node(0), &options)?;
    ensure!(!status.success(), "an agent runs that can serve nothing");
    for expected in expected_refusals(&nothing, Fault::UnsetRegister) {
        ensure!(output.contains(&expected), "the output does not contain {expected:?}: {output}");
    }
    world.start_agent(0)?;
    world.wait_until_served(&service, &[1, 3])
}

/// Returns the beginnings of the lines about refused programs, up to the end of the verifier's log,
/// and the end of that log with the beginning of the remedy.
fn expected_refusals(programs: &[&str], fault: Fault) -> Vec<String> {
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    // Each kernel loads one of the two XDP programs.
    let loaded = |name: &&&str| match **name {
        "lb_xdp" => features().is_ok_and(|features| features.xdp_frags),
        "lb_xdp_linear" => features().is_ok_and(|features| !features.xdp_frags),
        _ => true,
    };
    let (error, reason) = match fault {
        Fault::UnsetRegister => {
            ("Permission denied (os error 13); ", "R5 !read_ok; remedy: use a newer kernel")
        }
        Fault::UnknownHelper => (
            "Invalid argument (os error 22); ",
            "invalid func unknown#65535; remedy: this kernel lacks a function",
        ),
        // The error is EFAULT or E2BIG.
        Fault::TooComplex => {
            ("", "jumps is too complex.; remedy: the program is too large for this kernel's verifier")
        }
    };
    let refusal = |name: &&str| format!("Linux {kernel} refuses {name}: {error}");
    programs.iter().filter(loaded).map(refusal).chain([reason.to_owned()]).collect()
}

/// Starts an agent for which this folder is empty. It must exit. Returns its output.
fn output_without(world: &World, hidden: PathBuf) -> Result<String> {
    let options = AgentOptions { hidden: vec![hidden.clone()], ..AgentOptions::default() };
    let (status, output) = Agent::start_refused(&world.topology, world.node(0), &options)?;
    ensure!(!status.success(), "an agent runs without {}", hidden.display());
    Ok(output)
}

/// Without a BPF file system the agent exits with a remedy.
pub fn no_bpf_file_system(world: &mut World) -> Result<()> {
    world.take_agent(0)?.stop()?;
    let output = output_without(world, world.node(0).bpffs.clone())?;
    for expected in ["is not in a BPF file system", "mount -t bpf bpf", "--bpffs"] {
        ensure!(output.contains(expected), "the output does not contain {expected:?}: {output}");
    }
    world.start_agent(0)
}

/// A folder that is no cgroup is refused with a remedy. With `--socket-hooks=off`, and on a host
/// with cgroup v1 only, the agent serves packets; it reports what is lost. The guests of `cargo
/// xtask test kernels --without unified-cgroups` run this case beside v1 controllers.
pub fn no_cgroup2(world: &mut World) -> Result<()> {
    let service = world.publish(&[1, 3])?;
    world.take_agent(0)?.stop()?;
    let hierarchy = cgroup2_root()?;
    let output = output_without(world, hierarchy.clone())?;
    for expected in ["cgroup", "--cgroup", "findmnt -t cgroup2"] {
        ensure!(output.contains(expected), "the output does not contain {expected:?}: {output}");
    }
    let arguments = vec!["--socket-hooks=off".to_owned()];
    world
        .start_agent_as(0, &AgentOptions { arguments, hidden: vec![hierarchy], ..AgentOptions::default() })?;
    let outside = [service.node_port(world.node(0), Family::V4, To::Http)];
    let inside = [service.cluster_ip(Family::V4, To::Http)];
    eventually(|| answered_by(&world.client().get(&outside, 3)?, &[1, 3]))?;
    world.take_agent(0)?.stop()?;
    let log = world.start_agent_as(0, &AgentOptions { without_cgroup2: true, ..AgentOptions::default() })?;
    for expected in [
        "no cgroup-v2 file system is mounted here: connections of processes are not translated",
        "mount -t cgroup2",
        "pods of this node cannot reach Services",
    ] {
        ensure!(log.contains(expected), "the log does not contain {expected:?}: {log}");
    }
    eventually(|| answered_by(&world.client().get(&outside, 3)?, &[1, 3]))?;
    unanswered(&world.pod(2).host.get(&inside, 1)?)?;
    world.take_agent(0)?.stop()?;
    world.start_agent(0)?;
    eventually(|| answered_by(&world.pod(2).host.get(&inside, 3)?, &[1, 3]))?;
    world.wait_until_served(&service, &[1, 3])
}

/// Without BTF the agent reports what is lost, and serves calls and packets.
pub fn no_btf(world: &mut World) -> Result<()> {
    let service = world.publish(&[1, 3])?;
    world.take_agent(0)?.stop()?;
    let types = PathBuf::from("/sys/kernel/btf");
    let hidden = if types.exists() { vec![types] } else { Vec::new() };
    let log = world.start_agent_as(0, &AgentOptions { hidden, ..AgentOptions::default() })?;
    ensure!(log.contains("this kernel has no BTF (CONFIG_DEBUG_INFO_BTF)"), "BTF is not reported: {log}");
    for family in Family::BOTH {
        let outside = [service.node_port(world.node(0), family, To::Http)];
        eventually(|| answered_by(&world.client().get(&outside, 3)?, &[1, 3]))?;
        answered_by(&world.pod(2).host.get(&[service.cluster_ip(family, To::Http)], 3)?, &[1, 3])?;
    }
    world.take_agent(0)?.stop()?;
    world.start_agent(0)
}

/// The kernel has neither tcx nor tc filters. The agent reports what is lost, and serves calls at
/// sockets. The guests of `cargo xtask test kernels --without tc-filters` run this case.
pub fn no_tc_filters(world: &mut World) -> Result<()> {
    needs(!features()?.tcx, "tcx, which needs no filters")?;
    let reported = [
        "does not serve packets that arrive by",
        "the kernel has no tc filters (CONFIG_NET_SCH_INGRESS, CONFIG_NET_CLS_BPF); remedy: `modprobe",
    ];
    sockets_alone_are_served(world, &reported)
}

/// The kernel interprets programs, and refuses those for packets. The agent reports what is lost,
/// and serves calls at sockets. The guests of `cargo xtask test kernels --without jit` run this
/// case.
pub fn no_jit(world: &mut World) -> Result<()> {
    needs(!features()?.jit, "a BPF compiler")?;
    let reported = [
        "does not serve packets that arrive by",
        "no BPF compiler in use (CONFIG_BPF_JIT, sysctl net.core.bpf_jit_enable)",
        "refuses lb_tc_egress: ",
        "refuses lb_tc_ingress: ",
        "refuses lb_xdp",
        "in non-JITed programs",
        "remedy: switch the BPF compiler on: `sysctl net.core.bpf_jit_enable=1`",
    ];
    sockets_alone_are_served(world, &reported)
}

/// Requires that sockets are served, that packets are not, and that the log names the reason.
fn sockets_alone_are_served(world: &mut World, reported: &[&str]) -> Result<()> {
    let log = world.agent(0)?.log()?;
    for expected in reported {
        ensure!(log.contains(expected), "the log does not contain {expected:?}: {log}");
    }
    let service = world.publish(&[1, 3])?;
    for family in Family::BOTH {
        let inside = [service.cluster_ip(family, To::Http)];
        eventually(|| answered_by(&world.pod(2).host.get(&inside, 3)?, &[1, 3]))?;
        let outside = [service.node_port(world.node(0), family, To::Http)];
        refused(&world.client().get(&outside, 1)?)?;
    }
    Ok(())
}
