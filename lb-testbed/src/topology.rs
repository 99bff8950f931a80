//! The cluster: an outside client and two nodes on one Ethernet segment, two pods on each node,
//! IPv4 and IPv6 everywhere.
//!
//! ```text
//!   client                node1                              node2
//!   10.10.0.1             10.10.0.11                         10.10.0.12
//!   fd00:10::1            fd00:10::11                        fd00:10::12
//!      eth0                  eth0   (flannel.1, .v6)            eth0
//!        │                     │        veth-pod1 veth-pod2       │       veth-pod3 veth-pod4
//!   ─────┴───────── br0 ───────┴──────       │         │  ────────┘            │         │
//!            (namespace "net")             pod1      pod2                     pod3      pod4
//!                                      10.244.1.11  .12                   10.244.2.11  .12
//!                                   fd00:244:1::11  ::12               fd00:244:2::11  ::12
//! ```
//!
//! Nodes forward with strict reverse-path filtering. The gateway of a pod is the node's end of its
//! veth pair, as with the `ptp` CNI plug-in. The pods of the other node are reached by plain routes
//! or through VXLAN devices. As with flannel, there is one VXLAN device per family, with static
//! neighbour and forwarding entries.
//!
//! The addresses of a node can also be on a VLAN device above `eth0`, on a bond, or on a bridge
//! with `eth0` as a port ([`Underlay`]).

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::command;
use crate::host::Host;
use crate::kernel::lacks;
use crate::manifest_dir::ManifestDir;
use crate::pass_programs;
use crate::place::Place;
use crate::run::{self, RunId};

/// How the nodes are connected, and how pods of one node reach pods of the other node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Underlay {
    /// The nodes have routes to each other's pod CIDR.
    Routed,
    /// Pod traffic between nodes travels in VXLAN; the MTU of pods is smaller than that of the
    /// underlay.
    Vxlan,
    /// As [`Underlay::Routed`], but the node has its addresses on a VLAN device above its NIC.
    Vlan,
    /// As [`Underlay::Routed`], but the node has its addresses on a bond of two NICs.
    Bond,
    /// As [`Underlay::Routed`], but the node has its addresses on a bridge, and its NIC is a port.
    Bridge,
}

impl Underlay {
    /// Returns the name of the device of a node that has the node's addresses.
    pub fn node_device(self) -> &'static str {
        match self {
            Self::Routed | Self::Vxlan => "eth0",
            Self::Vlan => VLAN_DEVICE,
            Self::Bond => "bond0",
            Self::Bridge => "bridge0",
        }
    }

    /// Returns the devices of a node, for `--devices`. The NICs of the testbed are ends of veth
    /// pairs. Where they have no address, `auto` takes them for devices of pods.
    pub fn devices(self) -> &'static str {
        match self {
            Self::Routed | Self::Vxlan | Self::Bond => "auto",
            Self::Vlan => "eth0,eth0.100",
            Self::Bridge => "bridge0",
        }
    }

    /// Returns the name of the device of a node that can have an XDP program.
    pub fn xdp_device(self) -> Option<&'static str> {
        match self {
            Self::Routed | Self::Vxlan | Self::Vlan => Some("eth0"),
            Self::Bond => Some("bond0"),
            Self::Bridge => None,
        }
    }
}

/// The VLAN of the nodes with [`Underlay::Vlan`], and their device above `eth0`.
const VLAN: u16 = 100;
const VLAN_DEVICE: &str = "eth0.100";

/// The programs that will handle packets from the underlay. XDP needs specially prepared veth
/// devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachMode {
    /// tc, with the kernel's default offloads: segments of up to 64 KiB and partial checksums.
    Tc,
    /// tc, attached through clsact as on kernels before 6.6.
    Clsact,
    /// XDP, with complete checksums in every frame, and peer devices that receive `XDP_TX` frames.
    Xdp,
}

