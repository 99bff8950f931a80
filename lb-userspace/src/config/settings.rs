//! The settings of an agent.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::sizes::SizeFlags;
use super::values::{
    ApiServers, Cidrs, DatapathLogLevel, DefaultAlgorithm, ExternalIps, FlowTimeoutList, ForwardMode,
    LogFilter, LogFormat, PortRange, SocketHooks, TcAttachMode, TerminateSockets,
};
use crate::node::addresses::NodePortAddresses;
use crate::node::devices::{AttachMode, DevicePatterns, PodInterfaces};

/// All settings of the agent.
#[derive(Debug, Clone, PartialEq, clap::Args)]
pub struct Config {
    /// Kubeconfig file for the API server. Default: the service account of the pod
    #[arg(long, env = "SLUICE_KUBECONFIG", value_name = "FILE", help_heading = "Kubernetes")]
    pub kubeconfig: Option<PathBuf>,

    /// Addresses of the API server, instead of the one in the kubeconfig or the environment:
    /// `https://192.0.2.10:6443,https://192.0.2.11:6443`
    ///
    /// The agent uses the next one when one fails. The certificate of each API server must contain
    /// its address. Give addresses that need no Service: that of control-plane nodes, or of a load
    /// balancer in front of them.
    #[arg(
        long,
        env = "SLUICE_API_SERVER",
        value_name = "URLS",
        default_value = "",
        hide_default_value = true,
        help_heading = "Kubernetes"
    )]
    pub api_server: ApiServers,

    /// Folder with YAML and JSON files of Services, EndpointSlices and Nodes, to use instead of an
    /// API server. The agent applies later changes of the files
    #[arg(
        long,
        env = "SLUICE_MANIFESTS",
        value_name = "DIR",
        conflicts_with = "kubeconfig",
        help_heading = "Kubernetes"
    )]
    pub manifests: Option<PathBuf>,

    /// Name of the Node object of this node. Default: the host name in lower case
    #[arg(
        long,
        env = "SLUICE_NODE_NAME",
        value_name = "NAME",
        required = false, // the machine's name is its default, see with_machine_defaults()
        hide_default_value = true,
        help_heading = "Kubernetes"
    )]
    pub node_name: String,

    /// Accepted for compatibility with kube-proxy, without effect
    ///
    /// Routes, the Node object and network namespaces show which pods are on this node. A pod of
    /// another node is outside for externalTrafficPolicy.
    #[arg(
        long,
        env = "SLUICE_CLUSTER_CIDR",
        value_name = "CIDRS",
        default_value = "",
        hide_default_value = true,
        help_heading = "Kubernetes"
    )]
    pub cluster_cidr: Cidrs,

    /// Which spec.externalIPs of Services to serve: `allow`, `deny`, or CIDRs that contain them
    ///
    /// With `allow`, anybody who may create a Service can take over the traffic to any address
    /// (CVE-2020-8554).
    #[arg(
        long,
        env = "SLUICE_EXTERNAL_IPS",
        value_name = "POLICY",
        default_value = "allow",
        help_heading = "Kubernetes"
    )]
    pub external_ips: ExternalIps,

    /// How endpoints are selected for Services without the annotation `lb.sluice.dev/algorithm`
    ///
    /// docs/algorithms.md describes the algorithms.
    #[arg(
        long,
        env = "SLUICE_ALGORITHM",
        value_name = "NAME",
        value_enum,
        default_value = "random",
        help_heading = "Kubernetes"
    )]
    pub algorithm: DefaultAlgorithm,

    /// Read the annotation `lb.sluice.dev/weight` of Pods too, not only that of EndpointSlices and
    /// Services
    ///
    /// The agent then watches the metadata of all Pods of the cluster. It needs the right to do so,
    /// see deploy/pod-weights.
    #[arg(
        long,
        env = "SLUICE_POD_WEIGHTS",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_value_t = false,
        default_missing_value = "true",
        hide_possible_values = true,
        action = clap::ArgAction::Set,
        help_heading = "Kubernetes"
    )]
    pub pod_weights: bool,

    /// Devices on which packets for Services arrive: `auto`, or name patterns like `eth*,ens3`
    ///
    /// `auto` selects network cards, bonds and overlay tunnels. Devices that appear later are
    /// included.
    #[arg(
        long,
        env = "SLUICE_DEVICES",
        value_name = "PATTERNS",
        default_value = "auto",
        help_heading = "Data path"
    )]
    pub devices: DevicePatterns,

    /// Devices of pods whose connections cannot be translated at the socket: name patterns like
    /// `cali*,tap*`. Default: none
    ///
    /// Such pods run their own network stack (virtual machines, gVisor, Kata), or are excluded by
    /// --socket-hooks. The agent translates the packets that arrive at their devices. If the pods
    /// are attached to a bridge, name the ports of the bridge. Devices that appear later are
    /// included.
    #[arg(
        long,
        env = "SLUICE_POD_INTERFACES",
        value_name = "PATTERNS",
        default_value = "",
        hide_default_value = true,
        help_heading = "Data path"
    )]
    pub pod_interfaces: PodInterfaces,

    /// Kernel hook at which packets are translated: XDP or tc
    ///
    /// XDP is faster, because it runs before the kernel builds its own packet structure. tc works
    /// on every device.
    #[arg(
        long,
        env = "SLUICE_MODE",
        value_name = "MODE",
        value_enum,
        default_value = "auto",
        help_heading = "Data path"
    )]
    pub mode: AttachMode,

    /// How to attach tc programs: as tcx links, or as clsact filters
    ///
    /// No other program can remove a link by accident. Filters work on older kernels.
    #[arg(
        long,
        env = "SLUICE_TC_ATTACH",
        value_name = "HOW",
        value_enum,
        default_value = "auto",
        help_heading = "Data path"
    )]
    pub tc_attach: TcAttachMode,

    /// How translated packets to other nodes and to clients are forwarded
    ///
    /// The programs send packets out of a device themselves. Such packets are not encrypted by
    /// IPsec policies (xfrm), and pass neither the FORWARD chain nor rules of policy routing. If
    /// the kernel forwards them, they take longer.
    #[arg(
        long,
        env = "SLUICE_FORWARD",
        value_name = "HOW",
        value_enum,
        default_value = "auto",
        help_heading = "Data path"
    )]
    pub forward: ForwardMode,

    /// Node addresses that serve NodePorts: `all` except loopback, `primary` (the addresses in the
    /// Node object), or CIDRs that contain them
    #[arg(
        long,
        env = "SLUICE_NODEPORT_ADDRESSES",
        value_name = "ADDRESSES",
        default_value = "all",
        help_heading = "Data path"
    )]
    pub nodeport_addresses: NodePortAddresses,

    /// Ports for rewritten source addresses, as FIRST-LAST
    ///
    /// The range must not overlap net.ipv4.ip_local_port_range or the --service-node-port-range of
    /// the API server. Ports on which sockets of this node listen are not used.
    #[arg(
        long,
        env = "SLUICE_SNAT_PORTS",
        value_name = "FIRST-LAST",
        default_value = "1024-29999",
        help_heading = "Data path"
    )]
    pub snat_ports: PortRange,

    /// Timeouts of idle connections that differ from the default, in seconds: `udp=60,tcp=7200`
    ///
    /// The names and their defaults are: tcp-syn=60 (handshake not complete), tcp=86400,
    /// tcp-close-wait=3600 (closed by one side), tcpfin=120 (closed by both sides), tcp-close=10
    /// (reset), udp-unreplied=30, udp=30, udp-stream=120, sctp-init=30 (handshake not complete),
    /// sctp=210, sctp-closed=10.
    #[arg(
        long,
        env = "SLUICE_FLOW_TIMEOUTS",
        value_name = "NAME=SECONDS,…",
        default_value = "",
        help_heading = "Data path"
    )]
    pub flow_timeouts: FlowTimeoutList,

    /// Processes whose connections are translated at the socket, when they connect
    ///
    /// This costs nothing for later packets. Other connections are translated packet by packet.
    #[arg(
        long,
        env = "SLUICE_SOCKET_HOOKS",
        value_name = "WHOSE",
        value_enum,
        default_value = "all",
        help_heading = "Data path"
    )]
    pub socket_hooks: SocketHooks,

    /// cgroup-v2 folder: the connections of processes in it are translated at the socket. Default:
    /// the root of the cgroup-v2 hierarchy
    #[arg(
        long,
        env = "SLUICE_CGROUP",
        value_name = "DIR",
        hide_default_value = true,
        help_heading = "Data path"
    )]
    pub cgroup: Option<PathBuf>,

    /// Prevent processes of the node from binding the ports of NodePorts (EADDRINUSE)
    ///
    /// Such a process would never receive a connection: Sluice sends them to the Service.
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

    /// Sockets to close when their endpoint is removed, so that the application connects again
    #[arg(
        long,
        env = "SLUICE_TERMINATE_SOCKETS",
        value_name = "WHICH",
        value_enum,
        default_value = "udp",
        help_heading = "Data path"
    )]
    pub terminate_sockets: TerminateSockets,

    /// Folder in which the container runtime creates named network namespaces of pods
    #[arg(
        long,
        env = "SLUICE_NETNS_DIR",
        value_name = "DIR",
        default_value = "/run/netns",
        help_heading = "Data path"
    )]
    pub netns_dir: PathBuf,

    /// Folder with the network parameters of the node (net.*), in which the agent enables
    /// forwarding
    ///
    /// In a container that is not privileged, /proc/sys is read-only: mount the node's
    /// /proc/sys/net at another place and name it here.
    #[arg(
        long,
        env = "SLUICE_SYSCTL_DIR",
        value_name = "DIR",
        default_value = "/proc/sys/net",
        help_heading = "Data path"
    )]
    pub sysctl_dir: PathBuf,

    /// BPF file system for the pins that keep maps and programs loaded while no agent runs
    #[arg(
        long,
        env = "SLUICE_BPFFS",
        value_name = "DIR",
        default_value = "/sys/fs/bpf",
        help_heading = "Data path"
    )]
    pub bpffs: PathBuf,

    /// If an agent runs on this node, wait until it ends instead of failing. Needed for rolling
    /// updates
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

    /// Address on which to serve /healthz and /livez
    #[arg(
        long,
        env = "SLUICE_HEALTH_BIND",
        value_name = "ADDR:PORT",
        default_value = "0.0.0.0:10256",
        help_heading = "Operation"
    )]
    pub health_bind: SocketAddr,

    /// Address on which to serve /metrics, /configz and /proxyMode
    #[arg(
        long,
        env = "SLUICE_METRICS_BIND",
        value_name = "ADDR:PORT",
        default_value = "127.0.0.1:10249",
        help_heading = "Operation"
    )]
    pub metrics_bind: SocketAddr,

    /// Log level (off, error, warn, info, debug, trace), also per module, like `info,lb_plan=debug`
    #[arg(
        long,
        env = "SLUICE_LOG_LEVEL",
        value_name = "LEVEL",
        default_value = "info",
        help_heading = "Operation"
    )]
    pub log_level: LogFilter,

    /// Format of log lines
    #[arg(
        long,
        env = "SLUICE_LOG_FORMAT",
        value_name = "FORMAT",
        value_enum,
        default_value = "text",
        help_heading = "Operation"
    )]
    pub log_format: LogFormat,

    /// Log level of the kernel programs. All levels except `off` slow down every packet
    ///
    /// The level is fixed when the programs are loaded.
    #[arg(
        long,
        env = "SLUICE_DATAPATH_LOG",
        value_name = "LEVEL",
        value_enum,
        default_value = "off",
        help_heading = "Operation"
    )]
    pub datapath_log: DatapathLogLevel,

    #[command(flatten)]
    pub maps: SizeFlags,

    /// Memory that all maps may take together while maps of Services grow, in MiB
    ///
    /// A map for Service addresses, slots, endpoints or source ranges grows when 80 % of it is
    /// used, or when it is too small for a change. Half of the new map is used at most, if this
    /// memory suffices. For some seconds, the old and the new map exist together. The default
    /// is a quarter of the memory of the machine. With 0, no map grows.
    #[arg(
        long,
        env = "SLUICE_MAX_MAP_MEMORY",
        value_name = "MIB",
        default_value_t = 512,
        help_heading = "Map sizes"
    )]
    pub max_map_memory: u32,
}
