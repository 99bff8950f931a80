//! Findings about the agent, its programs and its maps.

use std::collections::BTreeSet;

use lb_datapath::apply::MapUsage;
use lb_datapath::attachments::is_own_program;

use super::facts::{
    AgentFacts, Checked, DatapathFacts, DevicePrograms, HookNames, MapEntries, MapMemoryFacts,
    PortShortageFacts,
};
use super::finding::Finding;

const PLAN: &str = "agent's plan";

/// The remedy if a program is missing: a running agent attaches it.
const REPAIRED: &str = "start `lb agent` if it does not run. A running agent attaches what is missing \
                        within 20 seconds; if the finding stays, its log has the reason";

/// The remedy if an entry of a map is wrong: a running agent writes it again. The comparison of
/// large maps takes minutes.
const WRITTEN_AGAIN: &str = "start `lb agent` if it does not run. A running agent compares all entries \
                             with its plan, and writes those that differ again; if the finding stays, its \
                             log has the reason";

pub fn findings(facts: &DatapathFacts) -> Vec<Finding> {
    let installed = matches!(facts.installed, Ok(true));
    let mut findings = vec![maps_exist(facts), agent(&facts.agent, installed)];
    findings.extend(devices(&facts.devices, installed));
    findings.extend(sockets(facts));
    if installed {
        findings.extend(maps(&facts.maps, &facts.agent));
    }
    findings.extend(facts.other_versions.iter().map(|path| {
        Finding::note(
            "pins",
            format!("{} belongs to another version: `lb cleanup` removes it", path.display()),
        )
    }));
    findings
}

fn maps_exist(facts: &DatapathFacts) -> Finding {
    const CHECK: &str = "pins";
    let path = facts.bpffs.display();
    match &facts.installed {
        Ok(true) => Finding::ok(CHECK, format!("an agent of this version has pinned maps in {path}")),
        Ok(false) => Finding::note(CHECK, format!("no agent of this version has pinned maps in {path}")),
        Err(reason) => Finding::unchecked(CHECK, reason),
    }
}

fn agent(facts: &AgentFacts, installed: bool) -> Finding {
    const CHECK: &str = "agent";
    match &facts.health {
        Ok((200, _)) => Finding::ok(CHECK, "healthy"),
        Ok((status, body)) => {
            let body = body.split_whitespace().collect::<Vec<_>>().join(" ");
            Finding::error(CHECK, format!("/healthz returns {status}: {body}"), "read the log of the agent")
        }
        Err(reason) if installed => Finding::warning(
            CHECK,
            format!("does not answer: {reason}. Services are served as they were when it ended"),
            "start `lb agent`, or pass its --health-bind to `lb doctor`",
        ),
        Err(reason) => Finding::note(CHECK, format!("does not answer: {reason}")),
    }
}

fn devices(devices: &Checked<Vec<DevicePrograms>>, installed: bool) -> Vec<Finding> {
    const CHECK: &str = "devices";
    let devices = match devices {
        Ok(devices) => devices,
        Err(reason) => return vec![Finding::unchecked(CHECK, reason)],
    };
    let mut findings = Vec::new();
    let mut served = Vec::new();
    let mut unchecked = BTreeSet::new();
    for device in devices {
        match (&device.ingress, &device.egress) {
            (Ok(ingress), Ok(egress)) => {
                served.extend(has_own(ingress).then(|| describe(device, ingress, egress)));
                findings.extend(pair(&device.name, ingress, egress));
                findings.extend(neighbours(&device.name, "tc-ingress", ingress));
                findings.extend(neighbours(&device.name, "tc-egress", egress));
            }
            (Err(reason), _) | (_, Err(reason)) => {
                unchecked.insert(reason);
            }
        }
        if let Some(program) = device.xdp.as_deref().filter(|program| !is_own_program(program)) {
            findings.push(Finding::note(
                CHECK,
                format!("{}: the XDP program {program} runs before the programs of Sluice", device.name),
            ));
        }
    }
    findings.extend(unchecked.into_iter().map(|reason| Finding::unchecked(CHECK, reason)));
    if !served.is_empty() {
        findings.insert(0, Finding::ok(CHECK, format!("served: {}", served.join(", "))));
    } else if installed && devices.iter().all(|device| device.ingress.is_ok()) {
        findings.push(Finding::error(
            CHECK,
            "no device has a program of Sluice: packets from outside are not translated",
            "start `lb agent`; if it runs, its log states for each device why it is not served (see \
             --devices)",
        ));
    }
    findings
}

