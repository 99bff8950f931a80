//! The facts that `lb doctor` reads on a node.

use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use lb_datapath::apply::MapUsage;

use super::distribution::Distribution;

/// A value, or the reason why it could not be read.
pub type Checked<T> = Result<T, String>;

#[derive(Debug, Clone)]
pub struct Facts {
    pub kernel: KernelFacts,
    pub host: HostFacts,
    pub datapath: DatapathFacts,
    pub api_server: ApiServer,
}

#[derive(Debug, Clone)]
pub struct KernelFacts {
    /// `uname -r`.
    pub release: String,
    /// Each missing feature with its consequence, as the agent logs it.
    pub missing_features: Vec<&'static str>,
    /// Whether this process may load programs. If not, features are assumed that only loading a
    /// program can show.
    pub privileges: Checked<()>,
    /// The text of `/sys/kernel/security/lockdown`.
    pub lockdown: Checked<String>,
    /// The configuration with which the kernel was built.
    pub config: Checked<String>,
}

#[derive(Debug, Clone)]
pub struct HostFacts {
    /// `None` for a node as kubeadm sets it up, and for one that is not recognized.
    pub distribution: Option<Distribution>,
    /// The text of `/proc/self/mountinfo`.
    pub cgroups: Checked<String>,
    /// The folder of `--cgroup`.
    pub cgroup: FileSystem,
    /// The folder of `--bpffs`.
    pub bpffs: FileSystem,
    /// First and last port of `net.ipv4.ip_local_port_range`.
    pub local_ports: Checked<(u16, u16)>,
    /// First and last port of the agent's `--snat-ports`.
    pub snat_ports: Checked<(u16, u16)>,
    pub forwarding: Checked<ForwardingFacts>,
    /// The networks to which IPsec policies apply.
    pub ipsec: Checked<Vec<IpNet>>,
    /// The networks to which the kernel forwards translated packets. Empty without an agent.
    pub by_kernel: Vec<IpNet>,
    /// One entry for each program that lists a filter table.
    pub firewall: Vec<FirewallPolicy>,
    pub kube_proxy: KubeProxyFacts,
    pub namespaces: NamespaceFacts,
}

/// Where network namespaces have names.
#[derive(Debug, Clone)]
pub struct NamespaceFacts {
    /// The folder of `--netns-dir`.
    pub folder: PathBuf,
    /// Their number there.
    pub named: Checked<usize>,
    /// Other folders of container runtimes in which some have names.
    pub elsewhere: Vec<(PathBuf, usize)>,
}

/// A folder that must be in a file system of a certain type.
#[derive(Debug, Clone)]
pub struct FileSystem {
    pub path: PathBuf,
    /// The reason why it is not, and the remedy.
    pub error: Option<(String, String)>,
}

#[derive(Debug, Clone)]
pub struct ForwardingFacts {
    pub v4: bool,
    /// `None` if the kernel has no IPv6.
    pub v6: Option<bool>,
    /// Devices with strict reverse path filtering.
    pub strict_rp_filter: Vec<String>,
}

#[derive(Debug, Clone)]
pub struct FirewallPolicy {
    pub program: String,
    /// The policy of the chain FORWARD.
    pub forward: Checked<String>,
}

#[derive(Debug, Clone)]
pub struct KubeProxyFacts {
    /// How a running kube-proxy was found.
    pub running: Option<String>,
    pub leftovers: Vec<String>,
    /// The kinds of leftovers that could not be listed, with the reason.
    pub unchecked: Vec<String>,
}

#[derive(Debug, Clone)]
pub struct DatapathFacts {
    pub bpffs: PathBuf,
    /// Whether an agent of this version has pinned maps.
    pub installed: Checked<bool>,
    pub agent: AgentFacts,
    /// The devices to which programs are attached.
    pub devices: Checked<Vec<DevicePrograms>>,
    /// The names of the pinned links.
    pub pinned_hooks: Checked<Vec<String>>,
    /// The programs of each socket hook of the cgroup.
    pub sockets: Checked<Vec<HookNames>>,
    pub maps: Checked<MapEntries>,
    /// Folders with pins of other map layouts.
    pub other_versions: Vec<PathBuf>,
}

#[derive(Debug, Clone)]
pub struct AgentFacts {
    /// Status and body of `/healthz`.
    pub health: Checked<(u16, String)>,
    /// The number of entries that the agent has written to each map of Services, by its metric
    /// `sluice_map_entries`.
    pub written: Checked<Vec<(String, u64)>>,
    /// The memory of the maps. `None` if the agent does not answer.
    pub map_memory: Option<MapMemoryFacts>,
    /// The seconds since the API server last sent something about each watched resource. Empty if
    /// the agent does not answer or reads manifests.
    pub watches: Vec<(String, u64)>,
}

