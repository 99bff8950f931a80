//! The settings of an agent.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::sizes::SizeFlags;
use super::values::{
    Cidrs, DatapathLog, ExternalIps, FlowTimeoutList, LogFilter, LogFormat, PortRange, SocketHooks,
    TcAttachMode, TerminateSockets,
};
use crate::node::addresses::NodePortAddresses;
use crate::node::devices::{AttachMode, DevicePatterns, PodInterfaces};

/// Everything an agent can be told.
#[derive(Debug, Clone, PartialEq, clap::Args)]
pub struct Config {
    /// Kubeconfig of the API server. Default: the service account of the pod
    #[arg(long, env = "SLUICE_KUBECONFIG", value_name = "FILE", help_heading = "Kubernetes")]
    pub kubeconfig: Option<PathBuf>,

    /// Take Services, EndpointSlices and Nodes from the YAML and JSON files in this folder instead of an API server; changes are followed
    #[arg(
        long,
        env = "SLUICE_MANIFESTS",
        value_name = "DIR",
        conflicts_with = "kubeconfig",
        help_heading = "Kubernetes"
    )]
    pub manifests: Option<PathBuf>,

    /// Name of this node's Node object. Default: the host name
    #[arg(
        long,
        env = "SLUICE_NODE_NAME",
        value_name = "NAME",
        required = false, // the machine's name is its default, see with_machine_defaults()
        hide_default_value = true,
        help_heading = "Kubernetes"
    )]
    pub node_name: String,

    /// Networks of all pods of the cluster; sources inside count as pods for traffic policies. Default: the pod networks of this node
    #[arg(
        long,
        env = "SLUICE_CLUSTER_CIDR",
        value_name = "CIDRS",
        default_value = "",
        hide_default_value = true,
        help_heading = "Kubernetes"
    )]
    pub cluster_cidr: Cidrs,

    /// Which spec.externalIPs of Services to serve: `allow` all, `deny` all, or those inside CIDRs (CVE-2020-8554)
    #[arg(
        long,
        env = "SLUICE_EXTERNAL_IPS",
        value_name = "POLICY",
        default_value = "allow",
        help_heading = "Kubernetes"
    )]
    pub external_ips: ExternalIps,

    /// Devices to take packets from: `auto` (NICs, bonds and overlay tunnels, also those that appear later) or name patterns like `eth*,ens3`
    #[arg(
        long,
        env = "SLUICE_DEVICES",
        value_name = "PATTERNS",
        default_value = "auto",
        help_heading = "Data path"
    )]
    pub devices: DevicePatterns,

    /// Devices that lead to pods whose sockets this kernel does not own (virtual machines, gVisor, Kata) or does not serve: name patterns like `cali*,tap*`; also those that appear later. On a bridge its ports. Default: none
    #[arg(
        long,
        env = "SLUICE_POD_INTERFACES",
        value_name = "PATTERNS",
        default_value = "",
        hide_default_value = true,
        help_heading = "Data path"
    )]
    pub pod_interfaces: PodInterfaces,

    /// By which hook: XDP where it is safe and tc elsewhere, XDP wherever possible, or tc only
    #[arg(
        long,
        env = "SLUICE_MODE",
        value_name = "MODE",
        value_enum,
        default_value = "auto",
        help_heading = "Data path"
    )]
    pub mode: AttachMode,

    /// How tc programs are attached: as links, which nobody else removes, or as filters
    #[arg(
        long,
        env = "SLUICE_TC_ATTACH",
        value_name = "HOW",
        value_enum,
        default_value = "auto",
        help_heading = "Data path"
    )]
    pub tc_attach: TcAttachMode,

    /// Node addresses that serve NodePorts: `all` but loopback, `primary` (those in the Node object), or those inside CIDRs
    #[arg(
        long,
        env = "SLUICE_NODEPORT_ADDRESSES",
        value_name = "ADDRESSES",
        default_value = "all",
        help_heading = "Data path"
    )]
    pub nodeport_addresses: NodePortAddresses,

    /// Ports for rewritten sources, outside net.ipv4.ip_local_port_range and the API server's --service-node-port-range; ports
    /// on which this node's sockets listen are left out
    #[arg(
        long,
        env = "SLUICE_SNAT_PORTS",
        value_name = "FIRST-LAST",
        default_value = "1024-29999",
        help_heading = "Data path"
    )]
    pub snat_ports: PortRange,

    /// Seconds after which a silent connection is over, for those that differ from the default; TCP: tcp-syn=60,
    /// tcp=86400, tcp-close-wait=3600, tcpfin=120 (closed by both sides), tcp-close=10 (reset); UDP: udp-unreplied=30, udp=30,
    /// udp-stream=120; SCTP: sctp-init=30, sctp=210, sctp-closed=10
    #[arg(
        long,
        env = "SLUICE_FLOW_TIMEOUTS",
        value_name = "NAME=SECONDS,…",
        default_value = "",
        help_heading = "Data path"
    )]
    pub flow_timeouts: FlowTimeoutList,

    /// Whose connections to translate at the socket, which costs nothing per packet
    #[arg(
        long,
        env = "SLUICE_SOCKET_HOOKS",
        value_name = "WHOSE",
        value_enum,
        default_value = "all",
        help_heading = "Data path"
    )]
    pub socket_hooks: SocketHooks,

    /// cgroup-v2 folder whose processes are served at their sockets. Default: the root of the hierarchy, wherever it is mounted
    #[arg(
        long,
        env = "SLUICE_CGROUP",
        value_name = "DIR",
        hide_default_value = true,
        help_heading = "Data path"
    )]
    pub cgroup: Option<PathBuf>,

    /// Refuse processes of the node the port numbers of NodePorts (EADDRINUSE): they would never be reached there
    #[arg(
        long,
        env = "SLUICE_PROTECT_NODE_PORTS",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_value_t = true,
        default_missing_value = "true",
        hide_possible_values = true,
        action = clap::ArgAction::Set,
        help_heading = "Data path"
    )]
    pub protect_node_ports: bool,

    /// Close connected sockets of processes whose endpoint is gone, so that they connect again: UDP, TCP too, or none
    #[arg(
        long,
        env = "SLUICE_TERMINATE_SOCKETS",
        value_name = "WHICH",
        value_enum,
        default_value = "udp",
        help_heading = "Data path"
    )]
    pub terminate_sockets: TerminateSockets,

    /// Folder with the names of the network namespaces of pods
    #[arg(
        long,
        env = "SLUICE_NETNS_DIR",
        value_name = "DIR",
        default_value = "/run/netns",
        help_heading = "Data path"
    )]
    pub netns_dir: PathBuf,

    /// BPF file system that keeps maps and programs alive while no agent runs
    #[arg(
        long,
        env = "SLUICE_BPFFS",
        value_name = "DIR",
        default_value = "/sys/fs/bpf",
        help_heading = "Data path"
    )]
    pub bpffs: PathBuf,

    /// Wait until the agent that runs on this node has ended, instead of refusing to start (for rolling updates)
    #[arg(
        long,
        env = "SLUICE_WAIT_LOCK",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_value_t = false,
        default_missing_value = "true",
        hide_possible_values = true,
        action = clap::ArgAction::Set,
        help_heading = "Operation"
    )]
    pub wait_lock: bool,

    /// Address of /healthz and /livez
    #[arg(
        long,
        env = "SLUICE_HEALTH_BIND",
        value_name = "ADDR:PORT",
        default_value = "0.0.0.0:10256",
        help_heading = "Operation"
    )]
    pub health_bind: SocketAddr,

    /// Address of /metrics, /configz and /proxyMode
    #[arg(
        long,
        env = "SLUICE_METRICS_BIND",
        value_name = "ADDR:PORT",
        default_value = "127.0.0.1:10249",
        help_heading = "Operation"
    )]
    pub metrics_bind: SocketAddr,

    /// Level of the log on stderr (off, error, warn, info, debug, trace), also per module: `info,lb_plan=debug`
    #[arg(
        long,
        env = "SLUICE_LOG_LEVEL",
        value_name = "LEVEL",
        default_value = "info",
        help_heading = "Operation"
    )]
    pub log_level: LogFilter,

    /// Log lines for people or for programs
    #[arg(
        long,
        env = "SLUICE_LOG_FORMAT",
        value_name = "FORMAT",
        value_enum,
        default_value = "text",
        help_heading = "Operation"
    )]
    pub log_format: LogFormat,

    /// Log of the kernel programs; fixed when they are loaded, `off` costs nothing, anything else slows every packet down
    #[arg(
        long,
        env = "SLUICE_DATAPATH_LOG",
        value_name = "LEVEL",
        value_enum,
        default_value = "off",
        help_heading = "Operation"
    )]
    pub datapath_log: DatapathLog,

    #[command(flatten)]
    pub maps: SizeFlags,
}