fn has_own(programs: &[String]) -> bool {
    programs.iter().any(|program| is_own_program(program))
}

fn describe(device: &DevicePrograms, ingress: &[String], egress: &[String]) -> String {
    let xdp = device.xdp.as_deref().is_some_and(is_own_program);
    let hooks = [("XDP", xdp), ("tc ingress", has_own(ingress)), ("tc egress", has_own(egress))];
    let hooks: Vec<&str> =
        hooks.into_iter().filter_map(|(hook, attached)| attached.then_some(hook)).collect();
    format!("{} ({})", device.name, hooks.join(", "))
}

/// Requests are translated at ingress, and the replies of endpoints of this node at egress. One
/// without the other breaks connections.
fn pair(device: &str, ingress: &[String], egress: &[String]) -> Option<Finding> {
    let missing = match (has_own(ingress), has_own(egress)) {
        (true, false) => "tc-egress: replies of the pods of this node are not translated",
        (false, true) => "tc-ingress: packets for Services are not translated there",
        _ => return None,
    };
    Some(Finding::error("devices", format!("{device}: there is no program at {missing}"), REPAIRED))
}

/// Reports the programs of others at a hook at which a program of Sluice is attached.
fn neighbours(device: &str, hook: &str, programs: &[String]) -> Option<Finding> {
    const CHECK: &str = "neighbours";
    let own = programs.iter().position(|program| is_own_program(program))?;
    let (before, after) = (&programs[..own], &programs[own + 1..]);
    if !before.is_empty() {
        let names = before.join(", ");
        return Some(Finding::warning(
            CHECK,
            format!(
                "{device}: {names} runs before the program of Sluice at {hook}, and can take its packets"
            ),
            "a running agent moves its program to the front several times. If the finding stays, another \
             program does the same: the log of the agent names it. Start the agent after the CNI plugin",
        ));
    }
    let others: Vec<&str> =
        after.iter().filter(|program| !is_own_program(program)).map(String::as_str).collect();
    (!others.is_empty()).then(|| {
        Finding::note(
            CHECK,
            format!("{device}: {} runs after the program of Sluice at {hook}", others.join(", ")),
        )
    })
}

fn sockets(facts: &DatapathFacts) -> Vec<Finding> {
    const CHECK: &str = "sockets";
    let (hooks, pinned) = match (&facts.sockets, &facts.pinned_hooks) {
        (Ok(hooks), Ok(pinned)) => (hooks, pinned),
        (Err(reason), _) | (_, Err(reason)) => return vec![Finding::unchecked(CHECK, reason)],
    };
    let (attached, absent): (Vec<&HookNames>, Vec<&HookNames>) =
        hooks.iter().partition(|hook| has_own(&hook.programs));
    let names = |hooks: &[&HookNames]| hooks.iter().map(|hook| hook.hook).collect::<Vec<_>>().join(", ");
    let is_pinned = pinned.iter().any(|pin| pin.starts_with("cgroup-"));
    let mut findings = Vec::new();
    if attached.is_empty() && is_pinned {
        findings.push(Finding::error(
            CHECK,
            "the programs of Sluice are pinned, but do not run for this cgroup",
            format!("name the folder of the agent's --cgroup, or {REPAIRED}"),
        ));
    } else if attached.is_empty() {
        findings.push(Finding::note(
            CHECK,
            "connections of processes are not translated at the socket (no agent, or --socket-hooks=off)",
        ));
    } else if absent.is_empty() {
        findings.push(Finding::ok(CHECK, format!("programs run at {} hooks", attached.len())));
    } else {
        findings.push(Finding::error(
            CHECK,
            format!("no program of Sluice runs at {}", names(&absent)),
            format!("{REPAIRED}, such as a program that this kernel refuses"),
        ));
    }
    let others: BTreeSet<&str> = hooks
        .iter()
        .flat_map(|hook| &hook.programs)
        .map(String::as_str)
        .filter(|program| !is_own_program(program))
        .collect();
    if !others.is_empty() {
        let names = others.into_iter().collect::<Vec<_>>().join(", ");
        findings.push(Finding::note("neighbours", format!("other socket programs of the cgroup: {names}")));
    }
    findings
}