/// Address ranges of Services. The outside client routes them to node1.
pub const SERVICE_CIDR_V4: &str = "10.96.0.0/16";
pub const SERVICE_CIDR_V6: &str = "fd00:96::/108";
/// Address ranges of all pods.
pub const CLUSTER_CIDRS: &str = "10.244.0.0/16,fd00:244::/32";

const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(10, 10, 0, 1);
const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 1);

const FAR_V4: Ipv4Addr = Ipv4Addr::new(10, 20, 0, 2);
const FAR_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x20, 0, 0, 0, 0, 0, 2);
const FAR_GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(10, 20, 0, 1);
const FAR_GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x20, 0, 0, 0, 0, 0, 1);
/// MTU (bytes of an IP packet) of the route to the far host.
pub const FAR_MTU: u32 = 1300;

/// Kernel parameters that turn a host into a router.
const FORWARDING: [&str; 4] = [
    "net/ipv4/ip_forward=1",
    "net/ipv6/conf/all/forwarding=1",
    // Send an ICMP error for every undeliverable packet, not only for the first in each second.
    "net/ipv4/icmp_ratelimit=0",
    "net/ipv6/icmp/ratelimit=0",
];

/// MTU (bytes of an IP packet) of pods and VXLAN devices. VXLAN adds 50 bytes over IPv4 and 70 over
/// IPv6. A pod has one device for both families, so the overlay has one MTU.
pub const OVERLAY_MTU: u32 = 1430;

/// A node. The agent and clients with host networking run on it.
#[derive(Debug)]
pub struct Node {
    pub host: Host,
    /// Mount point of the node's own BPF file system.
    pub bpffs: PathBuf,
    /// Addresses of the VXLAN devices: the source addresses of packets from this node itself to
    /// pods of the other node.
    overlay_v4: Ipv4Addr,
    overlay_v6: Ipv6Addr,
    /// Addresses of the node's ends of the pods' veth pairs.
    gateway_v4: Ipv4Addr,
    gateway_v6: Ipv6Addr,
    number: u8,
}

impl Node {
    /// Returns every address of this node. An endpoint sees one of them as the client if the node
    /// rewrites the source.
    pub fn addresses(&self) -> [std::net::IpAddr; 6] {
        [
            self.host.v4.into(),
            self.host.v6.into(),
            self.overlay_v4.into(),
            self.overlay_v6.into(),
            self.gateway_v4.into(),
            self.gateway_v6.into(),
        ]
    }

    /// Returns the IPv4 pod CIDR of the node.
    pub fn pod_cidr_v4(&self) -> String {
        format!("10.244.{}.0/24", self.number)
    }

    /// Returns the IPv6 pod CIDR of the node.
    pub fn pod_cidr_v6(&self) -> String {
        format!("fd00:244:{}::/64", self.number)
    }
}

/// A pod. The test starts its servers with [`Host::serve`].
#[derive(Debug)]
pub struct Pod {
    pub host: Host,
    /// Name of the node that the pod runs on.
    pub node: String,
}

impl Pod {
    /// Returns the name of the node's end of the pod's veth pair.
    pub fn device(&self) -> String {
        format!("veth-{}", self.host.name)
    }
}

/// The cluster. Dropping it removes everything.
#[derive(Debug)]
pub struct Topology {
    pub client: Host,
    /// A host behind the client, which routes its packets to the nodes. The route back to it has a
    /// smaller MTU than all other routes ([`FAR_MTU`]).
    pub far: Host,
    pub nodes: [Node; 2],
    pub pods: [Pod; 4],
    pub manifests: ManifestDir,
    pub underlay: Underlay,
    pub datapath: AttachMode,
    /// The Ethernet segment.
    segment: Place,
    id: RunId,
}