/// The memory of all maps when they are full, in bytes.
#[derive(Debug, Clone)]
pub struct MapMemoryFacts {
    pub bytes: u64,
    /// Maps of Services grow up to this.
    pub most: u64,
    /// How often they have grown since the agent started.
    pub growths: u64,
}

#[derive(Debug, Clone)]
pub struct DevicePrograms {
    pub name: String,
    /// The name of the XDP program.
    pub xdp: Option<String>,
    /// The names of the tc programs, in the order in which they run.
    pub ingress: Checked<Vec<String>>,
    pub egress: Checked<Vec<String>>,
}

#[derive(Debug, Clone)]
pub struct HookNames {
    pub hook: &'static str,
    pub programs: Vec<String>,
}

#[derive(Debug, Clone)]
pub struct MapEntries {
    pub usage: Vec<MapUsage>,
    /// Entries that refer to entries that do not exist.
    pub inconsistent: Vec<String>,
    pub port_shortages: Vec<PortShortageFacts>,
}

/// An endpoint for whose connections no source port was free.
#[derive(Debug, Clone)]
pub struct PortShortageFacts {
    pub service: String,
    pub endpoint: SocketAddr,
    /// The number of packets that opened no connection.
    pub packets: u64,
    /// The seconds since the last one.
    pub seconds_ago: u64,
}

#[derive(Debug, Clone)]
pub enum ApiServer {
    /// The address of the API server is neither in a kubeconfig nor in the environment of a pod.
    NotConfigured,
    /// The version of the API server.
    Reachable(String),
    Unreachable(String),
}

/// Returns the facts of a node without a fault.
#[cfg(test)]
pub(super) fn healthy() -> Facts {
    let hooks = ["cgroup-connect4", "cgroup-connect6"];
    let program = |hook: &str| vec![hook.replace("cgroup-", "lb_")];
    Facts {
        kernel: KernelFacts {
            release: "6.18.0".into(),
            missing_features: vec![],
            privileges: Ok(()),
            lockdown: Ok("[none] integrity confidentiality\n".into()),
            config: Ok("CONFIG_BPF_SYSCALL=y\nCONFIG_CGROUP_BPF=y\nCONFIG_NET_CLS_ACT=y\n\
                        CONFIG_BPF_JIT=y\nCONFIG_DEBUG_INFO_BTF=y\n\
                        CONFIG_INET_DIAG_DESTROY=y\n"
                .into()),
        },
        host: HostFacts {
            distribution: None,
            cgroups: Ok("36 35 0:31 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw\n".into()),
            cgroup: FileSystem { path: "/sys/fs/cgroup".into(), error: None },
            bpffs: FileSystem { path: "/sys/fs/bpf".into(), error: None },
            local_ports: Ok((32_768, 60_999)),
            snat_ports: Ok((1024, 29_999)),
            ipsec: Ok(vec![]),
            by_kernel: vec![],
            forwarding: Ok(ForwardingFacts { v4: true, v6: Some(true), strict_rp_filter: vec![] }),
            firewall: vec![FirewallPolicy {
                program: "iptables-nft-save".into(),
                forward: Ok("ACCEPT".into()),
            }],
            kube_proxy: KubeProxyFacts { running: None, leftovers: vec![], unchecked: vec![] },
            namespaces: NamespaceFacts { folder: "/run/netns".into(), named: Ok(4), elsewhere: vec![] },
        },
        datapath: DatapathFacts {
            bpffs: "/sys/fs/bpf".into(),
            installed: Ok(true),
            agent: AgentFacts {
                health: Ok((200, "{}".into())),
                written: Ok(vec![("SERVICES_V4".into(), 6)]),
                map_memory: Some(MapMemoryFacts { bytes: 271 << 20, most: 2048 << 20, growths: 0 }),
                watches: vec![("services".into(), 12), ("nodes".into(), 59)],
            },
            devices: Ok(vec![DevicePrograms {
                name: "eth0".into(),
                xdp: Some("lb_xdp".into()),
                ingress: Ok(vec!["lb_tc_ingress".into()]),
                egress: Ok(vec!["lb_tc_egress".into()]),
            }]),
            pinned_hooks: Ok(hooks.map(str::to_owned).into()),
            sockets: Ok(hooks.map(|hook| HookNames { hook, programs: program(hook) }).into()),
            maps: Ok(MapEntries {
                usage: vec![MapUsage {
                    map: "SERVICES_V4",
                    entries: 6,
                    capacity: 65_536,
                    option: "max-map-memory",
                }],
                inconsistent: vec![],
                port_shortages: vec![],
            }),
            other_versions: vec![],
        },
        api_server: ApiServer::Reachable("v1.37.0".into()),
    }
}