fn maps(maps: &Checked<MapEntries>, agent: &AgentFacts) -> Vec<Finding> {
    const CHECK: &str = "maps";
    let maps = match maps {
        Ok(maps) => maps,
        Err(reason) => return vec![Finding::unchecked(CHECK, reason)],
    };
    let mut findings: Vec<Finding> = maps.usage.iter().filter_map(usage).collect();
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "all maps have room"));
    }
    const SHOWN: usize = 5;
    findings.extend(
        maps.inconsistent.iter().take(SHOWN).map(|entry| Finding::error(CHECK, entry, WRITTEN_AGAIN)),
    );
    if maps.inconsistent.len() > SHOWN {
        findings.push(Finding::note(CHECK, format!("{} more such entries", maps.inconsistent.len() - SHOWN)));
    }
    findings.extend(maps.port_shortages.iter().map(port_shortage));
    findings.extend(agent.map_memory.as_ref().map(map_memory));
    match &agent.written {
        Ok(written) => findings.extend(compare(maps, written)),
        Err(reason) => findings.push(Finding::unchecked(PLAN, reason)),
    }
    findings
}

/// Compares the maps with the numbers of entries that the agent has written.
fn compare(maps: &MapEntries, written: &[(String, u64)]) -> Vec<Finding> {
    let entries = |map: &str| maps.usage.iter().find(|usage| usage.map == map).map(|usage| usage.entries);
    let different: Vec<Finding> = written
        .iter()
        .filter_map(|(map, written)| Some((map, written, entries(map).filter(|found| found != written)?)))
        .map(|(map, written, found)| {
            Finding::error(
                PLAN,
                format!("{map} has {found} entries, the agent has written {written}"),
                format!(
                    "run `lb doctor` again, in case the Services are changing. Otherwise {WRITTEN_AGAIN}"
                ),
            )
        })
        .collect();
    if different.is_empty() {
        return vec![Finding::ok(PLAN, "the maps have the entries that the agent has written")];
    }
    different
}

/// A shortage of the last hour is a warning: it may come back.
fn port_shortage(shortage: &PortShortageFacts) -> Finding {
    const CHECK: &str = "source ports";
    const HOUR: u64 = 3600;
    let PortShortageFacts { service, endpoint, packets, seconds_ago } = shortage;
    let evidence = format!(
        "{service}: no source port was free for new connections to {endpoint} (packets: {packets}, \
         the last one {seconds_ago} s ago)"
    );
    if *seconds_ago > HOUR {
        return Finding::note(CHECK, evidence);
    }
    Finding::warning(
        CHECK,
        evidence,
        "widen --snat-ports, add endpoints to the Service, or set its externalTrafficPolicy to Local, \
         which needs no source ports",
    )
}

fn map_memory(memory: &MapMemoryFacts) -> Finding {
    let MapMemoryFacts { bytes, most, growths } = memory;
    let grown = match growths {
        0 => "have not grown".to_owned(),
        1 => "have grown once".to_owned(),
        times => format!("have grown {times} times"),
    };
    let text = format!(
        "full maps take {} MiB; those of Services {grown} since the agent started, and grow up to {} MiB",
        bytes >> 20,
        most >> 20
    );
    match bytes <= most {
        true => Finding::ok("map memory", text),
        false => Finding::note("map memory", format!("{text} (--max-map-memory), so no map grows")),
    }
}

fn usage(usage: &MapUsage) -> Option<Finding> {
    let MapUsage { map, entries, capacity, option } = usage;
    let evidence = format!("{map}: {entries} of {capacity} entries are used");
    let remedy = format!("raise --{option}");
    if usage.is_full() {
        Some(Finding::error("maps", evidence, remedy))
    } else if usage.is_nearly_full() {
        Some(Finding::warning("maps", evidence, remedy))
    } else {
        None
    }
}