impl Topology {
    /// Builds the cluster. `tool` is the path of the `lb-testbed` program: it contains all servers
    /// and clients. Needs root.
    pub fn build(underlay: Underlay, datapath: AttachMode, tool: &Path) -> Result<Self> {
        run::sweep_dead()?;
        let id = RunId::claim()?;
        Builder { id: &id, underlay, datapath, tool }.build().map_err(|error| {
            let _ = run::remove_everything_of(&id);
            error.context("build the testbed (it needs root)")
        })
    }

    /// Returns the name of the run that the cluster belongs to.
    pub fn id(&self) -> &RunId {
        &self.id
    }

    /// Returns the folder with the logs of servers and agents.
    pub fn folder(&self) -> PathBuf {
        self.id.folder()
    }

    /// Returns the pods of the node with this 0-based index.
    pub fn pods_of(&self, node: usize) -> &[Pod] {
        &self.pods[node * 2..node * 2 + 2]
    }

    /// Returns the place of the Ethernet segment, which has the other ends of the hosts' links.
    pub fn segment(&self) -> &Place {
        &self.segment
    }

    /// Returns the name of the segment's end of the link of a node's `eth0`.
    pub fn port_of(&self, node: &Node) -> String {
        port(&node.host, "eth0")
    }

    fn node_of(&self, pod: &Pod) -> Result<&Node> {
        self.nodes.iter().find(|node| node.host.name == pod.node).context("every pod is on a node")
    }

    /// Removes the device, addresses and routes of the pod with this 1-based number. Its sockets
    /// stay.
    pub fn unplug(&self, pod: usize) -> Result<()> {
        let pod = &self.pods[pod - 1];
        self.node_of(pod)?.host.place.ip(&format!("link delete {}\n", pod.device()))
    }

    /// Gives an unplugged pod a new device with the same name.
    pub fn plug_in(&self, pod: usize) -> Result<()> {
        let pod = &self.pods[pod - 1];
        plug_in_pod(self.node_of(pod)?, pod, self.underlay)
    }

    /// Returns a host in the network namespace of a pod (1-based number), but outside the cgroups
    /// of all nodes. It stands for a virtual machine: cgroup programs do not see its sockets.
    pub fn virtual_machine(&self, pod: usize) -> Result<Host> {
        let mut host = self.pods[pod - 1].host.clone();
        host.name = format!("vm-{}", host.name);
        host.place = host.place.in_cgroup(self.id.cgroup()?.join(&host.name))?;
        Ok(host)
    }

    /// Tags the TCP and UDP packets that the segment sends to a node (0-based index). `tag` has the
    /// form `id 7 priority 5`. `in_bytes`: the tag is in the bytes of the frame, as from a NIC that
    /// leaves tags alone; otherwise it is stored beside them, as from a NIC that removes tags.
    pub fn tag_frames_to(&self, node: usize, tag: &str, in_bytes: bool) -> Result<()> {
        let device = port(&self.nodes[node].host, "eth0");
        let offload = if in_bytes { "off" } else { "on" };
        self.segment.run("ethtool", ["--offload", &device, "txvlan", offload])?;
        self.tc(&format!("qdisc replace dev {device} clsact"))?;
        for (priority, family, protocol) in
            [(1, "ip", "tcp"), (2, "ip", "udp"), (3, "ipv6", "tcp"), (4, "ipv6", "udp")]
        {
            self.tc(&format!(
                "filter add dev {device} egress protocol {family} prio {priority} flower ip_proto {protocol} \
                 action vlan push {tag}"
            ))?;
        }
        Ok(())
    }

    /// Ends [`Topology::tag_frames_to`].
    pub fn tag_no_frames_to(&self, node: usize) -> Result<()> {
        self.tc(&format!("qdisc delete dev {} clsact", port(&self.nodes[node].host, "eth0")))
    }

    fn tc(&self, arguments: &str) -> Result<()> {
        let done = self.segment.run("tc", arguments.split_whitespace()).map(drop);
        done.map_err(|error| lacks(error, "VLAN actions (CONFIG_NET_CLS_FLOWER, CONFIG_NET_ACT_VLAN)"))
    }

