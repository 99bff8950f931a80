//! `lb doctor` with a healthy agent, and with planted faults.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lb_testbed::agent;
use lb_testbed::command::output;
use serde_json::Value;

use crate::check::eventually;
use crate::world::World;

/// The output of `lb doctor` on the first node.
struct Diagnosis {
    /// The exit status was 0.
    success: bool,
    findings: Vec<Value>,
}

impl Diagnosis {
    fn of(world: &World) -> Result<Self> {
        let node = world.node(0);
        Self::with(world, |command| {
            command.arg("--cgroup").arg(node.host.place.cgroup()).arg("--bpffs").arg(&node.bpffs);
        })
    }

    /// Runs the command with arguments that `add` adds.
    fn with(world: &World, add: impl FnOnce(&mut Command)) -> Result<Self> {
        let mut command = world.node(0).host.place.command(agent::program()?)?;
        command.args(["doctor", "-o", "json"]);
        add(&mut command);
        let output = output(&mut command)?;
        let findings = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("lb doctor: {}", String::from_utf8_lossy(&output.stderr)))?;
        Ok(Self { success: output.status.success(), findings })
    }

    /// Checks that a finding has this severity, and a text in its evidence.
    fn expect(&self, severity: &str, check: &str, evidence: &str) -> Result<()> {
        let found = self.findings.iter().any(|finding| {
            finding["severity"] == severity
                && finding["check"] == check
                && finding["evidence"].as_str().is_some_and(|text| text.contains(evidence))
        });
        ensure!(found, "no {severity} about {check} with {evidence:?}: {:#?}", self.findings);
        Ok(())
    }

    fn expect_healthy(&self) -> Result<()> {
        let errors: Vec<_> = self.findings.iter().filter(|finding| finding["severity"] == "error").collect();
        ensure!(self.success && errors.is_empty(), "exit status 0: {}: {errors:#?}", self.success);
        self.expect("ok", "agent", "healthy")?;
        self.expect("ok", "devices", "eth0 (")?;
        self.expect("ok", "sockets", "11 hooks")?;
        self.expect("ok", "maps", "room")?;
        self.expect("ok", "agent's plan", "")?;
        self.expect("ok", "source ports", "1024-29999")
    }
}

pub fn healthy_and_faulty(world: &mut World) -> Result<()> {
    world.publish(&[1, 3])?;
    eventually(|| Diagnosis::of(world)?.expect_healthy())?;
    for plant in [no_egress, no_connect4, lost_entry] {
        eventually(|| {
            // The agent repairs the fault after some seconds, possibly before `lb doctor` runs.
            let (check, evidence) = plant(world)?;
            let diagnosis = Diagnosis::of(world)?;
            ensure!(!diagnosis.success, "exit status 0 in spite of an error");
            diagnosis.expect("error", check, evidence)
        })?;
        // A new agent repairs each of these faults too.
        world.take_agent(0)?.stop()?;
        Diagnosis::of(world)?.expect("warning", "agent", "does not answer")?;
        world.start_agent(0)?;
        eventually(|| Diagnosis::of(world)?.expect_healthy())?;
    }
    let place = world.node(0).host.place.clone();
    let set = |range: &str| {
        let command = format!("echo {range} > /proc/sys/net/ipv4/ip_local_port_range");
        place.run("sh", ["-c", &command])
    };
    set("20000 60999")?;
    place.run("nft", ["add", "table", "ip", "kube-proxy"])?;
    let diagnosis = Diagnosis::of(world);
    place.run("nft", ["delete", "table", "ip", "kube-proxy"])?;
    set("32768 60999")?;
    let diagnosis = diagnosis?;
    diagnosis.expect("warning", "source ports", "20000-60999")?;
    diagnosis.expect("warning", "kube-proxy", "nftables ip kube-proxy")?;
    ensure!(diagnosis.success, "warnings are no errors");
    Ok(())
}

/// In a container with the root folder of a node, the command checks the node. Here it is a node of
/// Talos whose pods run with Docker, and without any file system of the kernel.
pub fn of_a_root_folder(world: &mut World) -> Result<()> {
    let root = world.topology.folder().join("another-root");
    let namespaces = root.join("run/docker/netns");
    fs::create_dir_all(&namespaces)?;
    fs::create_dir_all(root.join("etc"))?;
    fs::write(root.join("etc/os-release"), "NAME=\"Talos\"\nID=talos\n")?;
    fs::write(namespaces.join("0123456789ab"), "")?;
    let diagnosis = Diagnosis::with(world, |command| {
        command.arg("--host-root").arg(&root);
    })?;
    diagnosis.expect("ok", "distribution", "Talos")?;
    diagnosis.expect("warning", "network namespaces", "; 1 in /run/docker/netns")?;
    diagnosis.expect("error", "BPF file system", "/sys/fs/bpf cannot be used")?;
    ensure!(!diagnosis.success, "exit status 0 in spite of an error");
    fs::remove_dir_all(root)?;
    Ok(())
}

/// Detaches the egress program of eth0.
fn no_egress(world: &World) -> Result<(&'static str, &'static str)> {
    let place = &world.node(0).host.place;
    let ifindex = place.ifindex("eth0")?;
    match pin(world, &format!("links/tc-egress-{ifindex}")) {
        Ok(pin) => fs::remove_file(pin)?,
        // A filter has no pin.
        Err(_) => drop(place.run("tc", ["filter", "del", "dev", "eth0", "egress"])?),
    }
    Ok(("devices", "eth0: there is no program at tc-egress"))
}

/// Detaches one socket program.
fn no_connect4(world: &World) -> Result<(&'static str, &'static str)> {
    fs::remove_file(pin(world, "links/cgroup-connect4")?)?;
    Ok(("sockets", "cgroup-connect4"))
}

/// Deletes an entry that the agent has written.
fn lost_entry(world: &World) -> Result<(&'static str, &'static str)> {
    let place = &world.node(0).host.place;
    let map = pin(world, "maps/SERVICE_NAMES")?.to_string_lossy().into_owned();
    let dump = place.run("bpftool", ["--json", "map", "dump", "pinned", &map])?;
    let entries: Vec<Value> = serde_json::from_str(&dump)?;
    let key = entries.first().and_then(|entry| entry["key"].as_array()).context("SERVICE_NAMES is empty")?;
    let key = key.iter().filter_map(Value::as_str);
    place.run("bpftool", ["map", "delete", "pinned", &map, "key"].into_iter().chain(key))?;
    Ok(("agent's plan", "SERVICE_NAMES"))
}

/// Returns the path of a pin of the first node's agent.
fn pin(world: &World, name: &str) -> Result<PathBuf> {
    let versions = fs::read_dir(world.node(0).bpffs.join("sluice"))?;
    let mut pins = versions.flatten().map(|version| version.path().join(name));
    pins.find(|pin| pin.exists()).with_context(|| format!("no pin {name}"))
}
