//! Facts about the host.

use std::fs;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use lb_common::layout::network_flags;
use lb_datapath::Pins;
use lb_datapath::inspect::AgentMaps;

use super::args::DoctorArgs;
use crate::cli::cleanup::kube_proxy::{NodeCommand, Presence, ProgramError, presence};
use crate::config::{self, Machine};
use crate::node::ipsec;
use crate::node::sysctl::{Forwarding, Sysctls};
use crate::preflight::{self, PreflightError};
use crate::view::doctor::{
    Checked, Distribution, FileSystem, FirewallPolicy, ForwardingFacts, HostFacts, KubeProxyFacts,
    NamespaceFacts,
};

pub fn facts(args: &DoctorArgs, cgroup: Option<&Path>) -> HostFacts {
    let Presence { running, leftovers, unchecked } = presence();
    let bpffs = &args.pins.bpffs;
    HostFacts {
        distribution: distribution(),
        cgroups: read("/proc/self/mountinfo"),
        cgroup: file_system(cgroup.unwrap_or(Path::new("-")), preflight::check_cgroup(cgroup).map(drop)),
        bpffs: file_system(bpffs, preflight::check_bpffs(bpffs)),
        local_ports: local_ports(),
        snat_ports: snat_ports(bpffs),
        forwarding: forwarding(),
        ipsec: ipsec::destinations()
            .map(|networks| networks.into_iter().collect())
            .map_err(|error| format!("the IPsec policies cannot be listed: {error}")),
        by_kernel: by_kernel(bpffs).unwrap_or_default(),
        firewall: firewall(),
        kube_proxy: KubeProxyFacts { running, leftovers, unchecked },
        namespaces: namespaces(&args.netns_dir),
    }
}

fn read(path: &str) -> Checked<String> {
    fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))
}

fn file_system(path: &Path, result: Result<(), PreflightError>) -> FileSystem {
    FileSystem { path: path.to_owned(), error: result.err().map(|error| (error.to_string(), error.hint())) }
}

fn local_ports() -> Checked<(u16, u16)> {
    const PATH: &str = "/proc/sys/net/ipv4/ip_local_port_range";
    let text = read(PATH)?;
    let mut ports = text.split_whitespace().map(str::parse);
    match (ports.next(), ports.next()) {
        (Some(Ok(first)), Some(Ok(last))) => Ok((first, last)),
        _ => Err(format!("{PATH} contains {text:?}")),
    }
}

/// Returns the ports that the programs use. Without an agent, returns the default of an agent.
fn snat_ports(bpffs: &Path) -> Checked<(u16, u16)> {
    match AgentMaps::open(&Pins::new(bpffs)).and_then(|maps| maps.settings()) {
        Ok(settings) if settings.snat_port_count > 0 => {
            let first = settings.snat_port_first;
            Ok((first, first + (settings.snat_port_count - 1)))
        }
        _ => {
            let config = config::read_settings(Vec::new(), &Machine::detect());
            let ports = config.map_err(|error| error.to_string())?.snat_ports.0;
            Ok((*ports.start(), *ports.end()))
        }
    }
}

fn by_kernel(bpffs: &Path) -> Option<Vec<IpNet>> {
    let networks = AgentMaps::open(&Pins::new(bpffs)).ok()?.host().ok()?.networks().ok()?;
    let of_kernel = networks.into_iter().filter(|(_, flags)| flags & network_flags::BY_KERNEL != 0);
    Some(of_kernel.map(|(network, _)| network).collect())
}

fn forwarding() -> Checked<ForwardingFacts> {
    let Forwarding { v4, v6, strict_rp_filter } =
        Sysctls::default().forwarding().map_err(|error| error.to_string())?;
    // `default` applies to devices that are created later.
    let strict_rp_filter =
        strict_rp_filter.into_iter().filter(|device| device != "default" && device != "lo").collect();
    Ok(ForwardingFacts { v4, v6, strict_rp_filter })
}

/// Reads the policy of FORWARD in both families, and in both variants of iptables.
fn firewall() -> Vec<FirewallPolicy> {
    let mut policies = Vec::new();
    for (family, tables) in
        [("iptables", "/proc/net/ip_tables_names"), ("ip6tables", "/proc/net/ip6_tables_names")]
    {
        let before = policies.len();
        policies.extend(policy(&format!("{family}-nft-save")));
        // The legacy program would create the table if it does not exist.
        if fs::read_to_string(tables).is_ok_and(|tables| tables.lines().any(|table| table == "filter")) {
            policies.extend(policy(&format!("{family}-legacy-save")));
        }
        if policies.len() == before {
            policies.extend(policy(&format!("{family}-save")));
        }
    }
    policies
}

/// Returns the policy of FORWARD that this program reports, or `None` if it is not installed.
fn policy(program: &str) -> Option<FirewallPolicy> {
    let forward = match NodeCommand::new(program, &["-t", "filter"]).run() {
        Ok(text) => Ok(forward_policy(&text)),
        Err(ProgramError::Missing(_)) => return None,
        Err(error) => Err(error.to_string()),
    };
    Some(FirewallPolicy { program: program.into(), forward })
}

/// Returns the policy of FORWARD in the output of `iptables-save`: `:FORWARD DROP [0:0]`. A chain
/// that does not exist accepts all packets.
fn forward_policy(saved: &str) -> String {
    let policy = saved.lines().find_map(|line| line.strip_prefix(":FORWARD ")?.split(' ').next());
    policy.unwrap_or("ACCEPT").to_owned()
}

fn distribution() -> Option<Distribution> {
    let os_release = ["/etc/os-release", "/usr/lib/os-release"].map(fs::read_to_string);
    let os_release = os_release.into_iter().find_map(Result::ok).unwrap_or_default();
    Distribution::find(|folder| Path::new(folder).is_dir(), &os_release)
}

/// The folders in which container runtimes create the network namespaces of pods: containerd and
/// CRI-O, and Docker, which cri-dockerd uses.
const NAMESPACE_FOLDERS: [&str; 2] = ["/run/netns", "/run/docker/netns"];

fn namespaces(folder: &Path) -> NamespaceFacts {
    let others = NAMESPACE_FOLDERS.map(PathBuf::from).into_iter().filter(|other| other != folder);
    let elsewhere = others.filter_map(|other| Some((named_in(&other).ok()?, other)));
    NamespaceFacts {
        folder: folder.to_owned(),
        named: named_in(folder),
        elsewhere: elsewhere.filter(|(count, _)| *count > 0).map(|(count, other)| (other, count)).collect(),
    }
}

/// Returns the number of network namespaces that have a name in a folder.
fn named_in(folder: &Path) -> Checked<usize> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    Ok(entries.flatten().count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_namespaces_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(namespaces(folder.path()).named, Ok(0));
        for name in ["cni-1", "cni-2"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(namespaces(folder.path()).named, Ok(2));
        assert!(namespaces(&folder.path().join("nowhere")).named.unwrap_err().contains("No such file"));
    }

    #[test]
    fn the_policy_of_forward_is_read() {
        let saved = "# Generated\n*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [1:60]\nCOMMIT\n";
        assert_eq!(forward_policy(saved), "DROP");
        assert_eq!(forward_policy(""), "ACCEPT");
    }
}