    /// Keeps the cluster when this process ends. [`run::remove_kept`] removes it.
    pub fn keep(self) -> Result<()> {
        self.id.keep()?;
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        // After Ctrl-C this blocks until the signal handler has removed the runs and ends the
        // process.
        let _creating = run::creating();
        if let Err(error) = run::remove_everything_of(&self.id) {
            eprintln!("{error:#}");
        }
    }
}

struct Builder<'a> {
    id: &'a RunId,
    underlay: Underlay,
    datapath: AttachMode,
    tool: &'a Path,
}

impl Builder<'_> {
    fn build(&self) -> Result<Topology> {
        let segment = self.segment()?;
        let client = self.host("client", "client", CLIENT_V4, CLIENT_V6)?;
        self.plug_in(&segment, &client)?;
        let far = self.far(&client)?;
        let nodes = [self.node(&segment, 1)?, self.node(&segment, 2)?];
        self.connect_nodes(&nodes[0], &nodes[1])?;
        self.connect_nodes(&nodes[1], &nodes[0])?;
        client.place.ip(&format!(
            "route add {SERVICE_CIDR_V4} via {}\nroute add {SERVICE_CIDR_V6} via {}\n",
            nodes[0].host.v4, nodes[0].host.v6
        ))?;
        let pods = [
            self.pod(&nodes[0], 1)?,
            self.pod(&nodes[0], 2)?,
            self.pod(&nodes[1], 3)?,
            self.pod(&nodes[1], 4)?,
        ];
        let manifests = ManifestDir::create(&self.id.folder())?;
        let Self { underlay, datapath, .. } = *self;
        Ok(Topology { client, far, nodes, pods, manifests, underlay, datapath, segment, id: self.id.clone() })
    }

    fn host(&self, name: &str, cgroup: &str, v4: Ipv4Addr, v6: Ipv6Addr) -> Result<Host> {
        let place = Place::create(self.id.netns(name), self.id.cgroup()?.join(cgroup))?;
        place.sysctl(&[
            // Make addresses usable at once, not after a second of duplicate address detection.
            "net/ipv6/conf/all/accept_dad=0",
            "net/ipv6/conf/default/accept_dad=0",
            "net/ipv6/conf/default/disable_ipv6=0",
            "net/ipv6/conf/all/disable_ipv6=0",
            "net/ipv4/conf/all/rp_filter=1",
            "net/ipv4/conf/default/rp_filter=1",
            // Allow root to open ping sockets.
            "net/ipv4/ping_group_range=0 0",
        ])?;
        place.ip("link set lo up\n")?;
        Ok(Host::new(name, place, v4, v6, self.tool, self.id.folder()))
    }

    /// Creates the host behind the client. Both ends of the link accept packets of 1500 bytes, so
    /// TCP announces a segment size for 1500 bytes. The client's route to the host has a smaller
    /// MTU, so the client answers larger packets with an ICMP error.
    fn far(&self, client: &Host) -> Result<Host> {
        let far = self.host("far", "far", FAR_V4, FAR_V6)?;
        let (gateway_v4, gateway_v6) = (FAR_GATEWAY_V4, FAR_GATEWAY_V6);
        client.place.ip(&format!(
            "link add far type veth peer name eth0 netns {}\n\
             link set far up\n\
             address add {gateway_v4}/32 dev far\n\
             address add {gateway_v6}/128 dev far nodad\n\
             route add {FAR_V4}/32 dev far mtu lock {FAR_MTU}\n\
             route add {FAR_V6}/128 dev far mtu lock {FAR_MTU}\n",
            far.place.netns()
        ))?;
        client.place.sysctl(&FORWARDING)?;
        far.place.ip(&format!(
            "link set eth0 up\n\
             address add {FAR_V4}/24 dev eth0\n\
             address add {FAR_V6}/64 dev eth0 nodad\n\
             route add default via {gateway_v4}\n\
             route add default via {gateway_v6}\n"
        ))?;
        Ok(far)
    }

    /// Creates the Ethernet segment: a bridge in its own network namespace.
    fn segment(&self) -> Result<Place> {
        let place = Place::create(self.id.netns("net"), self.id.cgroup()?.join("net"))?;
        // Snooping is off so that the first neighbour solicitation already reaches all hosts.
        place.ip("link add br0 type bridge mcast_snooping 0\nlink set br0 up\n")?;
        if self.datapath == AttachMode::Xdp {
            let program = self.pass_program();
            self.mount_bpffs(program.parent().context("the pin path of the program has no folder")?)?;
            pass_programs::pin_xdp(&program)?;
        }
        Ok(place)
    }

    /// Returns the pin path of the XDP program for the segment's ends of the links.
    fn pass_program(&self) -> PathBuf {
        self.id.folder().join("net").join("bpf").join("pass")
    }

    /// Mounts a new BPF file system.
    fn mount_bpffs(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)?;
        let _creating = run::creating();
        command::run(Command::new("mount").args(["-t", "bpf", "none"]).arg(folder)).map(drop)
    }

    /// Gives a host its addresses on the segment, on `eth0`.
    fn plug_in(&self, segment: &Place, host: &Host) -> Result<()> {
        let port = self.link(segment, host, "eth0")?;
        segment.ip(&format!("link set {port} master br0\n"))?;
        add_addresses(host, "eth0")
    }

    /// Gives a node its addresses on the segment, on the device of the underlay.
    fn plug_in_node(&self, segment: &Place, node: &Host) -> Result<()> {
        let device = self.underlay.node_device();
        match self.underlay {
            Underlay::Routed | Underlay::Vxlan => return self.plug_in(segment, node),
            Underlay::Vlan => {
                let port = self.link(segment, node, "eth0")?;
                node.place
                    .ip(&format!("link add link eth0 name {device} type vlan id {VLAN}\n"))
                    .map_err(|error| lacks(error, "VLAN devices (CONFIG_VLAN_8021Q)"))?;
                // Frames are tagged between the node and the segment only.
                segment.ip(&format!(
                    "link add link {port} name {port}.v type vlan id {VLAN}\n\
                     link set {port}.v master br0 up\n"
                ))?;
            }
            Underlay::Bond => {
                node.place
                    .ip(&format!("link add {device} type bond mode active-backup miimon 100\n"))
                    .map_err(|error| lacks(error, "bonds (CONFIG_BONDING)"))?;
                for name in ["eth0", "eth1"] {
                    let port = self.link(segment, node, name)?;
                    segment.ip(&format!("link set {port} master br0\n"))?;
                    // A bond takes only ports that are down.
                    node.place.ip(&format!("link set {name} down\nlink set {name} master {device}\n"))?;
                }
            }
            Underlay::Bridge => {
                let port = self.link(segment, node, "eth0")?;
                segment.ip(&format!("link set {port} master br0\n"))?;
                node.place.ip(&format!(
                    "link add {device} type bridge mcast_snooping 0\nlink set eth0 master {device}\n"
                ))?;
            }
        }
        node.place.ip(&format!("link set {device} up\n"))?;
        add_addresses(node, device)
    }

    /// Connects a host to the segment's namespace. `device` is the name of the host's end. Returns
    /// the name of the other end. Both are up.
    fn link(&self, segment: &Place, host: &Host, device: &str) -> Result<String> {
        let port = port(host, device);
        segment.ip(&format!(
            "link add {port} type veth peer name {device} netns {}\nlink set {port} up\n",
            host.place.netns()
        ))?;
        host.place.ip(&format!("link set {device} up\n"))?;
        if self.datapath == AttachMode::Xdp {
            // Packets of local sockets and packets that GRO merged have partial checksums. Without
            // the offload the kernel completes the checksum before the frame reaches the XDP
            // program of the next device.
            host.place.run("ethtool", ["--offload", device, "tx", "off"])?;
            segment.run("ethtool", ["--offload", &port, "tx", "off"])?;
            if self.underlay == Underlay::Vlan {
                // An XDP program sees a tag only in the bytes of the frame.
                segment.run("ethtool", ["--offload", &port, "txvlan", "off"])?;
            }
            // Frames of XDP_TX arrive only if the other end of the link has an XDP program, too.
            segment.ip(&format!("link set {port} xdpdrv pinned {}\n", self.pass_program().display()))?;
        }
        Ok(port)
    }

    fn node(&self, segment: &Place, number: u8) -> Result<Node> {
        let name = format!("node{number}");
        let v4 = Ipv4Addr::new(10, 10, 0, 10 + number);
        let v6 = Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 0x10 + u16::from(number));
        let host = self.host(&name, &name, v4, v6)?;
        host.place.sysctl(&FORWARDING)?;
        self.plug_in_node(segment, &host)?;
        // The unreachable routes make requests to a missing Service fail at once. Without them the
        // default gateway would drop the packets, and tests would wait for time-outs.
        host.place.ip(&format!(
            "route add default via {CLIENT_V4}\n\
             route add default via {CLIENT_V6}\n\
             route add unreachable {SERVICE_CIDR_V4}\n\
             route add unreachable {SERVICE_CIDR_V6}\n"
        ))?;
        let bpffs = self.id.folder().join(&name).join("bpf");
        self.mount_bpffs(&bpffs)?;
        let pods6 = |last| Ipv6Addr::new(0xfd00, 0x244, number.into(), 0, 0, 0, 0, last);
        Ok(Node {
            host,
            bpffs,
            overlay_v4: Ipv4Addr::new(10, 244, number, 0),
            overlay_v6: pods6(0),
            gateway_v4: Ipv4Addr::new(10, 244, number, 1),
            gateway_v6: pods6(1),
            number,
        })
    }

    fn pod(&self, node: &Node, number: u8) -> Result<Pod> {
        let name = format!("pod{number}");
        let last = 10 + (number - 1) % 2 + 1;
        let v4 = Ipv4Addr::new(10, 244, node.number, last);
        let last6 = 0x10 + u16::from((number - 1) % 2 + 1);
        let v6 = Ipv6Addr::new(0xfd00, 0x244, node.number.into(), 0, 0, 0, 0, last6);
        let host = self.host(&name, &format!("{}/{name}", node.host.name), v4, v6)?;
        let pod = Pod { host, node: node.host.name.clone() };
        plug_in_pod(node, &pod, self.underlay)?;
        Ok(pod)
    }

    /// Makes the pods of `peer` reachable from `node`.
    fn connect_nodes(&self, node: &Node, peer: &Node) -> Result<()> {
        let (cidr_v4, cidr_v6) = (peer.pod_cidr_v4(), peer.pod_cidr_v6());
        let (v4, v6) = (peer.host.v4, peer.host.v6);
        let mut script = String::new();
        match self.underlay {
            Underlay::Routed | Underlay::Vlan | Underlay::Bond | Underlay::Bridge => {
                write!(script, "route add {cidr_v4} via {v4}\nroute add {cidr_v6} via {v6}\n")?;
            }
            Underlay::Vxlan => {
                let (own_mac, mac) = (vtep_mac(node, 4), vtep_mac(peer, 4));
                let (own_v4, peer_v4) = (node.overlay_v4, peer.overlay_v4);
                write!(
                    script,
                    "link add flannel.1 address {own_mac} mtu {OVERLAY_MTU} type vxlan id 1 local {} dev eth0 dstport 8472 nolearning\n\
                     address add {own_v4}/32 dev flannel.1\n\
                     link set flannel.1 up\n\
                     neighbour add {peer_v4} lladdr {mac} dev flannel.1 nud permanent\n\
                     route add {cidr_v4} via {peer_v4} dev flannel.1 onlink\n",
                    node.host.v4
                )?;
                let (own_mac, mac) = (vtep_mac(node, 6), vtep_mac(peer, 6));
                let (own_v6, peer_v6) = (node.overlay_v6, peer.overlay_v6);
                write!(
                    script,
                    "link add flannel-v6.1 address {own_mac} mtu {OVERLAY_MTU} type vxlan id 1 local {} dev eth0 dstport 8472 nolearning udp6zerocsumrx\n\
                     address add {own_v6}/128 dev flannel-v6.1 nodad\n\
                     link set flannel-v6.1 up\n\
                     neighbour add {peer_v6} lladdr {mac} dev flannel-v6.1 nud permanent\n\
                     route add {cidr_v6} via {peer_v6} dev flannel-v6.1 onlink\n",
                    node.host.v6
                )?;
            }
        }
        node.host.place.ip(&script)?;
        if self.underlay == Underlay::Vxlan {
            let forwarding = |device: &str, family: u8, to: &dyn std::fmt::Display| {
                let script =
                    format!("fdb add {} dev {device} dst {to} self permanent\n", vtep_mac(peer, family));
                node.host.place.run("bridge", script.split_whitespace()).map(drop)
            };
            forwarding("flannel.1", 4, &v4)?;
            forwarding("flannel-v6.1", 6, &v6)?;
        }
        Ok(())
    }
}

