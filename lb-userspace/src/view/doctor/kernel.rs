//! Findings about the kernel.

use super::facts::KernelFacts;
use super::finding::Finding;

/// An option that the kernel must be built with, and the consequence if it is missing.
struct KernelOption {
    name: &'static str,
    without: &'static str,
    need: Need,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Always,
    /// tc programs are filters, not links.
    WithoutTcx,
    Optional,
}

const NO_TC: &str = "tc programs cannot be attached";
const NOT_CLOSED: &str = "sockets of this node are not closed when their endpoint is gone, when its drain is overdue, or at \
                          their maximum age";

const OPTIONS: [KernelOption; 8] = [
    KernelOption { name: "CONFIG_BPF_SYSCALL", without: "no program can be loaded", need: Need::Always },
    KernelOption {
        name: "CONFIG_CGROUP_BPF",
        without: "connections of processes are not translated at the socket",
        need: Need::Always,
    },
    KernelOption { name: "CONFIG_NET_CLS_ACT", without: NO_TC, need: Need::Always },
    KernelOption { name: "CONFIG_NET_SCH_INGRESS", without: NO_TC, need: Need::WithoutTcx },
    KernelOption { name: "CONFIG_NET_CLS_BPF", without: NO_TC, need: Need::WithoutTcx },
    KernelOption {
        name: "CONFIG_BPF_JIT",
        without: "tc and XDP programs are refused, and calls at sockets take several times longer",
        need: Need::Optional,
    },
    KernelOption { name: "CONFIG_DEBUG_INFO_BTF", without: NOT_CLOSED, need: Need::Optional },
    KernelOption { name: "CONFIG_INET_DIAG_DESTROY", without: NOT_CLOSED, need: Need::Optional },
];

pub fn findings(facts: &KernelFacts) -> Vec<Finding> {
    let mut findings = vec![Finding::ok("kernel", format!("Linux {}", facts.release))];
    findings.push(match &facts.privileges {
        Ok(()) => Finding::ok("privileges", "this process may load programs and read maps"),
        Err(reason) => Finding::note("privileges", format!("{reason}: run `lb doctor` as root to check all")),
    });
    findings.extend(features(facts));
    findings.push(lockdown(facts));
    findings.extend(options(facts));
    findings
}

fn features(facts: &KernelFacts) -> Vec<Finding> {
    const CHECK: &str = "kernel features";
    let mut findings: Vec<Finding> =
        facts.missing_features.iter().map(|missing| Finding::note(CHECK, *missing)).collect();
    match &facts.privileges {
        Ok(()) if findings.is_empty() => findings.push(Finding::ok(CHECK, "none is missing")),
        Ok(()) => {}
        Err(_) => findings.push(Finding::unchecked(CHECK, "some features are probed by loading a program")),
    }
    findings
}

/// The active mode is in brackets (security/lockdown/lockdown.c).
fn lockdown(facts: &KernelFacts) -> Finding {
    const CHECK: &str = "lockdown";
    let text = match &facts.lockdown {
        Ok(text) => text,
        Err(reason) => return Finding::unchecked(CHECK, reason),
    };
    let mode =
        text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map_or("none", |(mode, _)| mode);
    match mode {
        "confidentiality" => Finding::note(
            CHECK,
            "mode confidentiality: the kernel refuses programs that read kernel memory. The programs \
             of Sluice for packets and sockets do not",
        ),
        mode => Finding::ok(CHECK, format!("mode {mode}")),
    }
}

fn options(facts: &KernelFacts) -> Vec<Finding> {
    const CHECK: &str = "kernel options";
    let config = match &facts.config {
        Ok(config) => config,
        Err(reason) => return vec![Finding::unchecked(CHECK, reason)],
    };
    let is_set = |name: &str| {
        config
            .lines()
            .any(|line| line.strip_prefix(name).is_some_and(|rest| matches!(rest.trim_end(), "=y" | "=m")))
    };
    let has_tcx = !facts.missing_features.iter().any(|feature| feature.starts_with("no tcx"));
    let missing: Vec<Finding> = OPTIONS
        .iter()
        .filter(|option| !(has_tcx && option.need == Need::WithoutTcx))
        .filter(|option| !is_set(option.name))
        .map(|KernelOption { name, without, need }| {
            let evidence = format!("{name} is not set: {without}");
            match need {
                Need::Optional => Finding::note(CHECK, evidence),
                Need::Always | Need::WithoutTcx => {
                    Finding::error(CHECK, evidence, "use a kernel that is built with this option")
                }
            }
        })
        .collect();
    if missing.is_empty() { vec![Finding::ok(CHECK, "all options of Sluice are set")] } else { missing }
}