/// Returns the name of the segment's end of a host's link.
fn port(host: &Host, device: &str) -> String {
    match device {
        "eth0" => format!("port-{}", host.name),
        other => format!("{other}-{}", host.name),
    }
}

/// Adds the addresses of a host on the segment to one of its devices.
fn add_addresses(host: &Host, device: &str) -> Result<()> {
    host.place.ip(&format!(
        "address add {}/24 dev {device}\naddress add {}/64 dev {device} nodad\n",
        host.v4, host.v6
    ))
}

/// Gives a pod its `eth0`. The other end of the veth pair is `veth-<pod>` on the node.
fn plug_in_pod(node: &Node, pod: &Pod, underlay: Underlay) -> Result<()> {
    let mtu = if underlay == Underlay::Vxlan { OVERLAY_MTU } else { 1500 };
    let device = pod.device();
    let (v4, v6) = (pod.host.v4, pod.host.v6);
    let (gateway_v4, gateway_v6) = (node.gateway_v4, node.gateway_v6);
    node.host.place.ip(&format!(
        "link add {device} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}\n\
         link set {device} up\n\
         address add {gateway_v4}/32 dev {device}\n\
         address add {gateway_v6}/128 dev {device} nodad\n\
         route add {v4}/32 dev {device}\n\
         route add {v6}/128 dev {device}\n",
        pod.host.place.netns()
    ))?;
    pod.host.place.ip(&format!(
        "link set eth0 up\n\
         address add {v4}/32 dev eth0\n\
         address add {v6}/128 dev eth0 nodad\n\
         route add {gateway_v4}/32 dev eth0\n\
         route add {gateway_v6}/128 dev eth0\n\
         route add default via {gateway_v4} dev eth0\n\
         route add default via {gateway_v6} dev eth0\n"
    ))
}

/// Returns the (locally administered) MAC address of a node's VXLAN device for family 4 or 6.
fn vtep_mac(node: &Node, family: u8) -> String {
    format!("02:00:00:00:{family:02x}:{:02x}", node.number)
}

/// Returns the path of a program that cargo built in the same folder as the running one.
pub fn sibling_program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("find the running program")?;
    let folder = own.parent().context("the running program has no folder")?;
    // Cargo places test programs in `deps/`.
    let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
    Ok(folder.join(name))
}
